"""The demo: its whole path on a tiny size, and what evaluation makes of answers written by hand."""

import base64
import hashlib
import io
import json
import os
import re
import subprocess
import sys

import av
import pytest
from PIL import Image
from rich.console import Console
from tpo_shapes.confidence import confidence_rows, reliability_plot, score_confidence
from tpo_shapes.demo import LOCK_FILE, constant_answers, heldout_files, run_demo
from tpo_shapes.evaluate import Answer, Question, _as_answer, load_answers, overlap, read_questions, score
from tpo_shapes.host import build_host
from tpo_shapes.outlines import BOUND, FILLED, load_compared, score_masks
from tpo_shapes.recipe import Size, train_config
from tpo_shapes.report import (
    BASELINE,
    CONSTANT,
    FROZEN,
    HOST,
    MEASURES,
    SMALL,
    SMALL_MASKS,
    TPO,
    cells,
    curve,
    mask_cells,
    mask_table,
    table,
)
from tpo_shapes.world import CLIP_TIMES
from typer.testing import CliRunner

from tpo_plugin.cli import app
from tpo_plugin.errors import TPOError
from tpo_plugin.training.folder import held
from tpo_plugin.training.retention import retention

TINY = Size(num_scenes=8, num_clips=8, heldout_scenes=3, heldout_clips=3, steps=(5, 2, 3, 5), batch_size=4)


WORKING = """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from tpo_shapes.demo import start_worker
if __name__ == "__main__":
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), initializer=start_worker) as pool:
        pool.submit(print, "works", flush=True).result()
        pool.submit(time.sleep, 600).result()
"""


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    directory = tmp_path_factory.mktemp("host")
    build_host(directory)
    return directory


@pytest.fixture(scope="module")
def run(tmp_path_factory, host):
    directory = tmp_path_factory.mktemp("run") / "demo"
    return directory, run_demo(directory, TINY, seed=3, host=host)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_its_processes_end_with_it_where_it_is_killed(tmp_path):
    script = tmp_path / "working.py"
    script.write_text(WORKING)
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "works\n"
        process.kill()
        assert process.stdout.read() == "", "which comes to an end when no process holds it any more"


@pytest.mark.slow
def test_the_table_shows_what_results_json_says(run):
    directory, results = run
    saved = json.loads((directory / "results.json").read_text())
    assert saved == json.loads(json.dumps(results))
    assert list(saved["rows"]) == [TPO, FROZEN, BASELINE, CONSTANT, HOST]
    console = Console(width=90, record=True, file=io.StringIO())
    console.print(table(saved))
    lines = console.export_text().splitlines()
    for title, media, key in MEASURES:
        (line,) = [line for line in lines if line.strip().startswith(title)]
        shown = line.strip().removeprefix(title).split()
        assert shown == cells(saved)[title]
        for text, (name, row) in zip(shown, saved["rows"].items(), strict=True):
            number = row[media][key]
            if text == "-":
                assert number is None or (
                    name == CONSTANT and key not in ("acc50", "mean_iou", "r1_30", "r1_50", "r1_70", "moment_iou")
                )
            else:
                assert float(text) == pytest.approx(number * (1 if "iou" in key else 100), abs=0.051)
    assert saved["seconds"]["calls"] == 1
    assert saved["seconds"]["wall"] > 0
    assert all(saved["seconds"]["cpu"][name]["training"] > 0 for name in (TPO, FROZEN, BASELINE))


@pytest.mark.slow
def test_the_frozen_hosts_chat_is_the_hosts(run, host):
    directory, _ = run
    found = retention(directory / "frozen", directory / "data" / "heldout" / "clip_chat.jsonl", host=host)
    assert found["lora_on"]["exactly_equal"]
    trained = retention(directory, directory / "data" / "heldout" / "clip_chat.jsonl", host=host)
    assert not trained["lora_on"]["exactly_equal"]


@pytest.mark.slow
def test_the_same_call_adds_up_its_minutes_and_trains_nothing_twice(run, host):
    directory, results = run
    written = {name: (directory / name).read_bytes() for name in ("results.json", "report.html")}
    again = run_demo(directory, TINY, seed=3, host=host)
    assert again["rows"] == results["rows"]
    before, after = results["seconds"], again["seconds"]
    assert after["calls"] == 2
    assert after["wall"] > before["wall"]
    for name, cpu in before["cpu"].items():
        assert all(after["cpu"][name][job] >= seconds for job, seconds in cpu.items())
    for name, content in written.items():  # other tests compare them with the first call's results
        (directory / name).write_bytes(content)


