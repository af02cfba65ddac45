"""One forward of a host in progress: what happens in it, in the order in which it happens.

Suffixes: B batch, T sequence, S the same with media features, E width of the input embeddings, D hidden size, N task
tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from tpo_plugin import losses
from tpo_plugin.errors import HostError, TPOError, did_you_mean
from tpo_plugin.host.base import Host
from tpo_plugin.host.splice import spliced_groups, spliced_positions, spliced_values
from tpo_plugin.losses import TPOOutput, without_logits
from tpo_plugin.positions import Counts, Place, Positions, flat_index, text_groups, token_positions
from tpo_plugin.seen import Seen
from tpo_plugin.supervised import StepLabels
from tpo_plugin.tasks import Tasks


@dataclass(frozen=True)
class TaskArguments:
    """The keyword arguments that the plugin takes out of the host's forward."""

    task_inputs: dict[str, Any] | None = None
    """What each head needs to see, and what the user gives, as its `collate_inputs` makes it."""
    task_targets: dict[str, Any] | None = None
    """What each head learns, as its `collate_targets` makes it, ordered by (batch row, position)."""
    task_positions: Positions | None = None
    """Where the tokens stand, as a collator finds them on the CPU; None has them found."""
    task_frames: list[list[int]] | None = None
    """For each row the number of frames of each of its videos, for heads that look at them."""
    task_counts: Counts | None = None
    """Targets of the whole accumulated global batch, as `wrap_trainer` counts them; None divides by the batch's."""
    task_idle_media: tuple[str, ...] | None = None
    """Kinds of media that another rank's batch has and this one lacks: their vision tower runs idle."""
    task_records: list[str] | None = None
    """Where each row comes from, for messages of `wrap_trainer`."""

    @classmethod
    def taken(cls, kwargs: dict[str, Any], heads: Sequence[str]) -> TaskArguments:
        """Takes them out of `kwargs`. Raises `TPOError` for a head that is not applied, or another type."""
        given = cls(**{name: kwargs.pop(name, None) for name in FORWARD_ARGUMENTS})
        for name, kind in (("task_positions", Positions), ("task_counts", Counts)):
            value = getattr(given, name)
            if value is not None and not isinstance(value, kind):
                raise TPOError(
                    f"{name} is a {type(value).__name__}; expected tpo_plugin.positions.{kind.__name__}, as "
                    f"{'TPOCollator' if kind is Positions else 'wrap_trainer'} makes it"
                )
        for name in ("task_inputs", "task_targets"):
            value = getattr(given, name)
            if value is not None and not isinstance(value, dict):
                raise TPOError(f"{name} is a {type(value).__name__}; expected a dict with an entry for each head")
            unknown = sorted(set(value or {}) - set(heads))
            if unknown:
                raise TPOError(
                    f"{name} has {unknown}, which is not among the applied heads {list(heads)}"
                    + did_you_mean(str(unknown[0]), heads)
                )
        return given


FORWARD_ARGUMENTS = tuple(field.name for field in fields(TaskArguments))


