"""Equality with the public CG-DETR code, on every file of the known layout in `golden/cg_detr`.

The folder `golden` is that of the environment variable TPO_GOLDEN, by default the one in shared/. Every dropout is 0 in
these files. Rows that no loss reads are not computed here and so not compared: `moment2txt_similarity` outside of
moments, `nmoment2txt_similarity` (the public code computes both for all clips).
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from tpo_head_temporal.config import TemporalConfig
from tpo_head_temporal.inputs import append_word
from tpo_head_temporal.losses import Targets, align_terms, criterion, saliency_terms
from tpo_head_temporal.matcher import match
from tpo_head_temporal.network import CGDETR
from tpo_head_temporal.reference import UNUSED, config_of, from_reference, our_name
from tpo_head_temporal.saliency import overlap

SHARED = Path(__file__).resolve().parents[4] / "shared"
FOLDER = Path(os.environ.get("TPO_GOLDEN", SHARED / "golden")) / "cg_detr"
FILES = sorted(FOLDER.glob("*.safetensors"))
CLOSE = {"rtol": 1e-4, "atol": 1e-5}

if not FILES:
    pytest.skip(f"needs shared/ (golden data): no *.safetensors in {FOLDER}", allow_module_level=True)


@dataclass
class Case:
    """One file: its tensors and its metadata."""

    tensors: dict[str, Tensor]
    metadata: dict[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        return {key[len(prefix) :]: value for key, value in self.tensors.items() if key.startswith(prefix)}


@dataclass
class Run:
    config: TemporalConfig
    """What our network and losses gave on a case."""

    network: CGDETR
    word: Tensor | None
    outputs: dict[str, Tensor]
    negatives: dict[str, Tensor]
    aligned: dict[str, Tensor]
    targets: Targets
    losses: dict[str, Tensor]
    total: Tensor


@cache
def load(path: Path) -> Case:
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return Case(tensors, {key: _parsed(value) for key, value in file.metadata().items()})


def _parsed(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


def targets_of(case: Case) -> Targets:
    given = case.part("targets.")
    counts = given["span_counts"].tolist()
    spans = torch.nn.utils.rnn.pad_sequence(given["span_labels"].split(counts), batch_first=True, padding_value=1.0)
    there = torch.nn.utils.rnn.pad_sequence([torch.ones(n) for n in counts], batch_first=True)
    saliency = given["saliency_all_labels"]
    pairs = torch.zeros(*saliency.shape, saliency.shape[1])
    rows = torch.arange(len(saliency))[:, None].expand(-1, given["saliency_pos_labels"].shape[1])
    index = (rows, given["saliency_pos_labels"], given["saliency_neg_labels"])
    pairs.index_put_(index, torch.ones(rows.shape), accumulate=True)
    group = case.tensors["inputs.video_group"]
    return Targets(spans, there, saliency, pairs, group != group.roll(-1))


def run(case: Case, *, reference_masks: bool, dtype: torch.dtype = torch.float32) -> Run:
    config = config_of(case.part("weights."), case.metadata["config"], dropout=False)
    config = TemporalConfig(**{**vars(config), "reference_masks": reference_masks})
    text, text_mask = case.tensors["inputs.src_txt"], case.tensors["inputs.src_txt_mask"]
    video, video_mask = case.tensors["inputs.src_vid"], case.tensors["inputs.src_vid_mask"]
    network = CGDETR(config, video.shape[-1], text.shape[-1]).train()
    network.load_state_dict(from_reference(case.part("weights.")))
    word = case.tensors.get("inputs.prompt_token")
    if word is not None:
        word = word.clone().requires_grad_()
        text, text_mask = append_word(text, text_mask, word[:, 0])
    outputs = network(video, video_mask, text, text_mask)
    targets = targets_of(case)
    negatives = network.negatives(outputs, targets.real)
    aligned = network.alignment(outputs, (targets.saliency > 0).float())
    losses = criterion(outputs, negatives, aligned, targets, **options(config))
    weights = config.loss_weights()
    total = torch.stack([weights[name] * value for name, value in losses.items() if name in weights]).sum()
    return Run(config, network, word, outputs, negatives, aligned, targets, losses, total)


def test_weights_are_those_of_the_options(golden):
    case, _, made = golden
    theirs = case.metadata["weight_dict"]
    assert made.config.loss_weights() == {name: theirs[name] for name in made.config.loss_weights()}


def options(config: TemporalConfig) -> dict[str, Any]:
    return {
        "margin": config.margin,
        "background": config.background_weight,
        "attention_weight": config.attention_weight,
        "costs": config.matcher_costs(),
        "reference": True,
    }


def modes(path: Path) -> list[bool]:
    """With the reference's masks, and where the file has them with the correct ones."""
    with safe_open(path, "pt") as file:
        fixed = any(key.startswith("fixedmask.") for key in file.keys())  # noqa: SIM118
    return [True, False] if fixed else [True]


