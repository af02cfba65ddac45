"""The demo: its whole path on a tiny size, and what evaluation makes of answers written by hand."""

import base64
import io
import json
import re
import subprocess
import sys

import pytest
from PIL import Image
from rich.console import Console
from tpo_shapes.demo import Size, constant_answers, heldout_files, run_demo, train_config
from tpo_shapes.evaluate import Answer, Question, load_answers, overlap, read_questions, score
from tpo_shapes.host import build_host
from tpo_shapes.report import CONSTANT, HOST, TEXT, TPO, cells, curve, table
from typer.testing import CliRunner

from tpo_plugin.cli import app
from tpo_plugin.errors import TPOError

TINY = Size(num_scenes=8, num_clips=4, heldout_scenes=3, heldout_clips=2, steps=(5, 5, 5), batch_size=4)


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    directory = tmp_path_factory.mktemp("host")
    build_host(directory)
    return directory


@pytest.fixture(scope="module")
def run(tmp_path_factory, host):
    directory = tmp_path_factory.mktemp("run") / "demo"
    return directory, run_demo(directory, TINY, seed=3, host=host)


def test_the_table_shows_what_results_json_says(run):
    directory, results = run
    saved = json.loads((directory / "results.json").read_text())
    assert saved == json.loads(json.dumps(results))
    assert list(saved["rows"]) == [TPO, TEXT, CONSTANT, HOST]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table(saved))
    lines = {
        name: line for line in console.export_text().splitlines() for name in saved["rows"] if line.startswith(name)
    }
    for name, row in saved["rows"].items():
        images, clips = row["images"], row["clips"]
        shown = lines[name].removeprefix(name).split()
        numbers = [images[k] for k in ("box_when_asked", "box_otherwise", "acc50", "mean_iou", "chat", "given")]
        numbers += [clips[k] for k in ("acc50", "mean_iou", "chat", "given")]
        assert shown == cells(saved)[name]
        for index, (text, number) in enumerate(zip(shown, numbers, strict=True)):
            if text == "-":
                assert number is None or (name == CONSTANT and index in (4, 5, 8, 9))
            else:
                assert float(text) == pytest.approx(number * (1 if index in (3, 7) else 100), abs=0.051)


def test_the_numbers_are_those_of_the_answers(run):
    directory, results = run
    questions = read_questions(heldout_files(directory))
    answers = load_answers(directory / "answers_tpo.jsonl")
    assert score(questions, answers) == results["rows"][TPO]
    assert score(questions, constant_answers(directory)) == results["rows"][CONSTANT]
    assert results["rows"][CONSTANT]["images"]["box_when_asked"] == 1


def test_the_report_has_pictures_curves_and_the_table(run):
    directory, results = run
    page = (directory / "report.html").read_text(encoding="utf-8")
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(pictures) >= 5
    for picture in pictures:
        Image.open(io.BytesIO(base64.b64decode(picture))).verify()
    assert page.count("<svg") == 3
    assert page.count("stroke-width") >= 4  # conversation of both runs, assignment, region
    for values in cells(results).values():
        assert "".join(f"<td>{value}</td>" for value in values) in page
    assert "http" not in page


def test_predict_takes_the_run(run):
    directory, _ = run
    picture = directory / "data" / "heldout" / "images" / "000000.png"
    arguments = ["predict", str(directory), "--image", str(picture), "--prompt", "where is the red circle?"]
    answer = json.loads(CliRunner().invoke(app, [*arguments, "--route", "region", "--json"]).stdout)
    first = answer["predictions"][0]
    assert (first["head"], len(first["value"])) == ("region", 4)


def test_a_folder_of_another_run_is_refused(run, host):
    directory, _ = run
    with pytest.raises(TPOError, match="other settings"):
        run_demo(directory, TINY, seed=4, host=host)
    with pytest.raises(TPOError, match="no demo"):
        run_demo(host, TINY, host=host)


def test_without_its_host_it_says_where_that_lies(tmp_path):
    with pytest.raises(TPOError, match="pip install -e examples/shapes"):
        run_demo(tmp_path / "run", TINY, host=tmp_path)


