"""Every kind of adapter, with TPO before and after it: training, switching, merging, and saving each thing once."""

from __future__ import annotations

import inspect
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import zoo
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from tpo_plugin import apply_tpo, load_tpo, remove_tpo

LLAMA = zoo.host("llama")
LINEARS = r"(?!tpo\b).*\.(q_proj|v_proj)$"
KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "head saved": {"modules_to_save": ["lm_head"]},
    "both matrices saved": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "token rows": {"trainable_token_indices": {"embed_tokens": [9, 10]}},
}
ORDERS = ("adapter first", "tpo first")

pytestmark = [
    pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning"),  # the host was never saved
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),  # peft 0.18, of any head
]


def adapter(kind: str) -> LoraConfig:
    options = KINDS[kind]
    missing = options.keys() - inspect.signature(LoraConfig).parameters.keys()
    if missing:
        pytest.skip(f"peft {peft.__version__} has no {missing}")
    return LoraConfig(target_modules=LINEARS, r=2, **options)


def adapted(kind: str, order: str) -> Any:
    """A llama with TPO and the adapter, both trained: no weight of theirs is at its start."""
    host = LLAMA.build()
    if order == "adapter first":
        model = apply_tpo(get_peft_model(host, adapter(kind)), zoo.tokenizer(), ["region"])
    else:
        model = get_peft_model(apply_tpo(host, zoo.tokenizer(), ["region"]), adapter(kind))
        model.tpo.requires_grad_(True)
    zoo.talkative(model)
    draw = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and ".tpo." not in name:
            parameter.data.add_(torch.randn(parameter.shape, generator=draw), alpha=0.05)
    return model.eval()


def batch_of(model: Any) -> dict[str, Any]:
    host = model.get_base_model() if isinstance(model, PeftModel) else model
    targets = {"region": {"boxes_xyxy": zoo.boxes(4)}}
    return zoo.with_tasks(LLAMA, host, zoo.example(LLAMA, host)) | {"task_targets": targets}


@torch.no_grad()
def run(model: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    out = model(**batch)
    return out.logits, out.loss, out.tpo.predictions["region"]


matrix = pytest.mark.parametrize(("kind", "order"), [(k, o) for k in KINDS for o in ORDERS])


@matrix
def test_gradients_reach_the_adapter_and_ours(kind: str, order: str) -> None:
    model = adapted(kind, order).train()
    model(**batch_of(model)).loss.backward()
    trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad and ".encoder." not in name}
    # words that the batch lacks have no gradient in a table of token rows
    still = [name for name, g in trained.items() if g is None or (not g.any() and "trainable_tokens" not in name)]
    assert not still
    assert any(".tpo." in name for name in trained)
    assert any("lora_" in name for name in trained)


@matrix
def test_each_thing_is_saved_once_and_a_run_loads_in_one_call(kind: str, order: str, tmp_path: Path) -> None:
    model = adapted(kind, order)
    batch = batch_of(model)
    model.save_pretrained(tmp_path)
    model.tpo.save_pretrained(tmp_path)
    theirs, ours = load_file(tmp_path / "adapter_model.safetensors"), load_file(tmp_path / "tpo_model.safetensors")
    assert not [key for key in theirs if "tpo" in key.split(".")]
    assert not [key for key in ours if "lora" in key or "modules_to_save" in key]
    assert ours.keys() == model.tpo.state_dict().keys()
    loaded = load_tpo(LLAMA.build(), tmp_path)
    assert isinstance(loaded, PeftModel)
    for before, after in zip(run(model, batch), run(loaded.eval(), batch), strict=True):
        assert torch.equal(after, before)


@matrix
def test_merging_keeps_what_was_learned(kind: str, order: str) -> None:
    model = adapted(kind, order)
    batch = batch_of(model)
    before = run(model, batch)
    merged = model.merge_and_unload()
    assert not isinstance(merged, PeftModel)
    for was, now in zip(before, run(merged, batch), strict=True):
        torch.testing.assert_close(now, was, atol=1e-4, rtol=1e-3)
    remove_tpo(merged)
    assert not [name for name in merged.state_dict() if "tpo" in name.split(".") or "lora" in name]


