"""Files that nobody meant: a good one, changed by hypothesis, is read or refused with a documented error.

`TPO_FUZZ=50000` has all the tests of tests/fuzz together try about so many files, in place of the two thousand that
they try by default.
"""

from __future__ import annotations

import copy
import json
import os
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tpo_plugin.errors import TPOError

hypothesis = pytest.importorskip("hypothesis", reason="fuzzing needs hypothesis, which needs Python 3.11")
st = hypothesis.strategies

TRIES = 2000
"""Of all tests together."""

FACTOR = int(os.environ.get("TPO_FUZZ", TRIES)) / TRIES
"""How many times as many files are tried."""

MOST_SECONDS, MOST_BYTES = 3.0, 500 << 20
"""What one file may take: seconds of this process's own computing, so that a busy machine fails nothing, and memory."""

STRANGE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 3, 0.5, -0.0, 1e308, 1e-320, float("inf"), float("nan")),
    *(2**31, 2**63, -(2**63), 10**30, 10**400, 50_000, 9_999_999),
    *("", " ", "a", "\0", "\ud800", "../../x", "/etc/passwd", "é" * 300, "x" * 5000, "1e5", "<image>", "<region>"),
    *([], {}, [[]], [None], {"a": 1}, {"": None}, [0] * 50, [[0.1, 0.2, 0.3, 0.4]], [1, 2], "[1]"),
)
"""Values that stand where another was expected."""

RAW = (
    *(b"", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"[" * 3000, b'{"a":' * 3000, b"9" * 5000, b"-", b"]", b"}", b'"'),
    *(
        b"1e999",
        b"NaN",
        b"Infinity",
        b"\\ud800",
        b"\n",
        b",",
        b"%",
        b"&a",
        b"*a",
        b"!!int ''",
        b"!!python/name:os",
        b"7",
    ),
)
"""Bytes that are put in, or in the place of others."""


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to all that a JSON value holds."""
    steps = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [path, *(place for step in steps for place in _places(value[step], (*path, step)))]


@st.composite
def values(draw: Any, good: Any) -> Any:
    """A JSON value with one or two of its parts changed, left out, or given twice."""
    value = copy.deepcopy(good)
    for _ in range(draw(st.integers(1, 2))):
        *parents, last = draw(st.sampled_from(_places(value)[1:] or [(0,)]))
        if not isinstance(value, (dict, list)) or not value:
            break
        inner = value
        for step in parents:
            inner = inner[step]
        change = draw(st.sampled_from(["value", "value", "number", "drop", "key", "copy"]))
        if change == "drop":
            del inner[last]
        elif change == "number" and isinstance(inner[last], (int, float)):
            inner[last] = draw(st.integers() | st.floats() | st.integers(0, 10**6))
        elif change == "key" and isinstance(inner, dict):
            inner[draw(st.sampled_from(["", "id", "\ud800", "heads", "x" * 300]) | st.text(max_size=8))] = inner.pop(
                last
            )
        elif change == "copy" and isinstance(inner, list):
            inner.extend(copy.deepcopy(inner[last]) for _ in range(draw(st.integers(1, 30))))
        else:
            inner[last] = copy.deepcopy(draw(st.sampled_from(STRANGE) | st.text(max_size=8)))
    return value


@st.composite
def changed(draw: Any, good: tuple[bytes, ...]) -> bytes:
    """A file with one or two stretches of its bytes changed, cut, repeated, or put in."""
    data = bytearray(draw(st.sampled_from(good)))
    for _ in range(draw(st.integers(1, 2))):
        at = draw(st.integers(0, len(data)))
        change = draw(st.sampled_from(["flip", "flip", "insert", "cut", "repeat", "end"]))
        if change == "flip" and at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif change == "insert":
            data[at:at] = draw(st.sampled_from(RAW) | st.binary(max_size=6))
        elif change == "cut":
            del data[at : at + draw(st.integers(1, 40))]
        elif change == "repeat":
            data[at:at] = data[at : at + draw(st.integers(1, 40))] * draw(st.integers(1, 30))
        elif change == "end":
            del data[at:]
    return bytes(data)


@dataclass(frozen=True)
class Files:
    """What one reader is given."""

    good: tuple[bytes, ...]
    """Files that it reads."""
    strategy: Any
    """Gives those that nobody meant."""


def texts(*good: bytes) -> Files:
    """Good files, changed as bytes."""
    return Files(good, changed(good))


def files(good: Any, dump: Callable[[Any], str] = json.dumps) -> Files:
    """A file of a good JSON value, changed as a value or as bytes."""
    data = dump(good).encode()
    by_value = values(good).map(lambda value: dump(value).encode("utf-8", "surrogatepass"))
    return Files((data,), by_value | changed((data,)))


def fuzz(files: Files, path: Path, read: Callable[[Path], Any], *, tries: int) -> None:
    """Has `read` read `path` with each of the files.

    Fails where it raises anything but a `TPOError` or one without a message, where it takes more than three seconds of
    computing or 500 MB of memory, where it refuses a good file, and where it refuses none. The same are tried each
    time.
    """
    for good in files.good:
        path.write_bytes(good)
        read(path)
    found: Counter[str] = Counter()

    @hypothesis.settings(
        max_examples=round(tries * FACTOR),
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate],  # the first file that fails is shown as it is: shrinking takes long
        report_multiple_bugs=False,
    )
    @hypothesis.given(files.strategy)
    def one(data: bytes) -> None:
        path.write_bytes(data)
        before, began = _forget_peak(), time.process_time()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read(path)
            found["read"] += 1
        except TPOError as error:
            found["refused" if str(error).strip() else "refused without a word"] += 1
        seconds, grown = time.process_time() - began, _peak() - before
        assert seconds < MOST_SECONDS, f"took {seconds:.1f} s"
        assert grown < MOST_BYTES, f"took {grown / 2**20:.0f} MiB"

    one()
    assert found["refused"], found
    assert not found["refused without a word"], found
    print(f"{path.name}: {found['read']} read, {found['refused']} refused")


def _peak() -> int:
    """Bytes that this process had in memory at the most, since `_forget_peak`; 0 where the system does not say."""
    return _status("VmHWM")


def _forget_peak() -> int:
    """Starts the peak anew, and returns the bytes in memory now."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return _status("VmHWM")
    return _status("VmRSS")


def _status(name: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)
