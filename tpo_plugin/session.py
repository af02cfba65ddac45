"""A generation in progress: what the hooks keep of it, and the processor that places task tokens.

Suffixes: B rows of the batch, T sequence, D hidden size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from tpo_plugin.positions import Positions
from tpo_plugin.seen import Captured

if TYPE_CHECKING:
    from tpo_plugin.model import TaskPreferenceModel


class Session:
    """A generation in progress: what the hooks and the logits processor tell each other."""

    def __init__(
        self,
        prompt_length: int,
        num_prompts: int,
        task_inputs: dict[str, Any] | None,
        capturing: bool,
        captured: Captured | None,
    ) -> None:
        self.prompt_length, self.num_prompts = prompt_length, num_prompts
        self.task_inputs, self.capturing = task_inputs, capturing
        self.captured = captured
        """What heads may see of the prompt; None where none looks."""
        self.length: int | None = None
        """Columns so far, with the one that is being fed; None during the prefill."""
        self.positions: Positions | None = None
        """Of the tokens that the embedding saw in this forward."""
        self.replayed: Positions | None = None
        """During a replay, where to capture in the only forward that matters."""
        self.states: dict[tuple[int, int], Tensor] = {}
        """Last hidden state [D] by (row, column of `sequences`)."""
        self.trigger_logprobs: list[Tensor] = []
        """For each new token, [B, number of heads]."""

    def capture(self, hidden_BTD: Tensor) -> bool:
        """Keeps the states of the task tokens that this forward fed; whether these are the states of its tokens."""
        if self.replayed is not None:
            fits = self.replayed["shape"] == list(hidden_BTD.shape[:2])
            if fits:
                replayed = self.replayed
                self._keep(hidden_BTD, replayed, -replayed["offset"], replayed["copies"], replayed["copy"])
                if self.captured is not None:
                    self.captured.keep_text(hidden_BTD)
                self.replayed = None
            return fits
        if self.length is None and self.captured is not None:
            self.captured.keep_prompt(hidden_BTD, self.copies(hidden_BTD))
        positions = self.positions
        if positions is None or positions["shape"] != list(hidden_BTD.shape[:2]):
            return False
        self.positions = None
        if self.length is not None:
            self._keep(hidden_BTD, positions, self.length - hidden_BTD.shape[1])
        return True

    def _keep(self, hidden_BTD: Tensor, positions: Positions, offset: int, copies: int = 1, copy: int = 0) -> None:
        for places in positions["task"].values():
            for row, column in places:
                place = row * copies + copy, column + offset
                if place not in self.states:
                    self.states[place] = hidden_BTD[row, column].clone()

    def copies(self, rows: Tensor) -> int:
        """How many successive rows belong to each prompt."""
        return len(rows) // self.num_prompts


class TriggerProcessor(LogitsProcessor):
    """Puts the task token behind its trigger and nowhere else; with `route`, ends no answer before that trigger."""

    def __init__(
        self, tpo: TaskPreferenceModel, session: Session, route: str | None, stop: tuple[list[int], int | None]
    ) -> None:
        device = tpo.model.device
        ids = list(tpo.token_ids.values())
        self.session, self.route = session, route
        self.triggers = torch.tensor([trigger for trigger, _ in ids], device=device)
        self.tasks = torch.tensor([task for _, task in ids], device=device)
        self.never = torch.tensor(
            [t.input_id for t in tpo.tokens.values() if t.input_id is not None], device=device
        ).long()
        self.routed = -1 if route is None else tpo.tokens[route].trigger_id
        self.eos, self.max_length = torch.tensor(stop[0], device=device).long(), stop[1]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        session = self.session
        session.length = input_ids.shape[1] + 1
        scores = scores.index_fill(-1, torch.cat([self.tasks, self.never]), float("-inf"))
        if session.capturing:
            total = scores.float().logsumexp(-1, keepdim=True)
            session.trigger_logprobs.append(scores[:, self.triggers].float() - total)
        if self.route is not None:
            scores = self._route(input_ids, scores)
        if input_ids.shape[1]:
            is_trigger = input_ids[:, -1:] == self.triggers  # [B, heads]
            forced = (is_trigger * self.tasks).sum(-1, keepdim=True)
            follows = is_trigger.any(-1, keepdim=True)
            scores = scores.masked_fill_(follows, float("-inf"))
            scores.scatter_(-1, forced, torch.where(follows, 0.0, scores.gather(-1, forced)))
        return scores

    def _route(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        emitted = input_ids[:, self.session.prompt_length :].eq(self.routed).any(-1, keepdim=True)
        ending = torch.isin(scores.argmax(-1, keepdim=True), self.eos)
        if self.max_length is not None and self.max_length - input_ids.shape[1] <= 3:
            # room for trigger, task token, and the step that runs the latter
            ending = torch.ones_like(ending)
        only = torch.full_like(scores, float("-inf"))
        only[:, self.routed] = 0.0
        going_on = scores.index_fill(-1, self.eos, float("-inf"))
        return torch.where(emitted, scores, torch.where(ending, only, going_on))