@pytest.mark.slow
def test_the_numbers_are_those_of_the_answers(run):
    directory, results = run
    questions = read_questions(heldout_files(directory))
    answers = load_answers(directory / "answers_tpo.jsonl")
    assert score(questions, answers) == results["rows"][TPO]
    assert score(questions, constant_answers(directory)) == results["rows"][CONSTANT]
    assert results["rows"][CONSTANT]["clips"]["moment_iou"] > 0


@pytest.mark.slow
def test_tpo_eval_gives_the_same_numbers(run, tmp_path):
    directory, results = run
    files = heldout_files(directory)
    data = [argument for file in files for argument in ("--data", str(file))]
    command = ["eval", str(directory), *data, "--alone", "--max-new-tokens", "12", "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    splits = json.loads((tmp_path / "out" / "results.json").read_text())["splits"]
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    kinds = [kind for file in files for line in file.read_text().splitlines() for kind in json.loads(line)["kinds"]]
    for media, prefix in (("images", ""), ("clips", "clip_")):
        heads = splits[str(directory / "data" / "heldout" / f"{prefix}tasks.jsonl")]["heads"]
        row = results["rows"][TPO][media]
        region = heads["region"]
        assert region["emission"] == pytest.approx(row["box_when_asked"])
        assert region["metrics"]["acc@0.5"] == pytest.approx(row["acc50"])
        assert region["metrics"]["mean_iou"] == pytest.approx(row["mean_iou"], abs=1e-5)
        if row["num_moment"]:
            moments = heads["temporal"]
            assert moments["emission"] == pytest.approx(row["moment_when_asked"])
            assert moments["metrics"]["mIoU"] == pytest.approx(row["moment_iou"], abs=1e-5)
            for percent in (30, 50, 70):
                assert moments["metrics"][f"R1@0.{percent // 10}"] == pytest.approx(row[f"r1_{percent}"])
        for kind, share in row["kinds"].items():
            clips = media == "clips"
            asked = [li for li, k in zip(lines, kinds, strict=True) if k == kind and bool(li["frames"]) == clips]
            agreed = [li["text"] == li["reference"] for li in asked]
            assert (sum(agreed) / len(agreed) if agreed else None) == pytest.approx(share)
    for kind, found in results["masks"][TPO].items():
        asked = [li["quality"]["mask"] for li, k in zip(lines, kinds, strict=True) if k == kind]
        assert len(asked) == found["num"]
        if asked:
            assert sum(asked) / len(asked) == pytest.approx(found["J&F"], abs=1e-4)


@pytest.mark.slow
def test_the_table_of_masks_shows_the_scores_of_the_tracks(run):
    directory, results = run
    assert list(results["masks"]) == [TPO, FROZEN, FILLED, BOUND]
    questions = read_questions(heldout_files(directory))
    wanted = [question for question in questions if question.wanted == "mask"]
    assert sum(found["num"] for found in results["masks"][TPO].values()) == len(wanted) > 0
    compared = load_compared(directory / "tracks.json", questions)
    assert score_masks(questions, compared) == {name: results["masks"][name] for name in (FILLED, BOUND)}
    assert all(found["called"] == 1 for found in results["masks"][BOUND].values() if found["num"])
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(mask_table(results))
    lines = console.export_text().splitlines()
    for title, values in mask_cells(results).items():
        (line,) = [line for line in lines if line.strip().startswith(f"{title} ")]
        assert line.strip().removeprefix(title).split() == values
    sha256 = hashlib.sha256((directory / "micro_sam.safetensors").read_bytes()).hexdigest()
    assert f'"checkpoint_sha256": "{sha256}"' in (directory / "tpo_config.json").read_text()


@pytest.mark.slow
def test_the_report_has_pictures_curves_and_the_table(run):
    directory, results = run
    page = (directory / "report.html").read_text(encoding="utf-8")
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(pictures) >= 5
    for picture in pictures:
        Image.open(io.BytesIO(base64.b64decode(picture))).verify()
    for video in re.findall(r'src="data:video/mp4;base64,([^"#]+)#t=', page):
        with av.open(io.BytesIO(base64.b64decode(video))) as container:
            assert len(list(container.decode(video=0))) == len(CLIP_TIMES)
    assert page.count("<video") >= 3
    assert page.index("<img") < page.index("<table")  # pictures first
    small = page[page.index("<table") : page.index("</table>")]
    assert [small.count("<tr>"), small.count("<th>")] == [1 + len(results["rows"]), 1 + len(SMALL) + len(SMALL_MASKS)]
    assert f"<td>{cells(results)['pictures: Acc@0.5'][0]}</td>" in small
    assert ("has no mask." in page) or ("true mask" in page)
    assert "; no mask" not in page
    assert page.count("<svg") == 6  # five losses, and how reliable the scores are
    for row in confidence_rows(results):
        assert "".join(f"<td>{value}</td>" for value in row) in page
    assert page.count("stroke-width") >= 6  # conversation of both runs, assignment, region, temporal, mask
    for values in cells(results).values():
        assert "".join(f"<td>{value}</td>" for value in values) in page
    assert "http" not in page


@pytest.mark.slow
def test_predict_takes_the_run(run):
    directory, _ = run
    picture = directory / "data" / "heldout" / "images" / "000000.png"
    arguments = ["predict", str(directory), "--image", str(picture), "--prompt", "where is the red circle?"]
    answer = json.loads(CliRunner().invoke(app, [*arguments, "--route", "region", "--json"]).stdout)
    boxes = [found["value"] for found in answer["predictions"] if found["head"] == "region"]
    assert [len(box) for box in boxes[:1]] == [4]  # of its own the run, hardly trained, may call another head too


@pytest.mark.slow
def test_a_folder_of_another_run_is_refused(run, host):
    directory, _ = run
    with pytest.raises(TPOError, match="other settings"):
        run_demo(directory, TINY, seed=4, host=host)
    with pytest.raises(TPOError, match="no demo"):
        run_demo(host, TINY, host=host)


def test_a_folder_in_use_and_one_that_is_a_file(tmp_path, host):
    with held(tmp_path / "run", LOCK_FILE), pytest.raises(TPOError, match=f"process {os.getpid()} on .* in it; wait"):
        run_demo(tmp_path / "run", TINY, host=host)
    assert list((tmp_path / "run").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(TPOError, match="file: cannot be written .*: it is a file; give another folder"):
        run_demo(tmp_path / "file", TINY, host=host)


def test_without_its_host_it_says_where_that_lies(tmp_path):
    with pytest.raises(TPOError, match="expected the folder of a model, with its config.json"):
        run_demo(tmp_path / "run", TINY, host=tmp_path)


def test_the_baseline_trains_the_same_steps_on_the_same_records(tmp_path, host):
    ours, other = (train_config(host, tmp_path, TINY, 0, name) for name in (TPO, BASELINE))
    assert (ours.model, ours.lora, ours.seed, ours.data) == (other.model, other.lora, other.seed, other.data)
    for name, stage in other.stages.items():
        same = ours.stages[name]
        for field in ("steps", "batch_size", "warmup", "scheduler", "trainer"):
            assert getattr(stage, field) == getattr(same, field)
        assert stage.losses == (None if name == "boxes" else same.losses), "its boxes are words"
        files = [(source.file.replace("_baseline.jsonl", ".jsonl"), source.weight) for source in stage.data]
        assert files == [(source.file, source.weight) for source in same.data]
        rates = {part: rate for part, rate in same.learning_rates.items() if part != "heads.temporal"}
        assert stage.learning_rates == rates | {"words": rates["lora"]}


def test_a_frozen_host_trains_nothing_of_it(tmp_path, host):
    config = train_config(host, tmp_path, TINY, 0, FROZEN)
    assert config.lora is None
    parts = {part for stage in config.stages.values() for part in stage.learning_rates}
    assert parts == {"triggers", "tokens", "heads", "heads.temporal"}


def test_help_is_fast_to_build_and_needs_no_torch():
    code = "import sys, tpo_shapes.plugin; print('torch' in sys.modules, 'transformers' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "False"]


def test_what_scores_are_worth():
    true = [[0.2, 0.2, 0.6, 0.6], [0.2, 0.2, 0.4, 0.6], [0.7, 0.7, 0.9, 0.9]]  # IoU 1, 0.5, 0
    answers = [Answer("", [b], scores={"box": score}) for b, score in zip(true, (0.9, 0.5, 0.2), strict=True)]
    asked = [question(box=BOX)] * 3
    found = score_confidence([*asked, question(box=BOX)], [*answers, Answer("red")])
    boxes = found["pictures: boxes"]
    assert (boxes["num"], boxes["scored"]) == (4, 3)
    # Two of four are found, both before the wrong one: precision 1 at the recalls 0 to 0.5, of 101.
    assert boxes["ap@0.5"] == pytest.approx(51 / 101)
    assert boxes["calibration_error"] == pytest.approx((0.1 + 0.0 + 0.2) / 3, abs=1e-6)
    assert found["clips: moments"] == {
        "num": 0,
        "scored": 0,
        "ap@0.5": None,
        "ap": None,
        "calibration_error": None,
        "reliability": [],
    }
    assert confidence_rows({"confidence": found})[2] == ["clips: moments", "-", "-", "-"]
    assert reliability_plot({"confidence": found}).count("<circle") == 3


def question(kind="region", box=None, answer="", media="a.png", spans_s=()):
    return Question(media, kind, "?", answer, box=box, spans_s=list(spans_s))


BOX = [0.2, 0.2, 0.6, 0.6]


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        (Answer("it is here", [BOX], called=["box"]), 1.0),
        (Answer("it is here", [[0.2, 0.2, 0.4, 0.6]], called=["box"]), 0.5),
        (Answer("it is here", [[0.7, 0.7, 0.9, 0.9]], called=["box"]), 0.0),
        (Answer("it is here", [[0.6, 0.6, 0.2, 0.2]], called=["box"]), 0.0),
        (Answer("it is here", [[0.7, 0.7, 0.9, 0.9], BOX], called=["box"]), 0.0),
        (Answer("it is here", called=["box"]), 0.0),
        (Answer("it is here"), 0.0),
    ],
)
def test_overlap(answer, wanted):
    assert overlap(question(box=BOX), answer) == pytest.approx(wanted)


