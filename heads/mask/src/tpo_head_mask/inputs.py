"""From records and their media to what SAM 2 looks at: in training chosen frames, in generation whole videos.

N targets, F distinct frames of a batch, T frames of a target, S side of SAM 2's square input, M boxes that users give.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import tpo_plugin as tpo
from tpo_head_mask import masks
from tpo_head_mask.backends.base import Features
from tpo_head_mask.cache import EmbeddingCache, concatenated, frame_key
from tpo_head_mask.rle import MAX_PIXELS


@dataclass(frozen=True)
class Medium:
    """What one row of the batch is about: an image, a video, or nothing."""

    image: np.ndarray | None = None
    """uint8 RGB [H, W, 3]."""
    video: str | None = None
    """Path."""
    start_s: float = 0.0
    """Second of a video where tracking begins."""
    boxes_xyxy: tuple[tuple[float, ...], ...] = ()
    """The boxes that the question gives, 0 to 1, in their order."""

    def frames(self) -> Iterator[tuple[float, np.ndarray]]:
        """Second and pixels of each frame, one after another."""
        if self.video is not None:
            return tpo.stream_video(self.video, self.start_s)
        return iter([] if self.image is None else [(0.0, self.image)])


def media_of(samples: Sequence[Any], head: str) -> list[Medium]:
    """The medium of each row: its first video, or else its first image, and the boxes of its last question. They say
    where tracking begins."""
    found = []
    for sample in samples:
        question = next((turn for turn in reversed(sample.record.turns) if turn.role == "user"), None)
        given = [task for task in question.tasks if task["head"] == head] if question else []
        boxes = tuple(tuple(task["box"]) for task in given)
        if sample.videos:
            start_s = min((task.get("time", 0.0) for task in given), default=0.0)
            found.append(Medium(video=str(sample.record.videos[0]), start_s=start_s, boxes_xyxy=boxes))
        else:
            image = np.asarray(sample.images[0]) if sample.images else None
            found.append(Medium(image=image, boxes_xyxy=boxes))
    return found


def chosen_entries(task: dict[str, Any], clip_frames: int) -> slice:
    """Which of a target's masks or boxes are learned from: the first frame with the object, and those after it."""
    entries = task.get("masks") or task["boxes"]
    first = next(index for index, entry in enumerate(entries) if entry is not None)
    return slice(first, first + clip_frames)


def target_masks(task: dict[str, Any], clip_frames: int, max_pixels: int = MAX_PIXELS) -> list[Tensor]:
    """The chosen masks, each bool [H, W]; a frame without the object is empty. None for a task of boxes.

    `max_pixels` is what one mask may have.
    """
    return _masks(task["masks"][chosen_entries(task, clip_frames)], max_pixels) if "masks" in task else []


def all_masks(task: dict[str, Any], max_pixels: int = MAX_PIXELS) -> list[Tensor]:
    """As `target_masks`, of every frame that the task names."""
    return _masks(task.get("masks", []), max_pixels)


def _masks(entries: Sequence[Any], max_pixels: int) -> list[Tensor]:
    read = [None if mask is None else masks.read_mask(mask, max_pixels=max_pixels) for mask in entries]
    there = [mask for mask in read if mask is not None]
    for mask in there:
        masks.check_size("a mask", mask, there[0].shape)
    return [torch.from_numpy(np.zeros_like(there[0]) if mask is None else np.ascontiguousarray(mask)) for mask in read]


def target_box(task: dict[str, Any], first_mask: Tensor | None) -> list[float]:
    """The box of the first chosen frame, 0 to 1. Raises `MediaError` where its mask is empty."""
    if first_mask is None:
        return list(task["boxes"][chosen_entries(task, 1)][0])
    box = masks.box_of(first_mask.numpy())
    if box is None:
        raise tpo.MediaError(
            f"{task['masks'][chosen_entries(task, 1)][0]!r:.200}: is an empty mask; write null for a frame without the "
            "object"
        )
    return box


