"""Splitting and normalising the loss: L = w_mllm L_mllm + w_assign L_assign + sum_i w_i L_i (arXiv 2412.19326).

Each loss is a sum over targets divided by the number of targets of its kind; under `wrap_trainer` that number is of the
whole accumulated global batch, otherwise of the batch. Suffixes: B batch, T sequence, N targets, V vocabulary.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tpo_plugin.config import TPOConfig
from tpo_plugin.errors import HostError, TPOError
from tpo_plugin.host.base import Host
from tpo_plugin.positions import IGNORE_INDEX, Counts, Place, count_ordinary, flat_index
from tpo_plugin.supervised import StepLabels, SupervisedRows
from tpo_plugin.tasks import Tasks, float32
from tpo_plugin.tokens import HeadTokens


@dataclass
class TPOOutput:
    """What one forward with TPO gave; `out.tpo`, and the same object as `model.tpo.last_output`."""

    loss: Tensor | None = None
    """The weighted sum of all losses, float32; None without labels and targets."""
    host_loss: Tensor | None = None
    """Its part that is the host's own loss: weighted "mllm"."""
    plugin_loss: Tensor | None = None
    """Its part without the host's own: assignment and heads."""
    losses: dict[str, Tensor] = field(default_factory=dict)
    """Unweighted losses by name: "mllm", "assign", "retain" where it is wanted, and heads; each with gradient.

    In training those of weight 0 are not computed: there is no "mllm", and the others are zeros.
    """
    details: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """The named terms `loss_*` of each head's loss, detached."""
    outputs: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """What each head's forward gave, with gradient."""
    statistics: dict[str, Tensor] = field(default_factory=dict)
    """Counts on the device: "assign_correct", "assign_total", and where measured "false_triggers", "ordinary"."""
    _heads: Any = None

    @property
    def predictions(self) -> dict[str, Any]:
        """Each head's values, in the order in which its task tokens stand in the batch; without gradient."""
        with torch.no_grad():
            return {
                name: self._heads[name].postprocess({k: v.detach() for k, v in outputs.items()})
                for name, outputs in self.outputs.items()
            }

    def add_up(self, config: TPOConfig, device: torch.device) -> None:
        """Weights `losses` and adds them up, the plugin's part on `device`."""
        weighted = {name: config.weight(name) * loss for name, loss in self.losses.items()}
        self.host_loss = weighted.pop("mllm", None)
        self.plugin_loss = sum((w.to(device) for w in weighted.values()), start=torch.zeros((), device=device))
        self.loss = self.plugin_loss
        if self.host_loss is not None:
            self.loss = self.host_loss + self.plugin_loss.to(self.host_loss.device)

    def put_into(self, output: Any, scale: int = 1) -> Any:
        """The host's output with the total loss, times what a trainer will divide it by."""
        loss = None if self.loss is None else self.loss * scale
        if isinstance(output, tuple):
            return output if loss is None else (loss, *output[0 if self.host_loss is None else 1 :])
        if loss is not None:
            output["loss"] = loss
            if isinstance(output, OrderedDict):  # where the host scored nothing it is new, and first all the same
                output.move_to_end("loss", last=False)
        output.tpo = self
        return output


@dataclass(frozen=True, kw_only=True)
class Made:
    """What the losses of one forward are made of."""

    tasks: Tasks
    host: Host
    places: Mapping[str, Sequence[Place]]
    """Of each head's task tokens, and "assign" of labelled triggers; none where the loss has the weight 0."""
    rows: Mapping[str, Tensor]
    """Of the last hidden state: by head, and "assign" for the positions before labelled triggers."""
    labels: StepLabels | None
    targets: Mapping[str, Any]
    """By head, as its `collate_targets` makes them."""
    counts: Counts | None
    """Of the whole accumulated global batch; None divides by those of this batch."""
    output: Any
    """The host's."""
    head_ran: bool
    """Whether its output embedding ran."""

    @property
    def supervised(self) -> SupervisedRows | None:
        """Of which rows the logits are; None of all."""
        return None if self.labels is None else self.labels.rows


