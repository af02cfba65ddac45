"""Features of all videos and queries of a data set, computed once: in parallel, and resumable.

FOLDER/video/<video's name without suffix>.safetensors
FOLDER/text/<record's id>.safetensors
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError, safe_open
from torch.utils.data import DataLoader, Dataset

import tpo_plugin as tpo
from tpo_head_temporal.encoder import FrozenEncoder
from tpo_head_temporal.features import read_about, save_features
from tpo_head_temporal.jsonlines import read_jsonl
from tpo_head_temporal.media_files import is_video
from tpo_plugin.data.confine import check_video
from tpo_plugin.errors import shown

FORMAT = 1
_ALL_CLIPS = 1_000_000
_ANY_SIZE = 2**40
"""Pixels: a whole video is read, at the rate of its clips."""


@dataclass
class CacheReport:
    """What a run did."""

    computed: int = 0
    """Videos whose features were computed."""
    found: int = 0
    """Videos whose features were there."""
    skipped: list[tuple[Path, str]] = field(default_factory=list)
    """Videos that cannot be read, and why."""
    texts: int = 0
    """Queries that have features now."""
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        total = self.computed + self.found + len(self.skipped)
        counts = f"{self.computed} computed, {self.found} were there, {len(self.skipped)} cannot be read"
        lines = [f"videos: {total} ({counts})", f"queries: {self.texts}", *self.notes]
        return "\n".join(lines + [f"  skipped {path}: {reason}" for path, reason in self.skipped])


def cache_features(
    source: str | Path,
    model: str,
    folder: str | Path,
    *,
    media_root: str | Path | None = None,
    confine: bool = False,
    clip_s: float = 2.0,
    num_workers: int = 2,
    batch_size: int = 64,
    device: str = "cpu",
) -> CacheReport:
    """Computes features of the videos of a JSON Lines file of records, and of their queries, or of a folder's videos.

    A clip of `clip_s` seconds gives one frame: that nearest to its middle by the file's own time stamps. What is there
    already is kept, so that the same call goes on after an interruption; a video that cannot be read is counted and
    named in the report. `confine` is that of `tpo_plugin.data.Records`. Raises `TPOError` where the folder holds
    features of another model or of other clips, and where no video can be read.
    """
    if not clip_s > 0:
        raise tpo.TPOError(f"clip_s is {clip_s}; expected seconds above 0")
    source, folder = Path(source), Path(folder)
    report, queries = CacheReport(), dict[str, str]()
    if source.is_dir():
        videos = sorted(path for path in source.rglob("*") if is_video(path))
    else:
        videos, queries = _records(source, Path(media_root or source.parent), report, confine)
    if not videos:
        raise tpo.TPOError(f"{source}: has no video; expected records with 'video', or a folder of videos")
    targets = {path: folder / "video" / f"{stem}.safetensors" for stem, path in _by_stem(videos).items()}
    encoder = FrozenEncoder(model, device)
    about = {"format": FORMAT, "encoder": encoder.fingerprint}
    waiting = []
    for path, target in targets.items():
        size = {"bytes": path.stat().st_size} if path.is_file() else {}  # a video that is gone may keep its features
        if _is_there(target, about | {"clip_s": clip_s} | size):
            report.found += 1
        else:
            waiting.append(path)
    if waiting:
        _compute(waiting, targets, encoder, about, clip_s, num_workers, batch_size, report)
    if encoder.has_text:
        cut = sum(len(encoder.token_ids(query)) > encoder.max_words for query in queries.values())
        if cut:
            report.notes.append(f"  {cut} queries have more than {encoder.max_words} tokens and were cut to as many")
        for record_id, query in queries.items():
            target = folder / "text" / f"{record_id}.safetensors"
            if not _is_there(target, about | {"text": query}):
                save_features(target, encoder.words(query), None, about | {"text": query})
            report.texts += 1
    elif queries:
        report.notes.append(f"  no features of {len(queries)} queries: {model} is a vision tower and takes no text")
    if not report.computed + report.found:
        raise tpo.MediaError(f"{source}: none of its videos can be read\n{report}")
    return report


class _Clips(Dataset[Any]):
    """(index, model input, times, duration) of each video, or (index, reason) of one that cannot be read."""

    def __init__(self, paths: list[Path], clip_s: float, prepare: Callable[..., Any]) -> None:
        self.paths, self.prepare = paths, prepare
        self.options = tpo.VideoOptions(sampling="fps", fps=1 / clip_s, num_frames=_ALL_CLIPS, max_pixels=_ANY_SIZE)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        try:
            clip = tpo.read_video(self.paths[index], self.options)
        except tpo.MediaError as error:
            return index, str(error)
        return index, self.prepare(clip.frames), clip.times_s, clip.duration_s


def _compute(
    paths: list[Path],
    targets: dict[Path, Path],
    encoder: FrozenEncoder,
    about: dict[str, Any],
    clip_s: float,
    num_workers: int,
    batch_size: int,
    report: CacheReport,
) -> None:
    # A list of one is not collated into a batch; workers decode and prepare while this process encodes.
    loader: Iterable[Any] = DataLoader(
        _Clips(paths, clip_s, encoder.preparer),
        batch_size=None,
        num_workers=min(num_workers, len(paths)),
        collate_fn=_as_it_is,
    )
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("videos", total=len(paths))
        for index, *found in loader:
            path = paths[index]
            if len(found) == 1:
                report.skipped.append((path, found[0].removeprefix(f"{path}: ")))
                progress.update(task, description=f"videos ({len(report.skipped)} cannot be read)")
            else:
                inputs, times_s, duration_s = found
                facts = {"clip_s": clip_s, "duration_s": duration_s, "bytes": path.stat().st_size}
                save_features(targets[path], encoder.encode(inputs, batch_size), times_s, about | facts)
                report.computed += 1
            progress.advance(task)


def _as_it_is(sample: Any) -> Any:
    return sample


def _is_there(path: Path, wanted: dict[str, Any]) -> bool:
    """Whether a file holds what is wanted; raises where it is of another model or other clips."""
    if not path.is_file():
        return False
    try:
        with safe_open(path, framework="np") as file:
            held = read_about(file) or {}
    except (SafetensorError, ValueError):  # half a file
        return False
    for name in ("encoder", "clip_s"):
        if name in wanted and held.get(name) != wanted[name]:
            what = "another encoder" if name == "encoder" else f"clips of {held.get(name)} s, not {wanted[name]} s"
            raise tpo.TPOError(f"{path}: holds features of {what}; give another folder, or remove this one")
    if "text" in wanted and held.get("text") != wanted["text"]:
        raise tpo.TPOError(
            f"{path}: holds the words of {held.get('text')!r}, and a record of this id asks {wanted['text']!r}; give "
            "records ids of their own, or another folder, or remove this one"
        )
    return all(held.get(name) == value for name, value in wanted.items())


def _records(path: Path, media_root: Path, report: CacheReport, confine: bool) -> tuple[list[Path], dict[str, str]]:
    """The videos of a file of records, and the query of each record's temporal task."""
    videos: dict[Path, None] = {}
    queries: dict[str, str] = {}
    without = 0
    for line, record in read_jsonl(path):
        given = record.get("video") or []
        for name in given if isinstance(given, list) else [given]:
            if not isinstance(name, str):
                raise tpo.RecordError(f"is {shown(name)}, expected a path", file=str(path), line=line, field="video")
            if confine:
                _check_inside(media_root / name, media_root, path, line)
            videos[media_root / name] = None
        given = record.get("tasks") or []
        tasks = [
            task
            for task in (given if isinstance(given, list) else [])
            if isinstance(task, dict) and task.get("head") == "temporal"
        ]
        query = tasks[0].get("query") if len(tasks) == 1 else None
        if not isinstance(query, str):
            without += bool(tasks)
            continue
        record_id = str(record.get("id", ""))
        if not record_id or Path(record_id).name != record_id:
            message = f"is {record_id!r}, which is no file name; expected one, for the features of its query"
            raise tpo.RecordError(message, file=str(path), line=line, field="id")
        if queries.setdefault(record_id, query) != query:
            message = f"is {record_id!r}, as that of a record with another query"
            raise tpo.RecordError(message, file=str(path), line=line, field="id")
    if without:
        report.notes.append(f"  no text features of {without} records, which have not exactly one task with a 'query'")
    return list(videos), queries


def _check_inside(video: Path, media_root: Path, path: Path, line: int) -> None:
    try:
        check_video(video, media_root)
    except tpo.MediaError as error:
        raise tpo.RecordError(str(error), file=str(path), line=line, field="video") from error


def _by_stem(videos: list[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in videos:
        if found.setdefault(path.stem, path) != path:
            raise tpo.TPOError(
                f"{found[path.stem]} and {path} would have features of the same name; rename one of them, or cache "
                "them into different folders"
            )
    return found
