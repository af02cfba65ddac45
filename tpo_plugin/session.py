"""One answer in progress: the steps of its forwards, what they keep, and the processor that places task tokens.

Suffixes: B rows of the batch, T sequence, D hidden size, K heads, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria

from tpo_plugin.host.base import Host
from tpo_plugin.positions import Positions, column_positions, token_positions
from tpo_plugin.seen import Seen
from tpo_plugin.step import Step, TaskArguments
from tpo_plugin.tasks import Tasks


@dataclass(frozen=True)
class Replay:
    """A forward over finished sequences, from which states are taken that decoding did not keep."""

    positions: Positions
    """Which states; its shape is that of the only forward that matters."""
    offset: int
    """Columns in that forward before those of `sequences`."""
    copies: int
    copy: int
    """It runs answer `copy` of the `copies` to each prompt."""


class NewestTokens:
    """The last token of each row, read on the CPU without a wait of its own: `generate` itself waits in every step."""

    def __init__(self) -> None:
        self._length = -1
        self._copy: Tensor | None = None
        self._copied: torch.cuda.Event | None = None

    def note(self, input_ids: Tensor) -> None:
        """Begins to copy the last column of `input_ids` [B, T]."""
        last = input_ids[:, -1]
        self._length, self._copied = input_ids.shape[1], None
        if last.is_cuda:
            self._copy = torch.empty(last.shape, dtype=last.dtype, pin_memory=True).copy_(last, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()
        else:
            self._copy = last.cpu()

    def of(self, num_rows: int, length: int) -> list[int] | None:
        """Those of sequences of this length; None where they were not noted."""
        if self._copy is None or self._length != length or len(self._copy) != num_rows:
            return None
        if self._copied is not None:
            self._copied.synchronize()
        return self._copy.tolist()


@dataclass(frozen=True)
class Prompt:
    """What is asked in one generation."""

    given: TaskArguments
    num_rows: int
    length: int
    """Columns of `sequences` before the answer."""
    seen: Seen | None
    """What heads may see of it; None where none looks."""
    ahead: int = 0
    """Columns of its embeddings that `sequences` have not: its embeddings were given, or media were spliced in."""


class Session:
    """One generation in progress."""

    def __init__(self, tasks: Tasks, host: Host, prompt: Prompt, *, keeps_states: bool) -> None:
        self.tasks, self.host, self.prompt = tasks, host, prompt
        self.keeps_states = keeps_states
        """Whether states are kept while decoding; otherwise the finished sequences are replayed."""
        self.length: int | None = None
        """Columns so far, with the one that is being fed; None during the prefill."""
        self.newest = NewestTokens()
        self.replay: Replay | None = None
        """The replay that is awaited, until its forward came."""
        self.states: dict[tuple[int, int], Tensor] = {}
        """Last hidden state [D] by (row, column of `sequences`)."""

    def step(self) -> AnswerStep:
        """The step of a forward of this generation that begins."""
        if self.prompt.seen is not None:
            self.prompt.seen.start_forward()
        return AnswerStep(self)

    @cached_property
    def output_rows(self) -> Tensor:
        """The trained part of the triggers' output rows, [K, D], which no step of a generation changes."""
        return self.tasks.output_rows()

    def copies(self, rows: Sized) -> int:
        """How many successive rows belong to each prompt."""
        return max(1, len(rows) // self.prompt.num_rows)

    def keep(self, states_BTD: Tensor, positions: Positions, offset: int, copies: int = 1, copy: int = 0) -> None:
        """Keeps the states at task tokens, `offset` columns before where they stand in `sequences`."""
        for places in positions.task.values():
            for row, column in places:
                place = row * copies + copy, column + offset
                if place not in self.states:
                    self.states[place] = states_BTD[row, column].clone()


class AnswerStep(Step):
    """One forward of a generation: it feeds tokens that were just emitted, or the prompt, or replays."""

    def __init__(self, session: Session) -> None:
        super().__init__(session.tasks, session.host, session.prompt.given, seen=session.prompt.seen)
        self.session = session

    def embedded(self, ids: Tensor, embeds: Tensor) -> Tensor | None:
        """As of any forward; a decoding step that feeds no token of a head changes nothing, and waits for nothing."""
        session = self.session
        decodes = session.length is not None and ids.shape[-1] <= session.length - session.prompt.length
        if decodes and session.replay is None and not session.keeps_states:
            return self.tasks.overlay(ids, embeds)
        return super().embedded(ids, embeds)

    def _take_rows(self) -> None:
        """Nothing: the heads run when the answer is finished."""

    def finish(self, output: Any) -> Any:
        """Keeps what the answer needs of this forward's states."""
        session, states = self.session, self._states
        if states is None or not session.keeps_states:
            return output
        if session.replay is not None:
            awaited = session.replay
            if awaited.positions.shape == tuple(states.shape[:2]):
                session.keep(states, awaited.positions, -awaited.offset, awaited.copies, awaited.copy)
                if self.seen is not None:
                    self.seen.keep_text(states)
                session.replay = None
            return output
        if session.length is None:
            if self.seen is not None:
                self.seen.keep_prompt(states, session.copies(states))
        elif self._fits(states) and self.positions is not None:
            session.keep(states, self.positions, session.length - states.shape[1])
        return output

    def _positions_of(self, ids_BT: Tensor) -> Positions:
        if self.positions is not None:  # a later call of the embedding is of other ids
            return token_positions(ids_BT, None, self.tasks.tokens)
        self.positions = self._newest(ids_BT) or token_positions(ids_BT, None, self.tasks.tokens)
        return self.positions

    def _newest(self, ids_BT: Tensor) -> Positions | None:
        """Of a decoding step from what is known on the CPU; None where it is not."""
        session, (num_rows, length) = self.session, ids_BT.shape
        if session.length is None or session.replay is not None or length != 1:
            return None
        ids = session.newest.of(num_rows, session.length)
        return None if ids is None else column_positions(ids, self.tasks.tokens)

    def _output_rows(self) -> Tensor:
        return self.session.output_rows

    def _copies(self, rows: Sized) -> int:
        return self.session.copies(rows)

    def _fits(self, states: Tensor) -> bool:
        awaited = self.session.replay
        return super()._fits(states) or (awaited is not None and awaited.positions.shape == tuple(states.shape[:2]))


class NoteNewest(StoppingCriteria):
    """Stops nothing: tells the session each new token."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        self.session.newest.note(input_ids)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class TriggerProcessor(LogitsProcessor):
    """Puts the task token behind its trigger and nowhere else; with `route`, ends no answer before that trigger."""

    def __init__(
        self,
        session: Session,
        route: str | None = None,
        *,
        eos: Sequence[int] = (),
        max_length: int | None = None,
        keeps_logits: bool = False,
    ) -> None:
        tokens = session.tasks.tokens
        self.session = session
        self.task_of = dict(session.tasks.token_ids.values())
        """Task token by trigger."""
        self.blocked = torch.tensor([i for t in tokens.values() for i in (t.task_id, t.input_id) if i is not None])
        """Never emitted freely."""
        self.route = None
        if route is not None:
            self.route = Route(tokens[route].trigger_id, eos, max_length, session.prompt.length)
        self.keeps_logits = keeps_logits
        """Whether the scores are given to the user as well, so that they must stay as they are."""
        self.called = False
        self.scores: Tensor | None = None
        """[B, V] of the last step."""
        self.logprobs: dict[tuple[int, int], float] = {}
        """Logarithm of the probability of each trigger that was emitted, by (row, column of `sequences`)."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        session = self.session
        self.called = True
        session.length = input_ids.shape[1] + 1
        newest = session.newest.of(*input_ids.shape) if session.keeps_states else None
        if newest is None and self.scores is not None:  # of a generate that takes no stopping criteria
            newest = input_ids[:, -1].tolist()
        if newest is not None:
            self.note_triggers(newest, input_ids.shape[1] - 1)
        if self.keeps_logits:
            scores = scores.clone()
        self.blocked = self.blocked.to(scores.device)
        scores.index_fill_(-1, self.blocked, float("-inf"))
        self.scores = scores if session.keeps_states else None
        if self.route is not None:
            self.route(input_ids, scores, newest, added_up=not session.keeps_states)
        if input_ids.shape[1] and (newest is None or not self.task_of.keys().isdisjoint(newest)):
            self._force(input_ids[:, -1:], scores)
        return scores

    def note_triggers(self, ids: Sequence[int], column: int) -> None:
        """Keeps how likely the triggers among the tokens of `column` were, which the last scores were the choice of."""
        for row, token_id in enumerate(ids):
            if token_id in self.task_of and self.scores is not None:
                own = self.scores[row] if self.route is None else self.route.undo(row, self.scores[row])
                self.logprobs[row, column] = float(own.float().log_softmax(-1)[token_id])

    def _force(self, last_B1: Tensor, scores: Tensor) -> None:
        """In place: behind a trigger only its task token."""
        triggers = torch.tensor(list(self.task_of), device=scores.device)
        tasks = torch.tensor(list(self.task_of.values()), device=scores.device)
        is_trigger = last_B1 == triggers  # [B, K]
        follows = is_trigger.any(-1, keepdim=True)
        forced = (is_trigger * tasks).sum(-1, keepdim=True)
        scores.masked_fill_(follows, float("-inf"))
        scores.scatter_(-1, forced, torch.where(follows, 0.0, scores.gather(-1, forced)))


class Route:
    """Lets no answer end before its trigger."""

    def __init__(self, trigger_id: int, eos: Sequence[int], max_length: int | None, prompt_length: int) -> None:
        self.trigger_id, self.num_eos = trigger_id, len(eos)
        self.max_length, self.prompt_length = max_length, prompt_length
        self.columns = torch.tensor([*eos, trigger_id], dtype=torch.int64)
        """Of the scores that it changes."""
        self.before: Tensor | None = None
        """[B, columns]: what stood there in the last step."""
        self.called: set[int] = set()
        """Rows whose trigger is known to have come."""

    def __call__(self, input_ids: Tensor, scores: Tensor, newest: Sequence[int] | None, *, added_up: bool) -> None:
        """In place: the trigger wins where a row without it would end, and elsewhere nothing ends before it.

        Scores that are `added_up`, as beam search does, get a trigger that is certain; otherwise it is made the best by
        far, for which nothing else of the row has to be written.
        """
        self.called |= {row for row, token_id in enumerate(newest or ()) if token_id == self.trigger_id}
        self.before = None
        if len(self.called) == len(input_ids):
            return
        self.columns = self.columns.to(scores.device)
        self.before = scores.index_select(-1, self.columns)
        best, best_ids = scores.max(-1, keepdim=True)
        missing = ~input_ids[:, self.prompt_length :].eq(self.trigger_id).any(-1, keepdim=True)
        ending = torch.isin(best_ids, self.columns[: self.num_eos])
        if self.max_length is not None and self.max_length - input_ids.shape[1] <= 3:
            # room for trigger, task token, and the step that runs the latter
            ending = torch.ones_like(ending)
        changed = self.before.masked_fill(missing, float("-inf"))
        forced = missing & ending
        changed[:, -1:] = torch.where(forced, 0 if added_up else best + 1e4, self.before[:, -1:])
        if added_up:
            scores.masked_fill_(forced, float("-inf"))
        scores.index_copy_(-1, self.columns, changed)

    def undo(self, row: int, scores_V: Tensor) -> Tensor:
        """A row of the last step's scores as it was before."""
        if self.before is None:
            return scores_V
        return scores_V.index_copy(-1, self.columns, self.before[row])
