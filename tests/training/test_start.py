"""The output rows of triggers start where a few steps can move them: by the formula, once, and the same however."""

import pytest
import tiny_run
import torch
import transformers

from tpo_plugin import TPOConfig, apply_tpo, wrap_trainer
from tpo_plugin.training.start import MARGIN, least_change

CONFIG = TPOConfig(loss_weights={"point": 0.0})


def sharp_host(num_rows, config=CONFIG):
    """A host whose words have logits far apart, as those of a model that has read much; with TPO."""
    tiny_run.install_head()
    model, tokenizer = tiny_run.tiny_host()
    model.resize_token_embeddings(num_rows)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)
        model.get_output_embeddings().weight[12:] = 0  # spare rows, whose logit is 0
    torch.manual_seed(0)
    return apply_tpo(model, tokenizer, heads=["point"], config=config), tokenizer


def trained(model, tokenizer, folder, **changes):
    """The losses of each step."""
    values = {"learning_rate": 0.0, "max_steps": 1} | changes
    samples = tiny_run.Samples(tokenizer, 8)
    trainer = wrap_trainer(transformers.Trainer)(
        model=model, args=tiny_run.arguments(folder, **values), train_dataset=samples, data_collator=tiny_run.collate
    )
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def states(model, tokenizer):
    """Of the batch of all samples, at the positions before a trigger and before other words: states and logits."""
    batch = tiny_run.collate(list(tiny_run.Samples(tokenizer, 8)))
    kept = []
    handle = model.tpo.host.head.register_forward_hook(lambda _, args, logits: kept.append((args[0], logits)))
    with torch.no_grad():
        model.eval()(**batch)
    handle.remove()
    hidden, logits = (value[:, :-1] for value in kept[0])
    labels, trigger = batch["labels"][:, 1:], model.tpo.token_ids["point"][0]
    return [(hidden[at], logits[at]) for at in (labels == trigger, (labels != -100) & (labels != trigger))]


@pytest.mark.parametrize("num_rows", [64, 12], ids=["spare rows", "grown"])
def test_a_trigger_starts_as_likely_as_the_words_at_its_place(num_rows, tmp_path):
    untouched, tokenizer = sharp_host(num_rows)
    trigger = untouched.tpo.token_ids["point"][0]
    (states_ND, logits), (other_states, others) = states(untouched, tokenizer)
    lack = logits.logsumexp(-1) - logits[:, trigger]
    assert lack.mean() > 8  # the trigger is out of sight

    model, tokenizer = sharp_host(num_rows)
    (entry,) = trained(model, tokenizer, tmp_path)
    rows = model.tpo.embeddings["point"]
    change = (rows.output - rows.untrained).detach()
    assert float(change @ states_ND.mean(0)) == pytest.approx(float(lack.mean()) + MARGIN, rel=0.1)
    assert abs(float(change @ other_states.mean(0))) < 0.1 * float(lack.mean())
    assert entry["loss_assign"] < 0.4 * lack.mean()
    (_, after), (_, others_after) = states(model, tokenizer)
    words = [column for column in range(others.shape[-1]) if column != trigger]
    assert torch.equal(after[:, words], logits[:, words])
    assert torch.equal(others_after[:, words], others[:, words])


def test_the_least_change_by_hand():
    labelled = torch.tensor(
        [2.0, 16.0, 6.0, 0.0, 0.0], dtype=torch.float64
    )  # two positions; a lack of 8, state (3, 0, 0)
    others = torch.tensor([1.0, 0.0, 0.0, 4.0, 0.0], dtype=torch.float64)
    # ridge 0.01 * (9 + 16) / 2 = 0.125: d = (10 * 3 / 9.125, 0, 0)
    assert least_change(labelled, others).tolist() == pytest.approx([30 / 9.125, 0, 0])
    assert least_change(labelled, torch.zeros_like(others)).tolist() == pytest.approx([30 / (9 + 0.045), 0, 0])
    assert least_change(torch.zeros_like(labelled), others) is None
    assert least_change(labelled * torch.nan, others) is None


def test_a_row_that_was_trained_or_stays_frozen_keeps_its_value(tmp_path):
    model, tokenizer = sharp_host(64)
    rows = model.tpo.embeddings["point"]
    trained(model, tokenizer, tmp_path / "first")
    started = rows.output.detach().clone()
    assert not torch.equal(started, rows.untrained)
    trained(model, tokenizer, tmp_path / "again")
    assert torch.equal(rows.output, started)

    copy, _ = sharp_host(64)
    copy.tpo.load_state_dict(model.tpo.state_dict())
    trained(copy, tokenizer, tmp_path / "loaded")
    assert torch.equal(copy.tpo.embeddings["point"].output, started)

    for frozen, weights in ((True, {}), (False, {"assign": 0.0})):
        other, _ = sharp_host(64, TPOConfig(loss_weights=weights))
        other.tpo.embeddings["point"].output.requires_grad_(not frozen)
        trained(other, tokenizer, tmp_path / f"frozen{frozen}")
        assert torch.equal(other.tpo.embeddings["point"].output, other.tpo.embeddings["point"].untrained)


def test_micro_batches_start_as_one_batch_does(tmp_path):
    rows = []
    for micro in (8, 2):
        model, tokenizer = sharp_host(64)
        sizes = {"per_device_train_batch_size": micro, "gradient_accumulation_steps": 8 // micro}
        trained(model, tokenizer, tmp_path / str(micro), **sizes)
        rows.append(model.tpo.embeddings["point"].output.detach())
    torch.testing.assert_close(*rows, rtol=1e-5, atol=1e-6)
