"""Spans in seconds and a saliency curve for each task token.

Suffixes: N task tokens in the batch, B its rows, D the host's hidden size, L clips, T words, Q queries, C width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import tpo_plugin as tpo
from tpo_head_temporal.clip import Clip
from tpo_head_temporal.codec import TemporalCodec
from tpo_head_temporal.config import TemporalConfig
from tpo_head_temporal.importing import load_imported
from tpo_head_temporal.inputs import append_word, merged_clips, normalised
from tpo_head_temporal.losses import criterion
from tpo_head_temporal.metrics import TemporalMetrics
from tpo_head_temporal.network import CGDETR
from tpo_head_temporal.positions import to_start_end
from tpo_head_temporal.postprocess import suppress
from tpo_head_temporal.targets import make_targets, mix_videos

if TYPE_CHECKING:
    from pathlib import Path


class TemporalHead(TemporalCodec, tpo.TaskHead):
    """CG-DETR, whose query is the question's words and, behind the last of them, the task embedding."""

    external = ("clip.",)

    def __init__(self, config: TemporalConfig, hidden_size: int, vision_size: int | None = None) -> None:
        super().__init__()
        self.config = config
        self.clip = Clip(config) if config.features == "clip" else None
        # A host without a vision tower can carry the head; asked a question, it is told that there are no features.
        self.video_size = config.video_size or vision_size or hidden_size
        self.text_size = config.text_size or hidden_size
        if self.clip is not None:
            self.video_size, self.text_size = self.clip.video_size, self.clip.text_size
        self.adapter = tpo.Linear(hidden_size, self.text_size) if self.text_size != hidden_size else None
        self.network = CGDETR(config, self.video_size + 2, self.text_size)
        if config.init_from is not None:
            sizes = {"video_size": self.video_size, "text_size": self.text_size}
            load_imported(self.network, config, config.init_from, sizes)
            config.init_from = None

    # -- forward -------------------------------------------------------------------------------------------------------

    def forward(
        self,
        e_ND: Tensor,
        inputs: dict[str, Any] | None = None,
        batch_rows: Tensor | None = None,
        seen: tpo.HostFeatures | None = None,
    ) -> dict[str, Tensor]:
        """From task embeddings to predictions, and what the losses need besides.

        `spans_s` [N, Q, 2] in seconds inside the video and their `scores` [N, Q], the best first; `saliency` [N, L],
        unbounded; `frame_mask` [N, L], `times_s` [N, L] and `duration_s` [N].
        """
        inputs, batch_rows = self._given(e_ND, inputs, batch_rows)
        rows = {name: value[batch_rows] for name, value in inputs.items()}
        clips_s, mask, video = self._clips(e_ND, rows, seen)
        text, word_mask = self._words(e_ND, rows, seen)
        duration_s = rows["duration_s"]
        relative = clips_s / duration_s.clamp(min=1e-6)[:, None, None]
        video = torch.cat((video, relative[..., 1:]), -1) * mask[..., None]
        attended = mask.clone()
        attended[:, :1] = 1.0  # a task token without a video: nothing is predicted, and nothing becomes NaN
        clock = torch.where(mask > 0, relative[..., 2], 1.0)
        outputs = self.network(video, attended, text, word_mask, clock)
        outputs |= {"clips_s": clips_s, "times_s": clips_s[..., 0], "frame_mask": mask}
        outputs |= {"duration_s": duration_s}
        outputs |= {name: rows[name].float() for name in ("video_group", "question_group")}
        if not len(e_ND):
            outputs["saliency"] = outputs["saliency"] + self._touch(outputs)
        return outputs | self._spans(outputs)

    def _spans(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        scores, order = outputs["logits"][:, -1].softmax(-1)[..., 0].sort(descending=True, stable=True)
        spans = to_start_end(outputs["spans_cw"][:, -1]).clamp(0, 1) * outputs["duration_s"][:, None, None]
        return {"spans_s": spans.gather(1, order[..., None].expand(-1, -1, 2)), "scores": scores}

    def _touch(self, outputs: dict[str, Tensor]) -> Tensor:
        """A zero that depends on what only the losses use: an empty batch has no losses, and misses no gradient."""
        negatives = self.network.negatives(outputs, outputs["video_group"] > 0)
        aligned = self.network.alignment(outputs, outputs["frame_mask"])
        return torch.stack([value.sum() for value in (*negatives.values(), *aligned.values())]).sum()

    def _given(
        self, e_ND: Tensor, inputs: dict[str, Any] | None, batch_rows: Tensor | None
    ) -> tuple[dict[str, Any], Tensor]:
        """What `collate_inputs` made, with the features of the CLIP in the place of what it reads."""
        if inputs is None or batch_rows is None or not len(inputs["duration_s"]):
            if len(e_ND):
                raise tpo.TPOError(
                    "temporal: task_inputs['temporal'] is missing; expected what collate_inputs makes of the samples "
                    "(TPOCollator puts it into the batch)"
                )
            inputs = {name: value.to(e_ND.device) for name, value in self.collate_inputs([], []).items()}
            batch_rows = torch.zeros(0, dtype=torch.int64, device=e_ND.device)
        if self.clip is None:
            return inputs, batch_rows
        read = ("pixels", "word_ids")
        given = {name: value for name, value in inputs.items() if name not in read}
        if len(e_ND) and inputs["pixels"].shape[1]:
            video, words = self.clip(*(inputs[name] for name in read))
            if self.config.normalise:
                video, words = normalised(video), normalised(words)
        else:
            video = e_ND.new_zeros(len(inputs["duration_s"]), 0, self.video_size)
            words = e_ND.new_zeros(len(inputs["duration_s"]), 0, self.text_size)
        return given | {"video": video, "words": words}, batch_rows

    def _clips(
        self, e_ND: Tensor, rows: dict[str, Tensor], seen: tpo.HostFeatures | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Time, start and end of each clip [N, L, 3], their mask [N, L] and features [N, L, C]; L at least 1."""
        clips_s, num_clips = rows["clips_s"], rows["num_clips"]
        if not len(e_ND) or not clips_s.shape[1]:
            empty = e_ND.new_zeros(len(e_ND), 1, self.video_size)
            return e_ND.new_zeros(len(e_ND), 1, 3), empty[..., 0], empty
        if self.config.features != "host":
            mask = torch.arange(clips_s.shape[1], device=e_ND.device) < num_clips[:, None]
            return clips_s, mask.float(), rows["video"]
        video, there = _states(seen).vision, _states(seen).vision_mask
        if video.shape[-1] != self.video_size:
            raise tpo.TPOError(
                f"temporal: the host's vision tower gives {video.shape[-1]} numbers a frame, the head was built for "
                f"{self.video_size}"
            )
        merged_s, mask = merged_clips(clips_s, num_clips, there.sum(1).float(), video.shape[1])
        return merged_s, mask, normalised(video) if self.config.normalise else video

    def _words(self, e_ND: Tensor, rows: dict[str, Tensor], seen: tpo.HostFeatures | None) -> tuple[Tensor, Tensor]:
        """Words [N, T, C], the task embedding behind the last, and their mask [N, T]."""
        if not len(e_ND):
            text, mask = e_ND.new_zeros(0, 0, self.text_size), e_ND.new_zeros(0, 0)
        elif "words" in rows:
            text = rows["words"]
            mask = torch.arange(text.shape[1], device=text.device) < rows["num_words"][:, None]
        else:
            states = _states(seen)
            text, mask = states.words if self.config.text == "words" else states.text, states.text_mask
            if text.shape[-1] != self.text_size:
                raise tpo.TPOError(
                    f"temporal: the host's {self.config.text} have {text.shape[-1]} numbers each, the head was built "
                    f"for {self.text_size}; set text_size to {text.shape[-1]}"
                )
            text = normalised(text) if self.config.normalise else text
        word = e_ND if self.adapter is None else self.adapter(e_ND)
        return append_word(text, mask.float(), word)

    # -- loss ----------------------------------------------------------------------------------------------------------

    def loss(self, outputs: dict[str, Tensor], targets: dict[str, Any], num_targets: Tensor | int) -> dict[str, Tensor]:
        """`targets`: `spans_s`, N tensors [M_n, 2] in seconds; optionally `saliency`, N tensors [K_n] in 0 to 12, and
        `clip_s` [N], the seconds that each of those values covers.

        The public code's losses by its names, weighted. They are means over the batch there; here they are that mean
        times N / num_targets, the same number where the batch is all there is. With `reference_losses` off they are
        sums over samples, but for what compares a sample with its batch: negative queries, and `loss_ms_align`.
        """
        num = len(outputs["duration_s"])
        config = self.config
        weights = config.loss_weights()
        if not num:
            zero = torch.stack([value.sum() for value in outputs.values()]).sum()
            return dict.fromkeys(weights, zero)
        truth = make_targets(outputs, targets)
        if not config.reference_losses:
            outputs, truth = mix_videos(outputs, truth)
        negatives = self.network.negatives(outputs, truth.real)
        aligned = self.network.alignment(outputs, (truth.saliency > 0).float())
        losses = criterion(
            outputs,
            negatives,
            aligned,
            truth,
            margin=config.margin,
            background=config.background_weight,
            attention_weight=config.attention_weight,
            costs=config.matcher_costs(),
            reference=config.reference_losses,
        )
        return {name: weight * losses[name] * num / num_targets for name, weight in weights.items()}

    # -- results -------------------------------------------------------------------------------------------------------

    def postprocess(self, outputs: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """For each task token `spans_s` [K, 2] in seconds and `scores` [K], the best first, and `saliency` [F] at
        `times_s` [F]. All are empty where the sample has no video.
        """
        there = outputs["frame_mask"].bool()
        values = []
        for i in range(len(there)):
            spans_s, scores = outputs["spans_s"][i], outputs["scores"][i]
            kept = suppress(spans_s, scores, self.config.nms)[: None if there[i].any() else 0]
            curve = {"saliency": outputs["saliency"][i][there[i]], "times_s": outputs["times_s"][i][there[i]]}
            values.append({"spans_s": spans_s[kept], "scores": scores[kept], **curve})
        return values

    def score(self, outputs: dict[str, Tensor]) -> Tensor:
        """The foreground probability of the best span, [N]."""
        return outputs["scores"][:, 0]

    def benchmarks(self) -> dict[str, tpo.Benchmark]:
        from tpo_head_temporal.benchmarks import benchmarks

        return benchmarks()

    def metrics(self) -> tpo.HeadMetrics:
        return TemporalMetrics(self)

    def draw_video(self, video: tpo.VideoClip, values: list[Any], path: Path) -> Path:
        """A timeline with thumbnails, the curve and the spans, as a PNG."""
        from tpo_head_temporal.timeline import draw_timeline

        return draw_timeline(video, values, path=path)


def _states(seen: tpo.HostFeatures | None) -> tpo.HostFeatures:
    if seen is None:
        raise tpo.TPOError("temporal: the head looks at the host's own states and got none (`seen`)")
    return seen
