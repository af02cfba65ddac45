"""CG-DETR (Moon et al., arXiv 2311.08835): moments and highlights of a video for a query.

Written after a description of what the public code computes (github wjun0830/CGDETR, commit 212b2e49), which names its
quirks; they are kept, as trained weights depend on them. Suffixes: N samples, L clips, T words, K dummies, Q queries,
d width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tpo_head_temporal.alignment import Alignment
from tpo_head_temporal.config import TemporalConfig
from tpo_head_temporal.cross_attention import TextToVideo, cross_mask
from tpo_head_temporal.decoder import Decoder
from tpo_head_temporal.layers import Encoder, Projection, Tokens, key_mask
from tpo_head_temporal.positions import clip_clock, sine_code
from tpo_head_temporal.saliency import SaliencyScore, SaliencyToken

TEXT, VIDEO = 0, 1


class Dummies(nn.Module):
    """Learned tokens that read the query and later absorb the attention which no word deserves."""

    def __init__(self, num: int, num_layers: int, width: int, feed_forward: int, dropout: float) -> None:
        super().__init__()
        self.tokens, self.positions = Tokens(num, width), Tokens(num, width)
        # Eight heads and dropout 0.1 whatever the configuration, as in the public code.
        self.encoder = Encoder(num_layers, width, 8, feed_forward, 0.1 if dropout else 0.0)

    def forward(self, words: Tensor, word_mask: Tensor) -> tuple[Tensor, Tensor]:
        """The dummies of each query and their positions, both [N, K, d]."""
        tokens, pos = (x().expand(len(words), -1, -1) for x in (self.tokens, self.positions))
        x = torch.cat((tokens, words), 1)
        there = key_mask(torch.cat((torch.ones_like(tokens[..., 0]), word_mask), 1))
        return self.encoder(x, torch.cat((pos, torch.zeros_like(words)), 1), there, first=tokens.shape[1]), pos


class Trunk(nn.Module):
    """From clips and words to the decoder's memory and a saliency score for each clip."""

    def __init__(self, config: TemporalConfig) -> None:
        super().__init__()
        sizes = (config.hidden, config.num_heads, config.feed_forward, config.dropout)
        self.num_heads, self.reference_masks = config.num_heads, config.reference_masks
        self.text_to_video = TextToVideo(config.cross_layers, *sizes)
        self.token = SaliencyToken(config.hidden, config.total_prompts, config.num_prompts)
        self.encoder = Encoder(config.encoder_layers, *sizes)
        self.score = SaliencyScore(config.hidden)

    def forward(self, query: dict[str, Tensor]) -> dict[str, Tensor]:
        """Reads of `query` the projected `video`, `words` and `dummies`, their positions and masks.

        Gives `memory` [N, L, d], `saliency` [N, L], `attention` [N, L, K + T] (mean over heads and layers, dummies
        first), `word_attention` [N, L], its sum over words in 0 to 1, and `prompt_overlap` [N].
        """
        video, pos, clip_mask = query["video"], query["video_pos"], query["frame_mask"]
        words, dummies, word_mask = query["words"], query["dummies"], query["word_mask"]
        keys = torch.cat((dummies + query["dummy_pos"], words), 1)
        there = torch.cat((torch.ones_like(dummies[..., 0]), word_mask), 1)
        mask = cross_mask(clip_mask, there, self.num_heads, self.reference_masks)
        seen, attention = self.text_to_video(video, pos, keys, words, mask)
        on_words = (attention[..., dummies.shape[1] :] * word_mask[:, None]).sum(-1)
        token, token_pos, prompt_overlap = self.token(video, clip_mask, on_words)
        token = self.text_to_video.without_keys(token)[:, None]
        sequence = torch.cat((token, seen), 1)
        there = torch.cat((torch.ones_like(clip_mask[:, :1]), clip_mask), 1)
        encoded = self.encoder(sequence, torch.cat((token_pos, pos), 1), key_mask(there))
        whole, memory = encoded[:, 0], encoded[:, 1:] + encoded[:, :1]
        return {
            "memory": memory,
            "saliency": self.score(memory, whole),
            "attention": attention,
            "word_attention": on_words.clamp(0, 1),
            "prompt_overlap": prompt_overlap,
        }


