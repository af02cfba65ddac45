"""Folders on the Hugging Face Hub: loading by name and revision, and pushing. No torch in here."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tpo_plugin.errors import TPOError
from tpo_plugin.json_file import read_json

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SNAPSHOT = re.compile(r"models--(.+?)--(.+)/snapshots/([0-9a-f]{40})")
RUN_FILE = "run.json"
_NOT_PUSHED = ("run.lock", "inputs.json", ".*")
"""Of a run: what serves only to go on with it."""


def local_folder(source: str | os.PathLike[str], revision: str | None = None) -> Path:
    """A folder of this machine: `source` itself, or the snapshot of the hub's repository of that name ("org/name").

    `revision` is a branch, tag or commit of the latter. A local path that is not there, and no such name, is given back
    as it is. Raises `TPOError` where the repository cannot be had.
    """
    path, name = Path(source), str(source)
    if path.exists() or not _NAME.fullmatch(name):
        if revision is not None:
            raise TPOError(f"revision={revision!r} was given with {name}, which is no repository's name (org/name)")
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(name, revision=revision))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        at = "" if revision is None else f" at revision {revision!r}"
        raise TPOError(
            f"{name} is no folder here, and no repository of that name{at} can be had from the hub "
            f"({type(error).__name__}: {str(error).splitlines()[0]})"
        ) from error


def hub_name(path: str | os.PathLike[str]) -> tuple[str, str] | None:
    """Name and revision of a repository's snapshot in the hub's cache, or None of any other folder."""
    match = _SNAPSHOT.search(Path(path).absolute().as_posix())
    return None if match is None else (f"{match[1]}/{match[2]}", match[3])


def loaded_revision(name: str) -> str | None:
    """Commit of the repository of that name of which the cache has `config.json`, as it is loaded; None where it has
    none. transformers 5.23 does not say it (`config._commit_hash`).
    """
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(name, "config.json") if _NAME.fullmatch(name) else None
    found = hub_name(path) if isinstance(path, str) else None
    return None if found is None else found[1]


def push_to_hub(
    directory: str | os.PathLike[str],
    name: str,
    *,
    revision: str | None = None,
    private: bool | None = None,
    token: str | None = None,
) -> str:
    """Pushes a finished run, or an exported folder, to the hub's repository `name`, which is made where it is missing.

    Of a run its result alone: no checkpoints, and nothing that serves only to go on with it. `run.json` and
    `config.yaml` hold the paths of its data and host. `revision` is a branch. Returns the address of the commit. Raises
    `TPOError` for a folder that is neither, and what the hub's client raises.
    """
    directory = Path(directory)
    result = (directory / RUN_FILE).is_file()
    if not result and not (directory / "tpo_config.json").is_file():
        raise TPOError(f"{directory} has neither {RUN_FILE} nor tpo_config.json; expected a finished run, or an export")
    left_out = list(_NOT_PUSHED)
    if result:
        left_out += [f"{stage}/*" for stage in read_json(directory / RUN_FILE, "what tpo train writes")["stages"]]
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    api.create_repo(name, private=private, exist_ok=True)
    if revision is not None:
        api.create_branch(name, branch=revision, exist_ok=True)
    message = f"Upload {'a run' if result else 'an export'} of tpo-plugin"
    made = api.upload_folder(
        repo_id=name, folder_path=directory, revision=revision, ignore_patterns=left_out, commit_message=message
    )
    return str(made.commit_url)
