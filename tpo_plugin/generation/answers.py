"""What generated answers hold: their triggers, and what the heads make of the states at their task tokens.

Suffix: N task tokens of a head.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from tpo_plugin.head import TaskHead
from tpo_plugin.positions import Place
from tpo_plugin.session import Session, TriggerProcessor

Order = Literal["trigger_first", "task_first"]


@dataclass
class Prediction:
    """What a head made of one task token of a generated answer, or of all tokens of a task where it joins them."""

    head: str
    """Name of the head."""
    position: int
    """Column of the (first) task token in `sequences`; of the trigger where the answer was cut off there."""
    value: Any
    """The head's value for it (for a box, [4] xyxy in 0 to 1); None where the answer was cut off."""
    score: float | None
    """Probability with which the LM emitted the (first) trigger; None where the host caps or scales its logits and the
    answer had to be replayed (beam search)."""
    head_score: float | None
    """The head's own confidence, where it has one; of several tokens the mean."""
    text: str
    """The answer's text that leads to it: from the previous prediction, or the start, up to the trigger."""
    text_span: tuple[int, int]
    """Columns [start, end) of that text in `sequences`."""
    cut_off: bool = False
    """Whether generation ended at the trigger (`max_new_tokens`), before the task token."""
    _head: TaskHead | None = field(default=None, repr=False)

    def to_units(self, *, width: int | None = None, height: int | None = None, duration: float | None = None) -> Any:
        """The value in pixels of a `width` x `height` image, or in seconds of a `duration`; None where cut off."""
        if self.value is None or self._head is None:
            return None
        return self._head.to_units(self.value, width=width, height=height, duration=duration)

    def to_json(self) -> dict[str, Any]:
        """All fields as plain numbers, strings and lists."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if not f.name.startswith("_")}
        value = None if self.value is None or self._head is None else self._head.to_json(self.value)
        return plain | {"value": value, "text_span": list(self.text_span)}


@dataclass
class Found:
    """A trigger of an answer."""

    row: int
    trigger: int
    """Column of the trigger."""
    head: str
    state: int
    """Column whose hidden state is the task embedding; -1 where the answer was cut off."""


def find(session: Session, sequences: Tensor, order: Order) -> list[Found]:
    """The triggers of all answers, in the order (row, column)."""
    by_trigger = {trigger: (name, task) for name, (trigger, task) in session.tasks.token_ids.items()}
    found = []
    for row, ids in enumerate(sequences.tolist()):
        # A trigger that ends the prompt is answered by its task token, as one that was emitted.
        opened = order == "trigger_first" and session.prompt.length > 0 and ids[session.prompt.length - 1] in by_trigger
        for column in range(session.prompt.length - opened, len(ids)):
            if ids[column] not in by_trigger:
                continue
            name, task = by_trigger[ids[column]]
            if order == "task_first":
                state = column
            else:
                state = column + 1 if column + 1 < len(ids) and ids[column + 1] == task else -1
            found.append(Found(row, column, name, state))
    return found


@dataclass
class HeadOutputs:
    """What a head's forward gave in one generation."""

    values: dict[str, Any]
    """Its outputs, whose first dimension is N."""
    places: list[Place]
    """(row, column) in `sequences` of the N task tokens, in that order."""

    def of_row(self, row: int) -> tuple[dict[str, Any], int]:
        """Those of one answer, and how many task tokens they are of."""
        mine = [n for n, place in enumerate(self.places) if place[0] == row]
        first, end = (mine[0], mine[-1] + 1) if mine else (0, 0)
        return {name: value[first:end] for name, value in self.values.items()}, len(mine)