def test_scores_of_answers_written_by_hand():
    asked = [
        (question(box=BOX), Answer("it is here", [BOX], called=["box"])),
        (question(box=BOX), Answer("it is here", [[0.7, 0.7, 0.9, 0.9]], called=["box"])),
        (question(box=BOX), Answer("red")),
        (question(box=BOX), Answer("it is here", called=["box"])),
        (question("colour", answer="red"), Answer("red")),
        (question("colour", answer="red"), Answer("red red")),
        (question("count", answer="two"), Answer("two")),
        (question("given_shape", answer="circle"), Answer("square", [BOX], called=["box"])),
        (question("motion", answer="up", media="a.mp4"), Answer("down")),
        (question("moment", media="a.mp4", spans_s=[[0, 1], [2, 3]]), Answer("", spans_s=[[2, 3]], called=["moment"])),
        (question("moment", media="a.mp4", spans_s=[[0, 1]]), Answer("", spans_s=[[2, 3], [0, 1]], called=["moment"])),
        (question("moment", media="a.mp4", spans_s=[[0, 1]]), Answer("it is here", [BOX], called=["box"])),
        (question("moment", media="a.mp4", spans_s=[[0, 1]]), Answer("", spans_s=[[0, 0.5]], called=["moment"])),
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
    assert (clips["num_moment"], clips["moment_when_asked"], clips["moment_otherwise"]) == (4, 0.75, 0)
    assert clips["box_otherwise"] == 0.2
    assert [clips[key] for key in ("r1_30", "r1_50", "r1_70")] == [0.5, 0.5, 0.25]
    assert clips["moment_iou"] == pytest.approx(0.375)


@pytest.mark.parametrize(
    ("said", "called"),
    [("it is here 20 20 60 60", ["box"]), ("it is here 20 20", []), ("red", [])],
)
def test_numbers_in_words_are_calls(said, called):
    answer = _as_answer(said, [], as_text=True)
    assert (answer.called, answer.boxes) == (called, [BOX] if called else [])


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
