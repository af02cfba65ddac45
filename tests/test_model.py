"""One forward: its losses against slow computations, and what it refuses."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
import transformers
import zoo
from packaging.version import Version
from torch import Tensor
from torch.nn import functional as F

from tpo_plugin import HostError, TPOConfig, TPOError, apply_tpo, remove_tpo
from tpo_plugin.positions import IGNORE_INDEX, Counts, token_positions
from tpo_plugin.testing import tiny_host

LOSS_HOSTS = ["llama", "gemma2", "phi", "qwen2_vl"]  # plain, soft-capped, a head with bias, M-RoPE


def applied(name: str = "llama", config: TPOConfig | None = None, **changes: Any) -> Any:
    model = apply_tpo(zoo.host(name).build(**changes), zoo.tokenizer(), ["region"], config)
    zoo.talkative(model)
    return model


def batch_of(model: Any, name: str = "llama", **options: Any) -> dict[str, Any]:
    kind = zoo.host(name)
    return zoo.with_tasks(kind, model, zoo.example(kind, model), **options)


def targets(num: int = 4) -> dict[str, Any]:
    return {"region": {"boxes_xyxy": zoo.boxes(num)}}


def slow_losses(model: Any, batch: dict[str, Any], boxes_xyxy: Tensor) -> dict[str, float]:
    """The losses from logits and hidden states, one position at a time, with the definition of each."""
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    with torch.no_grad():
        out = model(**inputs, output_hidden_states=True)
    trigger, task = model.tpo.token_ids["region"]
    log_probs = out.logits.double().log_softmax(-1)
    terms: dict[str, list[float]] = {"mllm": [], "assign": [], "region": []}
    boxes = iter(boxes_xyxy.double())
    decoder = copy.deepcopy(model.tpo.heads["region"].decoder)
    for row, labels in enumerate(batch["labels"].tolist()):
        for column, label in enumerate(labels):
            if column and label != -100:
                kind = "assign" if label == trigger else "mllm"
                terms[kind].append(-log_probs[row, column - 1, label].item())
            if batch["input_ids"][row, column] == task:
                with torch.no_grad():
                    box = decoder(out.hidden_states[-1][row, column].float()).double()
                terms["region"].append(slow_region_loss(box.tolist(), next(boxes).tolist()))
    return {name: sum(values) / max(len(values), 1) for name, values in terms.items()}


def slow_region_loss(p: list[float], t: list[float]) -> float:
    """2 x mean |difference| + (1 - GIoU) / 5 for one valid box."""
    assert p[0] < p[2]
    assert p[1] < p[3]
    l1 = sum(abs(a - b) for a, b in zip(p, t, strict=True)) / 4
    width, height = max(0.0, min(p[2], t[2]) - max(p[0], t[0])), max(0.0, min(p[3], t[3]) - max(p[1], t[1]))
    overlap = width * height
    union = (p[2] - p[0]) * (p[3] - p[1]) + (t[2] - t[0]) * (t[3] - t[1]) - overlap
    hull = (max(p[2], t[2]) - min(p[0], t[0])) * (max(p[3], t[3]) - min(p[1], t[1]))
    return 2 * l1 + (1 - overlap / union + (hull - union) / hull) / 5


@pytest.mark.parametrize("name", LOSS_HOSTS)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_losses_equal_slow_computations(name: str, training: bool) -> None:
    weights = {"mllm": 0.5, "assign": 2.0, "region": 3.0}
    model = applied(name, TPOConfig(loss_weights=weights)).train(training)
    batch = batch_of(model, name)
    out = model(**batch, task_targets=targets())
    assert model.tpo.last_output is out.tpo
    slow = slow_losses(model, batch, zoo.boxes(4))
    assert {k: v.item() for k, v in out.tpo.losses.items()} == pytest.approx(slow, rel=1e-5)
    assert out.loss.item() == pytest.approx(sum(weights[k] * slow[k] for k in weights), rel=1e-5)
    assert out.tpo.host_loss.item() + out.tpo.plugin_loss.item() == pytest.approx(out.loss.item(), rel=1e-6)


@pytest.mark.parametrize("name", LOSS_HOSTS)
def test_a_batch_without_task_tokens_gives_the_hosts_loss(name: str) -> None:
    model = zoo.host(name).build()
    batch = zoo.example(zoo.host(name), model)
    labels = batch["input_ids"].clone()
    before = model(**batch, labels=labels).loss
    apply_tpo(model, zoo.tokenizer(), ["region"])
    for mode in (True, False):
        out = model.train(mode)(**batch, labels=labels)
        assert torch.equal(out.loss, before)
        assert torch.equal(out.tpo.losses["mllm"], before)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_the_loss_comes_first_in_an_output(weight: float) -> None:
    """Also where the host does not score at all."""
    model = applied("llama", TPOConfig(loss_weights={"mllm": weight})).train()
    batch = batch_of(model)
    out = model(**batch, task_targets=targets())
    assert out[0] is out.loss
    first = model(**batch, task_targets=targets(), return_dict=False)[0]
    torch.testing.assert_close(first, out.to_tuple()[0])


def test_an_answer_whose_only_label_is_a_trigger_is_finite() -> None:
    model = applied().train()
    batch = batch_of(model, num_tasks=1)
    trigger, _ = model.tpo.token_ids["region"]
    batch["labels"][batch["labels"] != trigger] = -100
    out = model(**batch, task_targets=targets(2))
    assert out.tpo.losses["mllm"] == 0
    out.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_a_trigger_in_column_0_has_no_loss() -> None:
    model = applied()
    batch = batch_of(model)
    batch["input_ids"][0, 0] = batch["labels"][0, 0] = model.tpo.token_ids["region"][0]
    out = model(**batch, task_targets=targets())
    assert out.tpo.losses["assign"].item() == pytest.approx(slow_losses(model, batch, zoo.boxes(4))["assign"], rel=1e-5)
    assert out.tpo.statistics["assign_total"] == 4


def test_counts_make_sums_over_the_whole_batch() -> None:
    """Micro-batches with the counts of all of them add up to the batch."""
    model = applied().train()
    batch, boxes = batch_of(model), zoo.boxes(4)
    whole = model(**batch, task_targets=targets())
    num_ordinary = int((batch["labels"][:, 1:] != -100).sum()) - 4
    counts = Counts(num_ordinary, 4, {"region": 4})
    total = 0.0
    for row in range(2):
        micro = {k: v[row : row + 1] for k, v in batch.items()}
        given = {"region": {"boxes_xyxy": boxes[2 * row : 2 * row + 2]}}
        model(**micro, task_targets=given, task_counts=counts)
        total += model.tpo.last_output.loss.item()
    assert total == pytest.approx(whole.loss.item(), rel=1e-5)


def test_num_items_in_batch_from_a_foreign_trainer_reaches_the_host() -> None:
    model = zoo.host("llama").build()
    batch = zoo.example(zoo.host("llama"), model)
    honoured = apply_tpo(model, zoo.tokenizer(), ["region"]).tpo.host.honours_num_items
    remove_tpo(model)
    if not honoured:
        pytest.skip("this transformers passes no num_items_in_batch")
    labels = batch["input_ids"]
    before = model(**batch, labels=labels, num_items_in_batch=100).loss
    apply_tpo(model, zoo.tokenizer(), ["region"]).train()
    assert torch.equal(model(**batch, labels=labels, num_items_in_batch=100).loss, before)
    with pytest.warns(UserWarning, match=r"train with wrap_trainer\(YourTrainer\)"):
        model(**batch_of(model), task_targets=targets(), num_items_in_batch=100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(**batch_of(model), task_targets=targets(), num_items_in_batch=100)  # said once
    model = applied("llama", TPOConfig(loss_weights={"region": 0})).train()
    with pytest.warns(UserWarning, match=r"train with wrap_trainer\(YourTrainer\)"):  # of the assignment loss too
        model(**batch_of(model), num_items_in_batch=100)


def test_call_and_forward_do_the_work_once() -> None:
    model = applied()
    batch = batch_of(model)
    called = model(**batch, task_targets=targets())
    direct = model.forward(**batch, task_targets=targets())
    assert torch.equal(called.loss, direct.loss)
    assert torch.equal(called.logits, direct.logits)
    assert set(direct.tpo.losses) == {"mllm", "assign", "region"}
    assert model.tpo.call is None


def test_positional_arguments_and_tuples() -> None:
    model = applied()
    batch = batch_of(model)
    expected = model(**batch, task_targets=targets()).loss
    assert torch.equal(
        model(batch["input_ids"], batch["attention_mask"], labels=batch["labels"], task_targets=targets()).loss,
        expected,
    )
    as_tuple = model(**batch, task_targets=targets(), return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert torch.equal(as_tuple[0], expected)
    assert set(model.tpo.last_output.losses) == {"mllm", "assign", "region"}


def test_given_positions_give_the_same() -> None:
    model = applied()
    batch = batch_of(model)
    positions = token_positions(batch["input_ids"], batch["labels"], model.tpo.tokens)
    expected = model(**batch, task_targets=targets()).loss
    assert torch.equal(model(**batch, task_targets=targets(), task_positions=positions).loss, expected)


def test_a_host_that_embeds_token_types_too() -> None:
    """gpt2 calls its embedding a second time: task tokens go into the first call alone."""
    model = applied("gpt2")
    batch = batch_of(model, "gpt2")
    types = torch.full_like(batch["input_ids"], 5)
    with torch.no_grad():
        ours = model(input_ids=batch["input_ids"], token_type_ids=types).logits
        embedded = model.get_input_embeddings()(batch["input_ids"])
        by_hand = model(inputs_embeds=embedded, token_type_ids=types).logits
    torch.testing.assert_close(ours, by_hand)


def test_predictions_and_inputs_of_the_region_head() -> None:
    """A box that the user gives stands in the prompt as an embedding, and gradients reach its encoder."""
    model = applied().train()
    batch = batch_of(model)
    batch["input_ids"][:, 3] = model.tpo.tokens["region"].input_id
    given = {"region": {"boxes_xyxy": zoo.boxes(2)}}
    out = model(**batch, task_inputs=given, task_targets=targets())
    other = model(**batch, task_inputs={"region": {"boxes_xyxy": zoo.boxes(2).flip(0)}}, task_targets=targets())
    assert out.tpo.predictions["region"].shape == (4, 4)
    assert not torch.equal(out.logits, other.logits)
    out.tpo.losses["region"].backward()
    assert all(p.grad.any() for p in model.tpo.heads["region"].encoder.parameters())


def test_predictions_without_labels() -> None:
    model = applied()
    batch = batch_of(model)
    del batch["labels"]
    out = model(**batch)
    assert out.tpo.predictions["region"].shape == (4, 4)
    assert out.loss is None
    assert not out.tpo.losses


def wrong(model: Any, batch: dict[str, Any], kind: str) -> dict[str, Any]:
    """A call that must be refused."""
    if kind == "too few":
        return batch | {"task_targets": targets(3)}
    if kind == "too many":
        return batch | {"task_targets": targets(5)}
    if kind == "none":
        return batch
    if kind == "head":
        return batch | {"task_targets": {"depth": {}}}
    batch["input_ids"][0, 3] = model.tpo.tokens["region"].input_id
    if kind == "no inputs":
        return batch | {"task_targets": targets()}
    return batch | {"task_targets": targets(), "task_inputs": {"region": {"boxes_xyxy": zoo.boxes(2)}}}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("too few", r"has 3 target\(s\), the batch has 4 task token\(s\) '<boxes>' \(they run out in row 1\)"),
        (
            "too many",
            r"has 5 target\(s\), the batch has 4 task token\(s\) '<boxes>' \(the last task token stands in row 1\)",
        ),
        ("none", r"has 0 target\(s\), the batch has 4 task token\(s\) '<boxes>' \(they run out in row 0\)"),
        ("head", r"task_targets has \['depth'\], which is not among the applied heads \['region'\]"),
        ("no inputs", r"1 input token\(s\) '<region_box>' of head 'region', and task_inputs\['region'\] is missing"),
        ("inputs", r"encodes 2 given value\(s\), the batch has 1 input token\(s\) '<region_box>'"),
    ],
)
def test_what_does_not_match_is_refused_and_the_next_forward_works(kind: str, message: str) -> None:
    model = applied().train()
    batch = batch_of(model)
    expected = model(**batch, task_targets=targets()).loss
    with pytest.raises(TPOError, match=message):
        model(**wrong(model, copy.deepcopy(batch), kind))
    assert model.tpo.call is None
    assert torch.equal(model(**batch, task_targets=targets()).loss, expected)


def test_a_host_that_raises_leaves_no_state() -> None:
    model = applied()
    with pytest.raises(Exception, match="specify exactly one of input_ids or inputs_embeds|cannot specify both"):
        model(input_ids=torch.tensor([[9]]), inputs_embeds=torch.zeros(1, 1, 32))
    assert model.tpo.call is None


def test_a_loss_that_never_calls_the_head_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = applied().train()
    batch = batch_of(model)
    monkeypatch.setattr(type(model.lm_head), "__call__", lambda self, x: F.linear(x, self.weight), raising=True)
    with pytest.raises(HostError, match="without calling its output embedding"):
        model(**batch, task_targets=targets())


@pytest.mark.parametrize("where", ["head", "logits"])
def test_such_a_loss_of_ordinary_chat_is_the_hosts(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Of Liger and its kin: the bare host's without its output embedding, and with it the host's without logits."""
    model = applied().train()
    batch = {"input_ids": torch.tensor([[9, 10, 11, 12]]), "labels": torch.tensor([[-100, 10, 11, 12]])}
    expected = (zoo.host("llama").build().train() if where == "head" else model)(**batch).loss
    if where == "head":
        monkeypatch.setattr(type(model.lm_head), "__call__", lambda self, x: F.linear(x, self.weight), raising=True)
    inner = model.forward.inner

    def without_logits(**kwargs: Any) -> Any:
        output = inner(**kwargs)
        output.logits = None
        return output

    monkeypatch.setattr(model.forward, "inner", without_logits)
    out = model(**batch)
    assert out.tpo.losses["assign"] == 0
    assert torch.equal(out.tpo.losses["mllm"], expected)
    out.loss.backward()
    trained = model.tpo.embeddings["region"].output.grad
    assert trained is not None
    assert trained.any() == (where == "logits")  # a row like any other where the output embedding runs