CASES = [pytest.param((f, m), id=f"{f.stem}-{'reference' if m else 'correct'}") for f in FILES for m in modes(f)]


@pytest.fixture(scope="module", params=CASES)
def golden(request: pytest.FixtureRequest) -> tuple[Case, str, Run]:
    """A case, the prefix of what it is compared with, and our run of it."""
    path, reference_masks = request.param
    case = load(path)
    made = run(case, reference_masks=reference_masks)
    made.total.backward()
    return case, "" if reference_masks else "fixedmask.", made


def test_outputs(golden):
    case, prefix, made = golden
    expected, o, real = case.part(f"{prefix}outputs."), made.outputs, made.targets.real
    moments = made.targets.saliency > 0
    ours = {
        "pred_logits": o["logits"][:, -1],
        "pred_spans": o["spans_cw"][:, -1],
        "saliency_scores": o["saliency"],
        "saliency_scores_neg": made.negatives["saliency"][real],
        "t2vattnvalues": o["word_attention"],
        "t2vattnvalues_neg": made.negatives["word_attention"][real],
        "cate_attn_weights": o["attention"],
        "dummy_tokens": o["dummies"],
        "global_rep_tokens": made.network.trunk.token.prompts.weight,
        "memory_moment": made.aligned["moment"],
        "nmmemory_moment": made.aligned["rest"],
        "sentence_txt": made.aligned["sentence"],
        "sentence_dummy": made.aligned["dummy_sentence"],
        "moment2txt_similarity": made.aligned["similarity"][moments],
        "nmoment2txt_similarity": made.aligned["similarity"][~moments],
        "src_vid": made.aligned["clips"],
        "video_mask": o["frame_mask"],
        "moment_mask": moments,
        "real_neg_mask": real,
    }
    ours |= {f"aux_outputs.{i}.pred_logits": o["logits"][:, i] for i in range(o["logits"].shape[1] - 1)}
    ours |= {f"aux_outputs.{i}.pred_spans": o["spans_cw"][:, i] for i in range(o["logits"].shape[1] - 1)}
    there = torch.cat((torch.ones_like(o["dummies"][..., 0]), o["word_mask"]), 1)
    ours |= {"txt_mask": there, "src_txt_mask_neg": there.roll(-1, 0)[real]}
    if "moment2txt_similarity" in expected:
        expected["moment2txt_similarity"] = expected["moment2txt_similarity"][moments]
        expected["nmoment2txt_similarity"] = expected["nmoment2txt_similarity"][~moments]
    assert {"pred_logits", "pred_spans", "saliency_scores"} <= set(expected)
    assert set(expected) <= set(ours)
    for name, value in expected.items():
        torch.testing.assert_close(ours[name].to(value.dtype), value, **CLOSE, msg=lambda m, name=name: f"{name}: {m}")


def test_losses(golden):
    case, prefix, made = golden
    expected = case.part(f"{prefix}losses.")
    expected.pop("tvg_total_x0.05", None)
    torch.testing.assert_close(made.total, expected.pop("total"), **CLOSE)
    assert set(expected) == set(made.losses)
    for name, value in expected.items():
        torch.testing.assert_close(made.losses[name], value, **CLOSE, msg=lambda m, name=name: f"{name}: {m}")