class CGDETR(nn.Module):
    """The network. Its forward is what inference needs; `negatives` and `alignment` are for the losses."""

    def __init__(self, config: TemporalConfig, video_size: int, text_size: int) -> None:
        """`video_size` and `text_size` are the widths of the features, the endpoint columns of the video included."""
        super().__init__()
        d, dropout = config.hidden, config.dropout
        inner = [d] * config.input_layers
        self.reference_masks = config.reference_masks
        self.project_video = Projection([video_size, *inner], config.input_dropout)
        self.project_text = Projection([text_size, *inner], config.input_dropout)
        self.types = Tokens(2, d, std=0.02)
        self.dummies = Dummies(config.num_dummies, config.dummy_layers, d, config.feed_forward, dropout)
        self.trunk = Trunk(config)
        sizes = (d, config.num_heads, config.feed_forward, dropout)
        self.decoder = Decoder(config.decoder_layers, config.num_queries, *sizes)
        self.alignment = Alignment(config.moment_layers, config.sentence_layers, *sizes)
        zero = self.decoder.anchor_update.layers[-1]
        for part in (self.trunk.text_to_video, self.trunk.encoder, self.decoder, self.alignment.moment.encoder):
            for module in part.modules():
                if isinstance(module, nn.Linear) and module is not zero:  # at which the anchor update starts
                    nn.init.xavier_uniform_(module.weight)

    def forward(
        self, video: Tensor, clip_mask: Tensor, text: Tensor, word_mask: Tensor, clock: Tensor | None = None
    ) -> dict[str, Tensor]:
        """`video` [N, L, video_size], `text` [N, T, text_size]; masks [N, L] and [N, T], 1 where something is there.

        `clock` [N, L] is where in the video each clip ends, 0 to 1; by default all clips are equally long. Gives what
        `Trunk` and `Decoder` give, and what they were given.
        """
        clock = clip_clock(clip_mask) if clock is None else clock
        types = self.types()
        words = self.project_text(text) + types[TEXT]
        dummies, dummy_pos = self.dummies(words, word_mask)
        query = {
            "video": self.project_video(video) + types[VIDEO],
            "video_pos": sine_code(clock, types.shape[-1]),
            "frame_mask": clip_mask,
            "words": words,
            "word_mask": word_mask,
            "dummies": dummies,
            "dummy_pos": dummy_pos,
        }
        trunk = self.trunk(query)
        return query | trunk | self.decoder(trunk["memory"], query["video_pos"], clip_mask)

    def negatives(self, outputs: dict[str, Tensor], real: Tensor) -> dict[str, Tensor]:
        """Saliency and attention of each video for the next sample's query (the last takes the first's).

        `real` bool [N] says where that query is about another video. All rows are computed, so that nothing waits for
        the device; only with `reference_masks`, where a row depends on which others are there, the real ones alone.
        Gives `saliency` and `word_attention` [N, L]; rows that are not real mean nothing.
        """
        text = ("words", "word_mask", "dummies", "dummy_pos")
        query = {name: outputs[name].roll(-1, 0) for name in text}
        query |= {name: outputs[name] for name in ("video", "video_pos", "frame_mask")}
        if not self.reference_masks:
            trunk = self.trunk(query)
            return {name: trunk[name] for name in ("saliency", "word_attention")}
        rows = real.nonzero()[:, 0]
        trunk = self.trunk({name: value[rows] for name, value in query.items()})
        empty = torch.zeros_like(outputs["saliency"])
        return {name: empty.index_copy(0, rows, trunk[name]) for name in ("saliency", "word_attention")}
