"""Training with the real LLaVATrainer: its sampler, optimizer groups and saving stay, and nothing of ours is lost."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tiny_llava import KINDS, collate_for, make_trainer, package_of, tokenizer
from tpo_patch_llava.host import LlavaNextHost

import tpo_plugin as tpo

PACKAGE = package_of("next")


def trainer_class() -> Any:
    base = importlib.import_module(f"{PACKAGE}.train.llava_trainer").LLaVATrainer
    return tpo.wrap_trainer(LlavaNextHost.trainer_class(base))


@pytest.fixture
def model(build: Any, echo: str) -> Any:
    return tpo.apply_tpo(build(), tokenizer(), heads=["echo"])


def everything(model: Any) -> Any:
    with torch.no_grad():
        return model.eval()(**collate_for(model)(list(KINDS)))


def test_two_steps_checkpoint_reload_and_the_same_predictions(model, build, tmp_path):
    before = {name: value.clone() for name, value in model.tpo.state_dict().items()}
    trainer = make_trainer(trainer_class(), model, tmp_path)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss_echo" in log]
    assert len(logs) == 2
    assert all(log["loss_mllm"] > 0 for log in logs)
    assert all((before[name] != value).any() for name, value in model.tpo.state_dict().items())
    checkpoint = tmp_path / "checkpoint-2"
    assert not [name for name in load_file(checkpoint / "model.safetensors") if "tpo" in name]
    again = type(model).from_pretrained(checkpoint)
    if not again.get_vision_tower().is_loaded:
        again.get_vision_tower().load_model()
    again = tpo.load_tpo(again.eval(), checkpoint)
    expected, found = everything(model), everything(again)
    assert torch.equal(expected.loss, found.loss)
    assert torch.equal(expected.tpo.outputs["echo"]["state"], found.tpo.outputs["echo"]["state"])


def test_a_resumed_run_is_the_run(model, build, tmp_path):
    make_trainer(trainer_class(), model, tmp_path / "whole").train()
    again = tpo.apply_tpo(build(), tokenizer(), heads=["echo"])
    trainer = make_trainer(trainer_class(), again, tmp_path / "again")
    trainer.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-1"))
    for name, value in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, msg=name)


def test_one_big_batch_or_two_small_ones(model, build, tmp_path):
    """Accumulation weights every target alike, where a trigger starts included; the difference is rounding."""
    again = copy.deepcopy(model)
    options = {"max_steps": 1, "learning_rate": 1e-3, "optim": "sgd", "group_by_modality_length": False}
    make_trainer(trainer_class(), model, tmp_path / "a", **options, per_device_train_batch_size=4).train()
    options["gradient_accumulation_steps"] = 2
    make_trainer(trainer_class(), again, tmp_path / "b", **options, per_device_train_batch_size=2).train()
    for name, value in model.tpo.state_dict().items():
        torch.testing.assert_close(again.tpo.state_dict()[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_our_parameters_are_in_its_optimizer_groups(model, tmp_path):
    trainer = make_trainer(trainer_class(), model, tmp_path)
    trainer.create_optimizer()
    groups = {id(p): group for group in trainer.optimizer.param_groups for p in group["params"]}
    for name, parameter in model.tpo.named_parameters():
        assert groups[id(parameter)]["lr"] == 1e-2, name
    projector = next(model.get_model().mm_projector.parameters())
    assert groups[id(projector)]["lr"] == 1e-3


def test_a_projector_checkpoint_has_ours_beside_it(model, tmp_path):
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.get_model().mm_projector.requires_grad_(True)
    model.tpo.requires_grad_(True)
    trainer = make_trainer(trainer_class(), model, tmp_path, mm_tunable_parts="mm_mlp_adapter", max_steps=1)
    trainer.train()
    written = {path.name for path in (tmp_path / "checkpoint-1").iterdir()}
    assert {"mm_projector.bin", "tpo_model.safetensors", "tpo_config.json"} <= written
    assert "model.safetensors" not in written


def test_lora(build, echo, tmp_path):
    """Its checkpoints hold the adapter and ours, and load back in one call."""
    targets = r"model\.layers\..*\.(q|v)_proj"
    lora = LoraConfig(r=2, lora_alpha=4, target_modules=targets, task_type="CAUSAL_LM")
    wrapped = get_peft_model(build(), lora)
    model = tpo.apply_tpo(wrapped, tokenizer(), heads=["echo"])
    make_trainer(trainer_class(), model, tmp_path, lora_enable=True, mm_projector_lr=None).train()
    checkpoint = tmp_path / "checkpoint-2"
    assert set(load_file(checkpoint / "adapter_model.safetensors")) == {
        name.replace(".default", "") for name in wrapped.state_dict() if "lora_" in name
    }
    again = tpo.load_tpo(build(), checkpoint).eval()
    expected, found = everything(model), everything(again)
    assert torch.equal(expected.loss, found.loss)
    assert torch.equal(expected.tpo.outputs["echo"]["state"], found.tpo.outputs["echo"]["state"])
    with again.disable_adapter(), torch.no_grad():
        assert not torch.equal(everything(again).loss, found.loss)


def test_a_merged_lora_is_saved_and_loaded_as_a_host(build, echo, tmp_path):
    lora = LoraConfig(r=2, lora_alpha=4, target_modules=r"model\.layers\..*\.(q|v)_proj", task_type="CAUSAL_LM")
    model = tpo.apply_tpo(get_peft_model(build(), lora), tokenizer(), heads=["echo"])
    make_trainer(trainer_class(), model, tmp_path / "run", lora_enable=True, mm_projector_lr=None).train()
    before, folder = everything(model), tmp_path / "merged"
    merged = model.merge_and_unload()
    expected = everything(merged)
    torch.testing.assert_close(expected.loss, before.loss)
    merged.save_pretrained(folder)
    merged.tpo.save_pretrained(folder)
    again = type(merged).from_pretrained(folder)
    if not again.get_vision_tower().is_loaded:
        again.get_vision_tower().load_model()
    found = everything(tpo.load_tpo(again, folder))
    assert torch.equal(expected.loss, found.loss)
    assert torch.equal(expected.tpo.outputs["echo"]["state"], found.tpo.outputs["echo"]["state"])
