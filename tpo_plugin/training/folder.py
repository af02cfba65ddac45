"""The folder that a run writes to: one call at a time has it, and what cannot be written is said in a sentence.

The lock is a file that only one call can create, with process and host in it. Exclusive creation holds between machines
on network file systems too (NFS from version 3), where the locks of an operating system may hold on one machine only.
What a killed process leaves is taken over on its own host, where it can be seen that it is gone; on another it cannot.
"""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import SoftFileLock, Timeout
from safetensors import SafetensorError

from tpo_plugin.errors import TPOError
from tpo_plugin.training.ranks import on_main

logger = logging.getLogger(__name__)

LOCK_FILE = "run.lock"

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")
"""What `files.replace_file` leaves where it is killed."""
_NATIVE = re.compile(r"os error (\d+)|inline_container\.cc|PytorchStreamWriter")
"""How the writers of safetensors and of torch say that they failed; torch's does not say why."""
_PATIENCE_S = 3.0
"""So long may a file system take that cannot replace a lock in one step."""


@contextmanager
def held(directory: Path, name: str = LOCK_FILE) -> Iterator[None]:
    """Makes the folder, where it is missing, and holds it. Raises `TPOError` where another call does, or it cannot be.

    Temporary files that a killed call left there are removed, but not those of a run in a folder within.
    """
    path = directory / name
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        before = _holder(path)
        lock = SoftFileLock(path, timeout=_PATIENCE_S)
        try:
            lock.acquire()
        except Timeout:
            raise TPOError(_in_use(directory, path)) from None
        try:
            if before is not None:
                logger.warning("%s: taken over from %s, which is gone", directory, before)
            for pattern in (".*.tmp", "*/.*.tmp", "*/*/.*.tmp"):
                for left in directory.glob(pattern):
                    if _TEMPORARY.fullmatch(left.name) and not _is_anothers(left, directory):
                        left.unlink(missing_ok=True)
            yield
        finally:
            lock.release()


def _is_anothers(path: Path, directory: Path) -> bool:
    """Whether a file in this folder is in that of a run that goes on, as the demo's baseline."""
    within = [parent for parent in path.parents if parent != directory and parent.is_relative_to(directory)]
    return any((parent / LOCK_FILE).exists() for parent in within)


@contextmanager
def held_by_main(directory: Path) -> Iterator[None]:
    """As `held`, by the main rank for all."""
    with ExitStack() as stack:
        on_main(lambda: stack.enter_context(held(directory)))
        yield


_REASONS = {
    errno.ENOSPC: "its disk is full, or a quota is used up; make room, and the same call goes on",
    errno.EDQUOT: "its disk is full, or a quota is used up; make room, and the same call goes on",
    errno.EFBIG: "a file would be too large (ulimit -f, or the file system); allow it, and the same call goes on",
    errno.EROFS: "its file system is read-only; give another folder",
    errno.EACCES: "it may not be written to; give another folder, or the right to",
    errno.EPERM: "it may not be written to; give another folder, or the right to",
    errno.EEXIST: "it is a file; give another folder",
    errno.ENOTDIR: "it is a file, or below one; give another folder",
}


@contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Raises `TPOError` where what is in it fails because this folder cannot be written to, or its disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REASONS or not _concerns(error, directory):
            raise
        raise TPOError(f"{directory}: cannot be written ({error.strerror}): {_REASONS[error.errno]}") from error
    except (SafetensorError, RuntimeError) as error:  # of writers in Rust and in C++, which know no OSError
        found = _NATIVE.search(str(error))
        if found is None:
            raise
        said, code = "a file that torch wrote is cut off", errno.ENOSPC  # most likely: it does not say why
        if found[1] is not None:
            said, code = str(error).splitlines()[0], int(found[1])
        if code not in _REASONS:
            raise
        raise TPOError(f"{directory}: cannot be written ({said}): {_REASONS[code]}") from error


def _concerns(error: OSError, directory: Path) -> bool:
    """Whether the error is of the folder, of something in it, or of what it lies in."""
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if name is not None]
    folder = os.path.join(os.path.abspath(directory), "")
    paths = [os.path.join(os.path.abspath(name), "") for name in names]
    return any(path.startswith(folder) or folder.startswith(path) for path in paths) or (
        not names and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    )


def _holder(path: Path) -> str | None:
    """Who a lock file says has it."""
    try:
        process, host = path.read_text(encoding="utf-8").splitlines()[:2]
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return "a process that did not say its name"
    return f"process {process} on {host.partition('?pidns-')[0]}"


def _in_use(directory: Path, path: Path) -> str:
    return (
        f"{directory}: {_holder(path) or 'another process'} trains in it; wait for its end, or give another folder. "
        f"Where that process is gone (it ran on another machine, or the folder is a copy), remove {path}"
    )
