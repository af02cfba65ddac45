"""Conversations as padded token rows with their pictures, for pretraining. Same tokens as the processor's.

B rows (pictures first, then clips), T tokens, A answer tokens in the batch, G patches, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, PreTrainedTokenizerFast

from tpo_shapes.host import ASSISTANT, END, SPECIAL, USER
from tpo_shapes.pool import Pool, normalise
from tpo_shapes.questions import Turn
from tpo_shapes.world import CLIP_TIMES


def _grid(config: LlavaOnevisionConfig) -> int:
    return config.vision_config.image_size // config.vision_config.patch_size


def image_prefix(config: LlavaOnevisionConfig) -> list[int]:
    """The tokens of a picture of one tile: the base view, then the tile with a newline behind each row."""
    grid = _grid(config)
    return [config.image_token_id] * (2 * grid**2 + grid)


def video_prefix(config: LlavaOnevisionConfig) -> list[int]:
    """The tokens of a clip: each frame pooled by two, one newline at the end."""
    return [config.video_token_id] * (len(CLIP_TIMES) * (_grid(config) // 2) ** 2 + 1)


def vision_features(
    model: LlavaOnevisionForConditionalGeneration, pixels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the host takes from its vision tower, [B, G, D], and the mean over patches of what the tower gives, [B, D].

    `pixels` [B, 3, P, P] are normalised. The host takes the states before the tower's last norm; the mean is of those
    behind it, which is what a head sees of a frame.
    """
    seen = model.model.vision_tower(pixels, output_hidden_states=True)
    return seen.hidden_states[model.config.vision_feature_layer], seen.last_hidden_state.mean(1)


@dataclass
class Batch:
    """A batch of conversations."""

    ids_BT: torch.Tensor
    pictures: torch.Tensor
    """[b, 3, P, P] uint8."""
    clips: torch.Tensor
    """[B - b, F, 3, P, P] uint8."""
    classes: torch.Tensor
    """[all frames, G], see `Pool`."""
    boxes_xyxy: torch.Tensor
    """[all frames, G, 4]."""
    present: torch.Tensor
    """[all frames, things]."""
    number: torch.Tensor
    """[all frames]."""
    positions: torch.Tensor
    """[A] places in the flat ids whose hidden state says the next answer token."""
    targets: torch.Tensor
    """[A] those answer tokens."""
    target_rows: torch.Tensor
    """[A] the row of each."""

    def asked(self) -> torch.Tensor:
        """Places in the flat ids of the questions' words."""
        words = (self.ids_BT >= len(SPECIAL)).flatten()
        return words.index_fill(0, self.positions + 1, False).nonzero()[:, 0]

    def forward(self, model: LlavaOnevisionForConditionalGeneration) -> tuple[torch.Tensor, ...]:
        """Last hidden states at the answer positions [A, D], and of all frames what `vision_features` gives."""
        hidden, patches, frames = self.encode(model, model.get_input_embeddings()(self.ids_BT))
        return hidden.flatten(0, 1)[self.positions], patches, frames

    def encode(self, model: LlavaOnevisionForConditionalGeneration, embeds: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Hidden states [B, T, D] and what `vision_features` gives, from token embeddings [B, T, D]."""
        inner, config = model.model, model.config
        num_pictures, grid = len(self.pictures), _grid(config)
        patches, whole = vision_features(model, normalise(torch.cat([self.pictures, self.clips.flatten(0, 1)])))
        tokens = inner.multi_modal_projector(patches)
        base, frames = tokens[:num_pictures], tokens[num_pictures:]
        width = base.shape[-1]
        newline = inner.image_newline.expand(num_pictures, grid, 1, width)
        tile = torch.cat([base.view(num_pictures, grid, grid, width), newline], 2).flatten(1, 2)
        embeds = embeds.masked_scatter((self.ids_BT == config.image_token_id)[..., None], torch.cat([base, tile], 1))
        if len(self.clips):
            pooled = inner.apply_pooling(frames).reshape(len(self.clips), -1, width)
            pooled = torch.cat([pooled, inner.image_newline.expand(len(self.clips), 1, width)], 1)
            embeds = embeds.masked_scatter((self.ids_BT == config.video_token_id)[..., None], pooled)
        # Rows are padded on the right, where a causal model needs no mask.
        hidden = inner.language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
        return hidden, patches, whole


class Packer:
    """Turns into token rows."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, picture: list[int], clip: list[int]) -> None:
        self.prefixes = (picture, clip)
        self.pad = tokenizer.pad_token_id
        self.user, self.assistant, self.end = tokenizer.convert_tokens_to_ids([USER, ASSISTANT, END])
        self.ids = cache(lambda text: tuple(tokenizer(text, add_special_tokens=False)["input_ids"]))

    def row(self, prefix: list[int], turns: list[Turn]) -> tuple[list[int], list[int]]:
        """Token ids of a conversation, and the positions of its answer tokens. A question without answer ends it."""
        ids: list[int] = []
        answers: list[int] = []
        for turn in turns:
            ids += [self.user, *([] if ids else prefix), *self.ids(turn.question), self.assistant]
            if not turn.answer:
                break
            answer = [*self.ids(turn.answer), self.end]
            answers += range(len(ids), len(ids) + len(answer))
            ids += answer
        return ids, answers

    def pack(self, pools: tuple[Pool, Pool], rows: list[list[int]], talks: list[list[list[Turn]]]) -> Batch:
        """A batch from chosen scenes of the picture pool and the clip pool, and a conversation about each."""
        packed = [self.row(self.prefixes[i], turns) for i in range(2) for turns in talks[i]]
        length = max(len(ids) for ids, _ in packed)
        ids = torch.full((len(packed), length), self.pad)
        for index, (row, _) in enumerate(packed):
            ids[index, : len(row)] = torch.tensor(row)
        target_rows = torch.tensor([index for index, (_, answers) in enumerate(packed) for _ in answers])
        places = torch.tensor([place for _, answers in packed for place in answers])
        positions = target_rows * length + places - 1

        def labels(name: str) -> torch.Tensor:
            return torch.cat([getattr(p, name)[chosen].flatten(0, 1) for p, chosen in zip(pools, rows, strict=True)])

        return Batch(
            ids_BT=ids,
            pictures=pools[0].pixels[rows[0], 0],
            clips=pools[1].pixels[rows[1]],
            classes=labels("classes"),
            boxes_xyxy=labels("boxes_xyxy"),
            present=labels("present"),
            number=labels("number"),
            positions=positions,
            targets=ids.flatten()[positions + 1],
            target_rows=target_rows,
        )
