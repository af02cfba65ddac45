"""Splitting and normalising the loss: L = w_mllm L_mllm + w_assign L_assign + sum_i w_i L_i (arXiv 2412.19326).

Each loss is a sum over targets divided by the number of targets of its kind; under `wrap_trainer` that number is of the
whole accumulated global batch, otherwise of the batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tpo_plugin.errors import HostError, TPOError
from tpo_plugin.positions import Positions, token_positions
from tpo_plugin.seen import Captured
from tpo_plugin.tokens import HeadTokens

if TYPE_CHECKING:
    from tpo_plugin.model import TaskPreferenceModel

IGNORE_INDEX = -100


def split_labels(labels: Tensor, tokens: Mapping[str, HeadTokens]) -> Tensor:
    """The host's labels: a copy of `labels` [B, T] with the trigger positions ignored."""
    triggers = torch.tensor([t.trigger_id for t in tokens.values()]).to(labels.device, non_blocking=True)
    return labels.masked_fill(torch.isin(labels, triggers), IGNORE_INDEX)


def count_targets(
    input_ids: Tensor,
    labels: Tensor | None,
    tokens: Mapping[str, HeadTokens],
    positions: Positions | None = None,
    label_shift: int = 1,
) -> dict[str, int]:
    """Number of targets of each kind in a micro-batch: "mllm", "assign", and every head's name.

    "mllm" counts the labels that the host scores after its shift: columns `label_shift` and on, neither ignored nor
    triggers; `input_ids` are an encoder-decoder's `decoder_input_ids`, whose `label_shift` is 0.
    `positions` are what `token_positions` finds in the batch, where the collator gave them.
    """
    found = positions or token_positions(input_ids, labels, tokens, label_shift)
    ordinary = 0 if labels is None else int((split_labels(labels, tokens)[:, label_shift:] != IGNORE_INDEX).sum())
    heads = {head: len(places) for head, places in found["task"].items()}
    return {"mllm": ordinary, "assign": len(found["labels"])} | heads


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
    """Unweighted losses by name: "mllm", "assign", and heads; each with gradient."""
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


def assignment_loss(logits_NV: Tensor, labels_N: Tensor, num_targets: Tensor | int) -> Tensor:
    """Cross entropy over the whole vocabulary at the trigger positions, summed, divided by `num_targets`; float32."""
    return F.cross_entropy(logits_NV.float(), labels_N, reduction="sum") / num_targets


def false_triggers(
    logits_BTV: Tensor, labels_BT: Tensor, tokens: Mapping[str, HeadTokens], label_shift: int = 1
) -> dict[str, Tensor]:
    """How often a trigger is the likeliest token where the label is an ordinary one; counts on the device."""
    triggers = torch.tensor([t.trigger_id for t in tokens.values()]).to(labels_BT.device, non_blocking=True)
    target = labels_BT[:, label_shift:]
    ordinary = (target != IGNORE_INDEX) & ~torch.isin(target, triggers)
    emitted = torch.isin(logits_BTV[:, : target.shape[1]].argmax(-1), triggers)
    return {"false_triggers": (emitted & ordinary).sum(), "ordinary": ordinary.sum()}


@dataclass
class Call:
    """One forward of the host in progress."""

    task_inputs: dict[str, Any]
    task_targets: dict[str, Any] | None
    counts: dict[str, Any]
    """Targets by kind in the whole accumulated global batch, "scale" and "measure"; empty without `wrap_trainer`."""
    labels: Tensor | None
    positions: Positions | None
    """Of its input_ids, or as the collator gave them."""
    rows: dict[str, Tensor] = field(default_factory=dict)
    """Rows of the last hidden state: by head, and "assign" for the positions before triggers."""
    captured: Captured | None = None
    """What heads may see of this forward; None where none looks."""
    inserted: bool = False
    """Whether `positions` served: a later call of the embedding is of other ids (gpt2 embeds token types with it)."""
    head_ran: bool = False


def add_losses(tpo: TaskPreferenceModel, result: TPOOutput, call: Call, output: Any) -> None:
    """Fills in the losses of a forward: the host's own, the assignment's, and each head's."""
    if call.labels is not None:
        host_loss = output[0] if isinstance(output, tuple) else getattr(output, "loss", None)
        result.losses["mllm"] = _mllm_loss(tpo, call, call.labels, host_loss)
        result.losses["assign"] = _assign_loss(tpo, result, call, call.labels, output)
    for name in tpo.heads:
        loss = _head_loss(tpo, result, name, call)
        if loss is not None:
            result.losses[name] = loss
    weighted = {name: tpo.config.weight(name) * loss for name, loss in result.losses.items()}
    device = next(tpo.parameters()).device
    result.host_loss = weighted.pop("mllm", None)
    result.plugin_loss = sum((w.to(device) for w in weighted.values()), start=torch.zeros((), device=device))
    result.loss = result.plugin_loss
    if result.host_loss is not None:
        result.loss = result.host_loss + result.plugin_loss.to(result.host_loss.device)
    if tpo.training and not call.counts and not any(p.requires_grad for p in tpo.parameters()):
        tpo.warn_once(
            "nothing in model.tpo is trainable (get_peft_model freezes it): the heads and task tokens will not learn; "
            "use wrap_trainer, or call model.tpo.requires_grad_(True) after get_peft_model"
        )


