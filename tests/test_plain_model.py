"""A model that knows nothing of transformers, with TPO: losses, training, generation, saving."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from nano import IGNORED, IMAGE_ID, NUM_PATCHES, SIDE, NanoVLM
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments
from transformers.modeling_outputs import CausalLMOutput

import tpo_plugin as tpo
from tpo_plugin.testing import tiny_host

NUM_ROWS = 128
NEVER: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}


class Nano(tpo.PlainModel):
    embed, head = "decoder.token_embedding", "decoder.head"

    def forward(
        self,
        input_ids: Tensor,
        images: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> CausalLMOutput:
        # Its targets stand where they are predicted; labels stand at the tokens that they name.
        targets = None if labels is None else F.pad(labels[:, 1:], (0, 1), value=-100)
        logits, loss = self.model(input_ids, images, attention_mask, targets)
        return CausalLMOutput(loss=loss, logits=logits)


@pytest.fixture
def tokenizer() -> Any:
    return tiny_host()[1]


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def plain(request: pytest.FixtureRequest, tokenizer: Any) -> NanoVLM:
    """Without a row to spare for new tokens."""
    torch.manual_seed(0)
    return NanoVLM(len(tokenizer), tied=request.param).eval()


@pytest.fixture
def model(plain: NanoVLM, tokenizer: Any, echo: str) -> Any:
    return tpo.apply_tpo(Nano(plain), tokenizer, heads=[echo])


def prompts(num: int = 2) -> dict[str, Tensor]:
    torch.manual_seed(1)
    words = torch.randint(4, 12, (num, 5))
    ids = torch.cat([torch.full((num, NUM_PATCHES), IMAGE_ID), words], 1)
    return {"input_ids": ids, "images": torch.rand(num, 3, SIDE, SIDE), "attention_mask": torch.ones_like(ids)}


def batch(model: Any, numbers: tuple[int, ...] = (1, 2)) -> dict[str, Any]:
    """Prompts with answers that have so many pairs of trigger and task token, padded right."""
    given, (trigger, task) = prompts(len(numbers)), model.tpo.token_ids["echo"]
    answers = [[5, *[trigger, task] * n, 6] + [0, 0] * (max(numbers) - n) for n in numbers]
    given["input_ids"] = torch.cat([given["input_ids"], torch.tensor(answers)], 1)
    given["attention_mask"] = (given["input_ids"] != 0).long()
    labels = given["input_ids"].masked_fill((given["input_ids"] == task) | (given["input_ids"] == 0), IGNORED)
    labels[:, : NUM_PATCHES + 5] = IGNORED
    targets = {"echo": {"state": torch.linspace(-1, 1, sum(numbers))[:, None]}}
    return {**given, "labels": labels, "task_targets": targets}


def slow_states(model: Any, given: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Logits and last hidden states of a batch, its embeddings put together by hand in a copy without TPO."""
    trigger, task = model.tpo.token_ids["echo"]
    rows, bare = model.tpo.embeddings["echo"], tpo.remove_tpo(copy.deepcopy(model)).model
    ids = given["input_ids"]
    embedded = bare.decoder.token_embedding(ids.masked_fill((ids == trigger) | (ids == task), 0))
    features = bare.projector(bare.encoder(bare.patches(given["images"]).flatten(2).transpose(1, 2)))
    embedded[ids == IMAGE_ID] = features.flatten(0, 1)
    embedded[ids == trigger], embedded[ids == task] = rows("trigger"), rows("task")
    states = []
    handle = bare.decoder.norm.register_forward_hook(lambda module, args, output: states.append(output))
    logits = bare.decoder(embedded, given["attention_mask"])
    handle.remove()
    return logits, states[0]


def test_the_page_shows_this_adapter():
    assert inspect.getsource(Nano) in (Path(__file__).parents[1] / "patches" / "README.md").read_text()


def test_without_task_tokens_it_computes_what_it_did(plain, tokenizer, echo):
    given = prompts()
    before, keys, rows = plain(**given)[0], list(plain.state_dict()), len(tokenizer)
    answer = plain.generate(given["input_ids"], given["images"])
    model = Nano(plain)
    assert torch.equal(model.generate(**given, **NEVER, max_new_tokens=8), answer)
    tpo.apply_tpo(model, tokenizer, heads=[echo])
    assert model.tpo.growth is not None
    assert torch.equal(model(**given).logits[..., :rows], before)
    tpo.remove_tpo(model)
    assert torch.equal(plain(**given)[0], before)
    assert list(plain.state_dict()) == keys
    assert (plain.decoder.head.weight is plain.decoder.token_embedding.weight) == model.config.tie_word_embeddings