def run_heads(session: Session, sequences: Tensor, found: Sequence[Found]) -> dict[str, HeadOutputs]:
    """What each head that was called makes of the states at its task tokens; where parameters are split, all run."""
    outputs = {}
    for name in session.tasks.heads:
        places = [(f.row, f.state) for f in found if f.head == name and f.state >= 0]
        if places or session.tasks.is_split:
            nothing = session.output_rows[:0]
            values = session.tasks.run(
                name,
                torch.stack([session.states[place] for place in places]) if places else nothing,
                places,
                session.prompt.given.task_inputs or {},
                seen=session.prompt.seen,
                vision_size=session.host.vision_size,
                copies=session.copies(sequences),
                ahead=session.prompt.ahead,
            )
            if places:
                outputs[name] = HeadOutputs(values, places)
    return outputs


def predict(
    session: Session,
    processor: TriggerProcessor,
    sequences: Tensor,
    found: Sequence[Found],
    outputs: Mapping[str, HeadOutputs],
) -> list[list[Prediction]]:
    """For each row of `sequences` its predictions, in the order in which they stand."""
    tasks = session.tasks
    values: dict[tuple[str, int, int], Any] = {}
    scores: dict[tuple[str, int, int], float] = {}
    for name, given in outputs.items():
        head, keys = tasks.heads[name], [(name, *place) for place in given.places]
        values |= zip(keys, head.postprocess(given.values), strict=True)
        own = head.score(given.values)
        if own is not None:
            scores |= zip(keys, own.tolist(), strict=True)
    predictions: list[list[Prediction]] = [[] for _ in sequences]
    ends = [session.prompt.length] * len(sequences)
    for group in joined(found, tasks.heads):
        first, head = group[0], tasks.heads[group[0].head]
        keys = [(f.head, f.row, f.state) for f in group if f.state >= 0]
        own_values, own_scores = [values[key] for key in keys], [scores[key] for key in keys if key in scores]
        begin, ends[first.row] = ends[first.row], 1 + max(group[-1].trigger, group[-1].state)
        predictions[first.row].append(
            Prediction(
                head=first.head,
                position=first.trigger if first.state < 0 else first.state,
                value=(_together(own_values) if head.joins else own_values[0]) if keys else None,
                score=_trigger_score(session, processor, first),
                head_score=sum(own_scores) / len(own_scores) if own_scores else None,
                text=_decoded(tasks.tokenizer, sequences[first.row, begin : first.trigger]),
                text_span=(min(begin, first.trigger), first.trigger),
                cut_off=group[-1].state < 0,
                _head=head,
            )
        )
    return predictions


def joined(found: Sequence[Found], heads: Any) -> list[list[Found]]:
    """The triggers by predictions: those of a head that joins, where one stands right behind the other, are one."""
    groups: list[list[Found]] = []
    for f in found:
        last = groups[-1][-1] if groups else None
        follows = last is not None and (last.row, last.head, last.state + 1) == (f.row, f.head, f.trigger)
        if follows and heads[f.head].joins:
            groups[-1].append(f)
        else:
            groups.append([f])
    return groups


def _together(values: list[Any]) -> Any:
    """Values of several tokens: tensors of one shape with a first dimension for the tokens, others as a list."""
    same = all(isinstance(v, Tensor) and v.shape == values[0].shape for v in values)
    return torch.stack(values) if same else values


def _trigger_score(session: Session, processor: TriggerProcessor, found: Found) -> float | None:
    """Probability of the trigger where it was emitted."""
    logprob = processor.logprobs.get((found.row, found.trigger))
    if logprob is not None:
        return float(torch.tensor(logprob).exp())
    before, host, tokens = session.states.get((found.row, found.trigger - 1)), session.host, session.tasks.tokens
    if before is None or not host.head_gives_logits:
        return None
    logits = host.head(before[None, None])[0, 0].float()
    logits[processor.blocked.to(logits.device)] = float("-inf")  # out of the choice, as while decoding
    return float(logits.softmax(-1)[tokens[found.head].trigger_id])


def words(tokenizer: Any, ids: Any) -> str:
    """The text of an answer's tokens, [length], without those of heads."""
    return _decoded(tokenizer, ids).strip()


def _decoded(tokenizer: Any, ids: Any) -> str:
    """Spaces stay as the tokens have them: where they are cleaned up, a later token changes what is before it."""
    text: str = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text