class FrameLoader:
    """Reads the frames that a batch's targets are learned from, each once; or their embeddings, where they are kept."""

    def __init__(self, side: int, clip_frames: int, head: str, cache: EmbeddingCache | None) -> None:
        self.side, self.clip_frames, self.head, self.cache = side, clip_frames, head, cache

    def __call__(self, samples: Sequence[Any]) -> dict[str, Any]:
        """`frame_index`, a list of N: which of the F frames each target has; `sizes` float32 [N, 2], height and width
        of its medium. The F frames are `features` (where they are kept) and behind them `frames`, uint8 [., 3, S, S];
        `keys` names those to keep.
        """
        kept: dict[str, Features] = {}
        read: dict[str, Tensor] = {}
        rows: list[list[str]] = []
        sizes: list[tuple[int, int]] = []
        for sample in samples:
            turns = (turn for turn in sample.record.turns if turn.role == "assistant")
            targets = [task for turn in turns for task in turn.tasks if task["head"] == self.head]
            if targets and len(sample.images) + len(sample.videos) > 1:
                raise tpo.MediaError(
                    f"{sample.record.place}: has a mask and {len(sample.images)} picture(s) and {len(sample.videos)} "
                    "video(s), of which the mask does not say whose it is; expected one"
                )
            wanted = [self._times(task, sample) for task in targets]
            times = sorted({time_s for each in wanted for time_s in each})
            names = {time_s: self._name(sample, time_s) for time_s in times}
            kept |= {name: found for name in names.values() if (found := self._kept(name)) is not None}
            missing = [time_s for time_s in times if names[time_s] not in kept and names[time_s] not in read]
            for time_s, pixels in self._read(sample, missing):
                read[names[time_s]] = to_square(pixels, self.side)
            height, width = _size(sample)
            for task, each in zip(targets, wanted, strict=True):
                self._check(task, (height, width), sample)
                rows.append([names[time_s] for time_s in each])
                sizes.append((height, width))
        order = {name: index for index, name in enumerate([*kept, *read])}
        features = concatenated(list(kept.values())) if kept else None
        return {
            "frame_index": [[order[name] for name in row] for row in rows],
            "sizes": torch.tensor(sizes, dtype=torch.float32).reshape(-1, 2),
            "features": None if features is None else list(features.maps),
            "frames": torch.stack(list(read.values())) if read else torch.zeros(0, 3, self.side, self.side).byte(),
            "keys": list(read),
        }

    def _times(self, task: dict[str, Any], sample: Any) -> list[float]:
        entries = chosen_entries(task, self.clip_frames)
        if not sample.videos:
            if len(task.get("masks") or task["boxes"]) > 1 or not sample.images:
                raise tpo.MediaError(f"{sample.record.place}: masks at several times need a video; the record has none")
            return [0.0]
        times = task.get("times") or [task.get("time", 0.0)]
        return [float(time_s) for time_s in times[entries]]

    def _name(self, sample: Any, time_s: float) -> str:
        paths = sample.record.videos or sample.record.images
        return frame_key(paths[0], time_s)

    def _kept(self, name: str) -> Features | None:
        return None if self.cache is None else self.cache.load(name)

    def _read(self, sample: Any, times: list[float]) -> Iterable[tuple[float, np.ndarray]]:
        """The frame that the sample shows at each of ascending times; one that its clip has is not read again."""
        if not sample.videos:
            return ((time_s, np.asarray(sample.images[0])) for time_s in times)
        clip = sample.videos[0]
        there = dict(zip(clip.times_s.tolist(), clip.frames, strict=True))
        missing = [time_s for time_s in times if time_s not in there]
        if missing:
            there |= zip(missing, tpo.read_frames(sample.record.videos[0], missing), strict=True)
        return ((time_s, there[time_s]) for time_s in times)

    def _check(self, task: dict[str, Any], size: tuple[int, int], sample: Any) -> None:
        """Raises `MediaError` for a mask of another size than its image."""
        for entry in task.get("masks", [])[chosen_entries(task, self.clip_frames)]:
            if entry is None:
                continue
            if isinstance(entry, dict) and "counts" in entry:
                name, found = "a mask", tuple(entry["size"])
            else:
                name = entry["png"] if isinstance(entry, dict) else entry
                found = masks.png_size(name)
            if found != size:
                raise tpo.MediaError(
                    f"{sample.record.place}: {name} is {found[1]} x {found[0]} pixels, its "
                    f"{'video' if sample.videos else 'image'} {size[1]} x {size[0]}; expected the same size"
                )


def _size(sample: Any) -> tuple[int, int]:
    if sample.videos:
        return sample.videos[0].height, sample.videos[0].width
    return sample.images[0].height, sample.images[0].width


def to_square(pixels: np.ndarray, side: int) -> Tensor:
    """A frame uint8 [H, W, 3] as SAM 2 takes it: resized to a square, its aspect not kept; uint8 [3, S, S]."""
    resized = Image.fromarray(pixels).resize((side, side))  # Pillow's bicubic, as the sam2 package reads videos
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)
