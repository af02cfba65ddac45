"""The original LLaVA: its forward, its generation and its trainer, with and without task tokens."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from tiny_llava import (
    METHOD,
    NUM_ROWS,
    WORDS,
    batch,
    collate_for,
    make_trainer,
    package_of,
    slow_states,
    spliced,
    targets,
    tokenizer,
    with_tasks,
)

import tpo_plugin as tpo

KINDS = ("image", "wide", "two", "text")


def applied(build: Any, **config: Any) -> Any:
    return tpo.apply_tpo(build(**config), tokenizer(), heads=["echo"])


def rows(answers: list[list[int]], **options: Any) -> dict[str, Any]:
    return batch(KINDS, answers[: len(KINDS)], family="original", **options)


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_without_task_tokens_the_loss_is_the_hosts_bit_for_bit(build, echo, left):
    given = rows(WORDS, left=left)
    model = build(tokenizer_padding_side="left" if left else "right")
    before = model(**given)
    tpo.apply_tpo(model, tokenizer(), heads=["echo"])
    after = model(**given)
    assert torch.equal(before.loss, after.loss)
    ordinary = [i for i in range(NUM_ROWS) if i not in model.tpo.token_ids["echo"]]
    assert torch.equal(before.logits[..., ordinary], after.logits[..., ordinary])
    tpo.remove_tpo(model)
    assert torch.equal(model(**given).logits, before.logits)
    assert not {METHOD, "prepare_inputs_for_generation"} & set(vars(model))


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_task_embeddings_are_the_hidden_states_of_a_slow_computation(build, echo, left):
    model = applied(build, tokenizer_padding_side="left" if left else "right")
    given = rows(with_tasks(model, [1, 2, 0, 3]), left=left)
    with torch.no_grad():
        states = model(**given, task_targets=targets(6)).tpo.outputs["echo"]["state"]
        expected = slow_states(model, given)
    assert states.shape == (6, 32)
    torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-5)
    assert (expected[0] - expected[1]).abs().max() > 0.1


def test_images_as_one_tensor(build, echo):
    """The form of a batch with one square image a sample."""
    model = applied(build, image_aspect_ratio="square", mm_patch_merge_type="flat")
    given = batch(("image", "image"), with_tasks(model, [1, 2]), family="original")
    given["images"] = torch.stack([images[0] for images in given["images"]])
    with torch.no_grad():
        states = model(**given, task_targets=targets(3)).tpo.outputs["echo"]["state"]
        expected = slow_states(model, given)
    torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-5)


def test_a_task_token_that_is_cut_off_is_named(build, echo):
    model = applied(build)
    given = rows(with_tasks(model, [0, 1, 0, 0]))
    model.config.tokenizer_model_max_length = int(spliced(model, given)[2].sum(-1)[1]) - 2
    with pytest.raises(tpo.TPOError, match="the task token '<echo_task>' of head 'echo' in row 1 was cut off"):
        model(**given, task_targets=targets(1))


def test_generation(build, echo):
    """Also of the host alone, whose forward does not take the `cache_position` that transformers 4.45 passes."""
    model = applied(build, tokenizer_padding_side="left")
    prompts = rows([[], [], [], []], left=True)
    ids, _ = prompts.pop("input_ids"), prompts.pop("labels")
    options = {"do_sample": False, "eos_token_id": None}
    out = model.tpo.generate(ids, **prompts, **options, max_new_tokens=6, route="echo")
    sequences = torch.cat([ids, out.sequences], 1)
    mask = torch.cat([prompts["attention_mask"], torch.ones_like(out.sequences, dtype=torch.bool)], 1)
    with torch.no_grad():
        expected = model(**{**prompts, "attention_mask": mask}, input_ids=sequences).tpo.outputs["echo"]["state"]
    found = [p.value for predictions in out.predictions for p in predictions if not p.cut_off]
    assert len(found) >= len(KINDS)
    torch.testing.assert_close(torch.stack(found), expected, rtol=1e-3, atol=1e-4)
    options["suppress_tokens"] = list(model.tpo.token_ids["echo"])
    plain = model.generate(ids, **prompts, **options, max_new_tokens=4)
    assert torch.equal(plain, model.tpo.generate(ids, **prompts, **options, max_new_tokens=4).sequences)


def test_two_steps_checkpoint_reload_and_the_same_predictions(build, echo, tmp_path):
    model = applied(build)
    base = importlib.import_module(f"{package_of('original')}.train.llava_trainer").LLaVATrainer
    trainer = make_trainer(tpo.wrap_trainer(base), model, tmp_path, kinds=KINDS, family="original")
    before = {name: value.clone() for name, value in model.tpo.state_dict().items()}
    trainer.train()
    assert all((before[name] != value).any() for name, value in model.tpo.state_dict().items())
    again = type(model).from_pretrained(tmp_path / "checkpoint-2").eval()
    if not again.get_vision_tower().is_loaded:
        again.get_vision_tower().load_model()
    again = tpo.load_tpo(again, tmp_path / "checkpoint-2")
    given = collate_for(model, "original")(list(KINDS))
    with torch.no_grad():
        expected, found = model.eval()(**given), again(**given)
    assert torch.equal(expected.loss, found.loss)
    assert torch.equal(expected.tpo.outputs["echo"]["state"], found.tpo.outputs["echo"]["state"])
