"""A head's metric as the reward of a sampled answer, for reinforcement learning of the text: TRL's GRPO and its kin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device

from tpo_plugin.data.format import RecordFormat
from tpo_plugin.data.records import check_tasks
from tpo_plugin.errors import RecordError, TPOError, did_you_mean
from tpo_plugin.generation.generate import GenerateOutput
from tpo_plugin.training.free import answered


class HeadReward:
    """A reward function, for `GRPOTrainer(reward_funcs=[...])`, of what `model.generate` answered last.

        HeadReward(model, "region", "mean_iou")    # IoU of the box
        HeadReward(model, "temporal", "mIoU")      # IoU of the best span
        HeadReward(model, "mask", "J")             # J of the masks

    `metric` is one of those that `head.metrics()` computes, of 0 (worst) to 1; of a loss ("loss_...") l it is exp(-l).
    The dataset's column `tasks` has the tasks of each record. The k-th task token of an answer is for the k-th one that
    the tasks ask for. The reward is the metric over the tasks that were answered, times their share of the task tokens
    that were asked for, or of those that were given, where these are more: nothing given is 0, and so is every token
    too many. Where the head was not asked it is 1 if the answer does not call it, else 0.

    Paths in tasks (masks as PNG) start at `media_root`. Raises `TPOError` for a head that is not applied, a metric that
    the head does not have, a dataset without `tasks`, and answers that are not those of this thread's last
    `model.generate` or `model.tpo.generate` (of vLLM, of continuous batching, of tools); `RecordError` for a task that
    its head refuses.
    """

    def __init__(self, model: Any, head: str, metric: str, *, media_root: str | Path = ".") -> None:
        if head not in model.tpo.heads:
            names = list(model.tpo.heads)
            raise TPOError(f"head {head!r} is not among the applied heads {names}{did_you_mean(head, names)}")
        self._tpo, self.head, self.metric, self.media_root = model.tpo, head, metric, Path(media_root)
        self.__name__ = f"{head}_{metric}"
        """By which TRL logs it."""

    def __call__(
        self, *, completion_ids: Sequence[Sequence[int]], tasks: Sequence[Any] | None = None, **columns: Any
    ) -> list[float]:
        """The reward of each answer; `completion_ids` are its tokens, `tasks` the tasks of its record (or None)."""
        if tasks is None:
            raise TPOError(
                f"the reward {self.__name__} got the columns {sorted(columns)} and no 'tasks'; expected the tasks of "
                "each record in a column of that name"
            )
        generated = self._tpo.last_generated
        _check_answers(generated, completion_ids)
        return [self._reward(generated, row, self._of_head(given, row)) for row, given in enumerate(tasks)]

    def _of_head(self, tasks: Any, row: int) -> list[dict[str, Any]]:
        def wrong(field: str, message: str) -> RecordError:
            return RecordError(message, file=f"row {row} of the batch", field=field)

        checked = check_tasks({"tasks": tasks}, RecordFormat.of(self._tpo), self.media_root, wrong)
        return [task for task in checked if task["head"] == self.head]

    @torch.no_grad()
    def _reward(self, generated: GenerateOutput, row: int, tasks: list[dict[str, Any]]) -> float:
        _, num_given = generated.outputs_of(self.head, row)
        num_called = num_given + any(p.cut_off and p.head == self.head for p in generated.predictions[row])
        num_asked = sum(self._tpo.codecs[self.head].num_tokens(task) for task in tasks)
        if not num_asked:
            return float(not num_called)
        given = answered(self._tpo, self.head, generated, row, tasks)
        if given is None:
            return 0.0
        values, targets, num_answered = given
        metrics = self._tpo.heads[self.head].metrics()
        metrics.update(values, send_to_device(targets, next(self._tpo.parameters()).device))
        return self._value(metrics.compute()) * num_answered / max(num_asked, num_called)

    def _value(self, found: dict[str, float]) -> float:
        if self.metric not in found:
            raise TPOError(
                f"head {self.head!r} computed {sorted(found)} of an answer, and no {self.metric!r}"
                f"{did_you_mean(self.metric, found)}"
            )
        value = found[self.metric]
        return math.exp(-value) if self.metric.startswith("loss_") else value


def _check_answers(generated: GenerateOutput | None, answers: Sequence[Sequence[int]]) -> None:
    """Raises `TPOError` where what was generated last are other answers."""
    if generated is not None and len(generated.sequences) == len(answers):
        rows = generated.sequences[:, generated.prompt_length :].tolist()
        if all(row[: len(ids)] == list(ids) for row, ids in zip(rows, answers, strict=True)):
            return
    made = "nothing" if generated is None else f"{len(generated.sequences)} answers, which are others"
    raise TPOError(
        f"{len(answers)} answers are to be rewarded, and this thread's model.generate made {made}: predictions are "
        "there for what it generated last, not for answers of vLLM, of continuous batching, or with tools"
    )