@matrix
def test_disabling_the_adapter_gives_the_host_and_keeps_tpo(kind: str, order: str) -> None:
    model, host = adapted(kind, order), LLAMA.build()
    batch = batch_of(model)
    bare = apply_tpo(host, zoo.tokenizer(), ["region"])
    bare.tpo.load_state_dict(model.tpo.state_dict())
    expected, on = run(bare, batch), run(model, batch)
    with model.disable_adapter():
        off = run(model, batch)
    for was, now in zip(expected, off, strict=True):
        assert torch.equal(now, was)
    assert not torch.equal(on[0], off[0])
    for was, now in zip(on, run(model, batch), strict=True):
        assert torch.equal(now, was)


@pytest.mark.parametrize("order", ORDERS)
def test_several_adapters_switch_under_one_tpo(order: str, tmp_path: Path) -> None:
    model = adapted("lora", order)
    batch = batch_of(model)
    first, tpo = run(model, batch), model.tpo
    model.add_adapter("second", adapter("lora"))
    model.set_adapter("second")
    second = run(model.eval(), batch)  # untrained: the host's own logits
    assert not torch.equal(second[0], first[0])
    model.set_adapter("default")
    for was, now in zip(first, run(model, batch), strict=True):
        assert torch.equal(now, was)
    assert model.tpo is tpo
    model.save_pretrained(tmp_path)
    for path in tmp_path.rglob("adapter_model.safetensors"):
        assert not [key for key in load_file(path) if "tpo" in key.split(".")]
    model.delete_adapter("second")
    for was, now in zip(first, run(model, batch), strict=True):
        assert torch.equal(now, was)


@pytest.mark.parametrize("order", ORDERS)
def test_the_host_saved_from_under_an_adapter_has_no_tpo(order: str, tmp_path: Path) -> None:
    model = adapted("lora", order).merge_and_unload()
    model.save_pretrained(tmp_path)
    assert not [key for key in load_file(tmp_path / "model.safetensors") if "tpo" in key.split(".")]


def four_bit_host(folder: Path) -> Any:
    """The host saved in `folder`, in bitsandbytes' 4 bit on the CPU, which quantises rows in blocks of 64."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=settings, device_map="cpu")


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes, which .ci/run installs for this")
@pytest.mark.parametrize("order", ORDERS)
def test_a_four_bit_host_is_what_it_was_and_learns(order: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**{**zoo.TEXT, "hidden_size": 128, "intermediate_size": 256})).save_pretrained(
        tmp_path
    )
    ids = torch.arange(zoo.FIRST_WORD, zoo.FIRST_WORD + 6)[None]
    bare, applied = four_bit_host(tmp_path), apply_tpo(four_bit_host(tmp_path), zoo.tokenizer(), ["region"])
    with torch.no_grad():
        assert torch.equal(applied.eval()(input_ids=ids).logits, bare.eval()(input_ids=ids).logits)

    host = four_bit_host(tmp_path)
    if order == "adapter first":
        model = apply_tpo(get_peft_model(host, adapter("lora")), zoo.tokenizer(), ["region"])
    else:
        model = get_peft_model(apply_tpo(host, zoo.tokenizer(), ["region"]), adapter("lora"))
        model.tpo.requires_grad_(True)
    assert {p.dtype for p in model.tpo.parameters()} == {torch.float32}
    assert {type(m).__name__ for m in model.modules() if type(m).__module__.startswith("bitsandbytes")} == {
        "Linear4bit"
    }
    batch = batch_of(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    for _ in range(6):
        loss = model.train()(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]

    before = run(model.eval(), batch)
    model.save_pretrained(tmp_path / "run")
    model.tpo.save_pretrained(tmp_path / "run")
    loaded = load_tpo(four_bit_host(tmp_path), tmp_path / "run").eval()
    for was, now in zip(before, run(loaded, batch), strict=True):
        assert torch.equal(now, was)
