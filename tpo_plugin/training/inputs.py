"""What a run was given besides its settings: data, host and libraries, written down at its start in `inputs.json`.

A run that goes on with other data or another host would end as no run of either. So each file is compared: of data the
records and a sample of their media, of the host all files in its folder, or its revision on the hub, and the files that
heads are configured with. A file may be touched, moved or copied; a run goes on where all of it is what it was.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoConfig

from tpo_plugin.atomic import replace_file
from tpo_plugin.data import Records
from tpo_plugin.errors import RecordError, TPOError
from tpo_plugin.hub import loaded_revision
from tpo_plugin.plugins import registry
from tpo_plugin.training.config import INPUTS_FILE, TrainConfig
from tpo_plugin.training.fingerprint import Fingerprint, fingerprint
from tpo_plugin.validation import path_text

logger = logging.getLogger(__name__)

NUM_MEDIA = 500
"""Media that are looked at of one source of records, spread over it."""

NUM_SAID = 10
"""Differences that an error names."""

LIBRARIES = (
    "tpo-plugin",
    "torch",
    "transformers",
    "tokenizers",
    "peft",
    "accelerate",
    "deepspeed",
    "numpy",
    "pillow",
    "av",
)

Source = tuple[str, str | None]
Marks = dict[str, list[Any] | str | None]
"""Fingerprints by name, within the folder or the source: as a list, or a revision; None of a file that is not there."""


class Inputs:
    """What `inputs.json` says of a run, and what it will say."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / INPUTS_FILE
        self.versions: list[dict[str, str]] = []
        """Of libraries, at the start, and behind it each time that one differed."""
        self.marks: dict[str, Marks] = {}
        """By the setting that names the file or folder, as `stages.stage1.data[0]`."""
        if self.path.is_file():
            try:
                there = json.loads(self.path.read_text(encoding="utf-8"))
                self.versions, self.marks = list(there["versions"]), {k: dict(v) for k, v in there["inputs"].items()}
            except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
                raise TPOError(
                    f"{self.path}: cannot be read ({error}); expected what tpo train wrote when the run began. Without "
                    "the file the run goes on, and is compared with nothing"
                ) from error

    def forget(self, settings: Iterable[str]) -> None:
        """Compares nothing with what these settings named."""
        for setting in settings:
            self.marks.pop(setting, None)

    def save(self) -> None:
        """Writes the file."""
        text = json.dumps({"versions": self.versions, "inputs": self.marks}) + "\n"
        replace_file(self.path, lambda name: Path(name).write_text(text, encoding="utf-8"))

    def compare_versions(self, heads: Iterable[str]) -> None:
        """Warns, in one line, where a library is not of the version that the run used last."""
        now = _versions(heads)
        last = self.versions[-1] if self.versions else now
        changed = [
            f"{name} {now.get(name, 'none')} (was {last.get(name, 'none')})"
            for name in dict.fromkeys([*last, *now])
            if last.get(name) != now.get(name)
        ]
        if changed:
            logger.warning("%s goes on with %s", self.path.parent, ", ".join(changed))
        if changed or not self.versions:
            self.versions.append(now)

    def compare(self, found: Mapping[str, Marks], *, begun: bool, accept: bool) -> None:
        """Takes what was found into the record. Raises `TPOError` where it differs from what is there.

        Args:
            found: By setting, of host and heads, or of the stages that are not finished.
            begun: Whether something has trained already, without which there is nothing to spoil.
            accept: Whether differences are accepted.
        """
        changes = [
            f"{setting}: {change}"
            for setting, marks in found.items()
            if setting in self.marks
            for change in _changes(self.marks[setting], marks)
        ]
        more = [f"and {len(changes) - NUM_SAID} more"] if len(changes) > NUM_SAID else []
        lines = "".join(f"\n  {change}" for change in [*changes[:NUM_SAID], *more])
        if changes and begun and not accept:
            raise TPOError(
                f"{self.path.parent}: the run cannot go on, for what it is given is not what it began with; put that "
                f"back, give another output_dir, or go on with it: tpo train --accept-changes{lines}"
            )
        if changes:
            reason = "as accepted" if begun else "and nothing has trained yet"
            logger.warning("%s goes on with other inputs than it began with, %s%s", self.path.parent, reason, lines)
        self.marks |= found


