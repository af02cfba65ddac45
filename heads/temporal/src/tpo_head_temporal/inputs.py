"""What the network reads of a sample: when its clips are, and features of them and of the words.

A clip is a sampled frame, or one row of precomputed features, with the time that it stands for. Suffixes: N task
tokens, B rows of the batch, L clips, T words, C width.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

import tpo_plugin as tpo
from tpo_head_temporal.config import TemporalConfig

if TYPE_CHECKING:
    from tpo_head_temporal.encoder import Reader

SLACK_S = 1.0
"""A span may end this much behind the video: annotators round. It is then taken to end with the video."""

_MEDIA_TAG = re.compile(r"<(image|video)>")


def append_word(text: Tensor, mask: Tensor, word: Tensor) -> tuple[Tensor, Tensor]:
    """The words [N, T, C] with one more behind the last that is there, and the mask [N, T + 1]."""
    place = mask.sum(1).long()[:, None]  # [N, 1]
    longer = torch.cat((text, torch.zeros_like(word)[:, None]), 1)
    longer = longer.scatter(1, place[..., None].expand(-1, -1, text.shape[-1]), word[:, None])
    return longer, torch.cat((mask, mask.new_zeros(len(mask), 1)), 1).scatter(1, place, 1.0)


def normalised(features: Tensor) -> Tensor:
    """Each vector divided by its length."""
    return features / (features.norm(dim=-1, keepdim=True) + 1e-5)


def clip_bounds(times_s: np.ndarray, duration_s: float) -> np.ndarray:
    """Start and end of the clip that each time stands for, [L, 2]: the middles between them, and the video's ends."""
    inner = (times_s[1:] + times_s[:-1]) / 2
    return np.stack((np.concatenate(([0.0], inner)), np.concatenate((inner, [duration_s]))), -1)


def even_times(num: int, duration_s: float) -> np.ndarray:
    """The middles of `num` equal parts of the video, [num]."""
    return (np.arange(num) + 0.5) * duration_s / max(num, 1)


def rounded_down(seconds: float) -> Tensor:
    """The greatest float32 that is not above: the nearest one may lie behind the end of a video, and a span with it."""
    nearest = torch.tensor(seconds, dtype=torch.float32)
    return nearest if nearest.item() <= seconds else torch.nextafter(nearest, torch.zeros(()))


def collate(
    config: TemporalConfig, reader: Reader | None, tasks: list[dict[str, Any]], samples: Sequence[tpo.Sample]
) -> dict[str, Any]:
    """`task_inputs` of a batch, a row for each sample: where it has no (single) video, its row is empty.

    `clips_s` [B, L, 3] time, start and end of each clip in seconds; `num_clips` [B]; `duration_s` [B]; `video_group`
    and `question_group` int64 [B], equal for the same video and for the same words of the user. For features "files"
    `video` [B, L, C], and `words` [B, T, C] with `num_words` [B] where the text's are files too; for "clip" `pixels`
    [B, L, 3, H, W] and `word_ids` [B, T] with `num_words`.
    Raises `MediaError` as `check_sample` does.
    """
    wanted = {id(task) for task in tasks}
    rows: list[dict[str, Tensor]] = []
    videos: dict[Any, int] = {}
    questions: dict[str, int] = {}
    for sample in samples:
        own = [task for turn in sample.record.turns for task in turn.tasks if id(task) in wanted]
        if own:
            check_spans(own, sample)
        row = (
            _empty_row(config, reader)
            if (tasks and not own) or len(sample.videos) != 1
            else _row(config, reader, sample, own)
        )
        video = sample.record.videos[0] if sample.videos else len(videos)
        asked = " ".join(turn.text for turn in sample.record.turns if turn.role == "user")
        row["video_group"] = torch.tensor(videos.setdefault(video, len(videos)))
        row["question_group"] = torch.tensor(questions.setdefault(asked, len(questions)))
        rows.append(row)
    if not rows:
        empty = _empty_row(config, reader) | {"video_group": torch.tensor(0), "question_group": torch.tensor(0)}
        return {name: value[None][:0] for name, value in empty.items()}
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return {name: pad_sequence(c, batch_first=True) if c[0].dim() else torch.stack(c) for name, c in columns.items()}


def check_sample(
    config: TemporalConfig, reader: Reader | None, tasks: list[dict[str, Any]], sample: tpo.Sample
) -> None:
    """Raises `MediaError` for tasks that do not fit their video, for feature files that are missing or do not, and for
    a question that the CLIP cannot take.
    """
    check_spans(tasks, sample)
    if config.features == "files":
        _files_row(config, sample)
    if reader is not None:
        reader.word_ids(question_of(sample, tasks), sample.record.place)


def check_spans(tasks: list[dict[str, Any]], sample: tpo.Sample) -> None:
    """Raises `MediaError` for a sample that has not one video, and for a span behind its end."""
    place = sample.record.place
    if len(sample.videos) != 1:
        raise tpo.MediaError(f"{place}: has a temporal task and {len(sample.videos)} videos; expected one video")
    duration_s = sample.videos[0].duration_s
    for task in tasks:
        for i, (start, end) in enumerate(task["spans"]):
            if start >= duration_s or end > duration_s + SLACK_S:
                raise tpo.MediaError(
                    f"{place}: spans[{i}] is [{start}, {end}], behind the end of its video, which lasts "
                    f"{duration_s:.3f} s; expected seconds inside it"
                )


