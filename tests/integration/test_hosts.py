"""What TPO promises, on every kind of host in the zoo, with text alone and with images or video."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import zoo
from torch import Tensor, nn

from tpo_plugin import TPOError, apply_tpo, load_tpo, remove_tpo

CASES = [pytest.param(host, False, id=host.name) for host in zoo.HOSTS]
CASES += [pytest.param(host, True, id=f"{host.name}-media") for host in zoo.HOSTS if host.media]
KINDS = [pytest.param(host, id=host.name) for host in zoo.HOSTS]


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> zoo.TinyHost:
    host: zoo.TinyHost = request.param
    if host.missing:
        pytest.skip(f"transformers {transformers.__version__} has no {host.model_class}")
    return host


def forward(model: nn.Module, batch: dict[str, Any]) -> Any:
    with torch.no_grad():
        return model(**batch)


cases = pytest.mark.parametrize(("kind", "media"), CASES, indirect=["kind"])
kinds = pytest.mark.parametrize("kind", KINDS, indirect=True)


@cases
def test_nothing_changes_without_task_tokens(kind: zoo.TinyHost, media: bool) -> None:
    model = kind.build()
    batch = zoo.example(kind, model, media=media)
    labels = batch["input_ids"].masked_fill(batch["input_ids"] < zoo.FIRST_WORD, -100)
    before = forward(model, batch | {"labels": labels})
    options = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": list(range(zoo.NUM_WORDS, zoo.NUM_ROWS))}
    options["suppress_tokens"] += zoo.MEDIA
    answer = model.generate(**batch, **options)
    apply_tpo(model, zoo.tokenizer(), ["region"])
    after = forward(model, batch | {"labels": labels})
    assert model.tpo.growth is None
    assert before.logits.std() > 0.1
    assert torch.equal(after.logits, before.logits)
    assert torch.equal(after.loss, before.loss)
    assert after.loss.dtype == before.loss.dtype
    assert torch.equal(model.generate(**batch, **options), answer)


@cases
def test_gradients_reach_everything_of_ours(kind: zoo.TinyHost, media: bool) -> None:
    model = kind.build().requires_grad_(False)
    apply_tpo(model, zoo.tokenizer(), ["region"]).train()
    batch = zoo.with_tasks(kind, model, zoo.example(kind, model, media=media))
    out = model(**batch, task_targets={"region": {"boxes_xyxy": zoo.boxes(4)}})
    assert set(out.tpo.losses) == {"mllm", "assign", "region"}
    assert all(loss.requires_grad and loss.dtype == torch.float32 for loss in out.tpo.losses.values())
    out.tpo.losses["region"].backward(retain_graph=True)
    rows = model.tpo.embeddings["region"]
    assert rows.task.grad.any()
    assert rows.trigger.grad.any()
    assert rows.output.grad is None
    assert all(p.grad.any() for p in model.tpo.heads["region"].decoder.parameters())
    out.tpo.losses["assign"].backward()
    assert rows.output.grad.any()


@cases
def test_training_without_a_task_gives_zero_gradients(kind: zoo.TinyHost, media: bool) -> None:
    model = kind.build().requires_grad_(False)
    apply_tpo(model, zoo.tokenizer(), ["region"]).train()
    batch = zoo.example(kind, model, media=media)
    labels = batch["input_ids"].masked_fill(batch["input_ids"] < zoo.FIRST_WORD, -100)
    model(**batch, labels=labels, task_targets={}).loss.backward()
    learned = {name: p.grad for name, p in model.tpo.named_parameters()}
    assert all(gradient is not None for gradient in learned.values()), learned
    assert learned.pop("embeddings.region.output").any()  # pushed down at ordinary words
    assert not any(gradient.any() for gradient in learned.values())


@cases
def test_batch_generation_equals_row_by_row(kind: zoo.TinyHost, media: bool, echo: str) -> None:
    # In transformers 4 the prefill of PaliGemma sees ahead. A task token that ends the answer needs the replay, which
    # there is not what decoding would give: a known gap, and the only one.
    sees_ahead = kind.prefix_lm and transformers.__version__.startswith("4.")
    model = kind.build()
    apply_tpo(model, zoo.tokenizer(), ["region", echo])
    zoo.talkative(model)
    batch = zoo.example(kind, model, 3, media=media, padded=True)
    options = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": None, "suppress_tokens": zoo.MEDIA}
    together = model.tpo.generate(**batch, **options)
    assert sum(map(len, together.predictions)) >= 2
    for row, predictions in enumerate(together.predictions):
        one = zoo.row_of(kind, batch, row)
        alone = model.tpo.generate(**one, **options)
        padding = together.sequences.shape[1] - alone.sequences.shape[1]
        assert torch.equal(together.sequences[row, padding:], alone.sequences[0])
        assert len(predictions) == len(alone.predictions[0])
        slow = slow_states(kind, model, one, alone.sequences)
        for ours, theirs in zip(predictions, alone.predictions[0], strict=True):
            assert (ours.head, ours.position, ours.cut_off) == (theirs.head, theirs.position + padding, theirs.cut_off)
            assert ours.score == pytest.approx(theirs.score, abs=1e-4)
            if ours.cut_off:
                assert ours.value is None
                continue
            if sees_ahead and ours.position == together.sequences.shape[1] - 1:
                continue
            torch.testing.assert_close(ours.value, theirs.value, atol=1e-4, rtol=1e-4)
            if ours.head == echo:
                torch.testing.assert_close(theirs.value, slow[theirs.position], atol=1e-4, rtol=1e-4)


def slow_states(kind: zoo.TinyHost, model: Any, prompt: dict[str, Tensor], sequences: Tensor) -> Tensor:
    """What reaches the output embedding, [T, D], for a finished answer to an unpadded prompt, in one full forward."""
    batch = zoo.extended(kind, prompt, sequences[:, prompt["input_ids"].shape[1] :])
    if hasattr(model, "get_rope_index") and not hasattr(model.model, "get_rope_index"):
        # transformers 4.45 finds these positions only when it generates
        names = ("input_ids", "image_grid_thw", "video_grid_thw", "attention_mask")
        batch["position_ids"], _ = model.get_rope_index(*(batch.get(name) for name in names))
    if kind.prefix_lm:  # transformers 4 reads token types only where there are labels
        batch["labels"] = batch["input_ids"]
    seen = []
    handle = model.get_output_embeddings().register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    forward(model, batch)
    handle.remove()
    return seen[0][0]


@kinds
def test_remove_puts_everything_back(kind: zoo.TinyHost) -> None:
    model, tokenizer = kind.build(), zoo.tokenizer()
    forward(model, zoo.example(kind, model))
    before = zoo.snapshot(model, tokenizer)
    apply_tpo(model, tokenizer, ["region"])
    model(
        **zoo.with_tasks(kind, model, zoo.example(kind, model)), task_targets={"region": {"boxes_xyxy": zoo.boxes(4)}}
    )
    assert remove_tpo(model) is model
    after = zoo.snapshot(model, tokenizer)
    for part, value in before.items():
        assert after[part] == value, part


@kinds
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_grown_vocabulary_shrinks_back(kind: zoo.TinyHost, tied: bool) -> None:
    model, tokenizer = kind.build(tie_word_embeddings=tied, vocab_size=zoo.NUM_WORDS), zoo.tokenizer()
    batch = zoo.example(kind, model)
    logits = forward(model, batch).logits
    before = zoo.snapshot(model, tokenizer)
    apply_tpo(model, tokenizer, ["region"])
    if model.tpo.growth is None:
        pytest.skip(f"{kind.model_class} has more rows than words")  # mllama, tied, in transformers 4
    assert model.tpo.growth.old_size == zoo.NUM_WORDS
    grown = forward(model, batch).logits
    torch.testing.assert_close(grown[..., : zoo.NUM_WORDS], logits)
    trigger, _ = model.tpo.token_ids["region"]
    unused = [i for i in range(zoo.NUM_WORDS, grown.shape[-1]) if i != trigger]
    assert grown[..., unused].max() <= grown[..., : zoo.NUM_WORDS].min()
    out = model(**zoo.with_tasks(kind, model, batch), task_targets={"region": {"boxes_xyxy": zoo.boxes(4)}})
    out.loss.backward()
    assert out.loss.isfinite()
    remove_tpo(model).zero_grad()
    after = zoo.snapshot(model, tokenizer)
    for part, value in before.items():
        assert after[part] == value, part
    assert torch.equal(forward(model, batch).logits, logits)


@kinds
def test_a_failure_in_the_middle_leaves_the_host_untouched(kind: zoo.TinyHost, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = kind.build(), zoo.tokenizer()
    before = zoo.snapshot(model, tokenizer)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("stop here")

    monkeypatch.setattr("tpo_plugin.hooks.Hooks.attach", fail)
    with pytest.raises(RuntimeError, match="stop here"):
        apply_tpo(model, tokenizer, ["region"])
    after = zoo.snapshot(model, tokenizer)
    for part, value in before.items():
        assert after[part] == value, part


@kinds
def test_save_and_load_bit_for_bit(kind: zoo.TinyHost, tmp_path: Path) -> None:
    model = apply_tpo(kind.build(), zoo.tokenizer(), ["region"])
    zoo.talkative(model)
    batch = zoo.with_tasks(kind, model, zoo.example(kind, model))
    targets = {"region": {"boxes_xyxy": zoo.boxes(4)}}
    before = forward(model, batch | {"task_targets": targets})
    model.tpo.save_pretrained(tmp_path)
    loaded = load_tpo(kind.build(), tmp_path)
    after = forward(loaded, batch | {"task_targets": targets})
    for name, value in model.tpo.state_dict().items():
        assert torch.equal(loaded.tpo.state_dict()[name], value), name
    assert torch.equal(after.logits, before.logits)
    assert torch.equal(after.loss, before.loss)
    assert torch.equal(after.tpo.predictions["region"], before.tpo.predictions["region"])


@kinds
def test_half_precision_keeps_the_heads_in_full(kind: zoo.TinyHost) -> None:
    model = kind.build().to(torch.bfloat16)
    batch = zoo.example(kind, model)
    before = forward(model, batch).logits
    apply_tpo(model, zoo.tokenizer(), ["region"]).train()
    assert torch.equal(forward(model.eval(), batch).logits, before)
    out = model.train()(**zoo.with_tasks(kind, model, batch), task_targets={"region": {"boxes_xyxy": zoo.boxes(4)}})
    out.loss.backward()
    assert out.loss.dtype == torch.float32
    assert out.loss.isfinite()
    assert {p.dtype for p in model.to(torch.bfloat16).tpo.parameters()} == {torch.float32}
    assert out.tpo.predictions["region"].dtype == torch.float32


@kinds
@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non-reentrant"])
def test_gradient_checkpointing_gives_the_same_gradients(kind: zoo.TinyHost, reentrant: bool) -> None:
    model = kind.build().requires_grad_(False)
    if not model.supports_gradient_checkpointing:
        pytest.skip(f"{kind.model_class} has no gradient checkpointing")
    apply_tpo(model, zoo.tokenizer(), ["region"]).train()
    batch = zoo.with_tasks(kind, model, zoo.example(kind, model))
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        model.zero_grad()
        model(**batch, task_targets={"region": {"boxes_xyxy": zoo.boxes(4)}}).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.tpo.named_parameters() if p.grad is not None})
    torch.testing.assert_close(gradients[1], gradients[0])


@kinds
def test_targets_that_do_not_match_are_refused(kind: zoo.TinyHost) -> None:
    model = apply_tpo(kind.build(), zoo.tokenizer(), ["region"])
    batch = zoo.with_tasks(kind, model, zoo.example(kind, model))
    with pytest.raises(
        TPOError, match=r"has 3 target\(s\), the batch has 4 task token\(s\) '<boxes>' \(they run out in row 1\)"
    ):
        model(**batch, task_targets={"region": {"boxes_xyxy": zoo.boxes(3)}})
    assert model.tpo.call is None
