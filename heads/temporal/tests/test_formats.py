"""Readers of data sets, and the records that they become."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tpo_head_temporal.formats import FORMATS, read_moments

import tpo_plugin as tpo

QV = {
    "qid": 7,
    "query": "A dog jumps.",
    "duration": 20,
    "vid": "abc_210.0_230.0",
    "relevant_windows": [[2, 6], [10, 12]],
    "relevant_clip_ids": [1, 2, 5],
    "saliency_scores": [[1, 2, 3], [4, 4, 4], [0, 0, 1]],
}
ANET = {"v_a": {"duration": 30.5, "timestamps": [[0.5, 4], [3, 30.6]], "sentences": ["One.", " Two "]}}
DIDEMO = {"annotation_id": 5, "video": "a.mov", "description": "jumps", "times": [[0, 0], [1, 2], [1, 1], [1, 2]]}


def write(path: Path, data: Any) -> Path:
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return path


def test_charades_sta(tmp_path: Path) -> None:
    text = "AO8RW 0.0 6.9##a person puts a book on a shelf.\r\nAO8RW 1 2.5##a person # sits\n\nB 3.5 7##x"
    moments = read_moments("charades-sta", write(tmp_path / "train.txt", text))
    assert [(m.id, m.video, m.query, m.spans_s, m.line) for m in moments] == [
        ("AO8RW_1", "AO8RW", "a person puts a book on a shelf.", ((0.0, 6.9),), 1),
        ("AO8RW_2", "AO8RW", "a person # sits", ((1.0, 2.5),), 2),
        ("B_1", "B", "x", ((3.5, 7.0),), 4),
    ]
    assert all(m.duration_s is None and m.saliency is None for m in moments)


def test_qvhighlights(tmp_path: Path) -> None:
    (moment,) = read_moments("qvhighlights", write(tmp_path / "val.jsonl", QV))
    assert moment.saliency == (0, 6, 12, 0, 0, 1, 0, 0, 0, 0)
    assert moment.to_record("clips/abc_210.0_230.0.mp4") == {
        "id": "7",
        "video": "clips/abc_210.0_230.0.mp4",
        "conversations": [
            {"from": "human", "value": '<video>\nWhen does this happen in the video: "A dog jumps"?'},
            {"from": "gpt", "value": "It happens at <temporal>."},
        ],
        "tasks": [
            {
                "head": "temporal",
                "spans": [[2.0, 6.0], [10.0, 12.0]],
                "query": "A dog jumps.",
                "duration": 20.0,
                "saliency": [0, 6, 12, 0, 0, 1, 0, 0, 0, 0],
                "clip_s": 2.0,
            }
        ],
    }
    without = {key: value for key, value in QV.items() if key not in ("saliency_scores", "relevant_clip_ids")}
    (moment,) = read_moments("qvhighlights", write(tmp_path / "val.jsonl", without))
    assert moment.saliency is None
    assert set(moment.to_record("x")["tasks"][0]) == {"head", "spans", "query", "duration"}


def test_all_of_the_public_validation_set(shared: Path) -> None:
    moments = read_moments("qvhighlights", shared / "golden/qvhighlights/highlight_val_release.jsonl")
    assert len(moments) == 1550
    assert all(moment.saliency is not None and len(moment.saliency) == int(moment.duration_s / 2) for moment in moments)
    assert max(max(moment.saliency) for moment in moments) == 12
    assert all(0 <= start < end <= moment.duration_s for moment in moments for start, end in moment.spans_s)


def test_activitynet_captions(tmp_path: Path) -> None:
    first, second = read_moments("activitynet-captions", write(tmp_path / "val.json", ANET))
    assert (first.id, first.video, first.query, first.spans_s) == ("v_a_0", "v_a", "One.", ((0.5, 4.0),))
    assert (second.query, second.spans_s, second.num_cut) == ("Two", ((3.0, 30.5),), 1)


def test_didemo_takes_the_annotator_who_agrees_most(tmp_path: Path) -> None:
    (moment,) = read_moments("didemo", write(tmp_path / "val.json", [DIDEMO]))
    assert (moment.id, moment.video, moment.query, moment.spans_s) == ("5", "a.mov", "jumps", ((5.0, 15.0),))
    assert moment.fitted(13.2).spans_s == ((5.0, 13.2),)


def test_a_span_in_its_video(tmp_path: Path) -> None:
    (moment,) = read_moments("charades-sta", write(tmp_path / "a.txt", "A 5 30##x"))
    fitted = moment.fitted(26.0)
    assert (fitted.spans_s, fitted.duration_s, fitted.num_cut) == (((5.0, 26.0),), 26.0, 1)
    assert moment.fitted(40).num_cut == 0
    for duration_s in (24.9, 5.0):
        with pytest.raises(
            tpo.RecordError, match=rf"a\.txt:1: A_1: span 0: is \[5, 30\], but A lasts {duration_s:.2f} s"
        ):
            moment.fitted(duration_s)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("charades-sta", "A 1 2 x", "data:1: is 'A 1 2 x', expected 'VIDEO START END##SENTENCE'"),
        ("charades-sta", "A 1 2##x\nA 1##x", "data:2: is 'A 1##x', expected"),
        ("charades-sta", "A 1 two##x", "data:1: end: is 'two', expected seconds"),
        ("charades-sta", "A 1 nan##x", "data:1: start, end: is .1.0, nan., expected .start, end. in seconds"),
        ("charades-sta", "A 5 5##x", r"data:1: start, end: is \[5, 5\], expected an end behind the start"),
        ("charades-sta", "A -1 5##x", "data:1: start, end: starts at -1, expected"),
        ("charades-sta", "A 1 5## ", "data:1: sentence: is ' ', expected text"),
        ("charades-sta", "\n", "data: holds no query"),
        ("qvhighlights", "[]", "data:1: is list, expected an object"),
        ("qvhighlights", "{", "data:1: is not valid JSON"),
        ("qvhighlights", QV | {"qid": None}, "data:1: qid: is missing"),
        ("qvhighlights", QV | {"query": 3}, "data:1: query: is 3, expected text"),
        ("qvhighlights", QV | {"duration": "20"}, "data:1: duration: is '20', expected seconds above 0"),
        ("qvhighlights", QV | {"relevant_windows": []}, "data:1: relevant_windows: is empty"),
        (
            "qvhighlights",
            QV | {"relevant_windows": [[1, 2], [4]]},
            r"data:1: relevant_windows\[1\]: is \[4\], expected",
        ),
        (
            "qvhighlights",
            QV | {"relevant_windows": [[21, 23]]},
            r"data:1: 7: span 0: is \[21, 23\], but .* lasts 20.00 s",
        ),
        (
            "qvhighlights",
            QV | {"relevant_clip_ids": [1, 2]},
            "data:1: saliency_scores: has length 3, relevant_clip_ids 2",
        ),
        (
            "qvhighlights",
            QV | {"relevant_clip_ids": [1, 2, 10]},
            r"data:1: relevant_clip_ids\[2\]: is 10, expected 0 to 9",
        ),
        ("qvhighlights", QV | {"saliency_scores": [[1, 2, 5]] * 3}, r"data:1: saliency_scores\[0\]: is \[1, 2, 5\]"),
        ("qvhighlights", f"{json.dumps(QV)}\n{json.dumps(QV)}", "data:2: id is '7', as that of another query"),
        ("activitynet-captions", [], "data: is list, expected an object of videos"),
        ("activitynet-captions", {"v": {}}, "data: v: expected an object with as many 'timestamps' as 'sentences'"),
        ("activitynet-captions", {"v": ANET["v_a"] | {"sentences": ["x"]}}, "data: v: expected an object with as many"),
        ("activitynet-captions", {"v": ANET["v_a"] | {"timestamps": [[1, 2], [4, 3]]}}, r"data: v.timestamps\[1\]: is"),
        ("activitynet-captions", {"v": ANET["v_a"] | {"duration": 0}}, "data: v.duration: is 0, expected"),
        (
            "activitynet-captions",
            {"v": ANET["v_a"] | {"duration": 20}},
            r"v_1: span 0: is \[3, 30.6\], but v lasts 20.00",
        ),
        ("didemo", {}, "data: is dict, expected a list"),
        ("didemo", [3], r"data: \[0\]: is 3, expected an object"),
        ("didemo", [DIDEMO | {"times": [[2, 1]]}], r"data: \[0\].times\[0\]: is \[2, 1\], expected segments from 0"),
        ("didemo", [DIDEMO | {"times": []}], r"data: \[0\].times: is empty"),
        ("didemo", [DIDEMO, DIDEMO | {"annotation_id": 6, "video": ""}], r"data: \[1\].video: is '', expected text"),
    ],
)
def test_wrong_entries_name_file_line_and_field(tmp_path: Path, name: str, data: Any, message: str) -> None:
    with pytest.raises(tpo.RecordError, match=message):
        read_moments(name, write(tmp_path / "data", data))


@pytest.mark.parametrize(
    ("name", "data", "good", "bad"),
    [
        ("charades-sta", "A 1 2##x\nA 3 2##y\nA 4 5##z", ["A_1", "A_2"], 1),
        ("qvhighlights", f"{json.dumps(QV)}\n{{}}\n{json.dumps(QV | {'qid': 8})}", ["7", "8"], 1),
        ("activitynet-captions", {"u": 3, "v": ANET["v_a"] | {"timestamps": [[1, 1], [1, 2]]}}, ["v_1"], 2),
        ("didemo", [DIDEMO, DIDEMO, DIDEMO | {"annotation_id": 6}], ["5", "6"], 1),
    ],
)
def test_errors_can_be_counted_instead(tmp_path: Path, name: str, data: Any, good: list[str], bad: int) -> None:
    errors: list[tpo.RecordError] = []
    moments = read_moments(name, write(tmp_path / "data", data), errors.append)
    assert [moment.id for moment in moments] == good
    assert len(errors) == bad


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(tpo.TPOError, match="format is 'tacos'; expected one of 'charades-sta', 'qvhighlights'"):
        read_moments("tacos", tmp_path / "x")
    assert set(FORMATS) == {"charades-sta", "qvhighlights", "activitynet-captions", "didemo"}
