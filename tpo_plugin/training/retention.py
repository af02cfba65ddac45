"""What a trained run kept of its host's ordinary answers: the same conversations by the host and by the run.

Suffixes: B batch, T sequence, V vocabulary.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor
from torch.nn import functional as F

from tpo_plugin.apply import apply_tpo, remove_tpo
from tpo_plugin.checkpoint import load_tpo
from tpo_plugin.config import TPOConfig, config_from_dict
from tpo_plugin.data import Records, TPOCollator, read_sample
from tpo_plugin.errors import TPOError
from tpo_plugin.step import FORWARD_ARGUMENTS
from tpo_plugin.training.checkpoints import load_host_weights
from tpo_plugin.training.config import DataConfig, TrainConfig
from tpo_plugin.training.hosts import load_host
from tpo_plugin.training.run import read_run

Batches = list[dict[str, Any]]


@torch.no_grad()
def retention(
    directory: str | os.PathLike[str],
    records: str | Path,
    *,
    media_root: str | Path | None = None,
    confine: bool = False,
    host: str | os.PathLike[str] | None = None,
    limit: int | None = None,
) -> dict[str, Any]:
    """Compares the host of a finished run with the run, on the answers of conversations without tasks.

    Args:
        directory: A finished run.
        records: Conversations, JSON Lines or LLaVA's JSON; those with tasks are left out and counted.
        confine: As that of `tpo_plugin.data.Records`.
        host: Where the host lies now, if it has moved.
        limit: The first so many conversations only.

    Returns plain numbers: "conversations", "with_tasks" (left out), "tokens" (labelled ones); "applied": right after
    `apply_tpo`, whether loss and logits over the old vocabulary equal the host's bit for bit, and how far they are at
    the most; "host", "lora_on" and, where the run has an adapter, "lora_off": the perplexity of the answers and, of the
    latter two, "exactly_equal", whether all logits but the triggers' equal the host's bit for bit, as they do where
    nothing of the host was trained, and "agreement", the share of answer tokens at which the likeliest next token is
    the host's.
    """
    directory = Path(directory)
    saved = read_run(directory)
    config = TrainConfig.from_dict(saved["config"], where=f"{directory}: config")
    model = load_host(str(host or saved["host"]), config.dtype).eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    old_size = model.get_output_embeddings().weight.shape[0]
    settings = {"heads": config.tpo.heads, "chat_template_kwargs": config.tpo.chat_template_kwargs}
    tpo_config = config_from_dict(TPOConfig, settings, where=f"{directory}: tpo")
    tokenizer = _processor(directory)
    apply_tpo(model, tokenizer, heads=config.heads, config=tpo_config)
    source = Records(records, model.tpo, media_root=media_root, confine=confine)
    batches, with_tasks = _batches(model, source, config.data, limit)
    shift = model.tpo.host.label_shift
    applied = [_answers(model, batch, old_size, shift) for batch in batches]
    remove_tpo(model)
    bare = [_answers(model, batch, old_size, shift) for batch in batches]
    result: dict[str, Any] = {"conversations": len(batches), "with_tasks": with_tasks}
    result["tokens"] = sum(len(labels) for _, labels in bare)
    result["applied"] = {
        "exactly_equal": all(torch.equal(ours, theirs) for (ours, _), (theirs, _) in zip(applied, bare, strict=True)),
        "largest_difference": max(float((o - t).abs().max()) for (o, _), (t, _) in zip(applied, bare, strict=True)),
    }
    result["host"] = {"perplexity": _perplexity(bare)}
    trained = load_tpo(model, directory)
    load_host_weights(trained, directory)
    for name, switched in _switches(trained.eval()):
        with switched:
            answers = [_answers(trained, batch, old_size, shift) for batch in batches]
        exactly_equal = _equal_without(answers, bare, [trigger for trigger, _ in trained.tpo.token_ids.values()])
        agreement = _agreement(answers, bare)
        result[name] = {"perplexity": _perplexity(answers), "exactly_equal": exactly_equal, "agreement": agreement}
    return result


def _processor(directory: Path) -> Any:
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(directory, trust_remote_code=False)


def _batches(model: Any, source: Records, data: DataConfig, limit: int | None) -> tuple[Batches, int]:
    """One conversation each, as it is trained on, without the plugin's arguments."""
    collate, with_tasks = TPOCollator(model.tpo), 0
    batches: Batches = []
    for record in source:
        if any(turn.tasks for turn in record.turns):
            with_tasks += 1
            continue
        if limit is not None and len(batches) == limit:
            break
        batch = collate([read_sample(record, data.video, data.image)])
        plain = {name: value for name, value in batch.items() if name not in FORWARD_ARGUMENTS}
        batches.append(send_to_device(plain, model.device))
    if not batches:
        raise TPOError(
            f"{source.name} has no conversation without tasks ({with_tasks} with tasks); expected ordinary chat, to "
            "see what the run kept of it"
        )
    return batches, with_tasks


def _answers(model: Any, batch: dict[str, Any], old_size: int, shift: int) -> tuple[Tensor, Tensor]:
    """Logits over the host's own vocabulary where an answer's token is predicted, [N, V], and those tokens, [N]."""
    targets = batch["labels"][0, shift:]
    without = {name: value for name, value in batch.items() if name != "labels"}
    logits = model(**without).logits[0, : len(targets), :old_size]
    labelled = targets >= 0
    return logits[labelled].float().cpu(), targets[labelled].cpu()


def _perplexity(answers: list[tuple[Tensor, Tensor]]) -> float:
    losses = [F.cross_entropy(logits, labels, reduction="sum") for logits, labels in answers]
    return float((torch.stack(losses).sum() / sum(len(labels) for _, labels in answers)).exp())


def _equal_without(
    answers: list[tuple[Tensor, Tensor]], bare: list[tuple[Tensor, Tensor]], triggers: list[int]
) -> bool:
    """Whether logits are equal bit for bit, but for the triggers' columns, which train in spare rows of the host."""
    others = torch.tensor([token for token in range(bare[0][0].shape[1]) if token not in triggers])
    return all(
        torch.equal(ours[:, others], theirs[:, others]) for (ours, _), (theirs, _) in zip(answers, bare, strict=True)
    )


def _agreement(answers: list[tuple[Tensor, Tensor]], bare: list[tuple[Tensor, Tensor]]) -> float:
    same = [(ours.argmax(-1) == theirs.argmax(-1)) for (ours, _), (theirs, _) in zip(answers, bare, strict=True)]
    return float(torch.cat(same).float().mean())


def _switches(model: Any) -> Iterator[tuple[str, contextlib.AbstractContextManager[Any]]]:
    yield "lora_on", contextlib.nullcontext()
    if hasattr(model, "disable_adapter"):
        yield "lora_off", model.disable_adapter()
