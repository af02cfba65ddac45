"""Handles on a host, which tell the step in progress what happens; each thread has its own.

A host's embedding or output embedding may be called without any forward of the host in progress: from within, or when
a backward runs a checkpointed part once more, on a GPU in another thread. Then a step of its own stands in.
"""

from __future__ import annotations

import functools
import inspect
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from tpo_plugin.errors import TPOError
from tpo_plugin.fused import FusedForward
from tpo_plugin.host.base import Host, tables
from tpo_plugin.host.follow import can_look_again, check_untouched, followed, looked_again, moved
from tpo_plugin.host.idle import IdleTowers
from tpo_plugin.host.towers import last_layer
from tpo_plugin.losses import TPOOutput
from tpo_plugin.positions import split_labels
from tpo_plugin.retain import run_host_alone
from tpo_plugin.seen import Seen, tower_grid
from tpo_plugin.session import Session
from tpo_plugin.step import FORWARD_ARGUMENTS, Step, TaskArguments, step_of_batch
from tpo_plugin.tasks import Tasks
from tpo_plugin.trial import SupervisedLogits, without_unwanted_loss

_is_exporting = getattr(torch.compiler, "is_exporting", bool)
"""Whether `torch.export` is tracing; older releases do not say it."""

Arguments = tuple[Any, ...]
"""Of a module's forward, by position."""

_REHOOKING = threading.RLock()
"""Held while a host's hooks are put elsewhere."""


class InProgress(threading.local):
    """What one thread is doing with a model. In a copy of the model nothing is."""

    step: Step | None = None
    session: Session | None = None
    inner: Step | None = None
    """During a generation, the forward of a part of the host that generates in its place (Kosmos-2's text model)."""
    aside: bool = False
    """Whether the host runs as if it had no TPO, for a dry run or to embed pieces of rows."""
    last_output: TPOOutput | None = None
    last_generated: Any = None
    told: Callable[[Step, Tensor, Tensor], None] | None = None
    """What is told of each run of the output embedding: its step, input and logits."""
    offered: TaskArguments | None = None
    """What a trainer gave for its next forward, where a hook of its codebase may drop it on the way."""

    @contextmanager
    def offering(self, given: TaskArguments) -> Iterator[None]:
        """This thread's next forward is given this, unless it has arguments of ours."""
        self.offered = given
        try:
            yield
        finally:
            self.offered = None

    @contextmanager
    def running(self, step: Step) -> Iterator[None]:
        """This thread runs `step`."""
        before, self.step = self.step, step
        try:
            yield
        finally:
            self.step = before

    @contextmanager
    def generating(self, session: Session) -> Iterator[None]:
        """This thread generates."""
        if self.session is not None:
            raise TPOError("model.tpo.generate was called while it was generating; a session is one generation")
        self.session = session
        try:
            yield
        finally:
            self.session = self.inner = None

    @contextmanager
    def telling(self, told: Callable[[Step, Tensor, Tensor], None]) -> Iterator[None]:
        """Inside, this is told of each run of the output embedding in this thread."""
        self.told = told
        try:
            yield
        finally:
            self.told = None

    @contextmanager
    def standing_aside(self) -> Iterator[None]:
        """This thread runs the host, or a part of it, as if it had no TPO."""
        before, self.aside = self.aside, True
        try:
            yield
        finally:
            self.aside = before

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        return type(self), ()