def add_losses(result: TPOOutput, made: Made) -> None:
    """Fills in the losses of a forward whose heads ran: the host's own, the assignment's, and each head's."""
    tasks, counts = made.tasks, made.counts
    if made.labels is not None:
        if made.labels.scored:
            result.losses["mllm"] = _mllm_loss(made, made.labels.whole)
        result.losses["assign"] = _assign_loss(result, made, made.labels.whole)
    retained = None if made.labels is None else made.labels.retained
    if retained is not None and retained.logits_RV is not None:
        num = len(retained.host_RV) if counts is None else counts.retain
        left_out = torch.cat((tasks.trigger_logits.triggers, tasks.trigger_logits.unused))
        result.losses["retain"] = retain_loss(retained.logits_RV, retained.host_RV, left_out, max(num, 1))
    for name, head in tasks.heads.items():
        places, rows = made.places[name], made.rows[name]
        targets, outputs = made.targets.get(name), result.outputs[name]
        if not places and not head.count_targets(targets):
            # No target here: a zero that is connected to the graph, so that gradients are zero and not missing.
            parts = [o.float().sum() for o in (*outputs.values(), rows) if isinstance(o, Tensor)]
            result.losses[name] = torch.stack(parts).sum()
        elif targets is not None or tasks.training:
            _check_targets(head, name, tasks.tokens[name].task_token, places, targets)
            num = head.num_targets(targets) if counts is None else counts.heads[name]
            with float32(rows.device):
                terms = head.loss(outputs, targets, max(num, 1))
            result.details[name] = {key: value.detach() for key, value in terms.items()}
            result.losses[name] = torch.stack([value.float() for value in terms.values()]).sum()
    result.add_up(tasks.config, next(iter(made.rows.values())).device)


def host_loss(output: Any) -> Tensor:
    """The host's own loss in its output. Raises `HostError` where there is none."""
    loss: Tensor | None = output[0] if isinstance(output, tuple) else getattr(output, "loss", None)
    if loss is None:
        raise HostError("the host got labels and returned no loss; it cannot be trained with TPO")
    return loss


def _mllm_loss(made: Made, labels: Tensor) -> Tensor:
    return mllm_loss(
        host_loss(made.output),
        labels,
        made.tasks.tokens,
        made.counts,
        label_shift=made.host.label_shift,
        honours_num_items=made.host.honours_num_items,
    )


def _assign_loss(result: TPOOutput, made: Made, labels: Tensor) -> Tensor:
    host, places, counts, output = made.host, made.places["assign"], made.counts, made.output
    all_logits = output[1] if isinstance(output, tuple) else getattr(output, "logits", None)
    asks_head = made.supervised is None and host.head_gives_logits
    if not made.head_ran or (all_logits is None and not asks_head):
        if places:
            raise HostError(
                "the host computed its loss without calling its output embedding, or gave no logits (a fused loss such "
                f"as Liger's or TRL's), so the {len(places)} trigger token(s) of the batch have no trained logits; "
                "switch the fused loss off"
            )
        # A zero that is connected to the graph, so that gradients are zero and not missing.
        states, rows = next(iter(made.rows.values()))[:0].float(), made.tasks.output_rows()
        return F.linear(states, rows.to(states.device)).sum()
    if made.supervised is not None:
        index = targets_at = made.supervised.triggers(made.tasks.trigger_logits.triggers, len(places))
        labels, flat_labels = made.supervised.labels, made.supervised.labels_K
    else:
        targets_at, flat_labels = flat_index(places, labels.shape[1], labels.device), labels.flatten()
        index = targets_at - host.label_shift
    if asks_head:
        logits_NV = host.head(made.rows["assign"])
    else:
        assert all_logits is not None
        logits_NV = all_logits.flatten(0, 1).index_select(0, index.to(all_logits.device))
    targets_N = flat_labels.index_select(0, targets_at).to(logits_NV.device)
    with torch.no_grad():
        result.statistics["assign_correct"] = (logits_NV.argmax(-1) == targets_N).sum()
        result.statistics["assign_total"] = torch.full_like(result.statistics["assign_correct"], len(places))
        if all_logits is not None and (not made.tasks.training or (counts is not None and counts.measure)):
            there = labels.to(all_logits.device)
            result.statistics |= false_triggers(all_logits, there, made.tasks.tokens, host.label_shift)
    num = len(places) if counts is None else counts.assign
    return assignment_loss(logits_NV, targets_N, max(num, 1))


