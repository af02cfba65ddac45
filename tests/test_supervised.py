"""The output embedding at labelled positions alone: the same losses and gradients, of fewer rows."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
import transformers
import zoo
from packaging.version import Version
from peft import LoraConfig, get_peft_model
from torch import Tensor

from tpo_plugin import HostError, TPOConfig, apply_tpo
from tpo_plugin.positions import IGNORE_INDEX, Counts
from tpo_plugin.supervised import SupervisedRows

NAMES = [host.name for host in zoo.HOSTS if not host.missing and not host.name.endswith("_video")]
OLD = Version(transformers.__version__) < Version("5")
BOXES = {"region": {"boxes_xyxy": zoo.boxes(4)}}


def applied(name: str = "llama", wanted: Any = True, **changes: Any) -> Any:
    torch.manual_seed(1)
    model = apply_tpo(zoo.host(name).build(**changes), zoo.tokenizer(), ["region"], TPOConfig(supervised_logits=wanted))
    zoo.talkative(model)
    return model.train()


def batch_of(model: Any, name: str = "llama") -> dict[str, Any]:
    kind = zoo.host(name)
    batch = zoo.with_tasks(kind, model, zoo.example(kind, model, media=kind.media is not None, padded=True))
    batch["labels"][1, -3:] = IGNORE_INDEX  # another number in each row
    return batch


def trained(model: Any, batch: dict[str, Any], **options: Any) -> tuple[Any, dict[str, Tensor], int]:
    """Output and gradients of a training step, and how many positions reached the output embedding in it."""
    torch.manual_seed(0)
    model.zero_grad()
    model(**batch, task_targets=BOXES, **options)  # what is tried on a first batch is tried here
    rows: list[int] = []
    handle = model.tpo.host.head.register_forward_hook(lambda m, args, output: rows.append(output[..., 0].numel()))
    torch.manual_seed(0)
    out = model(**batch, task_targets=BOXES, **options)
    out.loss.backward()
    handle.remove()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return out, gradients, sum(rows)


def assert_same(narrow: tuple[Any, dict[str, Tensor], int], whole: tuple[Any, dict[str, Tensor], int]) -> None:
    (out, found, _), (expected_out, expected, _) = narrow, whole
    for name, loss in expected_out.tpo.losses.items():
        torch.testing.assert_close(out.tpo.losses[name], loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(out.loss, expected_out.loss, rtol=1e-5, atol=1e-6)
    assert out.tpo.statistics["assign_correct"] == expected_out.tpo.statistics["assign_correct"]
    assert found.keys() == expected.keys()
    whole_norm = torch.stack([g.norm() for g in expected.values()]).norm()
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6 * whole_norm, name


@pytest.mark.parametrize("name", NAMES)
def test_losses_and_gradients_are_those_of_all_logits(name: str) -> None:
    model, plain = applied(name, "auto"), applied(name, False)
    batch = batch_of(model, name)
    narrow, whole = trained(model, batch), trained(plain, batch)
    assert_same(narrow, whole)
    if narrow[0].logits is not None and OLD:
        pytest.skip("this host's loss in this transformers crops logits by the attention mask: all are computed")
    num_labels = int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())
    assert narrow[2] == num_labels + 1
    assert whole[2] >= batch["labels"].numel()
    assert narrow[0].logits is None
    assert whole[0].logits is not None


@pytest.mark.parametrize("kind", ["counts", "checkpointing", "lora", "bfloat16", "router"])
def test_what_else_a_training_has(kind: str) -> None:
    name, changes = ("mixtral", {"output_router_logits": True}) if kind == "router" else ("llama", {})
    options: dict[str, Any] = {}
    found = []
    for wanted in (True, False):
        model = applied(name, wanted, **changes)
        batch = batch_of(model, name)
        if kind == "counts":
            options["task_counts"] = Counts(40, 9, {"region": 9}, measure=True)
        if kind == "checkpointing":
            model.gradient_checkpointing_enable()
        if kind == "lora":
            torch.manual_seed(0)
            model = get_peft_model(model, LoraConfig(target_modules=["q_proj", "lm_head"], init_lora_weights=False))
            model.tpo.requires_grad_(True)
            model.train()
        if kind == "bfloat16":
            model.to(torch.bfloat16)
        found.append(trained(model, batch, **options))
    if kind == "bfloat16":
        torch.testing.assert_close(found[0][0].loss, found[1][0].loss, rtol=5e-3, atol=5e-3)
        return
    assert_same(*found)
    if kind == "counts":
        names = ("false_triggers", "ordinary")
        assert [found[0][0].tpo.statistics[n] for n in names] == [found[1][0].tpo.statistics[n] for n in names]
    if kind == "router":
        assert found[1][0].aux_loss is not None


@pytest.mark.parametrize("kind", ["T5", "Bart"])
def test_encoder_decoders(kind: str) -> None:
    """Their decoder's input is made of all labels, not of those that are left."""
    sizes = {"vocab_size": zoo.NUM_ROWS, "d_model": 32, "pad_token_id": 0, "eos_token_id": 2, "dropout_rate": 0.0}
    sizes |= {"T5": {"d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}, "Bart": {"dropout": 0.0}}[kind]
    if kind == "Bart":
        sizes |= {f"{side}_layers": 1 for side in ("encoder", "decoder")} | {"encoder_ffn_dim": 32}
        sizes |= {f"{side}_attention_heads": 2 for side in ("encoder", "decoder")} | {"decoder_ffn_dim": 32}
    found = []
    for wanted in (True, False):
        torch.manual_seed(0)
        config = getattr(transformers, f"{kind}Config")(**sizes, decoder_start_token_id=0)
        host = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
        model = apply_tpo(host, zoo.tokenizer(), ["region"], TPOConfig(supervised_logits=wanted)).train()
        trigger, _ = model.tpo.token_ids["region"]
        labels = torch.tensor([[9, trigger, -100, 8, 2], [trigger, -100, trigger, -100, -100]])
        batch = {"input_ids": torch.tensor([[8, 9, 10], [11, 12, 13]]), "labels": labels}
        boxes = {"region": {"boxes_xyxy": zoo.boxes(3)}}
        out = model(**batch, task_targets=boxes)
        out.loss.backward()
        found.append((out, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}, 0))
    assert found[0][0].logits is None
    assert_same(*found)


ONLY = {"region": (0, 0, 1), "assign": (0, 1, 0), "mllm": (1, 0, 0), "mllm and region": (1, 0, 1)}


def weighted(name: str, wanted: Any, weights: tuple[int, int, int]) -> Any:
    model = applied(name, wanted)
    model.tpo.config.loss_weights = dict(zip(("mllm", "assign", "region"), weights, strict=True))
    return model


@pytest.mark.parametrize("kind", ONLY)
@pytest.mark.parametrize("wanted", ["auto", False])
@pytest.mark.parametrize("name", ["llama", "llava_onevision", "gemma2"])
def test_losses_of_weight_0_cost_nothing(name: str, wanted: Any, kind: str) -> None:
    """The gradients are those of the wanted losses alone, of a forward that computes all of them."""
    weights = ONLY[kind]
    model, plain = weighted(name, wanted, weights), applied(name, False)
    batch = batch_of(model, name)
    torch.manual_seed(0)
    whole = plain(**batch, task_targets=BOXES)
    losses = whole.tpo.losses
    sum(w * losses[n] for n, w in zip(("mllm", "assign", "region"), weights, strict=True)).backward()
    expected = {n: p.grad.clone() for n, p in plain.named_parameters() if p.grad is not None}
    norm = torch.stack([g.norm() for g in expected.values()]).norm()
    out, found, num_rows = trained(model, batch)
    assert ("mllm" in out.tpo.losses) == bool(weights[0])
    for loss, weight in zip(("mllm", "assign", "region"), weights, strict=True):
        if weight:
            torch.testing.assert_close(out.tpo.losses[loss], losses[loss], rtol=1e-5, atol=1e-6)
    for parameter, gradient in expected.items():
        own = found.get(parameter, torch.zeros_like(gradient))
        assert (own - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6 * norm, parameter
        assert parameter in found, parameter  # a gradient of zeros, for DDP and weight decay
    if wanted == "auto" and out.logits is None:
        labels = batch["labels"][:, 1:]
        trigger, _ = model.tpo.token_ids["region"]
        ordinary, triggers = ((labels != IGNORE_INDEX) & (labels != trigger)).sum(), (labels == trigger).sum()
        assert num_rows == int(weights[0] * ordinary + weights[1] * triggers) + 1


@pytest.mark.parametrize("name", ["llama", "llava_onevision", "gemma2"])
def test_where_no_loss_reads_a_logit_the_first_forward_has_one_row_of_them(name: str) -> None:
    model = weighted(name, "auto", (0, 0, 1))
    rows: list[int] = []
    model.tpo.host.head.register_forward_hook(lambda m, args, output: rows.append(output[..., 0].numel()))
    out = model(**batch_of(model, name), task_targets=BOXES)
    assert rows == [1]
    assert out.loss > 0


def test_an_encoder_decoder_without_its_own_loss() -> None:
    """Its decoder's input is made of the labels that it does not score."""
    sizes = {"vocab_size": zoo.NUM_ROWS, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    config = transformers.T5Config(**sizes, dropout_rate=0.0, decoder_start_token_id=0)
    found = []
    for weights in ({"mllm": 0, "assign": 1, "region": 1}, {}):
        torch.manual_seed(0)
        host = transformers.T5ForConditionalGeneration(config)
        model = apply_tpo(host, zoo.tokenizer(), ["region"], TPOConfig(supervised_logits="auto")).train()
        model.tpo.config.loss_weights = weights
        trigger, _ = model.tpo.token_ids["region"]
        labels = torch.tensor([[9, trigger, -100, 8, 2], [trigger, -100, trigger, -100, -100]])
        batch = {"input_ids": torch.tensor([[8, 9, 10], [11, 12, 13]]), "labels": labels}
        out = model(**batch, task_targets={"region": {"boxes_xyxy": zoo.boxes(3)}})
        (out.tpo.losses["assign"] + out.tpo.losses["region"]).backward()
        found.append((out, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    (out, gradients), (_, expected) = found
    assert out.logits is None
    assert "mllm" not in out.tpo.losses
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-6)


def test_an_evaluation_computes_all_losses() -> None:
    model = weighted("llama", "auto", (0, 0, 1))
    batch = batch_of(model)
    out = model.eval()(**batch, task_targets=BOXES)
    assert out.tpo.losses.keys() == {"mllm", "assign", "region"}
    assert out.tpo.losses["mllm"] > 0
    assert out.logits is not None


def test_when_it_is_used() -> None:
    """By default under a trainer that counts, never in evaluation, and in a forward of one's own where asked for."""
    for wanted, counts, expected in [
        (None, False, False),
        (None, True, True),
        ("auto", False, True),
        (True, False, True),
        (False, True, False),
    ]:
        model = applied(wanted=wanted)
        batch = batch_of(model)
        given = {"task_counts": Counts(40, 9, {"region": 9})} if counts else {}
        assert (model(**batch, task_targets=BOXES, **given).logits is None) == expected, (wanted, counts)
        assert model.eval()(**batch, task_targets=BOXES, **given).logits is not None
        with torch.no_grad():
            assert model.train()(**batch, task_targets=BOXES, **given).logits is not None


def test_a_batch_without_a_label() -> None:
    model = applied()
    batch = batch_of(model)
    trained(model, batch)
    batch["labels"][:] = IGNORE_INDEX
    out = model(**batch, task_targets=BOXES)
    out.loss.nan_to_num().backward()
    plain = applied(wanted=False)(**batch, task_targets=BOXES)
    torch.testing.assert_close(out.loss, plain.loss, equal_nan=True)
    torch.testing.assert_close(out.tpo.losses["region"], plain.tpo.losses["region"])


@pytest.mark.skipif(not hasattr(transformers.PreTrainedModel, "loss_function"), reason="a loss that cannot be replaced")
def test_a_loss_that_cannot_be_split(caplog: pytest.LogCaptureFixture) -> None:
    """It is found on the first batch, with both numbers: said once, and refused where it must be so."""
    model = applied(wanted="auto")
    own = model.loss_function
    model.loss_function = lambda logits, *args, **kwargs: own(logits, *args, **kwargs) + (logits**2).mean()
    batch = batch_of(model)
    with caplog.at_level(logging.WARNING):
        outs = [model(**batch, task_targets=BOXES) for _ in range(2)]
    assert all(out.logits is not None for out in outs)
    (message,) = [r.message for r in caplog.records if "supervised_logits" in r.message]
    assert "the host's loss at labelled positions alone is" in message
    model.tpo.config.supervised_logits = True
    with pytest.raises(HostError, match="supervised_logits is true, and the host's loss at labelled positions"):
        model(**batch, task_targets=BOXES)


def test_one_forgotten_label_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial's tolerance is finer than a label."""
    of = SupervisedRows.of
    last = torch.tensor([18])
    monkeypatch.setattr(SupervisedRows, "of", lambda labels, shift: of(labels.index_fill(1, last, IGNORE_INDEX), shift))
    model = applied()
    with pytest.raises(HostError, match="the host's loss at labelled positions alone"):
        model(**batch_of(model), task_targets=BOXES)


def test_the_trial_leaves_random_numbers_as_they_were() -> None:
    model = applied(attention_dropout=0.5)
    batch = batch_of(model)
    torch.manual_seed(0)
    first = model(**batch, task_targets=BOXES).loss
    torch.manual_seed(0)
    assert torch.equal(first, model(**batch, task_targets=BOXES).loss)


def test_rows_by_hand() -> None:
    labels = torch.tensor([[-100, 5, -100, 7], [9, -100, 8, -100]])
    states = torch.arange(16.0).view(2, 4, 2)
    rows = SupervisedRows.of(labels, 1)
    assert rows.labels.tolist() == [[-100, 5, 7, 8]]  # the 9 in column 0 has no position before it
    assert rows.narrowed(states).tolist() == [[[0, 1], [4, 5], [10, 11], [0, 0]]]
    assert rows.triggers(torch.tensor([8, 5]), 2).tolist() == [0, 2]
    unshifted = SupervisedRows.of(labels, 0)
    assert unshifted.labels.tolist() == [[5, 7, 9, 8]]
    assert unshifted.narrowed(states).tolist() == [[[2, 3], [6, 7], [8, 9], [12, 13]]]
    with pytest.raises(HostError, match=r"got \[2, 3, 2\] for labels of \[2, 4\]"):
        rows.narrowed(states[:, 1:])
