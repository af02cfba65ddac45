"""Formats of moments: small files of their real layouts through the converter, and what each refuses."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from downloads import converted, download, downloads, format_of, unpack, video
from tpo_head_temporal.formats.lines import QVHighlights
from tpo_head_temporal.formats.moments import QUESTIONS

import tpo_plugin as tpo
from tpo_plugin.convert import Report, convert, formats, worded
from tpo_plugin.data import RecordFormat, Records

DOWNLOADS = downloads("temporal")
MOMENTS = [each for each in DOWNLOADS if "records" in each]


def source(format: str) -> Any:
    """What stands in the annotations of a format's download."""
    return json.loads(next(iter(download("temporal", format)["files"].values())))


QV, LENS = source("qvhighlights"), source("timelens-100k")
ANET, TACOS, BENCH = source("activitynet-captions"), source("tacos"), source("timelens-bench")
(DIDEMO, _) = source("didemo")
HIREST = source("hirest")["Make soup"]["v.mp4"]
COOK = source("youcook2")["database"]["xHr8X2Wpmno"]
NLQ_QUERY = source("nlq")["videos"][0]["clips"][0]["annotations"][0]["language_queries"][0]


def nlq(**changes: Any) -> dict[str, Any]:
    clip = {"clip_uid": "c1", "video_start_sec": 18.0, "annotations": [{"language_queries": [NLQ_QUERY | changes]}]}
    return {"videos": [{"video_uid": "v1", "clips": [clip]}]}


def hirest(**changes: Any) -> dict[str, Any]:
    return {"Make soup": {"v.mp4": HIREST | changes}}


