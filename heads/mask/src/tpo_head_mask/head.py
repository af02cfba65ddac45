"""Masks from task embeddings, by SAM 2. N task tokens, M boxes that users give, D the host's width, C SAM 2's,
T frames of a target, S side of SAM 2's input, G = S / 16."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tpo_plugin as tpo
from tpo_head_mask.backends.base import PROMPT_VECTORS, Features
from tpo_head_mask.cache import EmbeddingCache, concatenated, hash_of_weights, rounded
from tpo_head_mask.checkpoints import build_backend
from tpo_head_mask.codec import MaskCodec
from tpo_head_mask.config import MaskConfig
from tpo_head_mask.decoding import decode_clips
from tpo_head_mask.drawing import draw_masks, draw_video, fitted
from tpo_head_mask.inputs import Medium
from tpo_head_mask.losses import box_loss, pixel_losses, prompt_loss
from tpo_head_mask.streaming import decoded_values, track_rows, with_given_boxes

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger(__name__)

CENTRED_BOX = (0.25, 0.25, 0.75, 0.75)
LEGIBLE_SIDE = 640
"""Pixels of the longer side that a video is drawn at, at least about so many."""
_UNTRAINED = "mask: the weights of SAM 2 are untrained (no checkpoint, and train is %r), so the masks mean nothing"


class MaskMLP(nn.Module):
    """Two layers with a ReLU between them and a linear output, as in the authors' code."""

    def __init__(self, in_features: int, hidden_features: int, out_features: int) -> None:
        super().__init__()
        self.fc1 = tpo.Linear(in_features, hidden_features)
        self.fc2 = tpo.Linear(hidden_features, out_features)

    def forward(self, input: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(input)))

    def start_at(self, output: Tensor) -> None:
        """Makes it give nearly `output`, whatever it gets."""
        with torch.no_grad():
            self.fc2.weight.mul_(0.1)
            self.fc2.bias.copy_(output.flatten())