class Hooks:
    """The hooks of one host, and for each thread what they tell."""

    def __init__(self, model: nn.Module, host: Host, tasks: Tasks) -> None:
        self.model, self.tasks = model, tasks
        self.host = host
        """Its hook points; others after PEFT has wrapped one of them."""
        self.now = InProgress()
        self.idle = IdleTowers(model, tasks.processor)
        self._supervised = SupervisedLogits()
        self._fused = FusedForward(model, tasks)
        self._handles: list[Any] = []
        self._warned: set[str] = set()

    # -- on and off ----------------------------------------------------------------------------------------------------

    def attach(self) -> None:
        """Hooks the host's modules."""
        host = self.host
        handles = [
            table.register_forward_hook(self._embedded, with_kwargs=True, prepend=True)
            for table in tables(self.model, host.embed)
        ]
        self._handles = handles
        handles.append(host.head.register_forward_hook(self._logits))
        handles += host.attach(self.model)
        if self.tasks.special_ids is not None:
            layers = [layer for layer in map(last_layer, host.towers) if layer is not None]
            handles += [layer.register_forward_hook(self._tower_layer) for layer in layers]
            handles += [tower.register_forward_hook(self._tower, with_kwargs=True) for tower in host.towers]
        if host.hidden is not None:
            handles.append(host.hidden.register_forward_hook(self._hidden))
        handles.append(host.head.register_forward_pre_hook(self._entering_head))
        self._handles = [*handles, *self._fused.attach()]

    def detach(self) -> None:
        """Takes the hooks off the host."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    # -- events --------------------------------------------------------------------------------------------------------

    @torch.compiler.disable
    def _embedded(self, module: nn.Module, args: Arguments, kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
        ids = args[0] if args else next(iter(kwargs.values()), None)
        if not isinstance(ids, Tensor) or ids.dim() == 0 or ids.is_floating_point() or ids.numel() == 0:
            return None
        if self.now.aside:
            return None
        if self.now.step is None and self.now.session is not None:
            self.now.inner = self.now.session.step()
        return self._step.embedded(ids, output)

    @torch.compiler.disable
    def _hidden(self, module: nn.Module, args: Arguments, output: Tensor) -> None:
        self._step.hidden(output)

    @torch.compiler.disable
    def _entering_head(self, module: nn.Module, args: Arguments) -> tuple[Any, ...] | None:
        narrowed = self._step.entering_head(args[0])
        return None if narrowed is None else (narrowed, *args[1:])

    @torch.compiler.disable
    def _logits(self, module: nn.Module, args: Arguments, logits: Tensor) -> None:
        step = self._step
        step.logits(args[0], logits)
        if self.now.told is not None:
            self.now.told(step, args[0], logits)
        if step is self.now.inner:  # nothing else says when it ends
            step.finish(None)
            self.now.inner = None

    @torch.compiler.disable
    def _tower(self, module: nn.Module, args: Arguments, kwargs: dict[str, Any], output: Any) -> None:
        if self._seen is not None:
            self._seen.keep_tower(output, tower_grid(args, kwargs))

    @torch.compiler.disable
    def _tower_layer(self, module: nn.Module, args: Arguments, output: Any) -> None:
        if self._seen is not None:
            self._seen.layer_output = output

    @property
    def _step(self) -> Step:
        return self.now.step or self.now.inner or Step(self.tasks, self.host, self.now.offered)

    @property
    def _seen(self) -> Seen | None:
        """Also between the forwards of a generation: a host may run its tower before the first."""
        if self.now.step is not None:
            return self.now.step.seen
        return None if self.now.session is None else self.now.session.prompt.seen

    # -- in progress ---------------------------------------------------------------------------------------------------

    @torch.compiler.disable(recursive=False)
    def forward(self, inner: Callable[..., Any], args: Arguments, kwargs: dict[str, Any]) -> Any:
        """The host's forward, `inner`, with TPO. Whatever raises, nothing stays in progress."""
        if self.now.aside or self.now.step is not None:
            return inner(*args, **kwargs)
        step, kwargs = self._begin(inner, args, kwargs)
        with _idling(self) if step.idle_media else nullcontext():
            run_host_alone(self.model, step, inner, kwargs, self.now.running)
            with self.now.running(step):
                return self._finish(step, inner(**kwargs))

    def splice(
        self,
        input_ids_BT: Tensor,
        labels_BT: Tensor | None,
        splice: Callable[[Tensor], tuple[Tensor | None, Tensor | None]],
        spans: list[list[tuple[int, int]]] | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Follows a host that makes embeddings of another length, with media features between those of its text.

        `splice(payload_BT)` makes them: it passes `payload` in the place of labels and gives the embeddings [B, S, E],
        None where the host does not splice, and the spliced payload [B, S], negative where no text token stands.
        Returns the embeddings with our rows, and the spliced labels, as `Step.spliced`.
        """
        step = self.now.step
        if step is None:
            step = self._step if self.now.session is None else self.now.session.step()
        payload = torch.arange(input_ids_BT.numel(), device=input_ids_BT.device).view(input_ids_BT.shape)
        with self.now.running(step), self.now.standing_aside():
            embeds_BSE, source_BS = splice(payload)
        if embeds_BSE is None or source_BS is None:
            return embeds_BSE, labels_BT
        return step.spliced(input_ids_BT, labels_BT, embeds_BSE, source_BS, spans)

    # -- the two ends of a forward -------------------------------------------------------------------------------------

    @torch.compiler.disable
    def _finish(self, step: Step, output: Any) -> Any:
        output = step.finish(output)
        if step.result is None:
            return output
        self.now.last_output = step.result
        learns = self.tasks.training and step.result.loss is not None
        if learns and step.given.task_counts is None and not any(p.requires_grad for p in self.tasks.parameters()):
            self.warn_once(
                "nothing in model.tpo is trainable (get_peft_model freezes it): the heads and task tokens will not "
                "learn; use wrap_trainer, or call model.tpo.requires_grad_(True) after get_peft_model"
            )
        return output

    def warn_once(self, message: str) -> None:
        """A warning that this model gives once."""
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, stacklevel=6)

    @torch.compiler.disable
    def _begin(self, inner: Callable[..., Any], args: Arguments, kwargs: dict[str, Any]) -> tuple[Step, dict[str, Any]]:
        """The step of a forward with these arguments, and what of them is the host's."""
        if args:
            names = [n for n, p in inspect.signature(inner).parameters.items() if p.kind is not p.VAR_KEYWORD]
            kwargs = dict(zip(names, args, strict=False)) | kwargs
        given, offered = TaskArguments.taken(kwargs, list(self.tasks.heads)), self.now.offered
        if offered is not None:
            self.now.offered, given = None, offered if given == TaskArguments() else given
        check_untouched(self.model, self.tasks)
        if moved(self.model, self.host):
            self._rehook(
                lambda: followed(self.model, self.host, self.tasks.num_ids), lambda: moved(self.model, self.host)
            )
        if can_look_again(self.host, kwargs):
            self._rehook(lambda: looked_again(self.model, self.host, kwargs), lambda: bool(self.host.unseen))
        if self.now.session is not None:
            return self.now.session.step(), kwargs
        labels = kwargs.get("labels")
        input_ids = self.host.ids_of(self.model, kwargs, self.tasks.tokens)
        if input_ids is not None and not len(input_ids):
            raise TPOError(f"the batch is empty: its ids have the shape {list(input_ids.shape)}; expected rows")
        step = step_of_batch(self.tasks, self.host, given, input_ids, labels)
        if step.labels is not None:
            kwargs["labels"] = step.labels.of_host(self.tasks.tokens)
            if kwargs.get("shift_labels") is not None:
                kwargs["shift_labels"] = split_labels(kwargs["shift_labels"], self.tasks.tokens)
            _normalise(self, kwargs, step, step.labels.whole.device)
            kwargs = self._supervised.arguments(self.model, step, kwargs, inner, self.now.running)
            kwargs = without_unwanted_loss(self.model, step, kwargs)
        return step, kwargs

    def _rehook(self, find: Callable[[], Host], stale: Callable[[], bool]) -> None:
        """Puts the hooks where `find` says, unless another thread was faster."""
        with _REHOOKING:
            if not stale():
                return
            self.detach()
            try:
                with self.now.standing_aside():
                    self.host = find()
            finally:
                self.attach()


def _normalise(hooks: Hooks, kwargs: dict[str, Any], step: Step, device: torch.device) -> None:
    """Has the host divide its loss by the labels that are left for it."""
    given = step.given
    counted = given.task_targets or (step.positions is not None and step.positions.labels)
    if given.task_counts is not None:
        kwargs.pop("num_items_in_batch", None)
        if hooks.host.honours_num_items:
            kwargs["num_items_in_batch"] = torch.as_tensor(given.task_counts.mllm, device=device)
    elif kwargs.get("num_items_in_batch") is not None and hooks.tasks.training and counted:
        hooks.warn_once(
            "a trainer passes num_items_in_batch, but not the counts of the other losses, so they are means over "
            "the micro-batch: train with wrap_trainer(YourTrainer), which weights them over the whole step"
        )


@contextmanager
def _idling(hooks: Hooks) -> Iterator[None]:
    """Inside, vision towers run idle behind the input embedding, and behind what an engine hooked to that."""

    def run(*_: Any) -> None:
        step = hooks.now.step
        if step is not None and step.idle_media:
            kinds, step.idle_media = step.idle_media, ()
            step.idle = hooks.idle.run(kinds, hooks.host.towers)

    handle = hooks.host.embed.register_forward_hook(run)
    try:
        yield
    finally:
        handle.remove()


class HostForward:
    """A host's forward with TPO, for every caller: by call, and by `.forward`, as PEFT before 0.21 does."""

    def __init__(self, hooks: Hooks, inner: Callable[..., Any]) -> None:
        functools.update_wrapper(self, inner, updated=())
        del vars(self)["__wrapped__"]  # or accelerate would unwrap the host down to the forward without TPO
        self.hooks, self.inner = hooks, inner

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if _is_exporting():
            raise TPOError(
                "torch.export cannot follow heads, whose tokens are found in the inputs: it exports the host alone, "
                "after remove_tpo(model)"
            )
        if args and args[0] is self.hooks.model:  # accelerate binds it to the model once more
            args = args[1:]
        return self.hooks.forward(self.inner, args, kwargs)

    @property
    def __code__(self) -> Any:
        """The host's, which torch.export looks at before it calls."""
        return inspect.unwrap(self.inner).__code__

    @property
    def __signature__(self) -> inspect.Signature:
        """The host's, with the plugin's arguments, so that trainers keep their dataset columns."""
        signature = inspect.signature(self.inner)
        parameters = list(signature.parameters.values())
        rest = [parameters.pop()] if parameters and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD else []
        extra = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in FORWARD_ARGUMENTS]
        return signature.replace(parameters=[*parameters, *extra, *rest])