def _mllm_loss(tpo: TaskPreferenceModel, call: Call, labels: Tensor, host_loss: Tensor | None) -> Tensor:
    """The host's own loss; a mean is rescaled to a sum over the counted labels."""
    if host_loss is None:
        raise HostError(f"{type(tpo.model).__name__} got labels and returned no loss; it cannot be trained with TPO")
    host_loss = host_loss.float()
    assert call.positions is not None
    if call.counts and tpo.host.honours_num_items:
        return host_loss
    if not call.counts and not call.positions["labels"]:
        return host_loss
    # Where every label is a trigger, the host's mean is over nothing: NaN.
    num_ordinary = (split_labels(labels, tpo.tokens)[:, tpo.host.label_shift :] != IGNORE_INDEX).sum()
    mean = torch.where(num_ordinary > 0, host_loss, torch.zeros_like(host_loss))
    return mean * num_ordinary / max(call.counts["mllm"], 1) if call.counts else mean


def _assign_loss(tpo: TaskPreferenceModel, result: TPOOutput, call: Call, labels: Tensor, output: Any) -> Tensor:
    if not call.head_ran:
        raise HostError(
            f"{type(tpo.model).__name__} computed its loss without calling its output embedding (a fused loss such as "
            "Liger's or TRL's), so the trigger tokens have no trained logits; switch the fused loss off"
        )
    assert call.positions is not None
    places = call.positions["labels"]
    flat = flat_index(places, labels.shape[1], labels.device)
    all_logits = output[1] if isinstance(output, tuple) else getattr(output, "logits", None)
    if tpo.host.head_gives_logits:
        logits_NV = tpo.host.head(call.rows["assign"])
    elif all_logits is None:
        raise HostError(f"{type(tpo.model).__name__} returned no logits, which the assignment loss is computed from")
    else:
        logits_NV = all_logits.flatten(0, 1).index_select(0, (flat - tpo.host.label_shift).to(all_logits.device))
    targets_N = labels.flatten().index_select(0, flat).to(logits_NV.device)
    with torch.no_grad():
        result.statistics["assign_correct"] = (logits_NV.argmax(-1) == targets_N).sum()
        result.statistics["assign_total"] = torch.full_like(result.statistics["assign_correct"], len(places))
        if all_logits is not None and (not tpo.training or call.counts.get("measure")):
            result.statistics |= false_triggers(
                all_logits, labels.to(all_logits.device), tpo.tokens, tpo.host.label_shift
            )
    return assignment_loss(logits_NV, targets_N, max(call.counts.get("assign", len(places)), 1))


def _head_loss(tpo: TaskPreferenceModel, result: TPOOutput, name: str, call: Call) -> Tensor | None:
    head, outputs = tpo.heads[name], result.outputs[name]
    assert call.positions is not None
    places, targets = call.positions["task"][name], (call.task_targets or {}).get(name)
    if not places and not head.count_targets(targets):
        # No target here: a zero that is connected to the graph, so that gradients are zero and not missing.
        return torch.stack(
            [o.float().sum() for o in (*outputs.values(), call.rows[name]) if isinstance(o, Tensor)]
        ).sum()
    if targets is None and not tpo.training:
        return None
    _check_targets(tpo, name, places, targets)
    with float32(call.rows[name].device):
        terms = head.loss(outputs, targets, max(call.counts.get(name, len(places)), 1))
    result.details[name] = {key: value.detach() for key, value in terms.items()}
    return torch.stack([value.float() for value in terms.values()]).sum()


def _check_targets(tpo: TaskPreferenceModel, name: str, places: list[list[int]], targets: Any) -> None:
    num = tpo.heads[name].count_targets(targets)
    if num == len(places):
        return
    if num < len(places):
        where = f"they run out in row {places[num][0]}"
    else:
        where = f"the last task token stands in row {places[-1][0]}" if places else "no row has one"
    raise TPOError(
        f"task_targets[{name!r}] has {num} target(s), the batch has {len(places)} task token(s) "
        f"{tpo.tokens[name].task_token!r} ({where}); expected one for each, ordered by (batch row, position)"
    )


def with_result(output: Any, result: TPOOutput, scale: Any) -> Any:
    """The host's output with the total loss, times what a trainer will divide it by."""
    loss = None if result.loss is None else result.loss * scale
    if isinstance(output, tuple):
        return output if loss is None else (loss, *output[0 if result.host_loss is None else 1 :])
    if loss is not None:
        output["loss"] = loss
    output.tpo = result
    return output


def float32(device: torch.device) -> torch.autocast:
    """Autocast off, in which heads compute."""
    return torch.autocast(device.type, enabled=False)


def flat_index(places: list[list[int]], length: int, device: torch.device) -> Tensor:
    """Positions [[row, column], …] of a [B, length] batch as an index into its flattened rows."""
    flat = [row * length + column for row, column in places]
    return torch.tensor(flat, dtype=torch.int64).to(device, non_blocking=True)