class Step:
    """One forward in progress: made before it, told of what happens in it, gone after it.

    The events come in this order, each from a hook: `embedded`, `hidden`, `entering_head`, `logits`, `finish`.
    A vision tower tells `seen` itself.
    """

    def __init__(
        self,
        tasks: Tasks,
        host: Host,
        given: TaskArguments | None = None,
        *,
        labels: Tensor | None = None,
        positions: Positions | None = None,
        seen: Seen | None = None,
    ) -> None:
        self.tasks, self.host = tasks, host
        self.given = given or TaskArguments()
        self.labels = None
        if labels is not None:
            wanted = {"scored": self.wants("mllm"), "assigned": self.wants("assign")}
            self.labels = StepLabels(labels, host.label_shift, **wanted)
        self.positions = positions
        """Of the tokens that reach the output embedding; None where nobody knows them."""
        self.seen = seen
        """What is kept for heads that look at it; None where none does."""
        self._states: Tensor | None = None
        """The last hidden state of this forward [B, T, D], once it was there."""
        self._rows: dict[str, Tensor] | None = None
        """Of `_states`: by head, and "assign" for the positions before labelled triggers."""
        self.idle_media = self.given.task_idle_media or ()
        """Those whose tower has not yet run idle."""
        self.idle: Tensor | int = 0
        """A zero that depends on what it gave. It joins the loss, not the embeddings: engines have hooks at those."""
        self._happened: set[str] = set()
        """"inserted" when `positions` served, "logits" when the output embedding ran."""
        self.result: TPOOutput | None = None
        """What came of it, where a head ran."""

    # -- events --------------------------------------------------------------------------------------------------------

    def embedded(self, ids: Tensor, embeds: Tensor) -> Tensor | None:
        """The input embedding gave `embeds` [..., T, E] for `ids` [..., T]; returns them with our rows, if any."""
        ids_BT = ids.reshape(-1, ids.shape[-1])
        if self.seen is not None and not self.host.decodes:
            self.seen.keep_words(embeds.reshape(*ids_BT.shape, -1), self._copies(ids_BT))
        return self._insert(embeds, self._positions_of(ids_BT))

    def spliced(
        self,
        input_ids_BT: Tensor,
        labels_BT: Tensor | None,
        embeds_BSE: Tensor,
        source_BS: Tensor,
        spans: list[list[tuple[int, int]]] | None,
    ) -> tuple[Tensor, Tensor | None]:
        """The host put media features between its text: `source_BS` is the flat index of each token, < 0 for others.

        `spans` are those of `Seen`. Returns the embeddings with our rows put in, and the spliced labels. Raises
        `TPOError` where the host cut off a token of a head.
        """
        positions = self.positions
        if positions is None or positions.shape != tuple(input_ids_BT.shape):
            positions = token_positions(input_ids_BT, None, self.tasks.tokens)
        moved = spliced_positions(positions, source_BS, self.tasks.tokens)
        if self.positions is not None:
            self.positions = moved
            self._happened.add("inserted")
            if self.labels is not None:
                self.labels.whole = spliced_values(self.labels.whole, source_BS)
        if self.seen is not None:
            self.seen.splice(spliced_groups(self.seen.text_groups, tuple(input_ids_BT.shape), source_BS), spans)
            self.seen.keep_words(embeds_BSE)
        with_rows = self._insert(embeds_BSE, moved)
        spliced_labels = None if labels_BT is None else spliced_values(labels_BT, source_BS)
        if self.labels is not None and self.labels.narrows and self.positions is not None:
            spliced_labels = self.labels.of_host(self.tasks.tokens)
        return embeds_BSE if with_rows is None else with_rows, spliced_labels

    def hidden(self, states: Tensor) -> None:
        """The module that makes the last hidden state gave `states`, which may run in a checkpoint: only remembered."""
        self._states = of_ids(states, self.host, self.positions)

    def entering_head(self, states: Tensor) -> Tensor | None:
        """The output embedding gets `states`: the last hidden state, or what the host kept of it.

        Returns what it is to get in their place, if anything.
        """
        own = of_ids(states, self.host, self.positions)
        if self._states is None or self._fits(own):
            self._states = own
            self._take_rows()
        rows = None if self.labels is None else self.labels.rows
        return None if rows is None else rows.narrowed(states)

    def logits(self, inputs: Tensor, logits: Tensor) -> None:
        """The output embedding gave `logits` for `inputs`; adds the triggers' trained part, in place."""
        self._happened.add("logits")
        self.tasks.trigger_logits.add_to(logits, inputs, self._output_rows())
        if self.labels is not None and self.labels.retained is not None:
            self.labels.retained.take(logits, self.labels.rows)

    def finish(self, output: Any) -> Any:
        """The forward gave `output`; returns it with predictions and losses, where there is anything to be had."""
        positions, targets = self.positions or Positions.none((0, 0), list(self.tasks.heads)), self.given.task_targets
        if self.labels is None and targets is None and not positions.has_tasks and not self.tasks.is_split:
            return output
        self._take_rows()
        if self._rows is None:
            if targets is None and not positions.has_tasks and not positions.labels and not self.tasks.training:
                return output  # ordinary text, of which we need to see nothing
            raise HostError(
                "the last hidden state of the host was not seen in this forward, so task tokens cannot be read; a "
                "forward with task tokens needs input_ids of the same length as its hidden states"
            )
        rows = self._rows
        result = self.result = TPOOutput(_heads=self.tasks.heads)
        inputs, size = self._task_inputs(), self.host.vision_size
        for name in self.tasks.heads:
            given = (rows[name], self._places(name), inputs if self.wants(name) else {})
            result.outputs[name] = self.tasks.run(name, *given, seen=self.seen, vision_size=size)
        if self.labels is not None or targets is not None:
            losses.add_losses(
                result,
                losses.Made(
                    tasks=self.tasks,
                    host=self.host,
                    places={kind: self._places(kind) for kind in ("assign", *self.tasks.heads)},
                    rows=rows,
                    labels=self.labels,
                    targets={name: given for name, given in (targets or {}).items() if self.wants(name)},
                    counts=self.given.task_counts,
                    output=output,
                    head_ran="logits" in self._happened,
                ),
            )
            result.loss = None if result.loss is None else result.loss + self.idle
        if self.labels is not None and self.labels.rows is not None:
            output = without_logits(output)
        return result.put_into(output, self.given.task_counts.scale if self.given.task_counts else 1)

    # -- what differs in a generation ----------------------------------------------------------------------------------

    def _positions_of(self, ids_BT: Tensor) -> Positions:
        """Where the tokens stand in ids that are being embedded."""
        known = self.positions
        if known is None or self._happened or self.host.decodes or known.shape != tuple(ids_BT.shape):
            # a later call of the embedding is of other ids (gpt2's of token types)
            return token_positions(ids_BT, None, self.tasks.tokens)
        self._happened.add("inserted")
        return known

    def _task_inputs(self) -> dict[str, Any]:
        return self.given.task_inputs or {}

    def _output_rows(self) -> Tensor:
        return self.tasks.output_rows()

    def _copies(self, rows: Sized) -> int:
        """How many successive rows belong to each sample."""
        return 1

    @property
    def learns(self) -> bool:
        return torch.is_grad_enabled() and self.tasks.training

    def wants(self, kind: str) -> bool:
        """Whether a loss is to be computed: in training not where its weight is 0."""
        return not self.learns or self.tasks.config.weight(kind) != 0

    # -- states --------------------------------------------------------------------------------------------------------

    def _insert(self, embeds: Tensor, positions: Positions) -> Tensor | None:
        options: Any = {"given_here": not self.host.decodes, "copies": self._copies(range(positions.shape[0]))}
        return self.tasks.insert(embeds, positions, self._task_inputs(), learns=self.learns, **options)

    def _fits(self, states: Tensor) -> bool:
        return self.positions is not None and self.positions.shape == tuple(states.shape[:2])

    def _places(self, kind: str) -> Sequence[Place]:
        """Of a head's task tokens, or for "assign" of labelled triggers: none where their loss is not wanted."""
        if self.positions is None or not self.wants(kind):
            return ()
        return self.positions.labels if kind == "assign" else self.positions.task[kind]

    def _take_rows(self) -> None:
        """Takes the rows at task tokens and before labelled triggers out of the last hidden state, if that is there."""
        states_BTD, positions = self._states, self.positions
        if self._rows is not None or states_BTD is None or positions is None or not self._fits(states_BTD):
            return
        groups = {name: self._places(name) for name in self.tasks.heads}
        if self.labels is not None and self.labels.rows is None:
            groups["assign"] = [(row, column - self.host.label_shift) for row, column in self._places("assign")]
        index = flat_index(list(chain.from_iterable(groups.values())), states_BTD.shape[1], states_BTD.device)
        rows = states_BTD.flatten(0, 1).index_select(0, index)
        if self.seen is not None:
            self.seen.keep_text(states_BTD)
        self._rows = dict(zip(groups, rows.split([len(places) for places in groups.values()]), strict=True))


