"""What all formats share: the report, conventions that are verified over the whole, pictures, and what is written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from PIL import Image, ImageOps

import tpo_plugin.cli
from tpo_plugin import MediaError, TPOError
from tpo_plugin.convert import (
    Boxes,
    Entry,
    Fault,
    Format,
    FrameList,
    Place,
    Report,
    Row,
    Rows,
    StoredPicture,
    convert,
    picture,
    read_excluded,
    read_pickle,
    worded,
)

PLACE = Place("a.json", None, "boxes[0]")


@dataclass(kw_only=True)
class Given(Format):
    """Entries as they are given."""

    given: list[Any]

    def entries(self, report: Report) -> Iterator[Entry]:
        for entry in self.given:
            with report.faults():
                if isinstance(entry, Exception):
                    raise entry
                yield entry


def written(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# -- boxes -------------------------------------------------------------------------------------------------------------

SIZE = (640, 480)


@pytest.mark.parametrize(
    ("order", "full", "more", "values", "expected"),
    [
        ("xywh", None, {}, [64, 48, 320, 240], [0.1, 0.1, 0.6, 0.6]),
        ("xyxy", None, {}, [64, 48, 384, 288], [0.1, 0.1, 0.6, 0.6]),
        ("xyxy", 1000, {}, [100, 100, 600, 600], [0.1, 0.1, 0.6, 0.6]),
        ("yxyx", 1000, {}, [200, 100, 700, 600], [0.1, 0.2, 0.6, 0.7]),
        ("xxyy", 1, {}, [0.1, 0.6, 0.2, 0.7], [0.1, 0.2, 0.6, 0.7]),
        ("cxcywh", 1, {}, [0.35, 0.45, 0.5, 0.5], [0.1, 0.2, 0.6, 0.7]),
        ("xyxy", None, {"one_based": True}, [65, 49, 384, 288], [0.1, 0.1, 0.6, 0.6]),
        ("xyxy", 1, {"square": True}, [0.1, 0.2, 0.6, 0.65], [0.1, 0.1, 0.6, 0.7]),
        ("xyxy", None, {}, [0, 0, 640.9, 480], [0, 0, 1, 1]),  # clipped
        ("xyxy", 1, {}, [-0.004, 0, 1, 1.004], [0, 0, 1, 1]),  # clipped
    ],
)
def test_a_box_of_each_convention(order: Any, full: Any, more: Any, values: list[float], expected: list[float]) -> None:
    report = Report()
    found = Boxes(report, order, full, **more).read(values, SIZE, PLACE)
    assert found == pytest.approx(expected)
    assert bool(report.changed) == (expected == [0, 0, 1, 1])


@pytest.mark.parametrize(
    ("order", "full", "values", "message"),
    [
        ("xyxy", None, [1, 2, 3], "is [1, 2, 3]; expected four finite numbers [x1, y1, x2, y2]"),
        ("xyxy", None, [1, 2, 3, float("nan")], "expected four finite numbers"),
        ("xyxy", None, [1, 2, True, 4], "expected four finite numbers"),
        ("xyxy", None, [100, 120, 50, 130], "with x1 < x2 and y1 < y2; as [x, y, width, height] it would fit"),
        ("xywh", None, [100, 120, 0, 10], "with a width and height above 0"),
        (
            "xywh",
            None,
            [300, 200, 400, 300],
            "inside its picture of 640 x 480 pixels; as [x1, y1, x2, y2] it would fit",
        ),
        ("xywh", None, [600, 20, 41.1, 50], "expected a box inside its picture"),
        ("xyxy", None, [640, 0, 640.5, 9], "expected a box inside its picture"),
        ("xyxy", 1, [0.1, 0.1, 1.006, 0.2], "[x1, y1, x2, y2] in 0 to 1 of the picture"),
        ("xyxy", 1000, [0, 0, 1001, 10], "in 0 to 1000 of the picture"),
    ],
)
def test_a_box_that_does_not_fit_is_refused(order: Any, full: Any, values: list[float], message: str) -> None:
    with pytest.raises(Fault) as error:
        Boxes(Report(), order, full).read(values, SIZE, PLACE)
    assert str(error.value).startswith("a.json: boxes[0]: is [")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("order", "full", "boxes", "doubt"),
    [
        ("xyxy", None, [[9, 9, 5, 5]] * 3 + [[1, 1, 9, 9]], "3 of 4 boxes are not [x1, y1, x2, y2] in pixels, as was "
         "declared: 3 look like [x, y, width, height]"),
        ("xywh", None, [[300, 200, 400, 300]] * 3, "as was declared: 3 look like [x1, y1, x2, y2]"),
        ("xyxy", None, [[0, 0, 900, 900]] * 3, "3 may be of resized pictures, or 0 to 1000"),
        ("xyxy", 1, [[1, 1, 300, 300]] * 3, "3 look like 0 to 1000, or pixels"),
        ("xyxy", 1000, [[1, 1, 1300, 300]] * 3, "3 look like pixels"),
        ("xyxy", None, [[0.1, 0.1, 0.5, 1.0]], "the largest number of all 1 boxes is 1: they look like shares of the"),
        ("xyxy", 1000, [[0.1, 0.1, 0.5, 1.0]], "not [x1, y1, x2, y2] in 0 to 1000, as was declared"),
        ("xyxy", 1000, [[1, 1, 630, 470]] * 20, "20 boxes look like pixels, since none goes beyond the pixels of"),
        ("xyxy", 1000, [[1, 1, 630, 470]] * 20 + [[1, 1, 700, 470]], None),
        ("xyxy", None, [[9, 9, 5, 5]] * 2 + [[1, 1, 9, 9]], None),  # two faults are no pattern
        ("xyxy", None, [[9, 9, 5, 5]] * 3 + [[1, 1, 9, 9]] * 200, None),  # nor are three of many
    ],
)  # fmt: skip
def test_a_convention_is_verified_over_the_whole(order: Any, full: Any, boxes: list[Any], doubt: str | None) -> None:
    report = Report()
    reader = Boxes(report, order, full)
    for box in boxes:
        with report.faults():
            reader.read(box, SIZE, PLACE)
    doubts = [text for check in report.checks for text in check()]
    assert len(doubts) == (doubt is not None)
    assert doubt is None or doubt in doubts[0]


def test_small_boxes_in_large_pictures_look_like_thousandths() -> None:
    for boxes, expected in (([[1, 1, 990, 990]] * 20, 1), ([[1, 1, 990, 990]] * 20 + [[1, 1, 2000, 990]], 0)):
        reader = Boxes(report := Report(), "xyxy", None)
        for box in boxes:
            reader.read(box, (4000, 3000), PLACE)
        doubts = [text for check in report.checks for text in check()]
        assert len(doubts) == expected
    reader = Boxes(report := Report(), "xyxy", None, one_based=True)
    for _ in range(3):
        reader.read([0, 5, 9, 9], SIZE, PLACE)
    assert "3 of 3 boxes are not" in next(iter(report.checks[0]()))
    assert "3 count from 0" in next(iter(report.checks[0]()))


# -- pictures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_box_turns_with_its_picture(orientation: int, tmp_path: Path) -> None:
    path, exif = tmp_path / "a.jpg", Image.Exif()
    exif[0x0112] = orientation
    stored = Image.new("L", (80, 40))
    stored.paste(255, (8, 4, 32, 12))
    stored.save(path, exif=exif, quality=95)
    with Image.open(path) as image:
        shown = ImageOps.exif_transpose(image).point(lambda value: 255 * (value > 128))
    found = picture(path, PLACE, (80, 40), boxes_on="stored")
    box = Boxes(Report(), "xyxy", None).read([8, 4, 32, 12], found, PLACE)
    left, top, right, bottom = shown.getbbox()
    expected = [left / shown.width, top / shown.height, right / shown.width, bottom / shown.height]
    assert box == pytest.approx(expected, abs=0.026)  # a pixel: JPEG blurs the edge
    if orientation > 1:
        with pytest.raises(Fault, match="which EXIF turns .*; expected --boxes-on stored or --boxes-on shown"):
            picture(path, PLACE, (80, 40))
    if orientation >= 5:  # the size tells
        assert (picture(path, PLACE, (40, 80)).width, picture(path, PLACE, (40, 80)).orientation) == (40, 1)
        with pytest.raises(Fault, match="is '80 x 40'; expected 40 x 80, the size of the shown picture"):
            picture(path, PLACE, (80, 40), boxes_on="shown")


def test_pictures_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no")
    with pytest.raises(MediaError, match="a.png: cannot be read as an image"):
        picture(tmp_path / "a.png", PLACE)
    with pytest.raises(MediaError, match="b.png: no such file"):
        picture(tmp_path / "b.png", PLACE)
    with pytest.raises(MediaError, match="c: cannot be read as an image"):
        picture(StoredPicture("c", b"no"), PLACE)


# -- what is written ---------------------------------------------------------------------------------------------------


def test_what_is_left_out_is_counted_and_named(tmp_path: Path) -> None:
    faults = [Place("a.json", line).at("bbox").fault([line], "four numbers") for line in range(1, 6)]
    good, twice, wrong = Entry("1", ["Hi", "Hello"]), Entry("1", ["Hi", "Ho"]), Entry("2", ["<image> Hi", "Hello"])
    report = convert(Given(given=[good, twice, wrong, *faults]), tmp_path / "out.jsonl")
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    assert written(tmp_path / "out.jsonl") == [{"id": "1", "conversations": turns}]
    text = str(report)
    assert "1 records written, 7 left out\nleft out 5 x bbox: is …; expected four numbers\n  a.json:1: bbox" in text
    assert "a.json:3" in text
    assert "a.json:4" not in text
    assert "and 2 more" in text
    assert "id: is '1', as that of another entry" in text
    assert "2: image: has 0 file(s), the conversation 1 tag(s) <image>" in text


def test_a_name_that_no_file_can_have_is_that_of_one_entry(tmp_path: Path) -> None:
    @dataclass(kw_only=True)
    class Opens(Given):
        def entries(self, report: Report) -> Iterator[Entry]:
            for name in self.given:
                with report.faults():
                    yield Entry("1", ["Hi", (tmp_path / name).read_text()])

    (tmp_path / "a").write_text("Hello")
    report = convert(Opens(given=["x" * 5000, "a"]), tmp_path / "out.jsonl")
    assert (report.written, report.num_left_out) == (1, 1)
    assert "no file can have so long a name" in str(report)
    with pytest.raises(FileNotFoundError):  # of which a format has to say more
        convert(Opens(given=["b"]), tmp_path / "out.jsonl")


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("before")

    @dataclass(kw_only=True)
    class Breaks(Format):
        def entries(self, report: Report) -> Iterator[Entry]:
            yield Entry("1", ["Hi", "Hello"])
            raise TPOError("the source ends here")

    with pytest.raises(TPOError, match="the source ends here"):
        convert(Breaks(), path)
    with pytest.raises(TPOError, match="the source gives no record"):
        convert(Given(given=[]), path)
    assert [file.name for file in tmp_path.iterdir()] == ["out.jsonl"]
    assert path.read_text() == "before"


def test_a_doubtful_source_is_written_only_on_demand(tmp_path: Path) -> None:
    @dataclass(kw_only=True)
    class Doubtful(Given):
        def entries(self, report: Report) -> Iterator[Entry]:
            report.checks.append(lambda: ["9 boxes look like pixels"])
            yield from super().entries(report)

    source = Doubtful(given=[Entry("1", ["Hi", "Hello"])])
    with pytest.raises(TPOError, match="9 boxes look like pixels\nNothing was written; --keep-going"):
        convert(source, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()
    assert convert(source, tmp_path / "out.jsonl", keep_going=True).written == 1


def test_pictures_to_leave_out(tmp_path: Path) -> None:
    def entry(id: str, image: str, *ids: int) -> Entry:
        return Entry(id, ["Hi", "Hello"], images=[tmp_path / image], picture_ids=ids)

    coco = entry("coco", "COCO_train2014_000000000139.jpg")
    entries = [coco, entry("vg", "1.jpg", 139), entry("name", "photo.png"), entry("kept", "other.jpg", 7)]
    shown = {"id": "r", "image": "val/000000000139.jpg", "conversations": []}
    for lines in (["139", "photo"], [json.dumps(shown), "photo.png"]):
        (tmp_path / "ids").write_text("\n".join(lines))
        excluded = read_excluded(tmp_path / "ids")
        report = convert(Given(given=entries), tmp_path / "out.jsonl", exclude=excluded)
        assert [record["id"] for record in written(tmp_path / "out.jsonl")] == ["kept"]
        assert report.left_out["shows a picture that was to be left out"].count == 3
    (tmp_path / "ids").write_text('{"id": 1')
    with pytest.raises(TPOError, match="is neither a picture's id or name, nor a record"):
        read_excluded(tmp_path / "ids")


def test_media_that_the_source_holds_become_files(tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "frame's.png")
    data = (tmp_path / "frame's.png").read_bytes()
    frames = FrameList.at_rate("a/b", [tmp_path / "frame's.png"] * 2, 2.0)
    entries = [
        Entry("1", ["What?", "That."], images=[StoredPicture("x:1", data)]),
        Entry("2", ["What?", "That."], videos=[frames], system="Be brief."),
        Entry("3", ["<image> or <image>?", "That."], images=[tmp_path / "frame's.png", Path("/elsewhere/b.png")]),
        Entry("4", ["A prompt?"]),
    ]
    convert(Given(given=entries), tmp_path / "out.jsonl")
    first, second, third, fourth = written(tmp_path / "out.jsonl")
    assert first["image"] == "out_pictures/x_1.png"
    assert (tmp_path / first["image"]).read_bytes() == data
    assert second["video"] == "out_videos/a_b.ffconcat"
    assert tpo_plugin.read_video(
        tmp_path / second["video"], tpo_plugin.VideoOptions(num_frames=2)
    ).times_s.tolist() == [0.0, 0.5]
    assert [turn["value"] for turn in second["conversations"]] == ["Be brief.", "<video>\nWhat?", "That."]
    assert third["image"] == ["frame's.png", "/elsewhere/b.png"]
    assert third["conversations"][0]["value"] == "<image> or <image>?"
    assert fourth["conversations"] == [{"from": "human", "value": "A prompt?"}]


# -- reading -----------------------------------------------------------------------------------------------------------


class Line(Row):
    id: int
    box: list[float]
    kind: Literal["a", "b"] = "a"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"id": 1}, "a.json: box: is missing; expected an object with it, beside 'id'"),
        ({"id": "1", "box": []}, "a.json: id: is '1'; expected a valid integer"),
        ({"id": True, "box": []}, "a.json: id: is True; expected a valid integer"),
        ({"id": 1, "box": [1, "2"]}, "a.json: box[1]: is '2'; expected a valid number"),
        ({"id": 1, "box": [float("inf")]}, "a.json: box[0]: is inf; expected a finite number"),
        ({"id": 1, "box": [], "kind": "c"}, "a.json: kind: is 'c'; expected 'a' or 'b'"),
        ([], "a.json: is []; expected a valid dictionary"),
    ],
)
def test_a_row_names_what_is_wrong(value: Any, message: str) -> None:
    with pytest.raises(Fault) as error:
        Line.read(value, Place("a.json"))
    assert str(error.value).startswith(message)


def test_rows_of_each_kind_of_file(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    values = [{"id": number, "box": [0.5]} for number in range(7)]
    (tmp_path / "a.jsonl").write_text("\n\n".join(map(json.dumps, values)))
    (tmp_path / "a.json").write_text(json.dumps(values))
    parquet.write_table(pyarrow.Table.from_pylist(values), tmp_path / "a.parquet", row_group_size=3)
    for name, place in (("a.jsonl", "a.jsonl:13"), ("a.json", "a.json: [6]"), ("a.parquet", "a.parquet: [6]")):
        rows = Rows(tmp_path / name)
        assert [rows[index] for index in range(len(rows))] == values
        assert rows[1] == values[1]
        assert str(rows.place(6)).endswith(place)
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-9])
    with pytest.raises(tpo_plugin.RecordError, match="cut.parquet: cannot be read as Parquet"):
        Rows(tmp_path / "cut.parquet")


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_loads_no_class(protocol: int, tmp_path: Path) -> None:
    import pickle

    (tmp_path / "a.p").write_bytes(pickle.dumps([{"ref_id": 1, "sent": "é"}], protocol))
    assert read_pickle(tmp_path / "a.p") == [{"ref_id": 1, "sent": "é"}]
    for value in (Path("x"), print, {1: {2: complex(1)}}):
        (tmp_path / "b.p").write_bytes(pickle.dumps(value, protocol))
        with pytest.raises(tpo_plugin.RecordError, match="b.p: cannot be read as a pickle of plain values: it names"):
            read_pickle(tmp_path / "b.p")


def test_a_wording_belongs_to_an_id() -> None:
    wordings = ("Where is {name}?", "Find {name}.", "Show {name}.")
    chosen = [worded(wordings, str(number), name="{x}") for number in range(60)]
    assert chosen == [worded(wordings, str(number), name="{x}") for number in range(60)]
    assert set(chosen) == {"Where is {x}?", "Find {x}.", "Show {x}."}
    assert worded(wordings, "refcoco:0:1", name="it") == "Show it."  # for good: a file can be made again
