"""A model with TPO in the hands of others: caches, device maps, export, and TRL's trainers on ordinary chat."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

import pytest
import torch
import transformers
import zoo
from accelerate import cpu_offload, disk_offload
from transformers import AutoModelForCausalLM, AutoTokenizer

import tpo_plugin as tpo
from tpo_plugin.tiny import tiny_host

IDS = torch.tensor([[1, 4, 5, 6, 7], [1, 5, 6, 7, 8]])
TEMPLATE = "{% for m in messages %}<s> {{ m.content }} </s>{% endfor %}{% if add_generation_prompt %}<s> {% endif %}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("host")
    model, tokenizer = tiny_host()
    tokenizer.chat_template = TEMPLATE
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def loaded(folder: Any, head: str | None, **options: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder, **options).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    return (model if head is None else tpo.apply_tpo(model, tokenizer, heads=[head])), tokenizer


def asked(model: Any, **options: Any) -> Any:
    return model.tpo.generate(input_ids=IDS, max_new_tokens=6, do_sample=False, route="echo", **options)


def assert_same(result: Any, expected: Any) -> None:
    assert torch.equal(result.sequences, expected.sequences)
    for ours, theirs in zip(result.predictions, expected.predictions, strict=True):
        torch.testing.assert_close(ours[0].value, theirs[0].value)


def test_a_static_cache(folder, echo):
    model, _ = loaded(folder, echo)
    assert_same(asked(model, cache_implementation="static"), asked(model))


@pytest.mark.parametrize("where", ["cpu", "auto", "disk"])
def test_a_device_map(folder, echo, where, tmp_path):
    parts = dict.fromkeys(["model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb", "lm_head"], "cpu")
    device_map = parts | {"model.layers.1": "disk"} if where == "disk" else where
    model, _ = loaded(folder, echo, device_map=device_map, offload_folder=str(tmp_path))
    assert_same(asked(model), asked(loaded(folder, echo)[0]))


@pytest.mark.parametrize("how", ["cpu", "disk"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("order", ["offload first", "tpo first"])
def test_all_of_the_host_offloaded(how, tied, order, tmp_path):
    """Its embeddings too: answers are the same, and what is TPO's trains where it was not offloaded with them."""
    host = zoo.host("llama")

    def built():
        torch.manual_seed(0)
        return host.build(tie_word_embeddings=tied)

    def offloaded(model):
        device = torch.device("cpu")
        return cpu_offload(model, device) if how == "cpu" else disk_offload(model, str(tmp_path), device)

    def applied(model):
        torch.manual_seed(1)
        return tpo.apply_tpo(model, zoo.tokenizer(), ["region"])

    plain = applied(built())
    model = applied(offloaded(built())) if order == "offload first" else offloaded(applied(built()))
    batch = zoo.with_tasks(host, plain, zoo.example(host, plain)) | {
        "task_targets": {"region": {"boxes_xyxy": zoo.boxes(4)}}
    }
    with torch.no_grad():
        ours, theirs = model.eval()(**batch), plain.eval()(**batch)
    assert torch.equal(ours.logits, theirs.logits)
    assert torch.equal(ours.loss, theirs.loss)
    if order == "tpo first":
        with pytest.raises(tpo.TPOError, match="offload the host first and call apply_tpo second"):
            model.train()(**batch)
        with pytest.raises(tpo.TPOError, match="offload the host first and call apply_tpo second"):
            model.tpo.save_pretrained(tmp_path / "saved")
        return
    model.train()(**batch).loss.backward()
    plain.train()(**batch).loss.backward()
    for ours, theirs in zip(model.tpo.parameters(), plain.tpo.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    model.tpo.save_pretrained(tmp_path / "saved")


def test_offloaded_embeddings_cannot_grow():
    model = cpu_offload(zoo.host("llama").build(vocab_size=zoo.NUM_WORDS), torch.device("cpu"))
    with pytest.raises(tpo.HostError, match="offloaded its embeddings, which cannot grow there; keep both on a device"):
        tpo.apply_tpo(model, zoo.tokenizer(), ["region"])


@pytest.mark.skipif(not hasattr(torch.compiler, "is_exporting"), reason="this torch does not say that it exports")
def test_export_says_what_to_do(folder, echo):
    model, _ = loaded(folder, echo)
    with pytest.raises(tpo.TPOError, match=r"exports the host alone, after remove_tpo\(model\)"):
        torch.export.export(model, (), {"input_ids": IDS, "use_cache": False}, strict=False)
    tpo.remove_tpo(model)
    exported = torch.export.export(model, (), {"input_ids": IDS, "use_cache": False}, strict=False).module()
    torch.testing.assert_close(exported(input_ids=IDS, use_cache=False).logits, model(input_ids=IDS).logits)


def said(text: str, role: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


QUESTION, GOOD, BAD = said("where is it", "user"), said("it stands here", "assistant"), said("the red", "assistant")
ROWS = {
    "DPO": {"prompt": QUESTION, "chosen": GOOD, "rejected": BAD},
    "GRPO": {"prompt": QUESTION},
    "RLOO": {"prompt": QUESTION},
    "SFT": {"messages": QUESTION + GOOD},
    "KTO": {"prompt": QUESTION, "completion": GOOD, "label": True},
    "CPO": {"prompt": QUESTION, "chosen": GOOD, "rejected": BAD},
    "ORPO": {"prompt": QUESTION, "chosen": GOOD, "rejected": BAD},
}
EXPERIMENTAL = ("CPO", "ORPO")


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(ROWS))
@pytest.mark.filterwarnings("ignore")
def test_trl_trains_ordinary_chat_as_the_bare_host(folder, echo, tmp_path, kind):
    """Unwrapped, on a host with rows to spare; trained as the others, the triggers' rows would learn that they are not
    wanted there."""
    pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    trl = importlib.import_module(f"trl.experimental.{kind.lower()}" if kind in EXPERIMENTAL else "trl")
    trainer_class, config_class = getattr(trl, f"{kind}Trainer"), getattr(trl, f"{kind}Config")
    options: dict[str, Any] = {
        "max_steps": 2, "use_cpu": True, "bf16": False, "report_to": [], "per_device_train_batch_size": 2,
        "logging_steps": 1, "save_strategy": "no", "disable_tqdm": True, "gradient_checkpointing": False,
        "learning_rate": 1e-3,
    }  # fmt: skip
    given: dict[str, Any] = {}
    rows = [ROWS[kind]] * 8
    if kind == "KTO":
        rows = [row | {"label": index % 2 == 0} for index, row in enumerate(rows)]
    if kind in ("GRPO", "RLOO"):
        options |= {"num_generations": 2, "max_completion_length": 6}
        given["reward_funcs"] = lambda completions, **_: [float(len(str(c))) for c in completions]
    known = {field.name for field in dataclasses.fields(config_class)}
    losses = []
    for head in (None, echo):
        model, tokenizer = loaded(folder, head)
        if head is not None:
            model.tpo.requires_grad_(False)
        trainer = trainer_class(
            model,
            args=config_class(str(tmp_path), **{k: v for k, v in options.items() if k in known}),
            processing_class=tokenizer,
            train_dataset=datasets.Dataset.from_list(rows),
            **given,
        )
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[1] == losses[0]
    assert len(losses[0]) == 2


def test_a_trainer_with_another_loss_is_named(folder):
    trl = pytest.importorskip("trl")
    with pytest.raises(tpo.TPOError, match=r"use it as it is, DPOTrainer\(model, ...\)"):
        tpo.wrap_trainer(trl.DPOTrainer)
    assert issubclass(tpo.wrap_trainer(transformers.Trainer), transformers.Trainer)