def step_of_batch(
    tasks: Tasks, host: Host, given: TaskArguments, input_ids: Tensor | None, labels: Tensor | None
) -> Step:
    """The step of a forward on a batch, with its positions found where the caller does not give them."""
    positions = given.task_positions
    if positions is None and input_ids is not None:
        positions = token_positions(input_ids, labels, tasks.tokens, host.label_shift)
    seen = seen_of(tasks, input_ids, labels, given)
    return Step(tasks, host, given, labels=labels, positions=positions, seen=seen)


def seen_of(tasks: Tasks, input_ids: Tensor | None, labels: Tensor | None, given: TaskArguments) -> Seen | None:
    """What to keep of a forward or of a prompt for heads that look at it; None where no head does."""
    if tasks.special_ids is None:
        return None
    groups = given.task_positions.text if given.task_positions is not None else None
    if groups is None:
        groups = [] if input_ids is None else text_groups(input_ids, labels, tasks.special_ids)
    return Seen(groups, given.task_frames)


def of_ids(states: Tensor, host: Host, positions: Positions | None) -> Tensor:
    """The hidden states of the ids [B, T, D], without those of media before them."""
    if states.dim() == 4:  # several streams, of which the first predicts the next token
        states = states[:, 0]
    return states[:, -positions.shape[1] :] if host.media_first and positions else states