def without_logits(output: Any) -> Any:
    """The host's output without its logits, which are of labelled positions alone."""
    if isinstance(output, tuple):
        return (*output[:1], None, *output[2:])
    output["logits"] = None
    return output


def mllm_loss(
    host_loss: Tensor,
    labels: Tensor,
    tokens: Mapping[str, HeadTokens],
    counts: Counts | None,
    *,
    label_shift: int,
    honours_num_items: bool,
) -> Tensor:
    """The host's own loss, float32; a mean is rescaled to a sum over the labels of `counts`.

    Without a label that the host scores it is 0. `honours_num_items` says whether it was divided by them already.
    """
    host_loss = host_loss.float()
    if counts is not None and honours_num_items:
        return host_loss
    # Where every label is a trigger or ignored, the host's mean is over nothing: NaN.
    num_ordinary = count_ordinary(labels, tokens, label_shift).to(host_loss.device)
    mean = torch.where(num_ordinary > 0, host_loss, torch.zeros_like(host_loss))
    return mean if counts is None else mean * num_ordinary / max(counts.mllm, 1)


def assignment_loss(logits_NV: Tensor, labels_N: Tensor, num_targets: Tensor | int) -> Tensor:
    """Cross entropy over the whole vocabulary at the trigger positions, summed, divided by `num_targets`; float32."""
    return F.cross_entropy(logits_NV.float(), labels_N, reduction="sum") / num_targets


def retain_loss(logits_RV: Tensor, host_RV: Tensor, left_out: Tensor, num_targets: int) -> Tensor:
    """KL(host || model) of the next token, summed over rows R and divided by `num_targets`; float32.

    Tokens `left_out` count on neither side. After learning without forgetting (Li and Hoiem, ECCV 2016).
    """
    if not len(host_RV):
        return logits_RV.float().sum()  # a zero that is connected to the graph
    lowest = torch.finfo(torch.float32).min
    ours, hosts = (
        logits.float().index_fill(-1, left_out.to(logits.device), lowest).log_softmax(-1)
        for logits in (logits_RV, host_RV.to(logits_RV.device))
    )
    return F.kl_div(ours, hosts, reduction="sum", log_target=True) / num_targets


def false_triggers(
    logits_BTV: Tensor, labels_BT: Tensor, tokens: Mapping[str, HeadTokens], label_shift: int = 1
) -> dict[str, Tensor]:
    """How often a trigger is the likeliest token where the label is an ordinary one; counts on the device."""
    triggers = torch.tensor([t.trigger_id for t in tokens.values()]).to(labels_BT.device, non_blocking=True)
    target = labels_BT[:, label_shift:]
    ordinary = (target != IGNORE_INDEX) & ~torch.isin(target, triggers)
    emitted = torch.isin(logits_BTV[:, : target.shape[1]].argmax(-1), triggers)
    return {"false_triggers": (emitted & ordinary).sum(), "ordinary": ordinary.sum()}


def _check_targets(head: Any, name: str, token: str, places: Sequence[Place], targets: Any) -> None:
    """Raises `TPOError` where there is not one target for each task token."""
    num = head.count_targets(targets)
    if num == len(places):
        return
    if num < len(places):
        where = f"they run out in row {places[num][0]}"
    else:
        where = f"the last task token stands in row {places[-1][0]}" if places else "no row has one"
    raise TPOError(
        f"task_targets[{name!r}] has {num} target(s), the batch has {len(places)} task token(s) {token!r} ({where}); "
        "expected one for each, ordered by (batch row, position)"
    )