def test_losses_are_those_of_a_slow_computation(model):
    given = batch(model)
    trigger, task = model.tpo.token_ids["echo"]
    with torch.no_grad():
        out = model(**given)
        logits, states = slow_states(model, given)
    labels, of_trigger = given["labels"][:, 1:], states @ model.tpo.embeddings["echo"]("output")
    assert trigger == logits.shape[-1]
    found = torch.cat([logits, of_trigger[..., None]], -1)  # the host's grown rows get no probability
    log = found.log_softmax(-1)[:, :-1].gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    is_trigger = labels == trigger
    torch.testing.assert_close(out.tpo.losses["assign"], -log[is_trigger].mean())
    torch.testing.assert_close(out.tpo.losses["mllm"], -log[(labels != IGNORED) & ~is_trigger].mean())
    state = states[given["input_ids"] == task]
    torch.testing.assert_close(out.tpo.outputs["echo"]["state"], state)
    echo = (state - given["task_targets"]["echo"]["state"]).pow(2).sum() / 3
    torch.testing.assert_close(out.tpo.losses["echo"], echo)
    torch.testing.assert_close(out.loss, out.tpo.losses["mllm"] + out.tpo.losses["assign"] + echo)


def test_training_saving_and_loading(model, plain, tokenizer, tmp_path):
    given = batch(model)
    rows = [0, 1]
    args = TrainingArguments(
        output_dir=str(tmp_path / "run"), max_steps=2, per_device_train_batch_size=2, learning_rate=1e-2,
        logging_steps=1, save_steps=1, report_to=[], use_cpu=True, remove_unused_columns=False,
    )  # fmt: skip
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = tpo.wrap_trainer(Trainer)(model=model, args=args, train_dataset=rows, data_collator=lambda rows: given)
    trainer.train()
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert {"model.patches.weight", "model.decoder.token_embedding.weight", "tpo.embeddings.echo.task"} <= set(changed)
    first, second = (log["loss"] for log in trainer.state.log_history if "loss" in log)
    assert second < first
    saved = load_file(tmp_path / "run" / "checkpoint-1" / "model.safetensors")
    assert "model.patches.weight" in saved
    assert not any(name.startswith("tpo.") for name in saved)
    # The plain model is saved in its own way, at the size that it has now.
    assert not any("tpo" in name for name in plain.state_dict())
    torch.save(plain.state_dict(), tmp_path / "nano.pt")
    model.tpo.save_pretrained(tmp_path)
    again = NanoVLM(len(plain.decoder.head.weight), tied=model.config.tie_word_embeddings)
    again.load_state_dict(torch.load(tmp_path / "nano.pt"))
    loaded = tpo.load_tpo(Nano(again).eval(), tmp_path)
    with torch.no_grad():
        expected, found = model.eval()(**given), loaded(**given)
    assert torch.equal(found.loss, expected.loss)
    assert torch.equal(found.tpo.outputs["echo"]["state"], expected.tpo.outputs["echo"]["state"])


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}], ids=["greedy", "beams"])
def test_a_routed_prediction_is_that_of_a_full_forward(model, options):
    given = prompts()
    out = model.tpo.generate(**given, **NEVER, **options, max_new_tokens=8, route="echo")
    given |= {"input_ids": out.sequences, "attention_mask": torch.ones_like(out.sequences)}
    with torch.no_grad():
        states = model(**given).tpo.outputs["echo"]["state"]
    found = [prediction.value for row in out.predictions for prediction in row]
    assert len(found) >= 2
    torch.testing.assert_close(torch.stack(found), states)


def test_left_padding_changes_no_answer(model):
    given = prompts()
    options = {**NEVER, "max_new_tokens": 6, "route": "echo"}
    expected = model.tpo.generate(**{name: value[:1] for name, value in given.items()}, **options)
    pad = torch.zeros(1, 3, dtype=torch.int64)
    longer = torch.cat([given["input_ids"][1:], torch.full((1, 3), 7)], 1)
    given["input_ids"] = torch.cat([torch.cat([pad, given["input_ids"][:1]], 1), longer])
    given["attention_mask"] = torch.cat([torch.cat([pad, given["attention_mask"][:1]], 1), torch.ones_like(longer)])
    found = model.tpo.generate(**given, **options)
    assert torch.equal(found.sequences[0, 3:], expected.sequences[0])
    torch.testing.assert_close(found.predictions[0][0].value, expected.predictions[0][0].value)


def test_a_bare_module_is_told_all_that_it_lacks(plain, tokenizer, echo):
    for given in (tokenizer, None):
        with pytest.raises(tpo.HostError) as error:
            tpo.apply_tpo(plain, given, heads=[echo])
        for name in ("get_input_embeddings", "get_output_embeddings", "config", "device", "main_input_name"):
            assert name in str(error.value)
        assert "generation_config, forward(…, labels=…), generate(…, logits_processor=…);" in str(error.value)
        assert "tpo_plugin.PlainModel has them (see patches/README.md)" in str(error.value)
    assert not hasattr(plain, "tpo")