def test_training_that_cannot_learn_warns() -> None:
    model = applied().train()
    model.tpo.requires_grad_(False)
    with pytest.warns(UserWarning, match="nothing in model.tpo is trainable"):
        model(**batch_of(model), task_targets=targets())


def test_false_triggers_are_counted_in_evaluation() -> None:
    model = applied()
    batch = batch_of(model)
    out = model(**batch, task_targets=targets())
    trigger, _ = model.tpo.token_ids["region"]
    best, labels = out.logits[:, :-1].argmax(-1), batch["labels"][:, 1:]
    ordinary = (labels != -100) & (labels != trigger)
    assert out.tpo.statistics["false_triggers"] == (ordinary & (best == trigger)).sum()
    assert out.tpo.statistics["ordinary"] == ordinary.sum()
    assert out.tpo.statistics["assign_correct"] == ((labels == trigger) & (best == trigger)).sum()


def test_enabling_input_gradients_before_or_after_gives_the_same() -> None:
    found = []
    for order in ("never", "before", "after"):
        model = zoo.host("llama").build().requires_grad_(False)
        if order == "before":
            model.enable_input_require_grads()
        torch.manual_seed(0)
        apply_tpo(model, zoo.tokenizer(), ["region"]).train()
        if order == "after":
            model.enable_input_require_grads()
        model(**batch_of(model), task_targets=targets()).loss.backward()
        found.append({name: p.grad for name, p in model.tpo.named_parameters() if p.grad is not None})
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while it traces
@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "llava_onevision"])
def test_a_compiled_host_gives_the_same(name: str) -> None:
    model = applied(name)
    kind = zoo.host(name)
    prompt, batch = zoo.example(kind, model, media=kind.media is not None), batch_of(model, name)
    with torch.no_grad():
        expected = model(**prompt).logits, model(**batch, task_targets=targets()).loss
        compiled = torch.compile(model, backend="aot_eager")
        torch.testing.assert_close(compiled(**prompt).logits, expected[0])
        torch.testing.assert_close(compiled(**batch, task_targets=targets()).loss, expected[1])
    torch._dynamo.reset()


