"""What training changes in the host beside an adapter is in every file that comes of it, and `load_tpo` takes it."""

import peft
import pytest
import tiny_run
import torch
import transformers
from safetensors.torch import load_file

from tpo_plugin import TPOError, apply_tpo, load_tpo, wrap_trainer
from tpo_plugin.host_weights import HOST_WEIGHTS_FILE
from tpo_plugin.tiny import tiny_host

pytestmark = pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning")


def trained(model, tokenizer, folder):
    trainer = wrap_trainer(transformers.Trainer)(
        model=model, train_dataset=tiny_run.Samples(tokenizer), data_collator=tiny_run.collate,
        args=tiny_run.arguments(folder, max_steps=2, save_strategy="steps", save_steps=2),
    )  # fmt: skip
    trainer.train()
    return folder / "checkpoint-2"


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([[1, 4, 5, 6, 7, 8]])).logits


def test_two_trainings_of_which_the_second_freezes(tmp_path):
    """As LLaVA's two stages in one process: a part of the host trains in the first, LoRA and TPO in both."""
    tiny_run.install_head()
    model, tokenizer = tiny_host()
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = apply_tpo(peft.get_peft_model(model, lora), tokenizer, heads=["point"])
    part = [p for name, p in model.named_parameters() if "down_proj" in name]
    for parameter in part:
        parameter.requires_grad_(True)
    first = trained(model, tokenizer, tmp_path / "first")
    assert torch.equal(logits(load_tpo(tiny_host()[0], first)), logits(model))
    for parameter in part:
        parameter.requires_grad_(False)
    second = trained(model, tokenizer, tmp_path / "second")
    assert len(load_file(second / HOST_WEIGHTS_FILE)) == len(part)
    again = load_tpo(tiny_host()[0], second)
    assert torch.equal(logits(again), logits(model))
    with open(second / HOST_WEIGHTS_FILE, "r+b") as file:
        file.truncate(40)
    with pytest.raises(TPOError, match=HOST_WEIGHTS_FILE):
        load_tpo(tiny_host()[0], second)
    third = trained(again, tokenizer, tmp_path / "third")
    assert len(load_file(third / HOST_WEIGHTS_FILE)) == len(part)
