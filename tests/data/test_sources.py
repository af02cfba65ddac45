"""Files of records: elements of a JSON list, one at a time."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from tpo_plugin.data import sources
from tpo_plugin.data.sources import RecordFile
from tpo_plugin.errors import RecordError

VALUES: list[Any] = [
    {"a": 'é“字😀 [,] \\" {', "b": [1, [2], {}]},
    12345,
    "x]",
    [],
    {"long": "y" * 50},
    -1.5e3,
    True,
    None,
    {"a": 1},
]


@pytest.mark.parametrize("block", [1, 2, 7, 64, 1 << 24])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("escaped", [True, False])
def test_the_elements_of_a_list(
    tmp_path: Path, monkeypatch: Any, block: int, indent: int | None, escaped: bool
) -> None:
    monkeypatch.setattr(sources, "_BLOCK", block)
    path = tmp_path / "a.json"
    text = json.dumps(VALUES, indent=indent, ensure_ascii=escaped)
    path.write_bytes(b"\xef\xbb\xbf \n" * (indent is not None) + text.encode() + b" \r\n")
    found = RecordFile(path)
    assert [found[i] for i in range(len(found))] == VALUES
    assert found.place(3) == (None, "[3]")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[{]", "Expecting property name enclosed in double quotes.* at byte 2, in element \\[0\\]"),
        ("[1, 2", "it ends within the list at byte 5, in element \\[1\\]"),
        ("[1, ]", "Expecting value at byte 4, in element \\[1\\]"),
        ("[1 2]", "expected ',' or ']' at byte 3, behind element \\[0\\]"),
        ("[1] [2]", "something stands behind the list, which ends at byte 2"),
        ("[", "it ends within the list"),
    ],
)
@pytest.mark.parametrize("block", [1, 1 << 24])
def test_what_is_no_list(tmp_path: Path, monkeypatch: Any, text: str, message: str, block: int) -> None:
    monkeypatch.setattr(sources, "_BLOCK", block)
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(RecordError, match=f"a.json: is not valid JSON: {message}"):
        RecordFile(tmp_path / "a.json")


def test_a_wrong_element_is_named_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'[{"a": NaN}, {"a": "\xff"}]')
    found = RecordFile(path)
    for index, message in enumerate(["NaN is not JSON", "'utf-8'"]):
        with pytest.raises(RecordError, match=rf"a.json: \[{index}\]: is not valid JSON: {message}"):
            found[index]


def test_little_is_kept_of_a_list(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"text": "x" * 1000}] * 1000))
    assert len(pickle.dumps(RecordFile(path))) < 20_000
