"""Forward, losses and task embeddings of hosts that splice image features between the embeddings."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from registered import registered
from tiny_llava import (
    KINDS,
    METHOD,
    NUM_ROWS,
    WORDS,
    batch,
    labelled,
    slow_states,
    spliced,
    targets,
    tokenizer,
    with_tasks,
)
from torch import Tensor

import tpo_plugin as tpo


def applied(build: Any, **config: Any) -> Any:
    return tpo.apply_tpo(build(**config), tokenizer(), heads=["echo"])


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_without_task_tokens_the_loss_is_the_hosts_bit_for_bit(build, echo, left):
    given = batch(KINDS, WORDS, left=left)
    model = build(tokenizer_padding_side="left" if left else "right")
    before = model(**given)
    tpo.apply_tpo(model, tokenizer(), heads=["echo"])
    after = model(**given)
    assert model.tpo.growth is None
    assert torch.equal(before.loss, after.loss)
    assert torch.equal(before.loss, after.tpo.losses["mllm"])
    ordinary = [i for i in range(NUM_ROWS) if i not in model.tpo.token_ids["echo"]]
    assert torch.equal(before.logits[..., ordinary], after.logits[..., ordinary])
    tpo.remove_tpo(model)
    assert torch.equal(model(**given).logits, before.logits)
    assert METHOD not in vars(model)


def test_gradients_without_task_tokens_are_the_hosts(build, echo):
    given, bare = batch(KINDS, WORDS), build().train()
    bare(**given).loss.backward()
    model = applied(build).train()
    model(**given).loss.backward()
    found = dict(model.named_parameters())
    for name, parameter in bare.named_parameters():
        if parameter.grad is not None:
            assert torch.equal(parameter.grad, found[name].grad), name


@pytest.mark.parametrize("position", ["grid", "frame", "one_token"])
@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_task_embeddings_are_the_hidden_states_of_a_slow_computation(build, echo, left, position):
    model = applied(build, tokenizer_padding_side="left" if left else "right", mm_newline_position=position)
    given = batch(KINDS, with_tasks(model, [1, 2, 0, 3, 1]), left=left)
    with torch.no_grad():
        states = model(**given, task_targets=targets(7)).tpo.outputs["echo"]["state"]
        expected = slow_states(model, given)
    assert states.shape == (7, 32)
    torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-5)
    assert (expected[0] - expected[1]).abs().max() > 0.1


def spliced_lengths(model: Any, given: dict[str, Any]) -> list[int]:
    """Positions of each row with the features of its media."""
    mask: Tensor = spliced(model, given)[2]
    return mask.sum(-1).tolist()


def test_the_assignment_is_scored_where_the_trigger_is_predicted(build, echo):
    model = applied(build)
    given = labelled(model, batch(KINDS, with_tasks(model, [1, 1, 1, 1, 1])))
    trigger, _ = model.tpo.token_ids["echo"]
    out = model(**given, task_targets=targets(5))
    lengths, before = spliced_lengths(model, given), []
    for row, length in enumerate(lengths):
        ids = given["input_ids"][row][given["attention_mask"][row]].tolist()
        predicted_at = length - (len(ids) - ids.index(trigger)) - 1
        before.append(out.logits[row, predicted_at].log_softmax(-1)[trigger])
    assert out.logits.shape[1] == max(lengths)
    torch.testing.assert_close(out.tpo.losses["assign"], -torch.stack(before).mean())


def test_the_host_does_not_learn_triggers_twice(build, echo):
    model = applied(build)
    given = labelled(model, batch(KINDS, with_tasks(model, [1, 2, 0, 3, 1])))
    ours = torch.isin(given["labels"], torch.tensor(model.tpo.token_ids["echo"]))
    out = model(**given, task_targets=targets(7))
    without = model(**{**given, "labels": given["labels"].masked_fill(ours, -100)})
    torch.testing.assert_close(out.tpo.losses["mllm"], without.loss, rtol=0, atol=0)


def test_every_row_of_ours_gets_a_gradient(build, echo):
    model = applied(build).train()
    given = labelled(model, batch(KINDS, with_tasks(model, [1, 2, 0, 3, 1])))
    model(**given, task_targets=targets(7)).loss.backward()
    for name, parameter in model.tpo.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_positions_of_a_collator_serve(build, echo):
    from tpo_plugin.positions import token_positions

    model = applied(build)
    given = labelled(model, batch(KINDS, with_tasks(model, [1, 2, 0, 3, 1])))
    positions = token_positions(given["input_ids"], given["labels"], model.tpo.tokens)
    with_positions = model(**given, task_targets=targets(7), task_positions=positions)
    assert torch.equal(with_positions.loss, model(**given, task_targets=targets(7)).loss)


@pytest.mark.parametrize(("missing", "kind"), [(2, "task token '<echo_task>'"), (3, "trigger token '<echo_begin>'")])
def test_a_token_that_is_cut_off_is_named(build, echo, missing, kind):
    model = applied(build)
    given = batch(("image", "wide"), with_tasks(model, [0, 1, 0, 0, 0])[:2])
    model.config.tokenizer_model_max_length = max(spliced_lengths(model, given)) - missing
    with pytest.raises(tpo.TPOError, match=f"the {kind} of head 'echo' in row 1 was cut off: .*model_max_length"):
        model(**given, task_targets=targets(1))


def test_cutting_off_nothing_of_ours_is_the_hosts_business(build, echo):
    given, model = batch(KINDS, WORDS), build()
    model.config.tokenizer_model_max_length = 30
    before = model(**given).loss
    tpo.apply_tpo(model, tokenizer(), heads=["echo"])
    assert torch.equal(model(**given).loss, before)


def test_modalities_that_drop_a_row_with_a_task_are_named(build, echo):
    model = applied(build)
    given = batch(("image", "text"), with_tasks(model, [1, 1, 0, 0, 0])[:2])
    with pytest.raises(tpo.TPOError, match="stands in row 1, and the host kept 1 row"):
        model(**{**given, "modalities": ["image"]}, task_targets=targets(2))


def test_text_without_images(build, echo):
    model = applied(build)
    given = batch(("text", "text"), with_tasks(model, [1, 2, 0, 0, 0])[:2])
    text = {name: given[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        alone = model(**text).tpo.outputs["echo"]["state"]
        with_dummies = model(**{k: v for k, v in given.items() if k != "labels"}).tpo.outputs["echo"]["state"]
    assert alone.shape == (3, 32)
    torch.testing.assert_close(alone, with_dummies, rtol=1e-4, atol=1e-5)


def test_gradient_checkpointing_and_inputs_that_require_grad(build, echo):
    model = applied(build).train()
    given = labelled(model, batch(KINDS, with_tasks(model, [1, 2, 0, 3, 1])))
    expected = model(**given, task_targets=targets(7)).loss
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    loss = model(**given, task_targets=targets(7)).loss
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert model.tpo.embeddings["echo"].task.grad.abs().max() > 0


def test_a_copy_splices_for_itself(build, echo):
    model = applied(build)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.tpo.embeddings["echo"].task.zero_()
    given = {k: v for k, v in batch(KINDS, with_tasks(model, [1, 2, 0, 3, 1])).items() if k != "labels"}
    with torch.no_grad():
        a, b = (m(**given).tpo.outputs["echo"]["state"] for m in (model, twin))
    assert (a - b).abs().max() > 0.01


class SeeingHead(tpo.TaskHead):
    """Gives what it sees of the text and of the frames."""

    def __init__(self, config: tpo.HeadConfig, hidden_size: int, vision_size: int | None) -> None:
        super().__init__()
        self.vision_size = vision_size

    def forward(self, e_ND: Tensor, seen: tpo.HostFeatures) -> dict[str, Tensor]:
        if not len(e_ND):
            return {"state": e_ND}
        self.seen = (seen.text, seen.words, seen.text_mask, seen.vision, seen.vision_mask)
        return {"state": e_ND}


def test_heads_see_the_questions_text_and_the_frames_of_their_own_video(build):
    with registered("seeing", SeeingHead):
        model = tpo.apply_tpo(build(), tokenizer(), heads=["seeing"])
    pair = list(model.tpo.token_ids["seeing"])
    kinds = ("wide", "video", "text", "two", "video")
    given = batch(kinds, [[65, *pair, 66]] * 5)
    given["labels"] = given["labels"].masked_fill(given["labels"] == pair[1], -100)
    with torch.no_grad():
        model(**given)
        tower = model.get_vision_tower()(torch.cat([m if m.ndim == 4 else m[None] for m in given["images"]]))
        hidden = model.model(inputs_embeds=spliced(model, given)[4], attention_mask=spliced(model, given)[2])[0]
    head = model.tpo.heads["seeing"]
    text, words, text_mask, vision, vision_mask = head.seen
    embedded = model.get_input_embeddings().weight
    assert head.vision_size == 32
    assert vision_mask.sum(1).tolist() == [0, 4, 0, 0, 4]
    means = tower.mean(1)
    torch.testing.assert_close(vision[1], means[3:7])
    torch.testing.assert_close(vision[4], means[10:14])
    for row, kind in enumerate(kinds):
        question = tokenizer()(f"what is in this {kind}").input_ids
        assert text_mask[row].sum() == len(question)
        end = spliced_lengths(model, given)[row] - 4
        torch.testing.assert_close(text[row, : len(question)], hidden[row, end - len(question) : end])
        torch.testing.assert_close(words[row, : len(question)], embedded[question])