class _Passed(torch.autograd.Function):
    """The same memory as another tensor of the graph, as ZeRO-3 hands it to the modules."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient


def test_an_engine_that_wraps_the_inputs_of_modules_loses_no_gradient() -> None:
    found = []
    for wraps in (False, True):
        torch.manual_seed(0)
        model = applied().train()

        def wrapped(module: torch.nn.Module, args: tuple) -> tuple:
            return tuple(_Passed.apply(a) if isinstance(a, torch.Tensor) and a.requires_grad else a for a in args)

        handles = [m.register_forward_pre_hook(wrapped) for m in model.modules()] if wraps else []
        model(**batch_of(model), task_targets=targets()).loss.backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        for handle in handles:
            handle.remove()
    assert found[0].keys() == found[1].keys()
    assert found[0]["tpo.embeddings.region.output"].abs().max() > 0
    torch.testing.assert_close(found[1], found[0])


def test_inference_mode() -> None:
    model = applied()
    batch = batch_of(model)
    expected = model(**batch, task_targets=targets()).loss
    with torch.inference_mode():
        assert torch.equal(model(**batch, task_targets=targets()).loss, expected)


@pytest.mark.parametrize("supervised_logits", [False, "auto"])
def test_labels_that_are_the_ids_whole(supervised_logits: Any) -> None:
    """As many a loop has them: task and input tokens, which no model says, are left out of the host's loss."""
    model, tokenizer = tiny_host()
    model = apply_tpo(model, tokenizer, ["region"], config=TPOConfig(supervised_logits=supervised_logits))
    ids = model.tpo.tokenizer("<s> in <region_box> it is <box_begin> <boxes> here", return_tensors="pt").input_ids
    boxes = torch.tensor([[0.1, 0.2, 0.5, 0.6]])
    tasks = {"task_targets": {"region": {"boxes_xyxy": boxes}}, "task_inputs": {"region": {"boxes_xyxy": boxes}}}
    tokens = model.tpo.tokens["region"]
    said = ids.masked_fill((ids == tokens.task_id) | (ids == tokens.input_id), -100)
    assert (said != ids).sum() == 2
    whole, masked = (model(input_ids=ids, labels=labels, **tasks).tpo.losses for labels in (ids, said))
    assert whole["mllm"].item() < 10
    for name in ("mllm", "assign", "region"):
        torch.testing.assert_close(whole[name], masked[name], rtol=1e-6, atol=0)