def question_of(sample: tpo.Sample, tasks: list[dict[str, Any]]) -> str:
    """The question that tasks answer: the human turn before them, or in a prompt the last one; without media tags."""
    wanted = {id(task) for task in tasks}
    turns = sample.record.turns
    answers = [i for i, turn in enumerate(turns) if any(id(task) in wanted for task in turn.tasks)] or [len(turns)]
    if len(answers) > 1:
        raise tpo.TPOError(
            f"{sample.record.place}: has temporal tasks in {len(answers)} answers; with features 'clip', expected one: "
            "make a record of each"
        )
    asked = [turn.text for turn in turns[: answers[0]] if turn.role == "user"]
    return " ".join(_MEDIA_TAG.sub(" ", asked[-1]).split()) if asked else ""


def _row(
    config: TemporalConfig, reader: Reader | None, sample: tpo.Sample, tasks: list[dict[str, Any]]
) -> dict[str, Tensor]:
    clip = sample.videos[0]
    row: dict[str, Tensor] = {}
    times_s = np.asarray(clip.times_s, dtype=np.float64)
    if reader is not None:
        row["pixels"] = reader.pixels(clip.frames)
        row["word_ids"], num_words = reader.word_ids(question_of(sample, tasks), sample.record.place)
        row["num_words"] = torch.tensor(float(num_words))
    elif config.features == "files":
        row, times_s = _files_row(config, sample)
    clips = np.concatenate((times_s[:, None], clip_bounds(times_s, clip.duration_s)), -1)
    row["clips_s"] = torch.tensor(clips, dtype=torch.float32)
    row["num_clips"] = torch.tensor(float(len(times_s)))
    row["duration_s"] = rounded_down(clip.duration_s)
    return row


def _files_row(config: TemporalConfig, sample: tpo.Sample) -> tuple[dict[str, Tensor], np.ndarray]:
    """Features of a sample, and the times of its clips."""
    from tpo_head_temporal.features import find_features, load_features, load_times

    stem, duration_s = sample.record.videos[0].stem, sample.videos[0].duration_s
    paths = [find_features(folder, stem) for folder in config.video_features]
    video = load_features(
        paths,
        duration_s=duration_s,
        clip_s=config.clip_s,
        normalise=config.normalise,
        max_numbers=config.max_feature_numbers,
    )
    row = {"video": _checked(video, config.video_size, paths)}
    stored = load_times(paths[0], config.max_feature_numbers)
    times_s = even_times(len(video), duration_s) if stored is None else stored.numpy()[: len(video)]
    if config.text_features is not None:
        path = find_features(config.text_features, sample.record.id, f"qid{sample.record.id}")
        row["words"] = _checked(
            load_features([path], normalise=config.normalise, max_numbers=config.max_feature_numbers),
            config.text_size,
            [path],
        )
        row["num_words"] = torch.tensor(float(len(row["words"])))
    return row, times_s


def _empty_row(config: TemporalConfig, reader: Reader | None) -> dict[str, Tensor]:
    row = {"clips_s": torch.zeros(0, 3), "num_clips": torch.tensor(0.0), "duration_s": torch.tensor(0.0)}
    if reader is not None:
        size = reader.pixels(np.zeros((1, 8, 8, 3), dtype=np.uint8))[:0]
        row |= {"pixels": size, "word_ids": torch.zeros(0, dtype=torch.int64), "num_words": torch.tensor(0.0)}
    elif config.features == "files":
        assert config.video_size is not None
        row["video"] = torch.zeros(0, config.video_size)
        if config.text_features is not None:
            assert config.text_size is not None
            row |= {"words": torch.zeros(0, config.text_size), "num_words": torch.tensor(0.0)}
    return row


def _checked(features: Tensor, size: int | None, paths: list[Path]) -> Tensor:
    if features.shape[-1] != size:
        names = ", ".join(map(str, paths))
        raise tpo.MediaError(f"{names}: {features.shape[-1]} numbers a row; expected {size}, as the head's config says")
    return features


def merged_clips(clips_s: Tensor, num_clips: Tensor, num_features: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The clips [N, width, 3] of a tower that gives one feature for several frames, and which are there, [N, width].

    `clips_s` [N, L, 3] are the frames' and `num_clips` [N] how many; the tower gave `num_features` [N] of each.
    """
    per = (num_clips / num_features.clamp(min=1)).ceil().clamp(min=1)
    place = torch.arange(width, device=clips_s.device)
    last = (num_clips - 1).clamp(min=0)[:, None]
    first_frame = torch.minimum(place * per[:, None], last).long()
    last_frame = torch.minimum((place + 1) * per[:, None] - 1, last).long()
    frames = torch.cat((clips_s, torch.zeros_like(clips_s[:, :1])), 1)  # at least one, to look up
    first, final = (frames.gather(1, i[..., None].expand(-1, -1, 3)) for i in (first_frame, last_frame))
    mask = (place < torch.minimum(num_features, num_clips)[:, None]).float()
    merged = torch.stack(((first[..., 0] + final[..., 0]) / 2, first[..., 1], final[..., 2]), -1)
    return merged * mask[..., None], mask
