"""Checkpoints in the layout of the public code."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tpo_head_temporal.config import TemporalConfig
from tpo_head_temporal.head import TemporalHead
from tpo_head_temporal.importing import read_checkpoint
from typer.testing import CliRunner

import tpo_plugin as tpo
from tpo_plugin.cli import app

SHARED = Path(__file__).resolve().parents[4] / "shared"
GOLDEN = Path(os.environ.get("TPO_GOLDEN", SHARED / "golden")) / "cg_detr" / "case_c_multi.safetensors"
OPTIONS = {"nheads": 4, "num_prompts": 1, "dropout": 0.1, "input_dropout": 0.5}


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    if not GOLDEN.is_file():
        pytest.skip(f"needs shared/ (golden data): no {GOLDEN}")
    with safe_open(GOLDEN, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def reference_names(golden: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key.removeprefix("weights."): value for key, value in golden.items() if key.startswith("weights.")}


@pytest.mark.parametrize("wrap", ["module.", ""])
@pytest.mark.parametrize("options", [argparse.Namespace(**OPTIONS), OPTIONS])
def test_a_checkpoint_becomes_a_head(golden, tmp_path, wrap, options):
    """Saved as the public code saves it, imported by the command, loaded by the configuration that it prints."""
    weights = {wrap + name: value for name, value in reference_names(golden).items()}
    torch.save({"model": weights, "opt": options, "epoch": 7}, tmp_path / "best.ckpt")
    imported = tmp_path / "cg.safetensors"
    result = CliRunner().invoke(app, ["import", "cg-detr", str(tmp_path / "best.ckpt"), "-o", str(imported)])
    assert result.exit_code == 0, result.output
    fields = json.loads(result.output[result.output.index("{") :])
    assert fields["video_size"] == 64  # without the two endpoint columns
    head = build(fields, reference_masks=True)
    network = head.network.eval()
    assert head.config.init_from is None
    inputs = [golden[f"inputs.{name}"] for name in ("src_vid", "src_vid_mask", "src_txt", "src_txt_mask")]
    outputs = network(*inputs)
    torch.testing.assert_close(outputs["logits"][:, -1], golden["outputs.pred_logits"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs["spans_cw"][:, -1], golden["outputs.pred_spans"], rtol=1e-4, atol=1e-5)


def build(fields: dict[str, Any], **options: Any) -> TemporalHead:
    config = TemporalConfig(**fields | {"text_features": "text"} | options)
    return TemporalHead(config, hidden_size=24)


def test_the_options_of_a_run_are_carried_over(golden, tmp_path):
    """What the public code trained with, in its own names, is what the printed configuration goes on with."""
    options = OPTIONS | {
        "span_loss_coef": 7,
        "giou_loss_coef": 2,
        "label_loss_coef": 3,
        "lw_saliency": 4,
        "lw_wattn": 0.5,
        "lw_ms_align": 0.25,
        "lw_distill": 2,
        "set_cost_span": 9,
        "set_cost_giou": 5,
        "set_cost_class": 6,
        "eos_coef": 0.2,
        "saliency_margin": 0.3,
        "dropout": 0.2,
        "nms_thd": 0.7,
    }
    torch.save({"model": reference_names(golden), "opt": argparse.Namespace(**options)}, tmp_path / "best.ckpt")
    imported = tmp_path / "cg.safetensors"
    result = CliRunner().invoke(app, ["import", "cg-detr", str(tmp_path / "best.ckpt"), "-o", str(imported)])
    config = build(json.loads(result.output[result.output.index("{") :])).config
    assert config.matcher_costs() == {"span": 9, "giou_": 5, "label": 6}
    weights = config.loss_weights()
    assert [weights[f"loss_{name}"] for name in ("span", "giou", "label", "saliency", "ms_align")] == [7, 2, 3, 4, 0.25]
    assert weights["loss_distill"] == weights["loss_orthogonal_dummy"] == 2  # one option there
    others = (config.attention_weight, config.background_weight, config.margin, config.dropout, config.nms)
    assert others == (0.5, 0.2, 0.3, 0.2, 0.7)


def test_another_network_is_refused(golden, tmp_path):
    torch.save(reference_names(golden), tmp_path / "bare.pt")
    imported = tmp_path / "cg.safetensors"
    result = CliRunner().invoke(app, ["import", "cg-detr", str(tmp_path / "bare.pt"), "-o", str(imported)])
    fields = json.loads(result.output[result.output.index("{") :])
    with pytest.raises(tpo.TPOError, match=r"of another network: num_heads is 4, there 8"):
        build(fields, num_heads=4)


def test_files_that_are_no_checkpoint(tmp_path):
    with pytest.raises(tpo.TPOError, match="no such file"):
        read_checkpoint(tmp_path / "nothing.ckpt")
    torch.save({"model": {"weight": torch.zeros(2)}}, tmp_path / "other.pt")
    with pytest.raises(tpo.TPOError, match="expected a checkpoint of the public CG-DETR code"):
        read_checkpoint(tmp_path / "other.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(tpo.TPOError, match="holds no state dict"):
        read_checkpoint(tmp_path / "list.pt")
    (tmp_path / "text.ckpt").write_text("hello")
    with pytest.raises(tpo.TPOError, match="cannot be read as a checkpoint without executing code"):
        read_checkpoint(tmp_path / "text.ckpt")
    with pytest.raises(tpo.TPOError, match="init_from: .*no such file; expected what `tpo import cg-detr` writes"):
        build({"features": "files", "video_size": 4, "text_size": 8, "init_from": str(tmp_path / "nothing")})


class Danger:
    def __reduce__(self) -> Any:
        return os.system, ("true",)


def test_nothing_in_a_checkpoint_is_executed(tmp_path):
    torch.save({"model": {}, "opt": Danger()}, tmp_path / "danger.ckpt")
    with pytest.raises(tpo.TPOError, match="cannot be read as a checkpoint without executing code"):
        read_checkpoint(tmp_path / "danger.ckpt")
