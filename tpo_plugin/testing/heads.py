"""The conformance kit: what every task head must keep, checked on a tiny random host, on the CPU and without a network.

    class TestPoint(TaskHeadTests):
        head = "point"

        def make_targets(self, num):
            return {"points_xy": torch.rand(num, 2)}

        def make_task(self):
            return {"points_xy": [0.3, 0.7]}

A standard test that cannot hold for a head is overridden with `@pytest.mark.xfail(reason=…)`, and only so.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor, nn

from tpo_plugin.apply import apply_tpo, remove_tpo
from tpo_plugin.checkpoint import load_tpo
from tpo_plugin.codec import asks_for_samples
from tpo_plugin.config import HeadConfig, TPOConfig, config_from_dict
from tpo_plugin.data.format import RecordFormat
from tpo_plugin.data.records import parse_record
from tpo_plugin.errors import RecordError, TPOError
from tpo_plugin.head import TaskHead, build_head
from tpo_plugin.hookspecs import PROJECT
from tpo_plugin.plugins import THIS_PROCESS, HeadSpec, registry
from tpo_plugin.testing.checks import check_clean_process, check_outputs
from tpo_plugin.testing.neighbour import neighbour
from tpo_plugin.testing.tiny import (
    HIDDEN_SIZE,
    VISION_SIZE,
    logits_of,
    state_of,
    tiny_batch,
    tiny_features,
    tiny_host,
)

NUM_TARGETS = 3
TASK_TOKEN = "the task token"


class TaskHeadTests:
    """Subclass it as `Test…`, set `head` and write `make_targets`; pytest runs every standard test on that head."""

    head: str
    """The name that the head is registered under."""
    config: ClassVar[dict[str, Any]] = {}
    """Fields of the head's configuration that the tests are to use, where they are not the defaults."""
    heavy: ClassVar[Sequence[str]] = ()
    """Packages that importing the plugin must not import, for example ("torch", "sam2")."""

    def make_targets(self, num: int) -> dict[str, Any]:
        """Targets of `num` task tokens, 0 included, as the head's `collate_targets` makes them."""
        raise NotImplementedError(f"{type(self).__name__} must define make_targets(self, num)")

    def make_task(self) -> dict[str, Any]:
        """A task as it stands in a record, without its "head". The test of records is skipped where there is none.

        A head that collates media has its inputs from `make_inputs`, which the task must fit.
        """
        pytest.skip(f"{type(self).__name__} defines no make_task(self), so no record of the head is tested")

    def make_inputs(self, num: int) -> dict[str, Any] | None:
        """What `collate_inputs` makes for `num` task tokens and, if the head has an input token, `num` of those.

        They stand in a batch of two rows, which take them in turn.
        """
        return None

    def repeat_targets(self, targets: dict[str, Any]) -> dict[str, Any]:
        """`targets` twice over. By default tensors and lists are doubled; anything else is kept."""
        doubled = {Tensor: lambda value: torch.cat((value, value)), list: lambda value: value + value}
        return {key: doubled.get(type(value), lambda same: same)(value) for key, value in targets.items()}

    # -- 1 and 2: the plugin -------------------------------------------------------------------------------------------

    def test_found_by_entry_point(self) -> None:
        """The entry point brings the head into a clean process, and brings no package of the heavy list."""
        spec = self._spec()
        assert spec.plugin.distribution != THIS_PROCESS, (
            f"head {self.head!r} is registered in this process only; declare it in pyproject.toml, "
            f'[project.entry-points.{PROJECT}] {self.head} = "<its module>", and install the package'
        )
        check_clean_process(spec, self.heavy)

    def test_config_survives_json(self) -> None:
        """A configuration goes to JSON and back unchanged, and an unknown key is refused by its name."""
        cls = self._spec().config_class()
        assert issubclass(cls, HeadConfig), f"{cls.__name__} must derive from tpo_plugin.HeadConfig"
        undeclared = [name for name in vars(cls).get("__annotations__", {}) if name not in cls.__dataclass_fields__]
        assert not undeclared, f"{cls.__name__} needs @dataclass(kw_only=True): {undeclared} are no fields of it"
        config = self._config()
        values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
        for name, value in values.items():
            try:
                again = json.loads(json.dumps(value, allow_nan=False))
            except (TypeError, ValueError) as error:
                raise AssertionError(f"{cls.__name__}.{name} is {value!r}, which JSON cannot hold: {error}") from error
            assert again == value, f"{cls.__name__}.{name} is {value!r}, and {again!r} after JSON"
        assert config_from_dict(cls, values, where=self.head) == config, f"{cls.__name__} differs after JSON"
        with pytest.raises(TPOError, match="no_such_field"):
            config_from_dict(cls, {"no_such_field": 1}, where=self.head)

    # -- 3 and 4: outputs and losses -----------------------------------------------------------------------------------

    def test_outputs(self) -> None:
        """For 0, 1 and 3 task tokens: outputs of that length, finite, float32, and everything made from them."""
        head = self._head()
        for num in (0, 1, NUM_TARGETS):
            outputs = self._outputs(head, num)
            check_outputs(outputs, num)
            counted = head.count_targets(self.make_targets(num))
            assert counted == num, f"count_targets gives {counted} for make_targets({num})"
            values = head.postprocess(outputs)
            assert len(values) == num, f"postprocess gives {len(values)} values for {num} task tokens"
            score = head.score(outputs)
            if score is not None:
                assert score.shape == (num,), f"score is of shape {tuple(score.shape)}; expected ({num},)"
                assert ((score >= 0) & (score <= 1)).all(), f"score is {score}; expected 0 to 1"
            for value in values:
                json.dumps(head.to_json(value), allow_nan=False)

    def test_outputs_on_a_bfloat16_host(self) -> None:
        """On a bfloat16 host, the head still computes in float32."""
        model = self._apply(torch.bfloat16)
        for num in (0, 1, NUM_TARGETS):
            with torch.no_grad():
                out = self._run(model, {self.head: num})
            check_outputs(out.tpo.outputs[self.head], num)
            loss = out.tpo.losses[self.head]
            assert loss.dtype == torch.float32, f"the loss is {loss.dtype} on a bfloat16 host; expected float32"
            assert loss.isfinite(), f"the loss is {loss} on a bfloat16 host with {num} task tokens"

    def test_evaluation(self) -> None:
        """Metrics are finite and need no batch to be there; drawing leaves the picture that it is given alone."""
        head = self._head()
        metrics = head.metrics()
        metrics.compute()
        for num in (NUM_TARGETS, 0, 1):
            metrics.update(self._outputs(head, num), self.make_targets(num))
        computed = metrics.compute()
        assert computed, "metrics().compute() is empty after targets were added"
        assert all(math.isfinite(value) for value in computed.values()), f"metrics are not finite: {computed}"
        unknown = sorted(set(metrics.constant()) - set(computed))
        assert not unknown, f"metrics().constant() has {unknown}, and compute() only {sorted(computed)}"
        image = Image.new("RGB", (64, 48), "white")
        before = image.tobytes()
        drawn = head.draw(image, head.postprocess(self._outputs(head, 1))[0])
        assert drawn.size == image.size, f"draw gives a picture of size {drawn.size} for one of {image.size}"
        assert drawn is not image, "draw gives back the picture that it is given; expected a copy"
        assert image.tobytes() == before, "draw changes the picture that it is given; expected a copy"

    def test_losses(self) -> None:
        """Finite scalars `loss_*`: sums over targets / num_targets, and without targets zero but connected."""
        head = self._head()
        outputs, targets = self._outputs(head, NUM_TARGETS), self.make_targets(NUM_TARGETS)
        losses = head.loss(outputs, targets, NUM_TARGETS)
        assert losses, "loss gives no named loss"
        for name, value in losses.items():
            assert name.startswith("loss_"), f"a loss is named {name!r}; expected loss_*"
            assert value.dim() == 0, f"{name} is of shape {tuple(value.shape)}; expected a scalar"
            assert value.isfinite(), f"{name} is {value}"
            assert value.requires_grad, f"{name} is not connected to the head's outputs"
        for count in (2 * NUM_TARGETS, torch.tensor(2 * NUM_TARGETS)):
            for name, half in head.loss(outputs, targets, count).items():
                assert torch.allclose(2 * half, losses[name], rtol=1e-4, atol=1e-6), (
                    f"{name} is {losses[name]:.6g}, and {half:.6g} with twice the num_targets; expected half: divide a "
                    "sum by num_targets"
                )
        twice = {name: torch.cat((value, value)) for name, value in outputs.items()}
        for name, value in head.loss(twice, self.repeat_targets(targets), 2 * NUM_TARGETS).items():
            assert torch.allclose(value, losses[name], rtol=1e-4, atol=1e-6), (
                f"{name} is {losses[name]:.6g}, and {value:.6g} for the same targets twice with twice the num_targets; "
                "expected the same: sum over targets, take no mean"
            )
        for name, value in head.loss(self._outputs(head, 0), self.make_targets(0), 1).items():
            assert value == 0, f"{name} is {value} without targets; expected 0 (a mean over nothing is NaN: use sums)"
            assert value.requires_grad, f"{name} is not connected to the head without targets: sum its empty outputs"

    def test_records(self) -> None:
        """A record's task is checked, counted and collated without weights, and serves loss, metrics and drawing."""
        model, task = self._apply(), {"head": self.head} | self.make_task()
        format = RecordFormat.of(model.tpo)
        codec, tokens = format.codecs[self.head], format.tokens[self.head]
        turns = [{"from": "human", "value": "where"}, {"from": "gpt", "value": f"here <{self.head}>"}]
        record = parse_record({"conversations": turns, "tasks": [json.loads(json.dumps(task))]}, format)
        (task,), text = record.turns[1].tasks, record.turns[1].text
        num = codec.num_tokens(task)
        assert text == "here " + (tokens.trigger + tokens.task_token) * num, f"{num} token(s) stand as {text!r}"
        if codec.fields is not None:
            with pytest.raises(RecordError, match="no_such_field"):
                parse_record({"conversations": turns, "tasks": [task | {"no_such_field": 1}]}, format)
        targets = codec.collate_targets([task])
        counted = codec.count_targets(targets)
        assert counted == num, f"num_tokens gives {num} for a task, and count_targets {counted} for its targets"
        if not asks_for_samples(codec):
            codec.collate_inputs([task], [])
        loss = self._run(model, {self.head: num}, targets=targets).tpo.losses[self.head]
        assert loss.isfinite(), f"the loss of a record is {loss}"
        head = model.tpo.heads[self.head].eval()
        outputs, metrics = self._outputs(head, num), head.metrics()
        metrics.update(outputs, targets)
        computed = metrics.compute()
        assert all(math.isfinite(value) for value in computed.values()), f"metrics are not finite: {computed}"
        value = head.postprocess(outputs)[0]
        head.draw(Image.new("RGB", (64, 48), "white"), value, value)

    # -- 5 to 8: on a host ---------------------------------------------------------------------------------------------

    def test_gradients(self) -> None:
        """The loss reaches the task token and every trainable weight of the head, and thaws nothing that is frozen."""
        model = self._apply()
        frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
        self._run(model.train(), {self.head: NUM_TARGETS}).tpo.losses[self.head].backward()
        gradients = self._gradients(model)
        missing = [name for name, gradient in gradients.items() if gradient is None]
        assert not missing, f"no gradient reaches {missing}"
        size = {name: float(gradient.abs().sum()) for name, gradient in gradients.items() if gradient is not None}
        wrong = [name for name, value in size.items() if not math.isfinite(value)]
        assert not wrong, f"the gradient is not finite at {wrong}"
        assert size.pop(TASK_TOKEN) > 0, "the task token's gradient is zero"
        assert not size or any(size.values()), "every gradient of the head is zero"
        parameters = dict(model.named_parameters())
        thawed = [name for name in frozen if parameters[name].requires_grad or parameters[name].grad is not None]
        assert not thawed, f"frozen weights got gradients: {thawed}"

    def test_gradients_without_task_tokens(self) -> None:
        """A batch without the head's tokens gives zero gradients, not missing ones: other ranks may hold its tasks."""
        model = self._apply()
        out = self._run(model.train(), {self.head: 0})
        loss = out.tpo.losses[self.head]
        assert loss == 0, f"the head's loss is {loss} for a batch without its task tokens"
        out.tpo.loss.backward()
        for name, gradient in self._gradients(model).items():
            assert gradient is not None, f"the gradient of {name} is missing for an empty batch; expected zeros"
            assert (gradient == 0).all(), f"the gradient of {name} is not zero for an empty batch"

    def test_host_is_left_alone(self) -> None:
        """Without task tokens the host computes bit for bit what it did; after `remove_tpo` it is what it was."""
        model, tokenizer = tiny_host()
        model.get_input_embeddings().requires_grad_(False)
        batch = tiny_batch(tokenizer, [], [])
        before, logits = state_of(model, tokenizer), logits_of(model, batch)
        self._apply_to(model, tokenizer)
        assert torch.equal(logits_of(model, batch), logits), "applying the head changes the host's outputs"
        self._run(model.train(), {self.head: NUM_TARGETS}).loss.backward()
        model.eval()
        assert torch.equal(logits_of(model, batch), logits), "a forward with task tokens changes the host's outputs"
        remove_tpo(model)
        model.zero_grad()
        after = state_of(model, tokenizer)
        for part, value in before.items():
            assert after[part] == value, f"after remove_tpo the host's {part} differ from before apply_tpo"
        assert torch.equal(logits_of(model, batch), logits), "after remove_tpo the host's outputs differ"

    def test_save_and_load(self, tmp_path: Path) -> None:
        """A head with changed weights is the same bit for bit after saving and loading; the file holds nothing else."""
        model = self._apply()
        with torch.no_grad():
            for parameter in model.tpo.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        self._run(model.train(), {self.head: NUM_TARGETS})  # buffers such as running means move
        batch_inputs = self._inputs(NUM_TARGETS)
        outputs = self._run(model.eval(), {self.head: NUM_TARGETS}, batch_inputs).tpo.outputs[self.head]
        model.tpo.save_pretrained(tmp_path)
        allowed = tuple(f"{part}.{self.head}." for part in ("heads", "embeddings"))
        for file in tmp_path.glob("*.safetensors"):
            with safe_open(file, "pt") as saved:
                strange = [key for key in saved.keys() if not key.startswith(allowed)]  # noqa: SIM118
            assert not strange, f"{file.name} holds more than the head's and its tokens' weights: {strange}"
        host, tokenizer = tiny_host()
        loaded = load_tpo(host, tmp_path, tokenizer).eval()
        state: dict[str, Tensor] = model.tpo.state_dict()
        again: dict[str, Tensor] = loaded.tpo.state_dict()
        assert state.keys() == again.keys(), f"weights after loading: {set(state) ^ set(again)} differ in name"
        changed = [name for name, value in state.items() if not torch.equal(value, again[name])]
        assert not changed, f"weights differ after saving and loading: {changed}"
        for name, value in self._run(loaded, {self.head: NUM_TARGETS}, batch_inputs).tpo.outputs[self.head].items():
            assert torch.equal(value, outputs[name]), (
                f"output {name!r} differs after saving and loading: the head keeps state that is no parameter or buffer"
            )

    def test_beside_another_head(self) -> None:
        """Another head on the same host, with task tokens in the same batch, changes none of this head's outputs."""
        alone = self._apply()
        given = self._inputs(NUM_TARGETS), self.make_targets(NUM_TARGETS)
        expected = self._run(alone, {self.head: NUM_TARGETS}, *given).tpo
        with neighbour() as other:
            for order in ([self.head, other], [other, self.head]):
                model = self._apply(heads=order)
                model.tpo.heads[self.head].load_state_dict(alone.tpo.heads[self.head].state_dict())
                model.tpo.embeddings[self.head].load_state_dict(alone.tpo.embeddings[self.head].state_dict())
                for num in (0, NUM_TARGETS):
                    result = self._run(model, {self.head: NUM_TARGETS, other: num}, *given).tpo
                    where = f"with heads={order} and {num} task tokens of {other!r} in the batch"
                    for name, value in expected.outputs[self.head].items():
                        assert torch.equal(result.outputs[self.head][name], value), f"output {name!r} differs {where}"
                    loss = result.losses[self.head]
                    assert torch.equal(loss, expected.losses[self.head]), f"the loss differs {where}"

    def test_in_threads(self) -> None:
        """Threads that use one head at once, as those of `tpo serve` do, get what each gets alone."""
        head, inputs = self._head(), {num: self.make_inputs(num) for num in (1, NUM_TARGETS)}
        alone = {num: self._outputs(head, num, given) for num, given in inputs.items()}
        nums = [*inputs] * 8
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda num: self._outputs(head, num, inputs[num]), nums))
        for num, outputs in zip(nums, found, strict=True):
            for name, value in outputs.items():
                torch.testing.assert_close(value, alone[num][name], msg=f"output {name!r} differs among threads")

    # -- 9: the kit ----------------------------------------------------------------------------------------------------

    def test_no_standard_test_is_overridden(self) -> None:
        """A standard test may be overridden only as an expected failure, with its reason."""
        for name, standard in vars(TaskHeadTests).items():
            own = getattr(type(self), name)
            if not name.startswith("test_") or own is standard:
                continue
            marks = [mark for mark in getattr(own, "pytestmark", []) if mark.name == "xfail"]
            assert any(mark.kwargs.get("reason") for mark in marks), (
                f"{type(self).__name__} overrides {name}; remove that, or mark it @pytest.mark.xfail(reason=...)"
            )

    # -- helpers -------------------------------------------------------------------------------------------------------

    def _spec(self) -> HeadSpec:
        return registry().head(self.head)

    def _config(self) -> HeadConfig:
        return config_from_dict(self._spec().config_class(), self.config, where=f"config of {type(self).__name__}")

    def _head(self) -> TaskHead:
        torch.manual_seed(0)
        cls = self._spec().head_class()
        assert issubclass(cls, TaskHead), f"{cls.__name__} must derive from tpo_plugin.TaskHead"
        return build_head(self._spec(), self._config(), HIDDEN_SIZE, lambda: VISION_SIZE).eval()

    def _outputs(self, head: TaskHead, num: int, inputs: dict[str, Any] | None = None) -> dict[str, Tensor]:
        e_ND = torch.randn(num, HIDDEN_SIZE, generator=torch.Generator().manual_seed(num)).requires_grad_()
        batch_rows = torch.arange(num).remainder(2).sort().values
        inputs = self.make_inputs(num) if inputs is None else inputs
        options = {"inputs": inputs, "batch_rows": batch_rows, "seen": tiny_features(batch_rows)}
        asked = inspect.signature(head.forward).parameters
        return head(e_ND, **{name: value for name, value in options.items() if name in asked})

    def _inputs(self, num: int) -> dict[str, Any]:
        inputs = self.make_inputs(num)
        return {} if inputs is None else {self.head: inputs}

    def _apply(self, dtype: torch.dtype = torch.float32, heads: list[str] | None = None) -> Any:
        model, tokenizer = tiny_host(dtype)
        return self._apply_to(model.requires_grad_(False), tokenizer, heads=heads)

    def _apply_to(self, model: nn.Module, tokenizer: Any, heads: list[str] | None = None) -> Any:
        torch.manual_seed(0)
        config = TPOConfig(heads={self.head: dict(self.config)})
        return apply_tpo(model, tokenizer, heads=heads or [self.head], config=config)

    def _run(
        self,
        model: Any,
        num: dict[str, int],
        task_inputs: dict[str, Any] | None = None,
        targets: dict[str, Any] | None = None,
    ) -> Any:
        """One forward with labels and targets for that many task tokens of each head, this head's first."""
        own = num[self.head]
        if task_inputs is None:
            task_inputs = self._inputs(own)
        task_targets = {name: {"value": torch.ones(count, 1)} for name, count in num.items()}
        task_targets[self.head] = self.make_targets(own) if targets is None else targets
        pairs = [model.tpo.token_ids[name] for name, count in num.items() for _ in range(count)]
        input_id = model.tpo.tokens[self.head].input_id
        given = [input_id] * own if input_id is not None and task_inputs else []
        batch = tiny_batch(model.tpo.tokenizer, pairs, given)
        return model(**batch, task_inputs=task_inputs, task_targets=task_targets)

    def _gradients(self, model: Any) -> dict[str, Tensor | None]:
        found = {name: p.grad for name, p in model.tpo.heads[self.head].named_parameters() if p.requires_grad}
        return found | {TASK_TOKEN: model.tpo.embeddings[self.head].task.grad}
