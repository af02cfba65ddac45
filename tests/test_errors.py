"""Error texts."""

from __future__ import annotations

import pytest

from tpo_plugin.errors import HostError, MediaError, RecordError, TPOError, did_you_mean


def test_one_family_of_value_errors() -> None:
    for kind in (HostError, RecordError, MediaError):
        assert issubclass(kind, TPOError)
    assert issubclass(TPOError, ValueError)


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ({"file": "a.jsonl", "line": 3, "field": "tasks[0].boxes"}, "a.jsonl:3: tasks[0].boxes: not a list"),
        ({"file": "a.json"}, "a.json: not a list"),
        ({"field": "id"}, "id: not a list"),
        ({}, "not a list"),
    ],
)
def test_record_error_says_where(place: dict, expected: str) -> None:
    error = RecordError("not a list", **place)
    assert str(error) == expected
    assert (error.file, error.line, error.field) == tuple(place.get(key) for key in ("file", "line", "field"))


def test_did_you_mean_names_the_nearest_and_all() -> None:
    assert did_you_mean("regoin", ["temporal", "region"]) == "; did you mean 'region'? (valid: 'region', 'temporal')"
    assert did_you_mean("xyz", ["region"]) == " (valid: 'region')"
    assert did_you_mean("xyz", []) == " (valid: none)"
