"""What a trained run kept of its host's ordinary answers: the same conversations by the host and by the run.

Suffixes: B batch, T sequence, V vocabulary.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
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
from tpo_plugin.data.records import Record
from tpo_plugin.errors import TPOError
from tpo_plugin.step import FORWARD_ARGUMENTS
from tpo_plugin.training.config import DataConfig, TrainConfig
from tpo_plugin.training.hosts import load_host
from tpo_plugin.training.run import read_run

DIFFERENCES = 8
"""Conversations, of those whose logits `apply_tpo` changed, of which it is looked at by how much."""


@dataclass(frozen=True)
class _Kept:
    """What is kept of a conversation's logits: they themselves take megabytes for each token."""

    loss: float
    """Summed over the answers' tokens."""
    likeliest: Tensor
    """Next token at each of them, [N]."""
    digest: bytes
    """Of all logits."""
    digest_of_others: bytes
    """Of all but the triggers', which train in spare rows of the host."""


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
    `apply_tpo`, whether the logits over the old vocabulary equal the host's bit for bit, and how far they are at the
    most (in the first `DIFFERENCES` conversations where they are not); "host", "lora_on" and, where the run has an
    adapter, "lora_off": the perplexity of the answers and, of the latter two, "exactly_equal", whether all logits but
    the triggers' equal the host's bit for bit, as they do where nothing of the host was trained, and "agreement", the
    share of answer tokens at which the likeliest next token is the host's.
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
    chosen, with_tasks = _conversations(source, limit)
    ask = _Asker(TPOCollator(model.tpo), config.data, old_size, model.tpo.host.label_shift)
    triggers = [trigger for trigger, _ in model.tpo.token_ids.values()]
    applied = [_kept(*ask(model, record), triggers) for record in chosen]
    remove_tpo(model)
    bare = [_kept(*ask(model, record), triggers) for record in chosen]
    changed = [i for i, (ours, theirs) in enumerate(zip(applied, bare, strict=True)) if ours.digest != theirs.digest]
    differences = [0.0]
    if changed:
        looked_at = [chosen[i] for i in changed[:DIFFERENCES]]
        without = [ask(model, record)[0] for record in looked_at]
        apply_tpo(model, tokenizer, heads=config.heads, config=tpo_config)
        applied_again = [ask(model, record)[0] for record in looked_at]
        remove_tpo(model)
        differences = [float((o - t).abs().max()) for o, t in zip(applied_again, without, strict=True)]
    result: dict[str, Any] = {
        "conversations": len(chosen),
        "with_tasks": with_tasks,
        "tokens": sum(len(found.likeliest) for found in bare),
        "applied": {"exactly_equal": not changed, "largest_difference": max(differences)},
        "host": {"perplexity": _perplexity(bare)},
    }
    trained = load_tpo(model, directory)
    for name, switched in _switches(trained.eval()):
        with switched:
            found = [_kept(*ask(trained, record), triggers) for record in chosen]
        pairs = list(zip(found, bare, strict=True))
        result[name] = {
            "perplexity": _perplexity(found),
            "exactly_equal": all(ours.digest_of_others == theirs.digest_of_others for ours, theirs in pairs),
            "agreement": _agreement(pairs),
        }
    return result


def _processor(directory: Path) -> Any:
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(directory, trust_remote_code=False)


def _conversations(source: Records, limit: int | None) -> tuple[list[Record], int]:
    """Those without tasks, and how many have some. Their media are not read yet."""
    chosen: list[Record] = []
    with_tasks = 0
    for record in source:
        if any(turn.tasks for turn in record.turns):
            with_tasks += 1
        elif limit is not None and len(chosen) == limit:
            break
        else:
            chosen.append(record)
    if not chosen:
        raise TPOError(
            f"{source.name} has no conversation without tasks ({with_tasks} with tasks); expected ordinary chat, to "
            "see what the run kept of it"
        )
    return chosen, with_tasks


@dataclass(frozen=True)
class _Asker:
    """Asks any model, as it is trained on and without the plugin's arguments."""

    collate: TPOCollator
    data: DataConfig
    old_size: int
    shift: int

    def __call__(self, model: Any, record: Record) -> tuple[Tensor, Tensor]:
        """Logits over the host's own vocabulary where an answer's token is predicted, [N, V], and those tokens, [N]."""
        batch = self.collate([read_sample(record, self.data.video, self.data.image)])
        inputs = {name: value for name, value in batch.items() if name not in (*FORWARD_ARGUMENTS, "labels")}
        targets = batch["labels"][0, self.shift :]
        logits = model(**send_to_device(inputs, model.device)).logits[0, : len(targets), : self.old_size].float().cpu()
        return logits[targets >= 0], targets[targets >= 0]


def _kept(logits: Tensor, targets: Tensor, triggers: list[int]) -> _Kept:
    others = torch.tensor([token for token in range(logits.shape[1]) if token not in triggers])
    loss = float(F.cross_entropy(logits, targets, reduction="sum"))
    return _Kept(loss, logits.argmax(-1), _digest(logits), _digest(logits[:, others]))


def _digest(values: Tensor) -> bytes:
    return hashlib.sha256((values + 0.0).numpy().tobytes()).digest()  # -0.0 is 0.0


def _agreement(pairs: list[tuple[_Kept, _Kept]]) -> float:
    return float(torch.cat([ours.likeliest == theirs.likeliest for ours, theirs in pairs]).float().mean())


def _perplexity(answers: list[_Kept]) -> float:
    return math.exp(sum(found.loss for found in answers) / sum(len(found.likeliest) for found in answers))


def _switches(model: Any) -> Iterator[tuple[str, contextlib.AbstractContextManager[Any]]]:
    yield "lora_on", contextlib.nullcontext()
    if hasattr(model, "disable_adapter"):
        yield "lora_off", model.disable_adapter()