@pytest.mark.skipif(Version(transformers.__version__) < Version("4.47"), reason="Llama takes no shift_labels")
def test_labels_that_were_shifted_already() -> None:
    """As sequence parallelism gives them beside the labels: triggers count in "assign" alone."""
    kind = zoo.host("llama")
    model = apply_tpo(kind.build(), zoo.tokenizer(), ["region"])
    batch, targets = zoo.with_tasks(kind, model, zoo.example(kind, model)), {"region": {"boxes_xyxy": zoo.boxes(4)}}
    shifted = F.pad(batch["labels"], (0, 1), value=IGNORE_INDEX)[:, 1:].contiguous()
    wanted = model(**batch, task_targets=targets).tpo.losses
    found = model(**batch, shift_labels=shifted, task_targets=targets).tpo.losses
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, msg=name)


def test_targets_of_embeddings_are_not_lost_in_evaluation() -> None:
    kind = zoo.host("llama")
    model = apply_tpo(kind.build(), zoo.tokenizer(), ["region"]).eval()
    batch = zoo.with_tasks(kind, model, zoo.example(kind, model))
    embeds = model.get_input_embeddings()(batch.pop("input_ids"))
    with pytest.raises(TPOError, match="task"):
        model(inputs_embeds=embeds, **batch, task_targets={"region": {"boxes_xyxy": zoo.boxes(4)}})
