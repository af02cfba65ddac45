"""What a format is, what it gives, and which are installed."""

from __future__ import annotations

import functools
import logging
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from tpo_plugin.convert.report import Report
from tpo_plugin.data.storage import media_folder
from tpo_plugin.errors import TPOError
from tpo_plugin.plugins import Plugin, registry, resolve

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FrameList:
    """A video whose frames are image files; a list of them, .ffconcat, is written beside the records."""

    name: str
    files: tuple[Path, ...]
    times_s: tuple[float, ...]
    """When each frame is first shown, ascending from 0."""
    end_s: float

    @classmethod
    def at_rate(cls, name: str, files: Sequence[Path], fps: float) -> FrameList:
        """Frames at a constant rate."""
        times_s = [round(index / fps, 6) for index in range(len(files) + 1)]
        return cls(name, tuple(files), tuple(times_s[:-1]), times_s[-1])


@dataclass(frozen=True)
class StoredPicture:
    """A picture that stands in the source itself; it becomes a file beside the records."""

    name: str
    """Of the file to be, without folder and suffix."""
    data: bytes
    """A picture file's content."""


@dataclass(frozen=True)
class Entry:
    """One record to be."""

    id: str
    """Of the source, so that scores can be joined with it: `refcoco:ref_id:sent_id`."""
    turns: Sequence[str]
    """Texts of human and gpt in turn, with a placeholder for each task, as records have them; media without a tag come
    first. An odd number is a prompt without an answer."""
    tasks: Sequence[Mapping[str, Any]] = ()
    """In the order of each head's placeholders."""
    images: Sequence[Path | StoredPicture] = ()
    videos: Sequence[Path | FrameList] = ()
    system: str | None = None
    picture_ids: Sequence[str | int] = ()
    """By which its sources know its pictures, for `--exclude-images`; names of files are known without."""


@dataclass(kw_only=True)
class Format:
    """A layout in which data are published. Its docstring's first line is its help.

    A subclass is a dataclass(kw_only=True), and its fields are the parameters of `tpo convert NAME`, annotated as
    typer's are: `Annotated[Path, typer.Argument(help=...)]` for a source, `Annotated[..., typer.Option(help=...)]` for
    an option; a `Literal` is a choice.
    """

    heads: ClassVar[tuple[str, ...]] = ()
    """Heads whose tasks its records may hold."""
    settings: ClassVar[Mapping[str, Any]] = {}
    """Configuration by head, with which its records are checked: what a head must be set to, to learn from them."""

    named: dict[Path, str] = field(default_factory=dict, init=False, repr=False)
    """What its sources were called before they were fetched and unpacked."""

    def beside(self, source: Path) -> Path:
        """The folder in which media lie that a source names by relative paths: beside it, packed or not, or in its tar;
        for a URL the working directory."""
        return media_folder(self.named.get(source, source))

    def entries(self, report: Report) -> Iterator[Entry]:
        """The entries of the sources, one at a time.

        What makes one of them unusable is raised within `report.faults()`; an error raised outside of it ends the
        conversion, and nothing is written.
        """
        raise NotImplementedError(f"{type(self).__name__} must define entries")


@dataclass(frozen=True)
class FormatSpec:
    """What a plugin registered under a format's name."""

    name: str
    format: type | str
    plugin: Plugin

    def format_class(self) -> type[Format]:
        """The class, imported now; raises `TPOError` with the plugin if that fails."""
        return resolve(self.format, f"format {self.name!r}", self.plugin)

    @property
    def help(self) -> str:
        return (self.format_class().__doc__ or "").partition("\n")[0]


@functools.cache
def formats() -> dict[str, FormatSpec]:
    """The formats of all plugins by name. One whose name is taken, or a plugin that fails, is reported and left out."""
    found: dict[str, FormatSpec] = {}
    for plugin in registry().plugins:
        if plugin.error is not None:
            continue
        try:
            own = _formats_of(plugin)
        except Exception:
            logger.warning("no formats from plugin %r (%s):\n%s", plugin.name, plugin, traceback.format_exc())
            continue
        for name, spec in own.items():
            if name in found:
                logger.warning("format %r of plugin %r (%s) is left out: the name is taken", name, plugin.name, plugin)
            else:
                found[name] = spec
    return dict(sorted(found.items()))


def _formats_of(plugin: Plugin) -> dict[str, FormatSpec]:
    own: dict[str, FormatSpec] = {}

    def register(name: str, format: type | str) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", name) or name in own:
            raise TPOError(f"format name {name!r}: expected lower-case letters, digits, '-' and '.', each name once")
        own[name] = FormatSpec(name, format, plugin)

    registry().call(plugin, "register_formats", register=register)
    return own
