"""`tpo doctor`: what it finds, and that it finds what is wrong."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer
from typer.testing import CliRunner

import tpo_plugin.cli
from tpo_plugin import HeadConfig, TaskHead, TPOError, hookimpl, register_plugin, unregister_plugin
from tpo_plugin.asking import Answer, load_run_or_host
from tpo_plugin.cli.doctor import emitted, examine
from tpo_plugin.cli.doctor_heads import untaught
from tpo_plugin.training.free import FILE, FreeAnswer, Trigger, write


def doctor(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(tpo_plugin.cli.app, ["doctor", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.stdout


@pytest.fixture(scope="module")
def loaded(world: Path) -> tuple[Any, Any, dict[str, str]]:
    return load_run_or_host(world / "run")


def test_a_run(world: Path) -> None:
    report = json.loads(doctor(world / "run", "--json"))
    assert report["host"] == "LlavaOnevisionForConditionalGeneration"
    assert report["tied"] is False
    assert report["vocabulary"]["grown_from"] is None
    kinds = {token["kind"]: token for token in report["tokens"]}
    assert [kinds[kind]["token"] for kind in ("trigger", "task", "input")] == ["<box_begin>", "<boxes>", "<region_box>"]
    assert all(token["one_id"] and token["hidden_by_decoding"] for token in report["tokens"])
    assert len({token["id"] for token in report["tokens"]}) == 3
    assert kinds["trigger"]["trainable_rows"] == {"trigger": True, "output": True}
    assert kinds["task"]["trainable_rows"] == {"task": True}


def test_a_host_that_moved_and_a_checkpoint(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world, tmp_path / "world")
    moved, run = tmp_path / "world" / "moved", tmp_path / "world" / "run"
    (tmp_path / "world" / "host").rename(moved)
    saved = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(saved | {"host": str(tmp_path / "world" / "host")}))
    (checkpoint,) = (run / "only").glob("checkpoint-*")
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace(str(world), str(tmp_path / "world")))
    for place in (run, checkpoint):
        with pytest.raises(TPOError, match=r"its host .* cannot be loaded .*; give host= .--host. if it has moved"):
            doctor(place)
        assert "region  <box_begin>" in doctor(place, "--host", moved)


def test_a_host_without_tpo_gets_the_installed_heads(world: Path) -> None:
    lines = doctor(world / "host").splitlines()
    assert lines[0] == "host: LlavaOnevisionForConditionalGeneration, input and output embeddings untied"
    table = [line.split() for line in lines if line.startswith("region")]
    assert [row[1] for row in table] == ["<box_begin>", "<boxes>", "<region_box>"]


class BrokenHead(TaskHead):
    """A head of somebody else, whose constructor fails."""

    def __init__(self, config: HeadConfig, hidden_size: int) -> None:
        super().__init__()
        raise RuntimeError("no weights here\nand more lines")


class BrokenPlugin:
    @hookimpl
    def register_heads(self, register: Any) -> None:
        register("broken", head=BrokenHead, trigger="<broken_begin>", task_token="<broken>")


@pytest.fixture
def broken() -> Iterator[None]:
    register_plugin(BrokenPlugin(), "broken")
    yield
    unregister_plugin("broken")


def test_a_broken_head_is_named_and_does_not_keep_the_others_out(world: Path, broken: None) -> None:
    lines = doctor(world / "host").splitlines()
    (said,) = [line for line in lines if line.startswith("broken")]
    assert said.startswith("broken: left out, ")
    assert "no weights here" in said or "and more lines" in said
    assert ["region", "<box_begin>"] in [line.split()[:2] for line in lines]
    report = json.loads(doctor(world / "host", "--json"))
    assert "no weights here" in report["left_out"]["broken"]
    assert "broken" not in {token["head"] for token in report["tokens"]}


def test_heads_for_a_host_are_chosen(world: Path, broken: None) -> None:
    report = json.loads(doctor(world / "host", "--heads", "region, ", "--json"))
    assert {token["head"] for token in report["tokens"]} == {"region"}
    assert "left_out" not in report
    with pytest.raises(Exception, match="no weights here"):
        doctor(world / "host", "--heads", "broken,region")
    with pytest.raises(TPOError, match="run is a run, which has its own heads"):
        doctor(world / "run", "--heads", "region")


def test_what_is_no_host_is_said(world: Path, tmp_path: Path) -> None:
    with pytest.raises(TPOError, match=r"host '/nowhere/x' cannot be loaded \(there is no such folder\); expected"):
        doctor("/nowhere/x")
    with pytest.raises(
        TPOError, match=r"cannot be loaded \(the folder has no config.json\); expected a name on the hub, or a folder"
    ):
        doctor(tmp_path)
    shutil.copytree(world / "host", tmp_path / "host")
    (tmp_path / "host" / "model.safetensors").write_bytes(b"")
    with pytest.raises(
        TPOError, match=r"host '.*host' cannot be loaded \(.*\); expected a name on the hub, or a folder"
    ):
        doctor(tmp_path / "host")
    with pytest.raises(
        TPOError, match=r"host 'no-such-host' cannot be loaded .*, and as a name on the Hugging Face Hub: "
    ):
        doctor("no-such-host")


def test_an_unfinished_run_says_how_it_goes_on(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "run", tmp_path / "run")
    (tmp_path / "run" / "run.json").unlink()
    with pytest.raises(
        TPOError, match=r"its run is unfinished, and goes on with: tpo train .*; its checkpoints can be"
    ):
        doctor(tmp_path / "run")


def test_a_head_that_learnt_nothing_is_told_with_what_to_do(world: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(world / "run", run)
    saved = json.loads((run / "run.json").read_text())
    (stage,) = saved["config"]["stages"]

    def said(iou: float, steps: int, losses: list[str] | None) -> list[str]:
        metrics = {"eval_loss": 1.0, "eval_region_mean_iou": iou, "eval_region_constant_mean_iou": 0.1}
        saved["stages"][stage] = {"log": [], "steps": steps, "evaluation": metrics}
        saved["config"]["stages"][stage]["losses"] = losses
        (run / "run.json").write_text(json.dumps(saved))
        return untaught(run, ["region"])

    assert said(0.7, 240, None) == []
    for steps, losses, remedy in (
        (60, None, "60 steps, 0 of them alone: fewer than 200, so give more steps or epochs"),
        (240, None, "240 steps, 0 of them alone: add a stage of some 200 steps with losses: [region] before the last"),
        (240, ["region"], "240 steps, 240 of them alone: look at its records (tpo check --pictures)"),
    ):
        (sentence,) = said(0.07, steps, losses)
        assert (
            "region: about as good as the best prediction that is always the same: mean_iou 0.070 (0.100)" in sentence
        )
        assert f"Its loss trained for {remedy}" in sentence
    assert f"WARNING: {sentence}" in doctor(run)
    saved["stages"][stage] = {"log": [], "steps": 240}
    (run / "run.json").write_text(json.dumps(saved))
    (sentence,) = untaught(run, ["region"])
    assert sentence.startswith("no evaluation of this run measured a head")
    assert f"tpo eval {run} --data RECORDS" in sentence


def test_what_is_wrong_is_found(loaded: tuple[Any, Any], world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, *_ = loaded
    rows = model.tpo.embeddings["region"]
    rows.requires_grad_(False)
    monkeypatch.setattr(model.tpo, "tokenizer", AutoTokenizer.from_pretrained(world / "host"))
    monkeypatch.setattr("tpo_plugin.asking.load_run_or_host", lambda *_: loaded)
    report = json.loads(doctor("anything", "--json", code=1))
    rows.requires_grad_(True)
    assert not any(token["one_id"] for token in report["tokens"])
    assert report["tokens"][0]["trainable_rows"] == {"trigger": False, "output": False}


def test_tied_and_grown_are_told(loaded: tuple[Any, Any]) -> None:
    model, *_ = loaded
    host = model.tpo.model
    head = host.get_output_embeddings()
    weight = head.weight
    head.weight = host.get_input_embeddings().weight
    try:
        assert examine(model)["tied"] is True
    finally:
        head.weight = weight


def test_emitted_on_records_and_on_text(
    loaded: tuple[Any, Any], world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, video, _ = loaded
    asked: list[str] = []

    def answers_first_and_last(model: Any, samples: Any, **options: Any) -> list[Answer]:
        asked.append(samples[0].record.turns[-1].text)
        return [Answer("", [SimpleNamespace(head="region")] if len(asked) in (1, 4) else [])]  # type: ignore[list-item]

    monkeypatch.setattr("tpo_plugin.asking.ask", answers_first_and_last)
    counts = emitted(model, world / "records.jsonl", video, 8)
    assert counts == {"region": {"with_task": 2, "with_task_emitted": 1, "without_task": 2, "without_task_emitted": 1}}
    asked.clear()
    (tmp_path / "prompts.txt").write_text("where is it?\n\nhow many?\n")
    assert emitted(model, tmp_path / "prompts.txt", video, 8) == {"region": {"prompts": 2, "prompts_emitted": 1}}
    assert asked == ["where is it?", "how many?"]
    (tmp_path / "prompts.txt").write_text("\n")
    with pytest.raises(TPOError, match=r"prompts.txt: holds no prompt; expected prompts, one a line, or records"):
        emitted(model, tmp_path / "prompts.txt", video, 8)


def test_emitted_on_records_that_are_prompts_and_packed(
    loaded: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, video, _ = loaded
    asked: list[str] = []

    def answers(model: Any, samples: Any, **options: Any) -> list[Answer]:
        asked.append(samples[0].record.turns[-1].text)
        return [Answer("", [])]

    monkeypatch.setattr("tpo_plugin.asking.ask", answers)
    monkeypatch.setenv("TPO_CACHE", str(tmp_path / "cache"))
    chats = [[{"from": "human", "value": "how many?"}], [{"from": "human", "value": "who?"}]]
    chats[1].append({"from": "gpt", "value": "me"})
    records = "".join(json.dumps({"conversations": chat}) + "\n" for chat in chats)
    groups = {"prompts": 1, "prompts_emitted": 0, "without_task": 1, "without_task_emitted": 0}
    for name in ("a.jsonl", "a.JSONL", "a.jsonl.gz"):
        asked.clear()
        packed = name.endswith(".gz")
        (tmp_path / name).write_bytes(gzip.compress(records.encode()) if packed else records.encode())
        assert emitted(model, tmp_path / name, video, 8) == {"region": groups}, name
        assert asked == ["how many?", "who?"]
    (tmp_path / "prompts.txt.gz").write_bytes(gzip.compress(b"where?\n"))
    assert emitted(model, tmp_path / "prompts.txt.gz", video, 8) == {"region": {"prompts": 1, "prompts_emitted": 0}}
    with pytest.raises(TPOError, match=r"is a tar or a folder; expected a file of records"):
        emitted(model, tmp_path, video, 8)


def test_a_run_whose_trigger_does_not_come(world: Path, tmp_path: Path) -> None:
    """The run that fooled the log: the trigger right behind the record's words, and called once in ten answers."""
    run = tmp_path / "run"
    shutil.copytree(world / "run", run)
    written = json.loads((run / "run.json").read_text())
    written["stages"]["only"]["log"].append({"step": 1, "eval_assign_accuracy": 1.0})
    (run / "run.json").write_text(json.dumps(written))
    missed = Trigger(0.98, 0.004, "The elephant is")
    said = ("eval", 1, "a.jsonl:7", "Where is the elephant?", "The elephant is found in Africa.", ["region"])
    answers = [FreeAnswer(*said, [], {"region": missed})] * 9 + [FreeAnswer(*said, ["region"], {})]
    answers += [FreeAnswer("eval", 1, "a.jsonl:8", "how many?", "two", [], [], {})] * 4
    write(run / "only" / FILE, answers, "eval", 1)
    lines = doctor(run).splitlines()
    assert (
        "only, step 1: region, of 14 free answers: called where it is wanted 10%; where it is not 0%; trigger right "
        "behind the records' own words 100%"
    ) in lines
    assert any(line.startswith("WARNING: only, step 1: region: behind the records' own words") for line in lines)
    assert (
        "  region did not come: 'Where is the elephant?' was answered 'The elephant is found in Africa.' (a.jsonl:7); "
        "its trigger's probability is 0.98 behind the record's own words, and in this answer at most 0.004, behind "
        "'The elephant is'"
    ) in lines
    assert "  region did not come in 6 more: --json has them" in lines
    assert len(json.loads(doctor(run, "--json"))["free"]["only"]["missed"]) == 9


def test_confine_is_of_prompts(world: Path) -> None:
    with pytest.raises(TPOError, match="--confine was given without --prompts; it is about the media that records"):
        doctor(world / "run", "--confine")


def test_prompts_are_really_answered(world: Path) -> None:
    lines = doctor(world / "run", "--prompts", world / "records.jsonl", "--max-new-tokens", 4).splitlines()
    assert [line for line in lines if line.startswith("region: trigger emitted on")] == [
        "region: trigger emitted on 0 of 2 prompts with its task",
        "region: trigger emitted on 0 of 2 others",
    ]
