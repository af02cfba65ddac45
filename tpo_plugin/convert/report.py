"""What a conversion wrote, what it left out and why, and what it changed."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tpo_plugin.data.check import ErrorKind, kind_of
from tpo_plugin.errors import MediaError, RecordError

PLACES = 3
"""Places that are named of each reason."""

ItemT = TypeVar("ItemT")


@dataclass(frozen=True)
class Place:
    """Where a value stands in a source."""

    file: str
    line: int | None = None
    path: str = ""
    """Of a value in a document: `annotations[3].bbox`."""

    def at(self, *steps: str | int) -> Place:
        """Further in: a text is a field, a number an index."""
        path = self.path
        for step in steps:
            path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else step
        return Place(self.file, self.line, path)

    def fault(self, given: Any, expected: str) -> Fault:
        """What is wrong with the value that stands here."""
        return Fault(self, given, expected)

    def __str__(self) -> str:
        return ": ".join(filter(None, (f"{self.file}:{self.line}" if self.line else self.file, self.path)))


class Fault(RecordError):
    """A value of a source that breaks its format: its place, what was given and what was expected.

    `MISSING` as `given` stands for no value at all.
    """

    def __init__(self, place: Place, given: Any, expected: str) -> None:
        self.place, self.given, self.expected = place, given, expected
        shown = "is missing" if given is MISSING else f"is {given!r:.80}"
        super().__init__(f"{shown}; expected {expected}", file=place.file, line=place.line, field=place.path or None)


MISSING = object()


@dataclass
class Report:
    """What became of a source. A format's `entries` tells it what is left out."""

    written: int = 0
    """Records."""
    left_out: dict[str, ErrorKind] = field(default_factory=dict)
    """By the reason: how many, and the first places."""
    changed: dict[str, ErrorKind] = field(default_factory=dict)
    """What was written otherwise than given."""
    doubts: list[str] = field(default_factory=list)
    """What the whole source says against the convention that was declared; with one, nothing is written."""
    checks: list[Callable[[], Iterable[str]]] = field(default_factory=list, repr=False)
    """Each is asked for doubts once all entries were read."""
    progress: Callable[[int, int | None], Any] = field(default=lambda done, total: None, repr=False)
    """Gets how many items of the source are done, of how many (None: unknown)."""

    def leave_out(self, reason: str, place: Any) -> None:
        """Counts what is left out by a rule; a fault is raised instead, within `faults`."""
        _count(self.left_out, reason, str(place))

    def change(self, what: str, place: Any) -> None:
        """Counts what is kept but changed."""
        _count(self.changed, what, str(place))

    @contextmanager
    def faults(self) -> Iterator[None]:
        """An entry in whose making a `RecordError` or `MediaError` is raised is left out, counted, and named; so is one
        that names a file by more than a file's name can hold."""
        try:
            try:
                yield
            except OSError as error:
                if error.errno != errno.ENAMETOOLONG:
                    raise
                raise MediaError(f"{str(error.filename)[:80]}...: no file can have so long a name") from error
        except (RecordError, MediaError) as error:
            _count(self.left_out, kind_of(error), str(error))

    def track(self, items: Iterable[ItemT], total: int | None = None) -> Iterator[ItemT]:
        """The items, counted for the progress bar."""
        total = len(items) if total is None and isinstance(items, Sequence) else total
        for done, item in enumerate(items):
            self.progress(done, total)
            yield item
        self.progress(total or 0, total)

    @property
    def num_left_out(self) -> int:
        return sum(found.count for found in self.left_out.values())

    def __str__(self) -> str:
        lines = [f"{self.written} records written, {self.num_left_out} left out"]
        for title, kinds in (("left out", self.left_out), ("changed", self.changed)):
            for kind, found in sorted(kinds.items(), key=lambda item: -item[1].count):
                lines.append(f"{title} {found.count} x {kind}")
                lines += [f"  {place}" for place in found.first]
                if found.count > len(found.first):
                    lines.append(f"  and {found.count - len(found.first)} more")
        return "\n".join(lines)


def _count(kinds: dict[str, ErrorKind], kind: str, place: str) -> None:
    found = kinds.setdefault(kind, ErrorKind())
    found.count += 1
    if len(found.first) < PLACES:
        found.first.append(place)