def test_the_baseline_trains_the_same_steps_on_the_same_records_without_heads(tmp_path, host):
    ours, text = (train_config(host, tmp_path, TINY, 0, as_text) for as_text in (False, True))
    assert (ours.model, ours.lora, ours.seed, ours.data) == (text.model, text.lora, text.seed, text.data)
    for name, stage in text.stages.items():
        same = ours.stages[name]
        assert (stage.steps, stage.batch_size, stage.warmup, stage.scheduler) == (
            same.steps,
            same.batch_size,
            same.warmup,
            same.scheduler,
        )
        assert stage.losses == ["mllm"]
        host_parts = {"lora", "connector", "vision"}
        of_host = {k: v for k, v in same.learning_rates.items() if k in host_parts}
        assert stage.learning_rates == of_host | {"words": of_host["lora"]}
        assert [(s.file.replace("_text", ""), s.weight) for s in stage.data] == [(s.file, s.weight) for s in same.data]


def test_help_is_fast_to_build_and_needs_no_torch():
    code = "import sys, tpo_shapes.plugin; print('torch' in sys.modules, 'transformers' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "False"]


def question(kind="region", box=None, answer="", media="a.png"):
    return Question(media, kind, "?", answer, box=box)


BOX = [0.2, 0.2, 0.6, 0.6]


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        (Answer("it is here", [BOX], True), 1.0),
        (Answer("it is here", [[0.2, 0.2, 0.4, 0.6]], True), 0.5),
        (Answer("it is here", [[0.7, 0.7, 0.9, 0.9]], True), 0.0),
        (Answer("it is here", [[0.6, 0.6, 0.2, 0.2]], True), 0.0),
        (Answer("it is here", [[0.7, 0.7, 0.9, 0.9], BOX], True), 0.0),
        (Answer("it is here", [], True), 0.0),
        (Answer("it is here"), 0.0),
    ],
)
def test_overlap(answer, wanted):
    assert overlap(question(box=BOX), answer) == pytest.approx(wanted)


def test_scores_of_answers_written_by_hand():
    asked = [
        (question(box=BOX), Answer("it is here", [BOX], True)),
        (question(box=BOX), Answer("it is here", [[0.7, 0.7, 0.9, 0.9]], True)),
        (question(box=BOX), Answer("red")),
        (question(box=BOX), Answer("it is here", [], True)),
        (question("colour", answer="red"), Answer("red")),
        (question("colour", answer="red"), Answer("red red")),
        (question("count", answer="two"), Answer("two")),
        (question("given_shape", answer="circle"), Answer("square", [BOX], True)),
        (question("motion", answer="up", media="a.mp4"), Answer("down")),
    ]
    found = score([q for q, _ in asked], [a for _, a in asked])
    images, clips = found["images"], found["clips"]
    assert (images["num_region"], images["num_other"]) == (4, 4)
    assert images["box_when_asked"] == 0.75
    assert images["box_otherwise"] == 0.25
    assert images["acc50"] == 0.25
    assert images["mean_iou"] == pytest.approx(0.25)
    assert images["kinds"]["colour"] == 0.5
    assert images["kinds"]["shape"] is None
    assert images["chat"] == 0.75  # of colour and count
    assert images["given"] == 0
    assert (clips["acc50"], clips["chat"], clips["given"]) == (None, 0, None)


def test_a_number_of_answers_that_differs_from_the_questions_is_an_error():
    with pytest.raises(ValueError, match="shorter"):
        score([question(box=BOX)], [])


def test_questions_are_the_turns_of_the_records(tmp_path):
    record = {
        "image": "images/a.png",
        "conversations": [
            {"from": "human", "value": "<image>\nwhat colour is the object in <region>?"},
            {"from": "gpt", "value": "red"},
            {"from": "human", "value": "find the red circle."},
            {"from": "gpt", "value": "it is here <region>"},
        ],
        "kinds": ["given_colour", "region"],
        "tasks": [{"head": "region", "boxes": [[0, 0, 0.5, 0.5]]}, {"head": "region", "boxes": [BOX]}],
    }
    (tmp_path / "tasks.jsonl").write_text(json.dumps(record) + "\n")
    found = {q.kind: q for q in read_questions([tmp_path / "tasks.jsonl"])}
    assert found["given_colour"].given == [[0, 0, 0.5, 0.5]]
    assert found["given_colour"].box is None
    assert found["region"].box == BOX
    assert found["region"].text == "find the red circle."
    assert found["region"].media == str(tmp_path / "images/a.png")


def test_a_curve_spans_its_frame():
    svg = curve("loss", {"found": [(0, 2.0), (10, 0.0)]}, [10])
    points = re.search(r'points="([^"]+)" stroke="#ff8c00"', svg)[1].split()
    (x0, y0), (x1, y1) = ([float(v) for v in point.split(",")] for point in points)
    assert (x0, x1) == (44, 552)
    assert (y0, y1) == (8, 178)
