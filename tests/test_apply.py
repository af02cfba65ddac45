"""`apply_tpo` and `remove_tpo`: what they refuse, and that they leave nothing behind."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import zoo

import tpo_plugin as tpo
from tpo_plugin import HostError, TPOConfig, TPOError, apply_tpo, remove_tpo


def llama(**changes: Any) -> Any:
    return zoo.host("llama").build(**changes)


def num_hooks(model: torch.nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_returns_the_same_object_with_everything_on_it() -> None:
    model, tokenizer = llama(), zoo.tokenizer()
    assert apply_tpo(model, tokenizer, heads=["region"]) is model
    assert model.tpo.token_ids == {"region": (zoo.NUM_WORDS, zoo.NUM_WORDS + 1)}
    assert tokenizer.convert_ids_to_tokens([40, 41, 42]) == ["<box_begin>", "<boxes>", "<region_box>"]
    assert tokenizer.encode("w9 <box_begin><boxes> w9", add_special_tokens=False) == [9, 40, 41, 9]
    assert tokenizer.decode([9, 40, 41], skip_special_tokens=True).strip() == "w9"
    assert model.tpo.hidden_size == 32
    assert model.tpo.tokenizer is tokenizer
    assert model.tpo.processor is None
    assert model.vocab_size == model.config.vocab_size == zoo.NUM_ROWS


def test_heads_default_to_all_that_are_installed(echo: str) -> None:
    model = apply_tpo(llama(), zoo.tokenizer())
    assert {"region", echo} <= set(model.tpo.heads)


def test_the_tokenizer_is_loaded_from_where_the_model_was(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path)
    zoo.tokenizer().save_pretrained(tmp_path)
    model = type(llama()).from_pretrained(tmp_path)
    apply_tpo(model, heads=["region"])
    assert model.tpo.tokenizer.convert_tokens_to_ids("<boxes>") == zoo.NUM_WORDS + 1


def test_a_model_that_was_loaded_from_nowhere_needs_a_tokenizer() -> None:
    with pytest.raises(TPOError, match="does not say where it was loaded from; give its tokenizer or processor"):
        apply_tpo(llama())


def test_a_processor_brings_its_tokenizer() -> None:
    processor = ModuleType("processor")
    processor.tokenizer = zoo.tokenizer()  # type: ignore[attr-defined]
    model = apply_tpo(llama(), processor, ["region"])
    assert model.tpo.processor is processor
    assert model.tpo.tokenizer is processor.tokenizer


def test_tokens_that_the_tokenizer_has_already_are_taken_over() -> None:
    model, tokenizer = llama(), zoo.tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<box_begin>", "<boxes>"]})
    before = zoo.snapshot(model, tokenizer)
    apply_tpo(model, tokenizer, ["region"])
    assert model.tpo.token_ids["region"] == (40, 41)
    remove_tpo(model)
    assert zoo.snapshot(model, tokenizer) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": "region"}, r"heads='region' is a string; expected a list of names: heads=\['region'\]"),
        ({"heads": []}, "no head to apply"),
        ({"heads": ["region", "region"]}, r"names \['region'\] more than once"),
        ({"heads": ["depth"]}, r"head 'depth' is not installed.*pip install tpo-head-depth"),
        ({"heads": ["regoin"]}, "did you mean 'region'"),
        ({"config": TPOConfig(loss_weights={"asign": 2.0})}, "'asign', which is not applied.*did you mean 'assign'"),
        ({"config": TPOConfig(heads={"regin": {}})}, "'regin', which is not applied.*did you mean 'region'"),
        ({"config": TPOConfig(heads={"region": {"los": "mse"}})}, "'los'.*did you mean 'loss'"),
        (
            {"config": TPOConfig(heads={"region": {"trigger": "w9"}})},
            r"'w9' is an ordinary word of the tokenizer \(id 9\)",
        ),
        ({"config": TPOConfig(heads={"region": {"trigger": "<boxes>"}})}, "claims token '<boxes>', already claimed by"),
        ({"tokenizer": 3}, "tokenizer is a int; expected a tokenizer or a processor"),
    ],
)
def test_wrong_use_is_refused_and_changes_nothing(arguments: dict[str, Any], message: str) -> None:
    model, tokenizer = llama(), zoo.tokenizer()
    before = zoo.snapshot(model, tokenizer)
    with pytest.raises(TPOError, match=message):
        apply_tpo(model, **{"tokenizer": tokenizer, "heads": ["region"], **arguments})
    assert zoo.snapshot(model, tokenizer) == before


def test_applying_twice_is_refused() -> None:
    model = apply_tpo(llama(), zoo.tokenizer(), ["region"])
    with pytest.raises(TPOError, match=r"has TPO already, with heads \['region'\]; call remove_tpo\(model\) first"):
        apply_tpo(model, zoo.tokenizer(), ["region"])


def test_removing_what_is_not_there_is_refused() -> None:
    with pytest.raises(TPOError, match=r"has no TPO; apply_tpo\(model\) puts it on"):
        remove_tpo(llama())


def test_a_model_without_a_language_modelling_head_is_refused() -> None:
    model = llama()
    with pytest.raises(HostError, match="has no output embedding.*AutoModelForCausalLM"):
        apply_tpo(model.model, zoo.tokenizer(), ["region"])


@pytest.mark.parametrize(
    "step",
    [
        "tpo_plugin.apply.add_tokens",
        "tpo_plugin.apply.grow_vocabulary",
        "tpo_plugin.apply._build_head",
        "tpo_plugin.host.base.Host.attach",
    ],
)
@pytest.mark.parametrize("vocab_size", [zoo.NUM_ROWS, zoo.NUM_WORDS], ids=["spare", "growing"])
def test_a_failure_at_any_step_is_undone(step: str, vocab_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = llama(vocab_size=vocab_size), zoo.tokenizer()
    before = zoo.snapshot(model, tokenizer)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(step, fail)
    with pytest.raises(KeyboardInterrupt):
        apply_tpo(model, tokenizer, ["region"])
    assert zoo.snapshot(model, tokenizer) == before


def test_growing_that_fails_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = llama(vocab_size=zoo.NUM_WORDS), zoo.tokenizer()
    before = zoo.snapshot(model, tokenizer)
    resize = type(model).resize_token_embeddings

    def half(self: Any, *args: Any, **kwargs: Any) -> None:
        resize(self, *args, **kwargs)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(type(model), "resize_token_embeddings", half)
    with pytest.raises(
        HostError, match=r"has 40 vocabulary rows, the task tokens need 43, and growing it failed \(out of memory"
    ):
        apply_tpo(model, tokenizer, ["region"])
    monkeypatch.undo()
    assert zoo.snapshot(model, tokenizer) == before


def test_what_training_changed_in_the_host_stays() -> None:
    model = apply_tpo(llama(vocab_size=zoo.NUM_WORDS), zoo.tokenizer(), ["region"])
    with torch.no_grad():
        model.lm_head.weight[5] = 1.0
        model.model.norm.weight[:] = 2.0
    remove_tpo(model)
    assert (model.lm_head.weight[5] == 1.0).all()
    assert (model.model.norm.weight == 2.0).all()


def test_hooks_of_others_stay() -> None:
    model, calls = llama(vocab_size=zoo.NUM_WORDS), []
    model.lm_head.register_forward_hook(lambda *_: calls.append("lm_head"))
    apply_tpo(model, zoo.tokenizer(), ["region"])
    remove_tpo(model)
    assert num_hooks(model) == 1
    calls.clear()
    model(**zoo.example(zoo.host("llama"), model))
    assert calls == ["lm_head"]


def test_a_copy_has_its_own_tpo() -> None:
    kind = zoo.host("llama")
    model = apply_tpo(llama(vocab_size=zoo.NUM_WORDS), zoo.tokenizer(), ["region"])
    batch = zoo.with_tasks(kind, model, zoo.example(kind, model))
    targets = {"region": {"boxes_xyxy": zoo.boxes(4)}}
    first = model(**batch, task_targets=targets)
    twin = copy.deepcopy(model)
    assert twin.tpo.model is twin
    assert torch.equal(twin(**batch, task_targets=targets).loss, first.loss)
    remove_tpo(twin)
    assert num_hooks(twin) == 0
    assert not hasattr(twin, "tpo")
    assert twin.get_output_embeddings().weight.shape[0] == zoo.NUM_WORDS
    assert "<boxes>" in model.tpo.tokenizer.get_vocab()
    assert torch.equal(model(**batch, task_targets=targets).loss, first.loss)
    remove_tpo(model)
    assert num_hooks(model) == 0


def test_the_signature_is_the_hosts_and_ours() -> None:
    model = llama()
    before = list(inspect.signature(model.forward).parameters)
    apply_tpo(model, zoo.tokenizer(), ["region"])
    after = list(inspect.signature(model.forward).parameters)
    assert [name for name in after if not name.startswith("task_")] == before
    assert {"task_inputs", "task_targets"} <= set(after)
    remove_tpo(model)
    assert list(inspect.signature(model.forward).parameters) == before
    assert "forward" not in vars(model)


def test_frozen_flags_and_modes_are_kept() -> None:
    model = llama().train()
    model.model.layers[0].eval().requires_grad_(False)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    modes = {name: m.training for name, m in model.named_modules()}
    apply_tpo(model, zoo.tokenizer(), ["region"])
    assert {name: p.requires_grad for name, p in model.named_parameters() if not name.startswith("tpo.")} == flags
    assert {name: m.training for name, m in model.named_modules() if name.split(".")[0] != "tpo"} == modes
    assert model.tpo.training


def test_a_head_of_the_wrong_kind_is_refused() -> None:
    plugin = ModuleType("wrong")

    class NotAHead(torch.nn.Module):
        def __init__(self, config: Any, hidden_size: int) -> None:
            super().__init__()

    @tpo.hookimpl
    def register_heads(register: Callable[..., None]) -> None:
        register("wrong", head=NotAHead, trigger="<wrong_begin>", task_token="<wrong>")

    plugin.register_heads = register_heads  # type: ignore[attr-defined]
    tpo.register_plugin(plugin, "wrong")
    try:
        with pytest.raises(TPOError, match="is a NotAHead; expected a subclass of tpo_plugin.TaskHead"):
            apply_tpo(llama(), zoo.tokenizer(), ["wrong"])
    finally:
        tpo.unregister_plugin("wrong")