def of_host(config: TrainConfig, known: Iterable[str] = ()) -> dict[str, Marks]:
    """Of the host's folder, or its revision; and of the files that heads are configured with, or were (`known`)."""
    folder = Path(config.model)
    found: dict[str, Marks] = {}
    if folder.is_dir():
        files = (f for f in sorted(folder.iterdir()) if f.is_file() and f.name[0] != "." and f.suffix != ".md")
        found["model"] = {file.name: _mark(file) for file in files}
    else:
        with suppress(OSError, ValueError):  # what it is that cannot be loaded, `load_host` says
            AutoConfig.from_pretrained(config.model, trust_remote_code=False)
            found = {"model": {"revision": loaded_revision(config.model)}}
    found |= {setting: {"file": None} for setting in known if setting.startswith("tpo.heads.")}
    for path, value in _texts(config.to_dict()["tpo"]["heads"], ("tpo", "heads")):
        if os.path.isfile(value):
            found[path_text(path)] = {"file": _mark(Path(value), value)}
    return found


def of_data(config: TrainConfig, stages: Iterable[str], sources: Mapping[Source, Records]) -> dict[str, Marks]:
    """Of the records and media of these stages; a file that several name is read once."""
    known: dict[Source, Marks] = {}
    found = {}
    for name in stages:
        for field in ("data", "eval_data"):
            for index, source in enumerate(getattr(config.stages[name], field)):
                key = (source.file, source.media)
                known[key] = known.get(key) or _of_source(sources[key])
                found[f"stages.{name}.{field}[{index}]"] = known[key]
    return found


def _of_source(records: Records) -> Marks:
    files = records.files
    if len(files) == 1:
        marks: Marks = {"file": _mark(files[0], str(records.path))}
    else:
        marks = {f"{number} {file.name}": _mark(file, str(file)) for number, file in enumerate(files)}
    for index in np.unique(np.linspace(0, len(records) - 1, NUM_MEDIA).astype(int)).tolist():
        try:
            record = records[index]
        except RecordError:  # of a large source, whose records are checked when they are used
            continue
        for file in (*record.images, *record.videos):
            if not isinstance(file, Path):  # in one of the files above
                continue
            inside = file.is_relative_to(records.media_root)
            marks[(file.relative_to(records.media_root) if inside else file).as_posix()] = _mark(file)
    return marks


def _mark(path: Path, name: str | None = None) -> list[Any] | None:
    try:
        return [*fingerprint(path), *([] if name is None else [name])]
    except OSError:
        return None


def _changes(before: Marks, now: Marks) -> Iterator[str]:
    """What differs between the marks of one setting; a large file that was touched is named in a warning."""
    for key in dict.fromkeys([*before, *now]):
        was, given = before.get(key), now.get(key)
        if not isinstance(was, list) or not isinstance(given, list):
            if was != given:
                yield f"{key}: was {_said(was)}, is {_said(given)}"
            continue
        old, new = Fingerprint(*was[:3]), Fingerprint(*given[:3])
        name = " ".join(given[3:]) or key
        if old.size != new.size:
            yield f"{name}: was of {old.size} bytes, is of {new.size}"
        elif old.sha256 != new.sha256:
            yield f"{name}: other content of the same {new.size} bytes"
        elif old.mtime_ns != new.mtime_ns and not new.whole:
            logger.warning("%s: written since the run began; its size and the blocks compared are the same", name)


def _said(mark: list[Any] | str | None) -> str:
    if isinstance(mark, list):
        return f"a file of {mark[0]} bytes"
    return mark or "missing"


def _texts(value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts(inner, (*path, key))
    elif isinstance(value, Sequence):
        for index, inner in enumerate(value):
            yield from _texts(inner, (*path, index))


def _versions(heads: Iterable[str]) -> dict[str, str]:
    """Of the libraries that compute, and of the distributions that the heads come from."""
    found = {}
    for name in LIBRARIES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    plugins = (registry().head(name).plugin for name in heads)
    return found | {plugin.distribution: plugin.version for plugin in plugins if plugin.version}