def cook(**changes: Any) -> dict[str, Any]:
    return {"database": {"xHr8X2Wpmno": COOK | changes, "other": {**COOK, "subset": "validation"}}}


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One video of 30 seconds, under all names."""
    folder = tmp_path_factory.mktemp("videos")
    video(folder / "A.mp4", 30, 1)
    for name in ("B", "a", "c1", "v", "v_a", "s1", "abc_210.0_230.0", "xHr8X2Wpmno", "other"):
        os.link(folder / "A.mp4", folder / f"{name}.mp4")
    return folder


def outcome(name: str, data: Any, folder: Path, videos: Path, **options: Any) -> tuple[list[dict[str, Any]], str]:
    """The records that a source gives, and what is said of it."""
    text = data if isinstance(data, str) else json.dumps(data)
    source, output = folder / "data", folder / "records.jsonl"
    source.write_text(text, encoding="utf-8")
    try:
        report = convert(formats()[name].format_class()(source=source, videos=videos, **options), output)
    except tpo.TPOError as error:
        assert not output.exists()
        return [], str(error)
    assert len(Records(output, RecordFormat.of_heads(["temporal"]))) == report.written
    return [json.loads(line) for line in output.read_text().splitlines()], str(report)


@pytest.mark.parametrize("layout", MOMENTS, ids=format_of)
def test_a_download_becomes_records(layout: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    unpack(layout)
    said, records = converted(layout)
    found = {record["id"]: [Path(record["video"]).stem, record["tasks"][0]["spans"]] for record in records}
    assert list(found) == list(layout["records"]), said
    for id, (name, spans) in layout["records"].items():
        assert found[id][0] == name
        assert np.array(found[id][1]) == pytest.approx(np.array(spans), abs=1e-8)
    assert layout.get("says", "") in said


BAD = [
    ("charades-sta", "A 1 2 x", "data:1: is 'A 1 2 x'; expected 'VIDEO START END##SENTENCE'"),
    ("charades-sta", "A 1 2##x\nA 1##x", "data:2: is 'A 1##x'; expected"),
    ("charades-sta", "A 1 two##x", "data:1: end: is 'two'; expected seconds"),
    ("charades-sta", "A 1 nan##x", "data:1: start, end: is [1.0, nan]; expected [start, end]"),
    ("charades-sta", "A 8.0 7.0##x", "data:1: start, end: is [8.0, 7.0]; expected [start, end] with 0 <= start < end"),
    ("charades-sta", "A 5 5##x", "data:1: start, end: is [5.0, 5.0]; expected"),
    ("charades-sta", "A -1 5##x", "data:1: start, end: is [-1.0, 5.0]; expected"),
    ("charades-sta", "A 1 5## ", "data:1: sentence: is ' '; expected text"),
    ("charades-sta", "A 31 32##x", "data:1: is [31.0, 32.0]; expected a span within A, which lasts 30.00 s"),
    ("charades-sta", "A 5 35.1##x", "data:1: is [5.0, 35.1]; expected a span within A"),
    ("charades-sta", "Z 1 2##x", "data:1: is 'Z'; expected the name of a video in"),
    ("charades-sta", "\n", "the source gives no record"),
    ("qvhighlights", QV | {"qid": None}, "data:1: qid: is missing"),
    ("qvhighlights", QV | {"query": 3}, "data:1: query: is 3; expected text"),
    ("qvhighlights", QV | {"duration": "20"}, "data:1: duration: is '20'; expected a number of seconds above 0"),
    ("qvhighlights", QV | {"relevant_windows": []}, "data:1: relevant_windows: is []; expected at least one span"),
    ("qvhighlights", QV | {"relevant_windows": [[1, 2], [4]]}, "data:1: relevant_windows[1]: is [4]; expected"),
    ("qvhighlights", QV | {"relevant_windows": [[0, 200]]}, "is [0.0, 200.0]; expected a span within abc_210.0_230.0"),
    ("qvhighlights", QV | {"relevant_clip_ids": [1, 2]}, "saliency_scores: is 'of length 3'; expected three scores"),
    ("qvhighlights", QV | {"relevant_clip_ids": [1, 2, 10]}, "relevant_clip_ids[2]: is 10; expected 0 to 9"),
    ("qvhighlights", QV | {"saliency_scores": [[1, 2, 5]] * 3}, "saliency_scores[0]: is [1, 2, 5]; expected three"),
    ("activitynet-captions", [], "data: is []; expected an object of videos"),
    ("activitynet-captions", {"v": {}}, "data: v.timestamps: is missing; expected a list"),
    ("activitynet-captions", {"v": ANET["v_a"] | {"sentences": ["x"]}}, "v.sentences: is 'of length 1'; expected one"),
    ("activitynet-captions", {"v": ANET["v_a"] | {"timestamps": [[1, 1], [4, 3]]}}, "v.timestamps[1]: is [4, 3]"),
    ("activitynet-captions", {"v": ANET["v_a"] | {"duration": 0}}, "data: v.duration: is 0; expected"),
    ("activitynet-captions", {"v": ANET["v_a"] | {"duration": 20}}, "is [3.0, 30.6]; expected a span within v"),
    ("didemo", {}, "data: is {}; expected a list"),
    ("didemo", [3], "data: [0]: is 3; expected an object"),
    ("didemo", [DIDEMO | {"times": [[2, 1]]}], "data: [0].times[0]: is [2, 1]; expected segments from 0 to 5"),
    ("didemo", [DIDEMO | {"times": [[6, 6]]}], "data: [0].times[0]: is [6, 6]; expected segments from 0 to 5"),
    ("didemo", [DIDEMO | {"times": [[1.5, 2]]}], "data: [0].times[0]: is [1.5, 2]; expected the whole numbers"),
    ("didemo", [DIDEMO | {"times": []}], "data: [0].times: is []"),
    ("didemo", [DIDEMO, DIDEMO | {"annotation_id": 6, "video": ""}], "data: [1].video: is ''; expected text"),
    ("tacos", {"s1.avi": {**TACOS["s1.avi"], "fps": None}}, "data: s1.avi.fps: is missing; expected frames a second"),
    ("tacos", {"s1.avi": {**TACOS["s1.avi"], "sentences": []}}, "s1.avi.sentences: is 'of length 0'; expected one for"),
    ("tacos", "{}\n{}", "data: is not valid JSON"),
    ("timelens-bench", {"v": BENCH["v"] | {"queries": ["a"]}}, "v.queries: is 'of length 1'; expected one for each"),
    ("timelens-100k", LENS | {"events": [{"query": "a", "span": [2, 1]}]}, "events[0].span: is [2, 1]; expected"),
    ("timelens-100k", {"video": "v.mp4"}, "data:1: video_path: is missing; expected text"),
    ("hirest", hirest(bounds=[0, 1]), "Make soup.v.mp4.bounds: is [0, 1]; expected a moment; this is the placeholder"),
    ("hirest", hirest(clip=False, bounds=[0, 0]), "left out 1 x the moment is the whole video"),
    ("hirest", hirest(relevant=False), "left out 1 x the video does not belong to the query"),
    ("nlq", nlq(clip_end_sec=2.5), "clip_start_sec, clip_end_sec: is [2.5, 2.5]; expected"),
    ("nlq", nlq(query=None), "data: videos[0].clips[0].annotations[0].language_queries[0].query: is missing"),
    ("nlq", nlq(clip_start_sec=None), "clip_start_sec: is missing; expected seconds; the test file is published"),
    ("youcook2", cook(subset="testing"), "database.xHr8X2Wpmno.subset: is 'testing'; expected 'training' or"),
    ("youcook2", cook(annotations=[{"segment": [5, 5], "sentence": "x"}]), "annotations[0].segment: is [5, 5]"),
]
OPTIONS = {"nlq": {"times": "clip"}, "youcook2": {"subset": "training"}}


@pytest.mark.parametrize(("name", "data", "message"), BAD)
def test_wrong_entries_name_file_line_and_field(
    tmp_path: Path, videos: Path, name: str, data: Any, message: str
) -> None:
    _, text = outcome(name, data, tmp_path, videos, **OPTIONS.get(name, {}))
    assert message in text, text


@pytest.mark.parametrize(
    ("name", "data", "good", "bad"),
    [
        ("charades-sta", "A 1 2##x\nA 3 2##y\nA 4 5##z", ["A_1", "A_3"], 1),
        ("qvhighlights", f"{json.dumps(QV)}\n{{}}\n[]\n{{\n{json.dumps(QV | {'qid': 8})}", ["7", "8"], 3),
        ("qvhighlights", f"{json.dumps(QV)}\n{json.dumps(QV)}", ["7"], 1),
        ("activitynet-captions", {"u": 3, "v": ANET["v_a"] | {"timestamps": [[1, 1], [1, 2]]}}, ["v_1"], 2),
        ("didemo", [DIDEMO, DIDEMO, DIDEMO | {"annotation_id": 6}], ["5", "6"], 1),
    ],
)
def test_what_is_wrong_is_left_out_and_counted(
    tmp_path: Path, videos: Path, name: str, data: Any, good: list[str], bad: int
) -> None:
    records, text = outcome(name, data, tmp_path, videos)
    assert [record["id"] for record in records] == [f"{name}:{id}" for id in good]
    assert f"{len(good)} records written, {bad} left out" in text


def test_a_record_of_qvhighlights(tmp_path: Path, videos: Path) -> None:
    ((record,), _) = outcome("qvhighlights", QV, tmp_path, videos)
    assert record["conversations"][0]["value"].removeprefix("<video>\n") in [
        question.format(query="A dog jumps") for question in QUESTIONS
    ]
    assert record["tasks"] == [
        {
            "head": "temporal",
            "spans": [[2.0, 6.0], [10.0, 12.0]],
            "query": "A dog jumps.",
            "duration": 20.0,
            "saliency": [0, 6, 12, 0, 0, 1, 0, 0, 0, 0],
            "clip_s": 2.0,
        }
    ]
    without = {key: value for key, value in QV.items() if key not in ("saliency_scores", "relevant_clip_ids")}
    ((record,), _) = outcome("qvhighlights", without, tmp_path, videos)
    assert set(record["tasks"][0]) == {"head", "spans", "query", "duration"}


def test_every_wording_is_used() -> None:
    assert {worded(QUESTIONS, f"charades-sta:{i}", query="x") for i in range(50)} == {
        question.format(query="x") for question in QUESTIONS
    }


def test_the_test_file_of_qvhighlights_gives_prompts(tmp_path: Path, videos: Path) -> None:
    row = {key: QV[key] for key in ("qid", "query", "duration", "vid")}
    source, output = tmp_path / "test.jsonl", tmp_path / "prompts.jsonl"
    source.write_text(f"{json.dumps(row)}\n{{\n5")
    report = convert(QVHighlights(source=source, videos=videos), output)
    assert (report.written, report.num_left_out) == (1, 2)
    with pytest.raises(tpo.RecordError, match="ends with a 'human' turn"):
        Records(output, RecordFormat.of_heads(["temporal"]))
    (record,) = Records(output, RecordFormat.of_heads(["temporal"]), open_ended=True)
    assert record.id == "qvhighlights:7"
    assert [turn.role for turn in record.turns] == ["user"]
    assert "A dog jumps" in record.turns[0].text
    source.write_text(f"{json.dumps(row)}\n{json.dumps(QV | {'qid': 8})}")  # not as a whole without windows
    report = convert(QVHighlights(source=source, videos=videos), output)
    assert "data" not in str(report)
    assert "test.jsonl:1: relevant_windows: is missing" in str(report)


def test_all_of_the_public_validation_set(shared: Path, tmp_path: Path) -> None:
    source = shared / "golden/qvhighlights/highlight_val_release.jsonl"
    moments = list(QVHighlights(source=source, videos=tmp_path).moments(report := Report()))
    assert (len(moments), report.num_left_out) == (1550, 0)
    assert all(moment.saliency is not None and len(moment.saliency) == int(moment.duration_s / 2) for moment in moments)
    assert max(max(moment.saliency) for moment in moments) == 12
    assert all(0 <= start < end <= moment.duration_s for moment in moments for start, end in moment.spans_s)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_queryd(tmp_path: Path, videos: Path, protocol: int) -> None:
    names = [tmp_path / name for name in ("raw.pkl", "times.pkl", "train_list.txt")]
    captions = {"video-A": [["a", "dog"], "jumps"], "video-B": [["x"]], "video-v": [["x"], ["y"]]}
    times = {"video-A": [[1, 2.5], (3, 4)], "video-B": [[2, 1]], "video-v": [[1, 2]]}
    for path, values in zip(names, (captions, times), strict=False):
        path.write_bytes(pickle.dumps(values, protocol=protocol))
    names[2].write_text("video-A\nvideo-B\nvideo-none\nvideo-v\n")
    output = tmp_path / "records.jsonl"
    make = formats()["queryd"].format_class()
    report = convert(make(source=names[0], times=names[1], only=names[2], videos=videos), output)
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(r["id"], r["tasks"][0]["spans"], r["tasks"][0]["query"]) for r in found] == [
        ("queryd:video-A_0", [[1, 2.5]], "a dog"),
        ("queryd:video-A_1", [[3, 4]], "jumps"),
    ]
    for message in (
        "times.pkl: video-B[0]: is [2, 1]; expected",
        "raw.pkl: video-none: is missing; expected a list",
        "times.pkl: video-v: is 'of length 1'; expected one span for each of the 2 captions",
    ):
        assert message in str(report)
    names[1].write_bytes(pickle.dumps({"video-A": Path("x")}, protocol=protocol))
    with pytest.raises(
        tpo.RecordError, match=r"times.pkl: cannot be read as a pickle of plain values: it names .*Path"
    ):
        convert(make(source=names[0], times=names[1], videos=videos), output)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        (
            "videochat2-it",
            [
                ({"QA": []}, "QA: is []; expected at least one question"),
                ({"start": 1}, "start, end: is [1, None]; expected start and end, both or none"),
                ({"start": 1, "end": 2}, "start, end: is [1, 2]; expected a whole video; cut this part out"),
                ({"QA": [{"q": "Why?", "a": "x"}, 5]}, "QA[1]: is 5; expected an object"),
                ({"QA": [{"i": "", "q": "", "a": "x"}]}, "QA[0].q: is ''; expected text"),
                ({"video": "none.mp4"}, "video: is 'none.mp4'; expected a file in"),
            ],
        ),
        (
            "llava-hound-dpo",
            [
                ({"rejected": "A dog."}, "rejected: is 'A dog.'; expected another answer than the chosen one"),
                ({"rejected": None}, "rejected: is missing; expected text"),
                ({"video": "clips/2"}, "video: is 'clips/2'; expected a folder of frames, or a video, in"),
            ],
        ),
    ],
)
def test_conversations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, wrong: Any) -> None:
    monkeypatch.chdir(tmp_path)
    layout = download("temporal", name)
    unpack(layout)
    _, (record,) = converted(layout)
    assert [turn["value"] for turn in record["conversations"]] == layout["turns"]
    row = source(name)[0] if name == "videochat2-it" else source(name)
    Path("data.json").write_text(json.dumps([row, *(row | changes for changes, _ in wrong)]))
    make = formats()[name].format_class()
    report = convert(make(source=Path("data.json"), media=Path("media")), Path("more.jsonl"))
    assert report.written == 1
    for index, (_, message) in enumerate(wrong, start=1):
        assert f"data.json: [{index}].{message}" in str(report), str(report)
