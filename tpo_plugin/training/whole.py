"""Folders that are whole or not there: written beside their place, flushed, with a manifest, and renamed into it.

`manifest.json`, written last, has the size and the SHA-256 of every other file. What it says is checked before the
folder is used again: a file may be lost, cut or changed long after it was written.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from accelerate import PartialState

from tpo_plugin.atomic import flush, replace_file
from tpo_plugin.errors import TPOError

MANIFEST, UNFINISHED = "manifest.json", ".unfinished"


@contextmanager
def written_whole(place: Path, *, writer: bool) -> Iterator[Path]:
    """The folder to write in; at the end of the block, if nothing was raised, it is whole and stands at `place`.

    What stood there before is replaced, unless nothing is written. Every rank must enter, and may write.

    Args:
        writer: Whether this rank makes and moves the folder: the first one, or the first of each machine that has
            a disk of its own.
    """
    state, unfinished = PartialState(), place.parent / UNFINISHED
    folder = unfinished / place.name
    if writer:
        shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed here
        folder.mkdir(parents=True)
    state.wait_for_everyone()
    yield folder
    state.wait_for_everyone()
    if state.is_local_main_process:  # what other machines wrote is in their memory
        for path in _files(folder):
            flush(path)
    state.wait_for_everyone()
    if writer and any(folder.iterdir()):
        _write_manifest(folder)
        for path in sorted((p for p in folder.rglob("*") if p.is_dir()), reverse=True):
            flush(path)
        flush(folder)
        if place.exists():
            place.rename(unfinished / "replaced")
        folder.rename(place)
        flush(place.parent)
    if writer:
        shutil.rmtree(unfinished)
    state.wait_for_everyone()


def damage(folder: Path, *, contents: bool = True) -> str | None:
    """What is wrong with a folder that `written_whole` wrote, or None where every file is as it was written.

    Without `contents`, which takes no time, only lost files and other sizes are found.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        expected = {str(name): (int(about["size"]), str(about["sha256"])) for name, about in manifest["files"].items()}
    except FileNotFoundError:
        return f"it has no {MANIFEST}, which is written last"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"its {MANIFEST} cannot be read ({type(error).__name__}: {error})"
    for name, (size, _) in expected.items():
        try:
            found = (folder / name).stat().st_size
        except (OSError, ValueError) as error:
            return f"{name} is missing" if isinstance(error, FileNotFoundError) else f"{name} cannot be read ({error})"
        if found != size:
            return f"{name} has {found} bytes, and was written with {size}"
    if not contents:
        return None
    try:
        digests = _digests(folder, list(expected))
    except OSError as error:
        return f"{error.filename} cannot be read ({error.strerror})"
    changed = [name for name, (_, digest) in expected.items() if digests[name] != digest]
    return f"{changed[0]} is not as it was written (its SHA-256 differs)" if changed else None


def remove(folder: Path) -> None:
    """Deletes a folder; one that is found in its place is never half of it."""
    doomed = folder.parent / UNFINISHED / folder.name
    doomed.parent.mkdir(exist_ok=True)
    folder.rename(doomed)
    shutil.rmtree(doomed.parent)


def check_whole(folder: Path, cure: str) -> None:
    """Raises `TPOError` for a folder that is damaged; `cure` says what to do."""
    found = damage(folder)
    if found is not None:
        raise TPOError(f"{folder} is damaged: {found}; {cure}")


def _write_manifest(folder: Path) -> None:
    paths = _files(folder)
    names = [path.relative_to(folder).as_posix() for path in paths]
    digests = _digests(folder, names)
    files = {
        name: {"size": path.stat().st_size, "sha256": digests[name]} for name, path in zip(names, paths, strict=True)
    }
    text = json.dumps({"files": files}, indent=1) + "\n"
    replace_file(folder / MANIFEST, lambda name: Path(name).write_text(text, encoding="utf-8"))


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)


def _digests(folder: Path, names: list[str]) -> dict[str, str]:
    with ThreadPoolExecutor(4) as pool:  # hashing lets other threads run
        return dict(zip(names, pool.map(lambda name: _digest(folder / name), names), strict=True))


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
