"""The loss that holds conversation where the host without LoRA has it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import zoo
from peft import LoraConfig, get_peft_model

from tpo_plugin import HostError, TPOConfig, TPOError, apply_tpo
from tpo_plugin.positions import IGNORE_INDEX, Counts, count_targets
from tpo_plugin.retain import without_adapters


def applied(name: str = "llama", *, narrow: bool = False, weight: float = 1.0, lora: bool = True) -> Any:
    torch.manual_seed(0)
    config = TPOConfig(loss_weights={"retain": weight}, supervised_logits=narrow)
    model = apply_tpo(zoo.host(name).build(), zoo.tokenizer(), ["region"], config)
    zoo.talkative(model)
    if lora:
        model = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False))
        model.tpo.requires_grad_(True)
    return model.train()


def batch_of(model: Any, name: str = "llama") -> tuple[dict[str, Any], dict[str, Any]]:
    """Two rows with tasks, and a third that is the first without its tokens of heads: conversation."""
    kind = zoo.host(name)
    batch = zoo.with_tasks(kind, model, zoo.example(kind, model))
    plain = {key: value[:1].clone() for key, value in batch.items()}
    ours = torch.tensor([i for tokens in model.tpo.tokens.values() for i in tokens.by_kind().values()])
    is_ours = torch.isin(plain["input_ids"], ours)
    plain["input_ids"][is_ours] = 5
    plain["labels"][is_ours] = IGNORE_INDEX
    whole = {key: torch.cat((value, plain[key])) for key, value in batch.items()}
    return whole, {"region": {"boxes_xyxy": zoo.boxes(4)}}


def slow(model: Any, batch: dict[str, Any]) -> float:
    """The mean divergence over the labels of the third row, one position at a time."""
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    kept = [i for i in range(zoo.NUM_ROWS) if i != model.tpo.token_ids["region"][0]]
    model.eval()
    with torch.no_grad():
        ours = model(**inputs).logits[2].double()
        with model.disable_adapter():
            hosts = model(**inputs).logits[2].double()
    model.train()
    terms = []
    for column, label in enumerate(batch["labels"][2].tolist()):
        if column and label != IGNORE_INDEX:
            p, q = (logits[column - 1, kept].softmax(-1) for logits in (hosts, ours))
            terms.append(float((p * (p / q).log()).sum()))
    assert len(terms) > 2
    return sum(terms) / len(terms)


@pytest.mark.parametrize("narrow", [True, False], ids=["labelled positions", "all logits"])
@pytest.mark.parametrize("name", ["llama", "phi"])
def test_it_is_the_divergence_from_the_host_without_lora(name: str, narrow: bool) -> None:
    model = applied(name, narrow=narrow, weight=2.0)
    batch, targets = batch_of(model, name)
    out = model(**batch, task_targets=targets)
    assert (out.logits is None) == narrow
    found = out.tpo.losses["retain"].item()
    assert found == pytest.approx(slow(model, batch), rel=1e-4)
    assert found > 1e-4
    others = sum(value.item() for kind, value in out.tpo.losses.items() if kind != "retain")
    assert out.loss.item() == pytest.approx(others + 2 * found, rel=1e-5)


def test_a_step_on_it_alone_brings_the_answers_back() -> None:
    model = applied()
    batch, targets = batch_of(model)
    learns = [p for name, p in model.named_parameters() if "lora_" in name]
    optimizer = torch.optim.Adam(learns, lr=3e-3)
    losses = []
    for _ in range(30):
        loss = model(**batch, task_targets=targets).tpo.losses["retain"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_nothing_else_is_moved_by_looking_at_the_host() -> None:
    """The other losses and gradients are those without it, and so is what trains."""
    found = []
    for weight in (1.0, 0.0):
        model = applied(weight=weight)
        frozen = next(p for name, p in model.named_parameters() if "lora_A" in name)
        frozen.requires_grad_(False)
        flags = {name: p.requires_grad for name, p in model.named_parameters()}
        batch, targets = batch_of(model)
        out = model(**batch, task_targets=targets)
        assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
        assert ("retain" in out.tpo.losses) == (weight > 0)
        gradients = torch.autograd.grad(out.tpo.losses["region"], list(model.tpo.heads.parameters()), allow_unused=True)
        found.append(({k: v for k, v in out.tpo.losses.items() if k != "retain"}, gradients))
    (ours, ours_gradients), (plain, plain_gradients) = found
    assert all(torch.equal(ours[kind], plain[kind]) for kind in plain)
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(ours_gradients, plain_gradients, strict=True))


def test_counts_make_sums_over_the_whole_batch() -> None:
    model = applied()
    batch, targets = batch_of(model)
    whole = model(**batch, task_targets=targets).tpo.losses["retain"].item()
    counted = count_targets(batch["input_ids"], batch["labels"], model.tpo.tokens)
    assert counted.retain == int((batch["labels"][2, 1:] != IGNORE_INDEX).sum())
    counts = Counts(counted.mllm, 4, {"region": 4}, retain=2 * counted.retain)
    half = model(**batch, task_targets=targets, task_counts=counts).tpo.losses["retain"].item()
    assert half == pytest.approx(whole / 2, rel=1e-5)


def test_a_batch_without_conversation_has_none_of_it() -> None:
    model = applied()
    batch, targets = batch_of(model)
    loss = model(**{key: value[:2] for key, value in batch.items()}, task_targets=targets).tpo.losses["retain"]
    assert loss.item() == 0
    loss.backward()  # connected: every rank takes part


def test_in_evaluation_it_is_not_computed() -> None:
    model = applied().eval()
    batch, targets = batch_of(model)
    assert "retain" not in model(**batch, task_targets=targets).tpo.losses


def test_what_it_cannot_be_had_of() -> None:
    model = applied(lora=False)
    batch, targets = batch_of(model)
    with pytest.raises(TPOError, match="the model has no LoRA; leave 'retain' out"):
        model(**batch, task_targets=targets)
    with pytest.raises(TPOError, match="has no LoRA"), without_adapters(model):
        pass
    model = applied()
    embeds = model.get_input_embeddings()(batch["input_ids"]).detach()
    with pytest.raises(HostError, match="'retain' finds conversation by its input_ids"):
        model(inputs_embeds=embeds, labels=batch["labels"])


def test_the_host_is_looked_at_without_its_dropout() -> None:
    """An adapter that does nothing loses nothing, whatever the host drops in training."""
    torch.manual_seed(0)
    config = TPOConfig(loss_weights={"retain": 1.0})
    model = apply_tpo(zoo.host("llama").build(attention_dropout=0.0), zoo.tokenizer(), ["region"], config)
    for layer in model.model.layers:
        layer.mlp.register_forward_hook(lambda module, args, output: torch.dropout(output, 0.5, module.training))
    model = get_peft_model(model, LoraConfig(target_modules=["q_proj"])).eval()
    model.tpo.requires_grad_(True).train()
    batch, targets = batch_of(model)
    assert model(**batch, task_targets=targets).tpo.losses["retain"].item() == pytest.approx(0, abs=1e-6)
    model.train()
    seen: list[bool] = []
    model.get_base_model().model.norm.register_forward_hook(lambda module, *args: seen.append(module.training))
    model(**batch, task_targets=targets)
    assert seen == [False, True], "the host alone, and then the model that trains"


def test_adapters_that_were_off_stay_off() -> None:
    model = applied()
    batch, targets = batch_of(model)
    with model.disable_adapter():
        found = model(**batch, task_targets=targets)
        assert found.tpo.losses["retain"].item() == pytest.approx(0, abs=1e-6)
        assert torch.equal(model(**batch, task_targets=targets).logits, found.logits)
