"""Files of a trained TPO: what is written, what is loaded, what is refused."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from tpo_plugin import TPOConfig, TPOError, apply_tpo, load_tpo, remove_tpo
from tpo_plugin.files import CONFIG_FILE, WEIGHTS_FILE


@pytest.fixture
def model() -> Any:
    config = TPOConfig(loss_weights={"region": 0.5}, heads={"region": {"loss": "mse"}})
    model = apply_tpo(zoo.host("llama").build(), zoo.tokenizer(), ["region"], config)
    zoo.talkative(model)
    return model


@pytest.fixture
def saved(model: Any, tmp_path: Path) -> Path:
    model.tpo.save_pretrained(tmp_path)
    return tmp_path


def fresh() -> Any:
    return zoo.host("llama").build()


def edit(saved: Path, **changes: Any) -> None:
    file = saved / CONFIG_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_only_our_weights_are_in_the_file(model: Any, saved: Path) -> None:
    weights = load_file(saved / WEIGHTS_FILE)
    assert weights.keys() == model.tpo.state_dict().keys()
    assert {w.dtype for w in weights.values()} == {torch.float32}
    assert {"embeddings.region.task", "embeddings.region.trigger", "embeddings.region.output"} <= weights.keys()
    assert not list(saved.glob("*.tmp"))


def test_config_comes_back(saved: Path) -> None:
    loaded = load_tpo(fresh(), saved)
    assert loaded.tpo.config.loss_weights == {"region": 0.5}
    assert loaded.tpo.config.heads["region"].loss == "mse"
    assert json.loads((saved / CONFIG_FILE).read_text())["host_class"] == "LlamaForCausalLM"


def test_a_given_tokenizer_is_used(saved: Path) -> None:
    tokenizer = zoo.tokenizer()
    assert load_tpo(fresh(), saved, tokenizer).tpo.tokenizer is tokenizer


def test_a_tokenizer_with_other_ids_is_refused(saved: Path) -> None:
    tokenizer = zoo.tokenizer()
    tokenizer.add_tokens(["another"])
    with pytest.raises(TPOError, match=r"was saved with token ids \[40, 41\], this tokenizer gives \[41, 42\]"):
        load_tpo(fresh(), saved, tokenizer)


def test_a_newer_format_is_refused(saved: Path) -> None:
    edit(saved, format_version=99, tpo_plugin="9.9")
    with pytest.raises(TPOError, match=r"format version 99 \(tpo-plugin 9.9\).*pip install -U tpo-plugin"):
        load_tpo(fresh(), saved)


def test_a_head_that_is_not_installed_is_refused(saved: Path) -> None:
    edit(saved, heads=["depth"], config={"loss_weights": {}, "heads": {}})
    model = fresh()
    with pytest.raises(TPOError, match="head 'depth' is not installed.*pip install tpo-head-depth"):
        load_tpo(model, saved)
    assert not hasattr(model, "tpo")


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_a_missing_file_is_named(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(TPOError, match=f"{name} is missing"):
        load_tpo(fresh(), saved, zoo.tokenizer())


def test_weights_of_another_size_are_refused(saved: Path) -> None:
    other = zoo.host("llama").build(hidden_size=64)
    with pytest.raises(TPOError, match="(?s)does not fit the applied heads.*size mismatch"):
        load_tpo(other, saved)
    assert not hasattr(other, "tpo")


def test_an_interrupted_save_leaves_the_old_files(model: Any, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {file.name: file.read_bytes() for file in saved.iterdir()}

    def dies(weights: Any, path: str, **kwargs: Any) -> None:
        Path(path).write_bytes(b"half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr("tpo_plugin.files.save_file", dies)
    with torch.no_grad():
        model.tpo.embeddings["region"].task.add_(1)
    with pytest.raises(KeyboardInterrupt):
        model.tpo.save_pretrained(saved)
    assert {file.name: file.read_bytes() for file in saved.iterdir()} == before


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Records what transformers logs, which does not propagate by itself."""
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


@pytest.mark.parametrize("vocab_size", [zoo.NUM_ROWS, zoo.NUM_WORDS], ids=["spare", "growing"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_the_hosts_own_checkpoint_holds_nothing_of_ours(
    tmp_path: Path, quiet: pytest.LogCaptureFixture, vocab_size: int, tied: bool
) -> None:
    model = zoo.host("llama").build(vocab_size=vocab_size, tie_word_embeddings=tied)
    names = set(model.state_dict())
    apply_tpo(model, zoo.tokenizer(), ["region"])
    model.save_pretrained(tmp_path)
    assert not [key for key in load_file(tmp_path / "model.safetensors") if "tpo" in key]
    loaded = type(model).from_pretrained(tmp_path)
    assert set(loaded.state_dict()) == names
    assert [record.message for record in quiet.records if record.levelno >= logging.WARNING] == []


def test_saving_a_run_and_loading_it_again(model: Any, tmp_path: Path) -> None:
    """Host and TPO in one directory, as a trainer leaves them."""
    kind = zoo.host("llama")
    model.save_pretrained(tmp_path)
    model.tpo.save_pretrained(tmp_path)
    loaded = load_tpo(type(model).from_pretrained(tmp_path), tmp_path)
    batch = zoo.with_tasks(kind, model, zoo.example(kind, model))
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, model(**batch).logits)


def adapted(directory: Path, seed: int) -> Any:
    """A model whose adapter is drawn from a seed, saved with its heads."""
    torch.manual_seed(seed)
    model = get_peft_model(fresh(), LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    apply_tpo(model, zoo.tokenizer(), ["region"])
    model.tpo.save_pretrained(directory)
    model.save_pretrained(directory)
    return model


def test_a_load_that_is_refused_takes_its_adapter_with_it(tmp_path: Path) -> None:
    adapted(tmp_path / "a", 1)
    second = adapted(tmp_path / "b", 2)
    host = fresh()
    before = {name: value.clone() for name, value in host.state_dict().items()}
    other = zoo.tokenizer()
    other.add_tokens(["<other>"], special_tokens=True)
    with pytest.raises(TPOError, match="was saved with token ids"):
        load_tpo(host, tmp_path / "a", other)
    assert host.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in host.state_dict().items())
    batch = zoo.example(zoo.host("llama"), host, 2)
    assert torch.equal(load_tpo(host, tmp_path / "b")(**batch).logits, second(**batch).logits)


def test_another_adapter_that_the_model_keeps_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = adapted(tmp_path / "a", 1)
    adapted(tmp_path / "b", 2)
    remove_tpo(first)
    load_tpo(first, tmp_path / "a", zoo.tokenizer())
    assert not caplog.records
    remove_tpo(first)
    load_tpo(first, tmp_path / "b", zoo.tokenizer())
    assert f"{tmp_path / 'b'} has an adapter, and the model another one, which it keeps" in caplog.text