class MaskHead(MaskCodec, tpo.TaskHead):
    """A task embedding becomes a prompt of SAM 2, in place of the embedding of a box."""

    def __init__(self, config: MaskConfig, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        self.sam = build_backend(config)
        width = self.sam.architecture.hidden_size
        self.adapter = MaskMLP(hidden_size, hidden_size, PROMPT_VECTORS * width)
        self.encoder = MaskMLP(4, hidden_size // 2, hidden_size)
        self.box_decoder = MaskMLP(hidden_size, hidden_size, 4) if "prompt" in config.losses else None
        centred = torch.tensor([CENTRED_BOX])
        with torch.no_grad():
            self.adapter.start_at(self.sam.embed_boxes(centred))
        if self.box_decoder is not None:
            self.box_decoder.start_at(centred)
        self.trained: Tensor
        self.register_buffer("trained", torch.tensor(config.checkpoint is not None))
        """Whether SAM 2's weights mean anything: they were loaded, or have been trained."""
        self._freeze()
        self._warned = False

    @cached_property
    def cache(self) -> EmbeddingCache | None:
        """Kept image embeddings; those of an encoder without a checkpoint go by its weights."""
        if self.config.cache_dir is None:
            return None
        sha256 = self.config.checkpoint_sha256 or hash_of_weights(self.sam)
        return EmbeddingCache(self.config.cache_dir, sha256, self.image_size)

    def _freeze(self) -> None:
        """Leaves trainable what the config says; what a checkpoint's file holds and nothing trains is not saved."""
        train = self.config.train
        self.sam.requires_grad_(train == "all")
        for parameter in self.sam.decoder_parameters():
            parameter.requires_grad_(train != "nothing")
        if self.config.checkpoint is not None:
            learns = {name for name, p in self.sam.named_parameters() if p.requires_grad}
            self.external = tuple(f"sam.{name}" for name in self.sam.state_dict() if name not in learns)

    # -- computing -----------------------------------------------------------------------------------------------------

    def forward(self, e_ND: Tensor, inputs: dict[str, Any] | None = None, batch_rows: Tensor | None = None) -> Any:
        """`prompt_embeddings` [N, 3, C], and with the prompt loss `boxes_xyxy` [N, 4], both unbounded.

        With `inputs` for training (see `inputs.FrameLoader`) also `mask_logits` [N, T, 4 G, 4 G], `iou` [N, T],
        `object_score_logits` [N, T], 0 behind a target's last frame; `num_frames` [N] and `sizes` [N, 2]. With `inputs`
        for generation (`media`) instead `tracks`: N values as `postprocess` gives them.
        """
        inputs = inputs or {}
        prompts = self.adapter(e_ND).unflatten(-1, (PROMPT_VECTORS, -1))
        if self.config.given_box == "sam2" and inputs.get("media") and batch_rows is not None:
            prompts = with_given_boxes(self.sam, prompts, inputs["media"], batch_rows.tolist())
        outputs = {"prompt_embeddings": prompts}
        if self.box_decoder is not None:
            outputs["boxes_xyxy"] = self.box_decoder(e_ND)
        return outputs | self._masks(prompts, inputs, batch_rows)

    def from_boxes(self, boxes_xyxy: Tensor, inputs: dict[str, Any], batch_rows: Tensor | None = None) -> Any:
        """As `forward`, with boxes [N, 4] (0 to 1), embedded by SAM 2 itself, in place of task embeddings: the upper
        bound of what they can reach, and how a SAM 2 without a checkpoint is trained first."""
        prompts = self.sam.embed_boxes(boxes_xyxy)
        own = {"prompt_embeddings": prompts, "boxes_xyxy": boxes_xyxy}
        return own | self._masks(prompts, inputs, batch_rows)

    def _masks(self, prompts: Tensor, inputs: dict[str, Any], batch_rows: Tensor | None) -> dict[str, Any]:
        if "frame_index" in inputs:
            return self._decode(prompts, inputs)
        if len(prompts) and inputs.get("media"):
            assert batch_rows is not None
            return {"tracks": self._track(prompts, inputs["media"], batch_rows.tolist())}
        if "pixel" not in self.config.losses:
            return {}
        if len(prompts):
            raise tpo.TPOError(
                f"mask: the batch has {len(prompts)} task token(s) and task_inputs['mask'] has no frames; expected "
                "what collate_inputs makes of the samples (TPOCollator), 'media' in generation"
            )
        return self._decode(prompts, {"frame_index": [], "sizes": torch.zeros(0, 2)})

    def _decode(self, prompts: Tensor, inputs: dict[str, Any]) -> dict[str, Tensor]:
        index = inputs["frame_index"]
        if len(index) != len(prompts):
            raise tpo.TPOError(
                f"mask: the batch has {len(prompts)} task token(s), task_inputs['mask'] the frames of {len(index)} "
                "target(s); expected one for each, in their order"
            )
        features = self._features(inputs, prompts) if len(prompts) else None
        outputs = decode_clips(self.sam, features, prompts, index, dynamic=not self.training)
        if self.training and self.config.train == "all" and len(prompts):
            self.trained.fill_(True)
        # Weights that took no part in this step get a gradient of zero, not none: other ranks may use them.
        learning = [p for p in self.sam.parameters() if p.requires_grad]
        if learning and torch.is_grad_enabled():
            outputs["mask_logits"] = outputs["mask_logits"] + 0 * sum(p.sum() for p in learning)
        return outputs | {
            "num_frames": prompts.new_tensor([len(frames) for frames in index]),
            "sizes": inputs["sizes"].to(prompts),
        }

    def _features(self, inputs: dict[str, Any], like: Tensor) -> Features:
        parts = []
        if inputs.get("features") is not None:
            parts.append(Features(*(m.to(like) for m in inputs["features"])))
        if len(inputs["frames"]):
            parts.append(self._encoded(inputs["frames"], inputs["keys"], like))
        return concatenated(parts)

    def _encoded(self, frames: Tensor, keys: Sequence[str], like: Tensor) -> Features:
        cache = self.cache
        # A worker process does not know an encoder without a checkpoint, and reads frames whose features are kept.
        kept = [None if cache is None else cache.load(key) for key in keys]
        found = [features for features in kept if features is not None]
        if found and len(found) == len(kept):
            return Features(*(m.to(like) for m in concatenated(found).maps))
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.train == "all"):
            encoded = self.sam.encode(frames.to(like.device))
        if cache is not None:
            encoded = rounded(encoded)
            for number, key in enumerate(keys):
                cache.save(key, encoded[number : number + 1])
        return encoded

    def _track(self, prompts: Tensor, media: Sequence[Medium], rows: list[int]) -> list[dict[str, Any]]:
        if not self.trained and not self._warned:
            self._warned = True
            logger.warning(_UNTRAINED, self.config.train)
        return track_rows(self.sam, media, prompts, rows)

    def encode(self, inputs: dict[str, Any]) -> Tensor:
        """From `boxes_xyxy` [M, 4], 0 to 1, to embeddings [M, D]."""
        return self.encoder(inputs["boxes_xyxy"])

    def loss(self, outputs: dict[str, Tensor], targets: dict[str, Any], num_targets: Tensor | int) -> dict[str, Tensor]:
        """`targets`: `masks`, a list of N, each T bool masks [H, W] (or RLE; none for a target of boxes alone), and for
        the prompt loss `boxes_xyxy` [N, 4] of the prompted frame. Each loss is weighted; their sum is the head's."""
        losses: dict[str, Tensor] = {}
        if "pixel" in self.config.losses:
            side = self.sam.architecture.image_size
            learns = self.config.train != "nothing"
            losses |= pixel_losses(self.config.pixel_loss, outputs, targets["masks"], side, with_iou=learns)
        if "prompt" in self.config.losses:
            boxes = targets["boxes_xyxy"]
            with torch.no_grad():
                wanted = self.sam.embed_boxes(boxes)
            losses["loss_mask_prompt"] = prompt_loss(outputs["prompt_embeddings"], wanted)
            losses["loss_mask_box"] = box_loss(outputs["boxes_xyxy"], boxes)
        return {name: value / num_targets for name, value in losses.items()}

    # -- results -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def postprocess(self, outputs: dict[str, Any]) -> list[dict[str, Any]]:
        """For each task token what `streaming.track` describes; of training outputs without `times` and `source`, and
        where no frame was given without masks."""
        if "tracks" in outputs:
            return outputs["tracks"]
        if "mask_logits" not in outputs:
            return [{"masks": [], "scores": [], "score": 0.0} for _ in outputs["prompt_embeddings"]]
        scores = self.score(outputs)
        assert scores is not None
        return decoded_values(outputs, scores)

    def to_json(self, value: Any) -> Any:
        """As of every head, without `source`: what is printed or sent names no file of this machine."""
        plain = super().to_json(value)
        return {name: item for name, item in plain.items() if name != "source"} if isinstance(plain, dict) else plain

    @torch.no_grad()
    def score(self, outputs: dict[str, Any]) -> Tensor | None:
        """[N]: probability that the object is in the prompted frame, times the overlap that SAM 2 expects there."""
        if "tracks" in outputs:
            return torch.tensor([value["score"] for value in outputs["tracks"]])
        if "mask_logits" not in outputs:
            return None
        return outputs["object_score_logits"][:, 0].sigmoid() * outputs["iou"][:, 0].clamp(0, 1)

    def metrics(self) -> tpo.HeadMetrics:
        from tpo_head_mask.metrics import MaskMetrics

        return MaskMetrics(self) if "pixel" in self.config.losses else tpo.HeadMetrics(self)

    def benchmarks(self) -> dict[str, tpo.Benchmark]:
        from tpo_head_mask.benchmarks import benchmarks

        return benchmarks()

    def draw(self, image: Image, value: Any, target: Any = None) -> Image:
        """A copy of `image` with the value's first mask, and the outline of the true one."""
        masks, true = (fitted(shown["masks"][:1], image.size) if shown else [] for shown in (value, target))
        return draw_masks(image, masks, true)

    def draw_video(self, video: tpo.VideoClip, values: list[Any], path: Path) -> Path | None:
        """The whole video with the masks of all objects, as MP4; a small one is enlarged."""
        first = values[0]
        if first.get("source") is None or not first["masks"]:
            return None
        frames = tpo.stream_video(first["source"], first["times"][0])
        return draw_video(path.with_suffix(".mp4"), frames, values, end_s=video.duration_s, least_side=LEGIBLE_SIDE)
