"""Writes the task world to files: PNG pictures, MP4 clips, and records of JSON Lines as `tpo train` reads them."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from tpo_shapes.questions import CHAT, CLIP_CHAT, MASK, MOMENTS, PLACEHOLDER, Span, Turn, ask, objects_of
from tpo_shapes.world import CLIP_FPS, CLIP_TIMES, masks, render, sample_backgrounds, sample_scenes

CHAT_KINDS = dict.fromkeys(CHAT, 1.0)
CLIP_CHAT_KINDS = {**dict.fromkeys(CLIP_CHAT, 1.0), "motion": 2.0, "event": 2.0}
TASK_KINDS = {"region": 0.65, "given": 0.15, "given_colour": 0.1, "given_shape": 0.1}
CLIP_TASK_KINDS = {"region": 0.33, "given": 0.07, "given_colour": 0.05, "given_shape": 0.05, "moment": 0.5}
MASK_KINDS = {"outline": 1.0}
CLIP_MASK_KINDS = {"follow": 0.6, "follow_given": 0.4}
MASK_TURNS = {"train": 2, "heldout": 1}


def make_dataset(
    directory: str | Path, split: str, num_scenes: int, seed: int, num_clips: int = 0, turns: int = 6
) -> dict[str, Path]:
    """Writes `num_scenes` pictures and `num_clips` clips of a split ("train" or "heldout") and records about them.

    Each picture has one record of conversation and one of tasks (boxes wanted, boxes given), each of up to `turns`
    questions; so has each clip, whose tasks are moments too. To the tasks of each come up to two masks, one of held-out
    scenes. Returns the record files: "chat", "tasks", "clip_chat", "clip_tasks". The same arguments give the same
    files. `images.sha256` and `clips.sha256` are of the pixels as they were drawn: other releases of the encoders of
    PNG and H.264 may write them as other bytes, and H.264 does not give them back exactly.
    """
    root = Path(directory)
    files = _write_part(root, split, num_scenes, seed, turns, clip=False)
    if num_clips:
        files |= _write_part(root, split, num_clips, seed + 1, turns, clip=True)
    return files


def _write_part(root: Path, split: str, number: int, seed: int, turns: int, clip: bool) -> dict[str, Path]:
    rng, words = np.random.default_rng([seed, clip]), random.Random(f"{seed} {clip}")
    folder = "clips" if clip else "images"
    (root / folder).mkdir(parents=True, exist_ok=True)
    prefix = "clip_" if clip else ""
    records: dict[str, list[dict]] = {f"{prefix}chat": [], f"{prefix}tasks": []}
    pixels = hashlib.sha256()
    for start in range(0, number, 64):
        size = min(64, number - start)
        scenes = sample_scenes(rng, size, CLIP_TIMES if clip else None, max_objects=3 if clip else 4)
        frames, covered = render(rng, scenes, sample_backgrounds(rng, size, split)), masks(scenes)
        pixels.update(frames.tobytes())
        for index in range(size):
            name = f"{folder}/{start + index:06d}.{'mp4' if clip else 'png'}"
            if clip:
                write_clip(root / name, frames[index])
            else:
                Image.fromarray(frames[index, 0]).save(root / name, compress_level=1)
            objects = objects_of(scenes, index, covered)
            kinds_of = (CLIP_CHAT_KINDS, CLIP_TASK_KINDS) if clip else (CHAT_KINDS, TASK_KINDS)
            for key, kinds in zip(records, kinds_of, strict=True):
                asked = ask(words, objects, kinds, turns, clip)
                if key.endswith("tasks"):
                    asked += ask(words, objects, CLIP_MASK_KINDS if clip else MASK_KINDS, MASK_TURNS[split], clip)
                    words.shuffle(asked)
                records[key].append(make_record(f"{key}-{split}-{seed}-{start + index}", name, asked))
    (root / f"{folder}.sha256").write_text(f"{pixels.hexdigest()}\n", encoding="utf-8")
    return {key: write_records(root / f"{key}.jsonl", lines) for key, lines in records.items()}


def make_record(identifier: str, media: str, turns: list[Turn]) -> dict:
    """One record: the media is shown before the first question; tasks stand in the order of their placeholders."""
    conversations: list[dict] = []
    tasks: list[dict] = []
    for turn in turns:
        mark = "" if conversations else "<image>\n"
        conversations.append({"from": "human", "value": mark + turn.question})
        conversations.append({"from": "gpt", "value": turn.answer})
        for box in turn.boxes:
            tasks.append({"head": "region", "boxes": [box]} | ({} if turn.time is None else {"time": turn.time}))
        if turn.spans_s:
            tasks.append({"head": "temporal", "spans": turn.spans_s, **saliency(turn.spans_s)})
        if turn.first_box is not None:
            tasks.append({"head": "mask", "box": turn.first_box, "time": 0.0})
        if turn.masks:
            times = CLIP_TIMES[: len(turn.masks)]
            tasks.append({"head": "mask", "masks": turn.masks, "times": list(times)})
    record: dict = {"id": identifier, "video" if media.endswith(".mp4") else "image": media}
    record |= {"conversations": conversations, "kinds": [turn.kind for turn in turns]}
    if tasks:
        assert len(tasks) == sum(line["value"].count(p) for line in conversations for p in (PLACEHOLDER, MOMENTS, MASK))
        record["tasks"] = tasks
    return record


def saliency(spans_s: list[Span]) -> dict[str, Any]:
    """A mark for each frame: 12 in one of the moments, else 0."""
    marks = [12 * any(start <= time < end for start, end in spans_s) for time in CLIP_TIMES]
    return {"saliency": marks, "clip_s": 1 / CLIP_FPS}


def write_records(path: Path, records: Iterable[dict]) -> Path:
    """One JSON object a line."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    return path


def write_clip(path: Path, frames: np.ndarray) -> None:
    """Frames [F, P, P, 3] uint8 to an H.264 file at CLIP_FPS."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=CLIP_FPS, options={"crf": "12", "preset": "ultrafast"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
