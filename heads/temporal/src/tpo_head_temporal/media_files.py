"""Finding a data set's videos in a folder."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import tpo_plugin as tpo

SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".mpg", ".mpeg", ".3gp", ".flv", ".wmv", ".ts")


def is_video(path: Path) -> bool:
    """By its name."""
    return path.suffix.lower() in SUFFIXES and path.is_file()


class VideoFolder:
    """The videos below a folder, by the name that a data set gives them, with or without suffix."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise tpo.TPOError(f"{folder}: no such folder of videos")
        self.folder = folder
        self._names: dict[str, list[Path]] = defaultdict(list)
        self._stems: dict[str, list[Path]] = defaultdict(list)
        for path in sorted(folder.rglob("*")):
            if is_video(path):
                self._names[path.name].append(path)
                self._stems[path.stem].append(path)

    def find(self, name: str) -> Path | None:
        """The video of that name, else with another suffix (data sets are often encoded anew); None without one."""
        # A name may have a dot that begins no suffix: <id>_210.0_360.0
        stems = [name] if not name.lower().endswith(SUFFIXES) else [name.rpartition(".")[0]]
        found = self._names.get(name) or next((self._stems[stem] for stem in stems if stem in self._stems), [])
        if len(found) > 1:
            raise tpo.TPOError(
                f"video {name!r} is there {len(found)} times: {', '.join(map(str, found[:3]))}; keep one"
            )
        return found[0] if found else None
