"""Files and folders wherever they are, as plain ones on this disk. No torch in here.

`local_path` takes what a user names: a file or folder, a URL (`https://`, `s3://`, `hf://` and whatever else fsspec
has), a `.gz` or `.zst` file, a tar, and a path inside a tar: `shards/000.tar.gz/records.jsonl`. What is fetched or
unpacked stands in a cache, whose folder is `TPO_CACHE` or `~/.cache/tpo-plugin`, under a name of its own for each state
of the source: a changed source is fetched anew. Nothing is left under that name where fetching or unpacking fails.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

from tpo_plugin.errors import RecordError
from tpo_plugin.extras import needed

CACHE_VARIABLE = "TPO_CACHE"
_URL = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
_TAR = re.compile(r"(.+?\.(?:tar|tgz)(?:\.gz|\.zst)?)/(.+)", re.IGNORECASE | re.DOTALL)
_BLOCK = 1 << 20
_TAR_BLOCK = 512


def is_url(path: str | Path) -> bool:
    """Whether it names something behind `scheme://`."""
    return bool(_URL.match(str(path)))


def local_path(path: str | Path, *, into_tars: bool = True) -> Path:
    """The plain file on this disk with what `path` names, or the folder for a tar or a folder.

    Without `into_tars` a tar stays a file. A local path that is not there is given back as it is. Raises `RecordError`
    that names the path: a URL that cannot be fetched, a package that is missing, a file that is cut off or damaged, a
    path that leaves its tar.
    """
    return _unpacked(_located(str(path)), str(path), into_tars)


def media_folder(path: str | Path) -> Path:
    """Where the media that a file of records names lie by default: beside it, also in its tar; for a URL in the working
    directory. Raises as `local_path`."""
    name = str(path)
    return Path() if is_url(name) and not _inside_tar(name) else _located(name).parent


def _located(name: str) -> Path:
    """What is named, still packed."""
    inside = _inside_tar(name)
    if inside is None:
        return _fetched(name) if is_url(name) else Path(name)
    archive, member = inside
    folder = local_path(archive)
    found = folder / member
    if not found.resolve().is_relative_to(folder.resolve()) or not found.exists():
        raise RecordError(f"holds no {member!r}", file=archive)
    return found


def _inside_tar(name: str) -> tuple[str, str] | None:
    """A tar and a path in it, where a name holds both."""
    found = None if os.path.exists(name) else _TAR.fullmatch(name)
    return (found[1], found[2]) if found and (is_url(name) or os.path.isfile(found[1])) else None


def cache_folder() -> Path:
    """Where fetched and unpacked files are kept."""
    given = os.environ.get(CACHE_VARIABLE)
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tpo-plugin"


def _fetched(url: str) -> Path:
    with needed():
        import fsspec

    try:
        system, remote = fsspec.core.url_to_fs(url)
        about = system.info(remote)
        if about.get("type") == "directory":
            raise ValueError("it is a folder; expected a file")

        def fetch(target: Path) -> None:
            system.get_file(remote, str(target))
            size = about.get("size")
            if size is not None and target.stat().st_size != size:
                raise ValueError(f"{target.stat().st_size} bytes came, expected {size}")

        file = re.split("[?#]", url)[0].rpartition("/")[2]
        return cached([url, json.dumps(about, sort_keys=True, default=str)], file, fetch)
    except ImportError as error:  # its message says which package
        raise RecordError(f"cannot be fetched: {error} (or fetch it yourself, and name the file)", file=url) from error
    except Exception as error:  # whatever a file system raises
        reason = error.__cause__ or error  # of a FileNotFoundError, which says no more than the URL
        raise RecordError(f"cannot be fetched: {reason or type(error).__name__}", file=url) from error


def _unpacked(path: Path, name: str, into_tars: bool) -> Path:
    """`path` without the compressions and the tar that its name ends with; `name` stands for it in messages."""
    while True:
        suffix = path.suffix.lower()
        step = _STEPS.get(suffix)
        if step is None or not path.is_file() or (step is _untar and not into_tars):
            return path
        state, source = path.stat(), path
        if not state.st_size:
            raise RecordError("cannot be unpacked: it is empty; it is cut off or damaged", file=name)
        stem = f"{path.stem}.tar" if suffix == ".tgz" else path.stem
        try:
            path = cached(
                [str(source.resolve()), str(state.st_size), str(state.st_mtime_ns)],
                stem,
                lambda target, step=step, source=source: step(source, target),  # type: ignore[misc]
            )
        except ImportError as error:
            raise RecordError(f"cannot be unpacked: {error}", file=name) from error
        except (OSError, EOFError, ValueError, zlib.error, tarfile.TarError) as error:
            raise RecordError(f"cannot be unpacked: {error}; it is cut off or damaged", file=name) from error


def cached(key: list[str], name: str, make: Callable[[Path], Any]) -> Path:
    """The file or folder of that key in the cache; made under another name first, so that nobody finds half of it."""
    folder = cache_folder() / hashlib.sha256("\n".join(key).encode()).hexdigest()[:24]
    final = folder / (re.sub(r"[^\w.-]+", "_", name) or "file")
    if final.exists():
        return final
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{uuid4().hex[:8]}.tmp"
    try:
        make(temporary)
        try:
            os.replace(temporary, final)
        except OSError:  # a folder that another process has put there meanwhile
            if not final.exists():
                raise
    finally:
        shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink(missing_ok=True)
    return final


# -- compressions and tar ----------------------------------------------------------------------------------------------


def _gunzip(source: Path, target: Path) -> None:
    with gzip.open(source) as packed, target.open("wb") as plain:
        shutil.copyfileobj(packed, plain, _BLOCK)


def _unzstd(source: Path, target: Path) -> None:
    with needed():
        import zstandard

    with source.open("rb") as packed, target.open("wb") as plain:
        try:
            for part in _zstd_frames(packed, zstandard.ZstdDecompressor()):
                plain.write(part)
        except zstandard.ZstdError as error:
            raise ValueError(str(error)) from error


def _zstd_frames(packed: BinaryIO, decompressor: Any) -> Iterator[bytes]:
    """The content of all frames. Its own reader takes a file that ends within a frame for a whole one."""
    frame, rest = None, b""
    while rest := rest or packed.read(_BLOCK):
        frame = frame or decompressor.decompressobj()
        yield frame.decompress(rest)
        rest = frame.unused_data if frame.eof else b""
        frame = None if frame.eof else frame
    if frame is not None:
        raise ValueError("it ends within a frame")


def _untar(source: Path, target: Path) -> None:
    with source.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
        for member in archive:
            if not (member.isreg() or member.isdir()):
                raise ValueError(f"{member.name!r} is a link or a device; expected files and folders alone")
        check_end_mark(file, archive)
        target.mkdir()
        archive.extractall(target, filter="data")


def check_end_mark(file: BinaryIO, archive: tarfile.TarFile) -> None:
    """Raises `ValueError` where a tar, all members of which are read, is cut off behind the last of them."""
    file.seek(archive.offset)  # tarfile itself takes a cut there for the end
    if file.read(_TAR_BLOCK) != bytes(_TAR_BLOCK):
        raise ValueError("its end mark is missing")


_STEPS: dict[str, Callable[[Path, Path], None]] = {
    ".gz": _gunzip,
    ".tgz": _gunzip,
    ".zst": _unzstd,
    ".tar": _untar,
}
