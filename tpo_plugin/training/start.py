"""Where the output rows of triggers start: at a logit from which a real vocabulary learns them in a few steps.

Of a host that has read much text a likely word's logit stands some 20 above a new token's. Until a trigger has come so
far, its gradient, |h| for each label, is most of what is clipped, and little else learns. So before the first step of a
trainer the batch of that step is run once without a gradient, and to each row that nothing has trained the least change
d is added with which the trigger

    is as likely as all other words and `MARGIN` more,  d . h_t = mean of logsumexp(others) - logit, and MARGIN,
                                                        at the mean state h_t of the positions that it labels;
    is no likelier than before,                         d . h_o = 0, at the mean state h_o of those with other labels.

Suffixes: B batch, T sequence, D width of the output embedding's input, V vocabulary, K heads.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tpo_plugin import sharding
from tpo_plugin.positions import IGNORE_INDEX
from tpo_plugin.step import Step, of_ids
from tpo_plugin.training.free import evaluating

logger = logging.getLogger(__name__)

MARGIN = 2.0
RIDGE = 0.01
"""Of the mean squared norm of both states: what keeps the change small where they hardly differ."""


def start_triggers(trainer: Any, batches: Sequence[Any]) -> None:
    """Sets the untrained output rows that are going to train, from the batches of a first step. Collective.

    A trigger that they do not label starts as all of them together. Does nothing without the assignment loss.
    """
    tpo = trainer.tpo
    fresh = [name for name, rows in tpo.embeddings.items() if rows.output.requires_grad and rows.is_untrained()]
    if not fresh or not tpo.config.weight("assign"):
        return
    sums = _sums(trainer, batches)
    sharding.at_rest(trainer.model)  # or FSDP2 would go on with the whole rows that this forward left
    *of_heads, others = sums
    for name, found in zip(tpo.heads, of_heads, strict=True):
        change = least_change(found if found[0] else sum(of_heads), others)
        if name in fresh and change is not None:
            rows = tpo.embeddings[name]
            sharding.write_trained(rows.untrained.cpu() + change.float(), rows.output)
            logger.info("head %r: its trigger starts from %d positions that it labels", name, int(found[0]))


def least_change(labelled: Tensor, others: Tensor) -> Tensor | None:
    """What to add to a row [D], from two sums [2 + D] of (1, what its logit lacks, state); None of no position."""
    if not labelled[0] or not torch.isfinite(labelled).all() or not torch.isfinite(others).all():
        return None
    states_2D = torch.stack([labelled[2:] / labelled[0], others[2:] / others[0].clamp(min=1)])
    wanted_2 = torch.stack([labelled[1] / labelled[0] + MARGIN, torch.zeros_like(labelled[1])])
    products_22 = states_2D @ states_2D.T
    ridge = RIDGE * products_22.diagonal().mean().clamp(min=1e-12)
    return states_2D.T @ torch.linalg.solve(products_22 + ridge * torch.eye(2).to(products_22), wanted_2)


def _sums(trainer: Any, batches: Sequence[Any]) -> Tensor:
    """Over all positions that each trigger labels, and over those of other labels, (1, lack, state): [K + 1, 2 + D].

    The lack is logsumexp of the others' logits less the trigger's. Float64, so that no order of adding shows.
    """
    tpo = trainer.tpo
    trigger_ids = [tpo.tokens[name].trigger_id for name in tpo.heads]
    sums = torch.zeros(len(trigger_ids) + 1, 2 + tpo.hidden_size, dtype=torch.float64)

    def add(step: Step, states: Tensor, logits: Tensor) -> None:
        if step.labels is None:
            return
        labels, shift = step.labels.whole, step.labels.shift
        states, logits = (of_ids(values, step.host, step.positions) for values in (states, logits))
        if states.dim() != 3 or states.shape[:2] != labels.shape:
            return  # the output embedding runs once more, at the triggers
        labels_N = labels[:, shift:].flatten()
        states_ND, logits_NV = (v[:, : labels.shape[1] - shift].flatten(0, 1) for v in (states, logits))
        for row, trigger in enumerate(trigger_ids):
            at = labels_N == trigger
            ours_N, others_NV = logits_NV[at, trigger].double(), logits_NV[at].double()
            others_NV[:, trigger] = -torch.inf
            sums[row] += _sum(others_NV.logsumexp(-1) - ours_N, states_ND[at])
        ordinary = (labels_N != IGNORE_INDEX) & ~torch.isin(labels_N, torch.tensor(trigger_ids).to(labels_N))
        sums[-1] += _sum(torch.zeros_like(labels_N[ordinary]), states_ND[ordinary])

    model = trainer.model_wrapped if trainer.is_deepspeed_enabled else trainer.model
    with evaluating(trainer.model), trainer.compute_loss_context_manager(), tpo.hooks.now.telling(add):
        for batch in batches:  # on the trainer's own road, with its checks; without counts, as an evaluation's
            inputs = {name: value for name, value in batch.items() if name != "task_counts"}
            trainer.compute_loss(model, trainer._prepare_inputs(inputs))
    if trainer.accelerator.num_processes == 1:
        return sums
    return trainer.accelerator.reduce(sums.to(trainer.accelerator.device), "sum").cpu()


def _sum(lacks_N: Tensor, states_ND: Tensor) -> Tensor:
    summed = torch.cat([lacks_N.double().sum()[None], states_ND.double().sum(0)])
    return torch.cat([summed.new_tensor([len(lacks_N)]), summed]).cpu()
