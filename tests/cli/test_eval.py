"""`tpo eval` on a finished run: its numbers are those of its answers, however it was interrupted and shared."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ranks
from typer.testing import CliRunner, Result

import tpo_plugin.cli
from tpo_plugin import MediaError, TPOError
from tpo_plugin.evaluate import run as evaluation_run
from tpo_plugin.evaluate.run import Evaluation, evaluate
from tpo_plugin.evaluate.scoring import Scorer

BOXES = [[0.1, 0.2, 0.5, 0.6], [0.0, 0.0, 1.0, 1.0], [0.3, 0.3, 0.9, 0.5], [0.5, 0.1, 0.6, 0.9]]


def talk(*turns: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(turns)]


@pytest.fixture(scope="module")
def data(world: Path) -> Path:
    """Six questions: four want a box, of which one is about a clip and one in a second turn; two are plain."""
    where = "<image>\nwhere is the red circle?"
    records: list[dict[str, Any]] = [
        {"image": "picture.png", "conversations": talk(where, "it is here <region>")},
        {"video": "clip.mp4", "conversations": talk(where, "here <region>")},
        {"image": "picture.png", "conversations": talk(where, "it is here <region>", "and now?", "here <region>")},
        {"conversations": talk("how many?", "two")},
        {"image": "picture.png", "conversations": talk("<image>\nhow many?", "three")},
    ]
    boxes = iter(BOXES)
    for record in records[:3]:
        number = record["conversations"].__repr__().count("<region>")
        record["tasks"] = [{"head": "region", "boxes": [next(boxes)]} for _ in range(number)]
    file = world / "held.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def invoke(run: Path, data: Path, output: Path, *arguments: object) -> Result:
    command = ["eval", str(run), "--data", str(data), "-o", str(output), "--max-new-tokens", "8", "--batch-size", "2"]
    result = CliRunner().invoke(tpo_plugin.cli.app, [*command, *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def call(run: Path, data: Path, output: Path, *arguments: object) -> str:
    return invoke(run, data, output, *arguments).stdout


def read(output: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    lines = (output / "predictions.jsonl").read_text().splitlines()
    return json.loads((output / "results.json").read_text()), [json.loads(line) for line in lines]


def iou(a: list[float], b: list[float]) -> float:
    both = area([max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])])
    return both / (area(a) + area(b) - both)


def area(box: list[float]) -> float:
    return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)


def test_a_routed_head_is_measured_by_all_its_questions(world: Path, data: Path, tmp_path: Path) -> None:
    printed = call(world / "run", data, tmp_path / "out", "--route", "region")
    results, lines = read(tmp_path / "out")
    assert [(line["record"].rpartition(":")[2], line["turn"]) for line in lines] == [
        ("1", 1), ("2", 1), ("3", 1), ("3", 3)
    ]  # fmt: skip
    overlaps = [iou(line["predictions"][0]["value"], box) for line, box in zip(lines, BOXES, strict=True)]
    found = results["splits"][str(data)]["heads"]["region"]
    assert (found["questions"], found["wanted"], found["given"]) == (4, 4, 4)
    assert found["metrics"]["mean_iou"] == pytest.approx(np.mean(overlaps), abs=1e-4)
    assert found["metrics"]["acc@0.5"] == np.mean([overlap >= 0.5 for overlap in overlaps])
    assert [line["quality"]["region"] for line in lines] == pytest.approx(overlaps, abs=1e-4)
    assert "emission" not in found
    assert results["splits"][str(data)]["frames"] == [2, 2]
    assert lines[1]["predictions"][0]["value_in_units"] == pytest.approx(
        np.array(lines[1]["predictions"][0]["value"]) * [64, 48, 64, 48], abs=1e-2
    )
    assert "region  mean_iou" in printed
    assert "4 questions, 0 failed" in printed
    assert "emission is not measured" in printed
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 16  # four questions, the best and the worst, wanted and found


def test_free_answers_are_counted(world: Path, data: Path, tmp_path: Path) -> None:
    call(world / "run", data, tmp_path / "out")
    results, lines = read(tmp_path / "out")
    split = results["splits"][str(data)]
    assert split["questions"] == len(lines) == 6
    called = [bool(line["called"]) for line in lines]
    assert split["heads"]["region"]["emission"] == np.mean(called[:4])
    assert split["heads"]["region"]["false_triggers"] == split["false_triggers"] == np.mean(called[4:])
    agreed = [line["text"] == line["reference"] for line in lines[4:]]
    assert split["chat"] == {"questions": 2, "agreement": np.mean(agreed)}
    assert [line["reference"] for line in lines] == ["it is here", "here", "it is here", "here", "two", "three"]
    pairs = zip(lines[:4], BOXES, strict=True)
    given = [iou(line["predictions"][0]["value"], box) if line["called"] else 0.0 for line, box in pairs]
    assert split["heads"]["region"]["metrics"]["mean_iou"] == pytest.approx(np.mean(given), abs=1e-4)


def test_what_a_record_says_is_what_agrees(world: Path, data: Path, tmp_path: Path) -> None:
    call(world / "run", data, tmp_path / "first")
    _, lines = read(tmp_path / "first")
    said = world / "said.jsonl"
    answers = [lines[4]["text"] or "nothing", lines[4]["text"] + " or not"]
    said.write_text("".join(json.dumps({"conversations": talk("how many?", answer)}) + "\n" for answer in answers))
    call(world / "run", said, tmp_path / "second")
    agreement = read(tmp_path / "second")[0]["splits"][str(said)]["chat"]["agreement"]
    assert agreement == (0.5 if lines[4]["text"] else 0.0)


def test_each_question_alone_and_with_the_turns_before_it(world: Path, data: Path, tmp_path: Path) -> None:
    call(world / "run", data, tmp_path / "alone", "--alone", "--route", "region")
    call(world / "run", data, tmp_path / "not", "--route", "region")
    alone, not_alone = (read(tmp_path / name)[1] for name in ("alone", "not"))
    assert [line["question"] for line in alone] == [line["question"] for line in not_alone]
    values = [[line["predictions"][0]["value"] for line in lines] for lines in (alone, not_alone)]
    assert np.allclose(values[0][:3], values[1][:3], atol=1e-5)
    assert not np.allclose(values[0][3], values[1][3], atol=1e-5)


def test_what_cannot_be_read_is_a_failure_with_its_place(world: Path, data: Path, tmp_path: Path) -> None:
    broken = world / "broken.jsonl"
    lines = [json.loads(line) for line in data.read_text().splitlines()]
    lines[0]["image"] = "missing.png"
    lines[4]["image"] = "records.jsonl"
    broken.write_text("".join(json.dumps(line) + "\n" for line in lines))
    printed = call(world / "run", broken, tmp_path / "out", "--max-new-tokens", 7)
    results, told = read(tmp_path / "out")
    assert [(f["record"], f["turn"]) for f in results["failures"]] == [(f"{broken}:1", 1), (f"{broken}:5", 1)]
    assert "missing.png: no such file" in results["failures"][0]["reason"]
    split = results["splits"][str(broken)]
    assert (split["questions"], split["failed"], split["chat"]["questions"]) == (6, 2, 2)
    assert split["heads"]["region"]["wanted"] == 4
    assert split["heads"]["region"]["emission"] == np.mean([bool(line["called"]) for line in told[1:4]])
    assert f"{broken}:1, turn 1: " in printed
    assert "6 questions, 2 failed" in printed


def test_what_has_failed_is_asked_again_and_what_was_answered_is_kept(
    world: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    media = tmp_path / "media"
    media.mkdir()
    shutil.copy(world / "picture.png", media)
    arguments = ("--route", "region", "--media", media)
    call(world / "run", data, tmp_path / "out", *arguments)
    first, told = read(tmp_path / "out")
    assert [failure["record"] for failure in first["failures"]] == [f"{data}:2"]
    with pytest.raises(TPOError, match=rf"media was '{media}', is '{world}'"):
        call(world / "run", data, tmp_path / "out", "--route", "region", "--media", world)
    asked: list[int] = []
    ask = evaluation_run.ask_batch

    def counted(model: Any, sources: Any, batch: Any, *others: Any) -> Any:
        asked.extend(question.number for question in batch)
        return ask(model, sources, batch, *others)

    monkeypatch.setattr(evaluation_run, "ask_batch", counted)
    shutil.copy(world / "clip.mp4", media)
    call(world / "run", data, tmp_path / "out", *arguments)
    second, again = read(tmp_path / "out")
    assert asked == [1]
    assert second["failures"] == []
    assert [line for line in again if line["record"] != f"{data}:2"] == [told[0], *told[2:]]
    assert again[1]["predictions"]
    assert not (tmp_path / "out/answers").exists()


def test_a_mistake_that_nothing_was_answered_with_can_be_mended(world: Path, data: Path, tmp_path: Path) -> None:
    out, own = tmp_path / "out", tmp_path / "own.jsonl"
    shutil.copy(data, own)
    (tmp_path / "empty").mkdir()
    own.write_text(data.read_text() + "{broken\n")
    with pytest.raises(TPOError, match="is not valid JSON"):
        call(world / "run", own, out, "--media", world)
    own.write_text("".join(data.read_text().splitlines(keepends=True)[:1]))
    with pytest.raises(TPOError, match="route is 'regoin'"):
        call(world / "run", own, out, "--media", world, "--route", "regoin")
    call(world / "run", own, out, "--media", tmp_path / "empty", "--route", "region")
    assert len(read(out)[0]["failures"]) == 1
    call(world / "run", own, out, "--media", world, "--route", "region")
    results, _ = read(out)
    assert (results["failures"], results["media"], results["host"], results["confine"]) == (
        [], str(world), None, False
    )  # fmt: skip
    with pytest.raises(TPOError, match="confine was False, is True"):
        call(world / "run", own, out, "--media", world, "--route", "region", "--confine")


def test_the_data_are_whatever_records_are_taken_from(world: Path, tmp_path: Path) -> None:
    record = {"image": "png", "conversations": talk("<image>\nwhere is it?", "here <region>")}
    record |= {"tasks": [{"head": "region", "boxes": [BOXES[0]]}]}
    for number in range(2):
        (tmp_path / "0.json").write_text(json.dumps(record | {"id": str(number)}))
        shutil.copy(world / "picture.png", tmp_path / "0.png")
        with tarfile.open(tmp_path / f"s-{number}.tar", "w") as tar:
            for name in ("0.json", "0.png"):
                tar.add(tmp_path / name, name)
    hashes = []
    for data in ("s-0.tar", "s-*.tar", "s-{0..1}.tar"):
        call(world / "run", tmp_path / data, tmp_path / "out" / data, "--route", "region")
        results, lines = read(tmp_path / "out" / data)
        assert (len(lines), results["failures"]) == (1 if data == "s-0.tar" else 2, [])
        hashes += results["data"].values()
    assert hashes[0] != hashes[1] == hashes[2]


def test_data_that_are_given_twice_are_refused(world: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(TPOError, match=r"held.jsonl twice; expected each once, for each is a split of its own"):
        call(world / "run", data, tmp_path / "out", "--data", data)


def test_a_published_scorer_is_named_with_its_convention(world: Path, data: Path, tmp_path: Path) -> None:
    printed = call(world / "run", data, tmp_path / "out", "--route", "region", "--benchmark", "refcoco")
    split = read(tmp_path / "out")[0]["splits"][str(data)]
    found = split["benchmark"]
    accuracy = split["heads"]["region"]["metrics"]["acc@0.5"]
    assert found == {
        "name": "refcoco", "head": "region", "scores": {"Acc@0.5": accuracy, "sentences": 4, "missing": 0}
    }  # fmt: skip
    assert "refcoco: Acc@0.5" in printed
    assert "Not lmms-eval's refcoco_grounding" in printed
    with pytest.raises(TPOError, match="benchmark was 'refcoco', is 'coco'"):
        call(world / "run", data, tmp_path / "out", "--route", "region", "--benchmark", "coco")
    with pytest.raises(TPOError, match="benchmark is 'refcoc', which no head of this run has; did you mean 'refcoco'"):
        call(world / "run", data, tmp_path / "new", "--benchmark", "refcoc")
    printed = call(world / "run", data, tmp_path / "new", "--benchmark", "region.coco")  # where nothing is finished
    assert "region.coco: COCO's average precision" in printed
    assert read(tmp_path / "new")[0]["splits"][str(data)]["benchmark"]["scores"]["AP"] <= 1


def test_a_truth_that_cannot_be_read_counts_in_no_published_scorer(
    world: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = pytest.importorskip("tpo_head_region.codec").RegionCodec
    collate = codec.collate_truth

    def unreadable(self: Any, tasks: Any) -> Any:
        if any(task["boxes"] == [BOXES[1]] for task in tasks):
            raise MediaError("mask.png: no such file")
        return collate(self, tasks)

    monkeypatch.setattr(codec, "collate_truth", unreadable)
    call(world / "run", data, tmp_path / "out", "--route", "region", "--benchmark", "refcoco")
    results, _ = read(tmp_path / "out")
    assert [(failure["record"], failure["reason"]) for failure in results["failures"]] == [
        (f"{data}:2", "cannot be scored: mask.png: no such file")
    ]
    split = results["splits"][str(data)]
    assert (split["benchmark"]["scores"]["sentences"], split["heads"]["region"]["wanted"]) == (3, 3)


def test_a_scorer_that_two_heads_have_is_asked_for_by_its_head() -> None:
    class Head:
        def benchmarks(self) -> dict[str, Any]:
            return {"refcoco": self}

    one, other = Head(), Head()
    tpo = SimpleNamespace(heads={"region": one, "region_set": other})
    message = "benchmark is 'refcoco', which several heads of this run have; give region.refcoco or region_set.refcoco"
    with pytest.raises(TPOError, match=message):
        Scorer.of(tpo, "refcoco")
    assert Scorer.of(tpo, "region_set.refcoco").benchmark is other
    assert Scorer.of(tpo, "region.refcoco").name == "refcoco"


def the_same(first: Path, second: Path) -> None:
    (results, lines), (others, other_lines) = read(first), read(second)
    assert lines == other_lines
    assert results["splits"] == others["splits"]


@pytest.mark.slow
def test_killed_and_resumed_and_on_two_ranks(world: Path, data: Path, tmp_path: Path) -> None:
    def work(output: Path, die_at: int | None = None) -> None:
        ask, done = evaluation_run.ask_batch, []

        def ask_or_die(*args: Any) -> Any:
            if len(done) == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            done.append(1)
            return ask(*args)

        evaluation_run.ask_batch = ask_or_die  # in a fork
        evaluate(
            Evaluation(
                run=world / "run", data=(str(data),), output=output, route="region", max_new_tokens=8, batch_size=1
            )
        )

    ranks.forked(lambda: work(tmp_path / "straight"), tmp_path, 1)
    child = ranks.in_a_child(lambda: work(tmp_path / "killed", 2), tmp_path / "killed.log")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert len(list((tmp_path / "killed" / "answers").iterdir())) == 2
    assert not (tmp_path / "killed" / "results.json").exists()
    ranks.forked_on_two_ranks(lambda: work(tmp_path / "killed"), tmp_path)
    ranks.forked_on_two_ranks(lambda: work(tmp_path / "two"), tmp_path)
    the_same(tmp_path / "straight", tmp_path / "killed")
    the_same(tmp_path / "straight", tmp_path / "two")
    assert sorted(file.name for file in (tmp_path / "two").iterdir()) == [
        "predictions.jsonl", "report.html", "results.json", "settings.json"
    ]  # fmt: skip


def test_a_finished_evaluation_is_read_and_another_is_refused(world: Path, data: Path, tmp_path: Path) -> None:
    first = call(world / "run", data, tmp_path / "out", "--limit", 1)
    written = (tmp_path / "out" / "results.json").read_bytes()
    again = invoke(world / "run", data, tmp_path / "out", "--limit", 1)
    assert again.stdout == first
    assert again.stderr.strip() == f"results are read from {tmp_path / 'out'}, where all was answered already"
    assert (tmp_path / "out" / "results.json").read_bytes() == written
    with pytest.raises(TPOError, match=r"an evaluation of something else \(limit was 1, is 2\); give another --output"):
        call(world / "run", data, tmp_path / "out", "--limit", 2)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(TPOError, match="holds 'thesis.tex', and no evaluation; give an --output that is empty or new"):
        call(world / "run", data, tmp_path / "mine")
    with pytest.raises(TPOError, match="route is 'regoin', no head of .*; did you mean 'region'"):
        call(world / "run", data, tmp_path / "new", "--route", "regoin")


@pytest.mark.slow
def test_a_checkpoint_of_a_run_is_evaluated(world: Path, data: Path, tmp_path: Path) -> None:
    call(world / "run", data, tmp_path / "run", "--route", "region")
    call(world / "run/only/final", data, tmp_path / "final", "--route", "region")
    the_same(tmp_path / "run", tmp_path / "final")
    (checkpoint,) = (world / "run/only").glob("checkpoint-*")
    call(checkpoint, data, tmp_path / "checkpoint", "--route", "region")
    the_same(tmp_path / "run", tmp_path / "checkpoint")
    (checkpoint / "tpo_model.safetensors").rename(checkpoint / "kept")
    try:
        with pytest.raises(TPOError, match="take another checkpoint"):
            call(checkpoint, data, tmp_path / "damaged")
    finally:
        (checkpoint / "kept").rename(checkpoint / "tpo_model.safetensors")
    with pytest.raises(TPOError, match="has no run.json; expected the output_dir of tpo train, or a checkpoint in it"):
        call(world / "host", data, tmp_path / "host")


def test_where_the_results_go_by_default(tmp_path: Path) -> None:
    (tmp_path / "run/stage1/checkpoint-5").mkdir(parents=True)
    (tmp_path / "run/run.json").touch()
    (tmp_path / "run/stage1/checkpoint-5/tpo_config.json").touch()
    data = ("a/val.jsonl", "b/test.jsonl.gz")
    assert Evaluation(run=tmp_path / "run", data=data).folder() == tmp_path / "run/eval/val-test"
    place = Evaluation(run=tmp_path / "run/stage1/checkpoint-5", data=data).folder()
    assert place == tmp_path / "run/eval/stage1-checkpoint-5-val-test"
    assert Evaluation(run=Path("org/name"), data=data).folder() == Path("name/eval/val-test")


@pytest.mark.slow
def test_the_page_s_commands_run(world: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs/evaluate.md").read_text(encoding="utf-8")
    commands = "".join(re.findall(r"<!-- commands: (?:eval|benchmark|predict) -->\n((?:    .+\n)+)", page))
    assert (commands.count("tpo eval"), commands.count("tpo predict")) == (4, 3)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(world / "run", "run")
    (checkpoint,) = Path("run/only").glob("checkpoint-*")
    shutil.copy(data, "held_out.jsonl")
    for name in ("picture.png", "clip.mp4"):
        shutil.copy(world / name, name)
    shutil.copy("picture.png", "second.png")
    Path("clips").mkdir()
    shutil.copy("clip.mp4", "clips")
    for line in commands.replace("run/stage3/checkpoint-500", str(checkpoint)).splitlines():
        program, *arguments = shlex.split(line)
        assert program == "tpo"
        result = CliRunner().invoke(tpo_plugin.cli.app, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
    folders = {folder.name: {file.name for file in folder.iterdir()} for folder in Path("run/eval").iterdir()}
    assert set(folders) == {"held_out", "routed", f"only-{checkpoint.name}-held_out", "refcoco"}
    assert all({"results.json", "predictions.jsonl", "report.html"} <= files for files in folders.values())
