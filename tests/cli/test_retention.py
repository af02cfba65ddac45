"""`tpo retention`: what a run kept of its host."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import tpo_plugin.cli
from tpo_plugin import TPOError, apply_tpo, remove_tpo
from tpo_plugin.training import retention as retention_module
from tpo_plugin.training.run import read_run, train


@pytest.fixture(scope="module")
def run(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run, with an adapter that has learned something."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    shutil.copytree(world / "run", folder)
    file, draw = folder / "adapter_model.safetensors", torch.Generator().manual_seed(0)
    weights = {name: torch.randn(w.shape, generator=draw) * 0.2 for name, w in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    return folder


def retention(world: Path, run: Path, *arguments: object) -> str:
    command = ["retention", str(run), "--data", str(world / "records.jsonl"), *map(str, arguments)]
    result = CliRunner().invoke(tpo_plugin.cli.app, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_run_is_compared_with_its_host(world: Path, run: Path) -> None:
    found: dict[str, Any] = json.loads(retention(world, run, "--json"))
    assert found["conversations"] == 2
    assert found["with_tasks"] == 2
    assert found["tokens"] >= 2
    assert found["applied"] == {"exactly_equal": True, "largest_difference": 0.0}
    assert found["lora_off"]["agreement"] == 1.0
    assert found["lora_off"]["exactly_equal"]
    assert not found["lora_on"]["exactly_equal"]
    assert found["lora_off"]["perplexity"] == pytest.approx(found["host"]["perplexity"], rel=1e-6)
    assert 0 <= found["lora_on"]["agreement"] <= 1
    assert found["lora_on"]["perplexity"] != found["host"]["perplexity"]


def test_what_applying_changed_is_measured(world: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were `apply_tpo` to move the host, it would be seen, and by how much."""

    def moved(model: Any, by: float) -> None:
        with torch.no_grad():
            model.get_output_embeddings().weight.add_(by)

    def applying(model: Any, *args: Any, **kwargs: Any) -> Any:
        moved(model, 0.5)
        return apply_tpo(model, *args, **kwargs)

    def removing(model: Any) -> None:
        remove_tpo(model)
        moved(model, -0.5)

    monkeypatch.setattr(retention_module, "apply_tpo", applying)
    monkeypatch.setattr(retention_module, "remove_tpo", removing)
    found = json.loads(retention(world, run, "--json"))
    assert not found["applied"]["exactly_equal"]
    assert found["applied"]["largest_difference"] > 0.01
    assert found["lora_off"]["exactly_equal"], "it was put back"


def test_a_frozen_host_says_what_it_said(world: Path, tmp_path: Path) -> None:
    """Heads and tokens alone train: every logit but the triggers' is the host's, bit for bit."""
    config = json.loads((world / "config.yaml").read_text())
    stage = config["stages"]["only"]
    stage |= {"learning_rates": {"heads": 0.1, "tokens": 0.1}, "losses": ["assign", "region"], "steps": 4}
    config |= {"output_dir": str(tmp_path / "run"), "lora": None, "stages": {"only": stage}}
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    run = train(tmp_path / "config.yaml")
    rows = load_file(run / "tpo_model.safetensors")
    assert rows["embeddings.region.output"].abs().min() > 1e-3  # it has learned: those start at 0
    found = json.loads(retention(world, run, "--json"))
    assert found["lora_on"]["exactly_equal"]
    assert "lora_off" not in found


@pytest.mark.slow
def test_a_run_that_retains_stays_nearer_to_its_host(world: Path, tmp_path: Path) -> None:
    """Conversation that contradicts the host, with the loss and without: answers move less, in micro-batches too."""
    found = {}
    for weight, micro in ((0, 4), (20, 4), (20, 1)):
        config = json.loads((world / "config.yaml").read_text())
        stage = config["stages"]["only"]
        stage |= {"learning_rates": {"lora": 1e-2, "tokens": 1e-2}, "steps": 6, "batch_size": 4, "logging_steps": 1}
        stage |= {"micro_batch_size": micro, "scheduler": "constant", "warmup": 0.0}
        folder = tmp_path / f"{weight}-{micro}"
        config |= {"output_dir": str(folder), "tpo": {"loss_weights": {"retain": weight}}}
        (tmp_path / "config.yaml").write_text(json.dumps(config))
        train(tmp_path / "config.yaml")
        log = read_run(folder)["stages"]["only"]["log"]
        losses = [entry["loss_retain"] for entry in log if "loss_retain" in entry]
        host, ours = (json.loads(retention(world, folder, "--json"))[key]["perplexity"] for key in ("host", "lora_on"))
        found[weight, micro] = (losses, abs(math.log(ours / host)))
    assert found[0, 4][0] == []
    assert len(found[20, 4][0]) == 6
    assert found[20, 4][0][0] == pytest.approx(0, abs=1e-6)  # LoRA begins as nothing
    assert found[20, 4][0] == pytest.approx(found[20, 1][0], rel=1e-3, abs=1e-6)
    assert found[20, 4][1] < 0.5 * found[0, 4][1]


def test_what_retains_needs_what_it_retains(world: Path, tmp_path: Path) -> None:
    config = json.loads((world / "config.yaml").read_text()) | {"output_dir": str(tmp_path / "run")}
    config["stages"]["only"]["losses"] = ["retain", "assign"]
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    with pytest.raises(TPOError, match="stages.only.losses: has 'retain' without 'mllm'"):
        train(tmp_path / "config.yaml")


def test_it_reads_as_text_and_stops_at_the_limit(world: Path, run: Path) -> None:
    text = retention(world, run, "--limit", 1)
    assert text.startswith("1 conversations")
    assert "right after applying: equal bit for bit" in text
    assert "run, LoRA off: perplexity" in text
    assert "agreement 100.0%, equal bit for bit" in text


def test_records_with_nothing_but_tasks_are_refused(world: Path, tmp_path: Path) -> None:
    first = (world / "records.jsonl").read_text().splitlines()[0]
    (tmp_path / "tasks.jsonl").write_text(first + "\n")
    command = ["retention", str(world / "run"), "--data", str(tmp_path / "tasks.jsonl"), "--media", str(world)]
    with pytest.raises(TPOError, match="has no conversation without tasks"):
        CliRunner().invoke(tpo_plugin.cli.app, command, catch_exceptions=False)