def test_gradients(golden):
    case, prefix, made = golden
    expected = case.part(f"{prefix}grads.")
    word = expected.pop("prompt_token", None)
    if word is not None:
        torch.testing.assert_close(made.word.grad, word, **CLOSE)
    parameters = dict(made.network.named_parameters())
    assert expected
    for name, value in from_reference(expected).items():
        torch.testing.assert_close(parameters[name].grad, value, **CLOSE, msg=lambda m, name=name: f"{name}: {m}")


def test_gradient_norms(golden):
    """Of every parameter: with the plain cases only, as the files have no other norms."""
    case, prefix, made = golden
    if prefix or "grad_norms" not in case.metadata:
        pytest.skip("the file has no norms for this case")
    gradients = {name: p.grad for name, p in made.network.named_parameters()}
    packed = {name: value for name, value in case.metadata["grad_norms"].items() if not name.startswith(UNUSED)}
    for name, norm in packed.items():
        ours = our_name(name)
        parts = [ours.replace("in_proj_", f"{part}_proj.") for part in "qkv"] if ".in_proj_" in ours else [ours]
        squares = torch.stack([gradients[part].square().sum() for part in parts]).sum()
        assert squares.sqrt().item() == pytest.approx(norm or 0.0, rel=1e-4, abs=1e-5), name


def test_parts_of_the_losses(golden):
    case, prefix, made = golden
    expected = case.part("parts.")
    if prefix or not expected:
        pytest.skip("the file has no parts for this case")
    terms = saliency_terms(made.outputs, made.negatives, made.targets, margin=made.config.margin, reference=True)
    moments = (made.targets.saliency > 0).float()
    ours = {f"saliency.{name}": value for name, value in terms.items()}
    if not made.targets.real.any():  # the files call it real where no row has a real negative
        for kind in ("score", "attn"):
            ours[f"saliency.{kind}.rank_real"] = terms[f"{kind}.rank_false"]
    aligned = align_terms(made.aligned, moments, made.outputs["frame_mask"], reference=True)
    ours |= {f"ms_align.{name}": value for name, value in aligned.items()}
    expected.pop("saliency.attn.rank_false_discarded", None)  # no part of the loss
    ours["orthogonal.dummy"] = overlap(made.outputs["dummies"]).mean()
    ours["orthogonal.global"] = made.outputs["prompt_overlap"].mean()
    assert set(expected) <= set(ours)
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value, **CLOSE, msg=lambda m, name=name: f"{name}: {m}")


def test_the_attention_counts_by_its_own_weight(golden):
    _, _, made = golden
    given = options(made.config) | {"attention_weight": 0.25}
    losses = criterion(made.outputs, made.negatives, made.aligned, made.targets, **given)
    terms = saliency_terms(made.outputs, made.negatives, made.targets, margin=given["margin"], reference=True)
    score, attention = (sum(v for name, v in terms.items() if name.startswith(kind)) for kind in ("score.", "attn."))
    torch.testing.assert_close(losses["loss_saliency"], score + attention / 4)


def test_matching(golden):
    case, prefix, made = golden
    expected = case.part("matcher.")
    if prefix or not expected:
        pytest.skip("the file has no matching for this case")
    targets, counts = made.targets, case.tensors["targets.span_counts"].tolist()
    num_layers = made.outputs["logits"].shape[1]
    for i in range(num_layers):
        name = "last" if i == num_layers - 1 else f"aux{i}"
        query = match(
            made.outputs["logits"][:, i],
            made.outputs["spans_cw"][:, i],
            targets.spans_cw,
            targets.span_mask,
            **made.config.matcher_costs(),
        )
        theirs = zip(expected[f"{name}.pred"].split(counts), expected[f"{name}.tgt"].split(counts), strict=True)
        for row, (predicted, true) in zip(query, theirs, strict=True):
            assert row[true].tolist() == predicted.tolist()
