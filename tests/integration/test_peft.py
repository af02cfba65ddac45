"""LoRA and TPO on one host, in both orders."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
import zoo
from peft import LoraConfig, PeftModel, get_peft_model

from tpo_plugin import TPOError, apply_tpo, load_tpo, remove_tpo

KINDS = [pytest.param(host, id=host.name) for host in zoo.HOSTS]
LINEARS = r"(?!tpo\b).*\.(q_proj|k_proj|v_proj|qkv_proj|c_attn|c_proj)$"
LLAMA = zoo.host("llama")


def lora(**options: Any) -> LoraConfig:
    return LoraConfig(**{"target_modules": LINEARS, "r": 2, "init_lora_weights": True, **options})


def targets() -> dict[str, Any]:
    return {"region": {"boxes_xyxy": zoo.boxes(4)}}


def batch_of(model: Any, kind: zoo.TinyHost = LLAMA) -> dict[str, Any]:
    host = model.get_base_model() if isinstance(model, PeftModel) else model
    return zoo.with_tasks(kind, host, zoo.example(kind, host))


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> zoo.TinyHost:
    if request.param.missing:
        pytest.skip(f"transformers {transformers.__version__} has no {request.param.model_class}")
    return request.param


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
@pytest.mark.parametrize("order", ["lora first", "tpo first"])
def test_gradients_reach_task_tokens_heads_and_lora(kind: zoo.TinyHost, order: str) -> None:
    host = kind.build()
    if order == "lora first":
        model = get_peft_model(host, lora())
        assert apply_tpo(model, zoo.tokenizer(), ["region"]) is model
    else:
        model = get_peft_model(apply_tpo(host, zoo.tokenizer(), ["region"]), lora())
        model.tpo.requires_grad_(True)
    zoo.talkative(model)
    model.train()
    out = model(**batch_of(model, kind), task_targets=targets())
    out.loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert all(p.grad is None for name, p in model.named_parameters() if not p.requires_grad)
    for name in ("task", "trigger", "output"):
        assert next(g for n, g in gradients.items() if n.endswith(f"embeddings.region.{name}")).any()
    assert any(g.any() for n, g in gradients.items() if ".decoder." in n)
    reached = [n for n, g in gradients.items() if "lora_B" in n and g is not None and g.any()]
    assert len(reached) >= 2
    assert set(out.tpo.losses) == {"mllm", "assign", "region"}


@pytest.mark.parametrize("order", ["lora first", "tpo first"])
def test_untrained_lora_and_tpo_change_nothing(order: str) -> None:
    host = LLAMA.build()
    batch = zoo.example(LLAMA, host)
    with torch.no_grad():
        before = host(**batch).logits
    if order == "lora first":
        model = apply_tpo(get_peft_model(host, lora()), zoo.tokenizer(), ["region"])
    else:
        model = get_peft_model(apply_tpo(host, zoo.tokenizer(), ["region"]), lora())
    with torch.no_grad():
        assert torch.equal(model.eval()(**batch).logits, before)
        with model.disable_adapter():
            assert torch.equal(model(**batch).logits, before)


def trained() -> Any:
    """A llama with LoRA and TPO whose weights all differ from their start."""
    model = apply_tpo(get_peft_model(LLAMA.build(), lora()), zoo.tokenizer(), ["region"])
    zoo.talkative(model)
    draw = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1, generator=draw)
    return model.eval()


def test_merge_and_unload_keeps_tpo() -> None:
    model = trained()
    batch = batch_of(model)
    with torch.no_grad():
        before = model(**batch, task_targets=targets())
        merged = model.merge_and_unload()
        after = merged(**batch, task_targets=targets())
    assert not isinstance(merged, PeftModel)
    torch.testing.assert_close(after.logits, before.logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(after.loss, before.loss, atol=1e-5, rtol=1e-4)
    remove_tpo(merged)
    assert not any("tpo" in name for name in merged.state_dict())


def test_disabling_the_adapter_leaves_tpo_at_work() -> None:
    model = trained()
    batch = batch_of(model)
    with torch.no_grad(), model.disable_adapter():
        off = model(**batch, task_targets=targets())
    assert set(off.tpo.losses) == {"mllm", "assign", "region"}
    with torch.no_grad():
        assert not torch.equal(model(**batch).logits, off.logits)


def test_generation_through_the_adapter() -> None:
    model = trained()
    batch = zoo.example(LLAMA, model, 2, padded=True)
    generated = model.tpo.generate(**batch, max_new_tokens=12, do_sample=False, eos_token_id=None)
    assert sum(map(len, generated.predictions)) >= 2
    merged = model.merge_and_unload()
    again = merged.tpo.generate(**batch, max_new_tokens=12, do_sample=False, eos_token_id=None)
    assert torch.equal(again.sequences, generated.sequences)


def test_remove_keeps_the_trained_adapter() -> None:
    model = trained()
    adapter = {name: value.clone() for name, value in model.state_dict().items() if "tpo" not in name}
    assert remove_tpo(model) is model
    after = model.state_dict()
    assert after.keys() == adapter.keys()
    assert all(torch.equal(after[name], value) for name, value in adapter.items())


@pytest.mark.parametrize("part", [{"target_modules": ["embed_tokens"]}, {"target_modules": ["lm_head"]},
                                  {"modules_to_save": ["embed_tokens"]}], ids=str)  # fmt: skip
def test_remove_would_lose_what_was_put_on_a_grown_embedding(part: dict[str, Any]) -> None:
    host, tokenizer = LLAMA.build(vocab_size=zoo.NUM_WORDS, tie_word_embeddings=False), zoo.tokenizer()
    model = get_peft_model(apply_tpo(host, tokenizer, ["region"]), lora(**part)).eval()
    before = model(**batch_of(model)).logits
    with pytest.raises(TPOError, match=re.escape("take LoRA off first (model.merge_and_unload()")):
        remove_tpo(model)
    assert torch.equal(model(**batch_of(model)).logits, before)  # and nothing was taken off
    if "target_modules" in part:
        assert len(remove_tpo(model.unload()).get_input_embeddings().weight) == zoo.NUM_WORDS


@pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning")  # the host was never saved
def test_save_and_load_with_the_adapter(tmp_path: Path) -> None:
    model = trained()
    batch = batch_of(model)
    model.save_pretrained(tmp_path)
    model.tpo.save_pretrained(tmp_path)
    assert not any("tpo" in key for key in peft.load_peft_weights(str(tmp_path), device="cpu"))
    loaded = load_tpo(LLAMA.build(), tmp_path)
    assert isinstance(loaded, PeftModel)
    with torch.no_grad():
        ours, theirs = loaded.eval()(**batch, task_targets=targets()), model(**batch, task_targets=targets())
    assert torch.equal(ours.logits, theirs.logits)
    assert torch.equal(ours.loss, theirs.loss)


def test_lora_inside_tpo_is_refused_with_the_remedy() -> None:
    host = apply_tpo(LLAMA.build(), zoo.tokenizer(), ["region"])
    model = get_peft_model(host, lora(target_modules="all-linear"))
    inside = [name for name, _ in model.named_parameters() if "tpo" in name and "lora" in name]
    if not inside:
        pytest.skip(f"peft {peft.__version__} puts no adapter there")
    with pytest.raises(
        TPOError, match=re.escape("call get_peft_model first and apply_tpo second, or exclude_modules=")
    ):
        model.train()(**batch_of(model), task_targets=targets())


def test_modules_to_save_is_refused() -> None:
    host = apply_tpo(LLAMA.build(), zoo.tokenizer(), ["region"])
    batch = batch_of(host)
    with pytest.raises((TPOError, TypeError, ValueError), match="tpo"):
        get_peft_model(host, lora(modules_to_save=["tpo"]))(**batch, task_targets=targets())


@pytest.mark.parametrize("module", ["embed_tokens", "lm_head"])
@pytest.mark.parametrize("order", ["lora first", "tpo first"])
def test_lora_on_the_embedding_or_the_head(module: str, order: str) -> None:
    """The rows are ours whichever came first: LoRA's own part does not reach the task token's row."""
    found = []
    for first in ("lora first", order):
        if first == "lora first":
            model = apply_tpo(get_peft_model(LLAMA.build(), lora(target_modules=[module])), zoo.tokenizer(), ["region"])
        else:
            model = get_peft_model(apply_tpo(LLAMA.build(), zoo.tokenizer(), ["region"]), lora(target_modules=[module]))
        draw = torch.Generator().manual_seed(6)
        for name, parameter in sorted(model.named_parameters()):
            if "lora" in name or "tpo" in name:
                parameter.data.normal_(std=0.1, generator=draw)
        with torch.no_grad():
            found.append(model.eval()(**batch_of(model), task_targets=targets()))
    torch.testing.assert_close(found[1].logits, found[0].logits)
    torch.testing.assert_close(found[1].loss, found[0].loss)
