"""From samples to a batch for `model(**batch)`. Suffixes of tensor names: B batch, T sequence."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tpo_plugin.codec import Codec, asks_for_samples, collate_inputs
from tpo_plugin.data.chat import ChatTemplate
from tpo_plugin.data.dataset import Sample
from tpo_plugin.data.encode import IGNORED, Row, encode, encode_pair
from tpo_plugin.errors import TPOError
from tpo_plugin.positions import text_groups, token_positions

logger = logging.getLogger(__name__)


class TPOCollator:
    """Collates samples for the host that `tpo` (`model.tpo`) sits on.

        DataLoader(dataset, batch_size=8, collate_fn=TPOCollator(model.tpo))

    The batch has what the host's processor makes of text and media, `labels` on the assistant's text and the token that
    ends its turn (triggers labelled, task tokens -100), and, where a head has tasks, its `task_targets` and
    `task_inputs`, with `task_positions` of all tokens (and `task_frames`, where a head looks at the host's frames).
    `task_records` says where each row comes from.
    Rows are padded on the right. Labels stand at the tokens that they name, for a causal LM that scores labels where
    they stand (BART's decoder, XLNet) one column before them.

    With `for_generation` it makes prompts instead: the conversation up to its last answer, padded on the left, without
    labels and targets; for `model.tpo.generate(**batch)`.

    For an encoder-decoder `input_ids` are that prompt too, padded on the right, and `labels` the last answer with the
    tokenizer's eos_token behind it.

    The chat template's own arguments, such as `enable_thinking`, are `TPOConfig.chat_template_kwargs`, for training and
    for asking.

    Rows longer than `max_length` tokens are cut at the end. Raises `TPOError` where that would cut off a token of a
    head or a medium, or leave nothing to learn; where the host has no chat template; where the processor refuses a
    sample.
    """

    def __init__(self, tpo: Any, *, max_length: int | None = None, for_generation: bool = False) -> None:
        # Not model.tpo itself, which holds the host: a worker process may get a copy of this.
        self.codecs, self.tokens = dict(tpo.codecs), tpo.tokens
        self.special_ids = tpo.special_ids
        self.decodes = tpo.host.decodes
        self.label_shift = tpo.host.label_shift
        self.max_length, self.for_generation = max_length, for_generation
        self.chat = ChatTemplate(tpo.tokenizer, tpo.processor, tpo.config.chat_template_kwargs)
        if not self.decodes and not for_generation:
            self.chat.check_training()
        if self.decodes and self.chat.tokenizer.eos_token_id is None:
            raise TPOError("the tokenizer has no eos_token, with which the answer of an encoder-decoder ends; set it")
        if self.chat.end_id is None and not for_generation and not self.decodes:
            logger.warning(
                "the chat template puts no special token behind an answer, so the host will not learn to stop; "
                "end the assistant's turn with the tokenizer's eos_token in it"
            )

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Any]:
        if not samples:
            raise TPOError("the batch is empty: no sample was given; expected at least one")
        if self.for_generation:
            samples = [Sample(s.record.prompt(), s.images, s.videos) for s in samples]
        if self.decodes and not self.for_generation:
            rows = [encode_pair(s, self.chat, self.tokens, max_length=self.max_length) for s in samples]
        else:
            rows = [
                encode(s, self.chat, self.tokens, for_generation=self.for_generation, max_length=self.max_length)
                for s in samples
            ]
        batch = self._pad(rows)
        labels = batch.pop("labels") if self.for_generation else batch["labels"]
        targets, inputs = collate_tasks(self.codecs, samples, for_generation=self.for_generation)
        if inputs:
            batch["task_inputs"] = inputs
        if not self.for_generation:
            batch["task_records"] = [sample.record.place for sample in samples]
        if targets and not self.for_generation:
            batch["task_targets"] = targets
        # An encoder-decoder makes its decoder's input itself, where its tokens stand.
        if not self.decodes and (self.special_ids is not None or not self.for_generation):
            text = None if self.special_ids is None else text_groups(batch["input_ids"], labels, self.special_ids)
            if not self.for_generation and self.label_shift == 0:
                labels = batch["labels"] = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
            positions = token_positions(batch["input_ids"], labels, self.tokens, self.label_shift)
            batch["task_positions"] = replace(positions, text=text)
        if self.special_ids is not None:
            batch["task_frames"] = [[len(clip.frames) for clip in sample.videos] for sample in samples]
        return batch

    def _pad(self, rows: list[Row]) -> dict[str, Any]:
        """Tensors over the sequence are padded to [B, T, ...]; media are joined along their first dimension."""
        names = [*dict.fromkeys(name for row in rows for name in row.sequence), "labels"]
        lengths = {name: max(len(row.sequence.get(name, ())) for row in rows) for name in names}
        lengths["labels"] = max(len(row.labels) for row in rows)
        tokenizer = self.chat.tokenizer
        pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
        fill = {"input_ids": pad_id, "labels": IGNORED}
        batch: dict[str, Any] = {}
        for name in names:
            parts = []
            for row in rows:
                if name != "labels" and name not in row.sequence:
                    raise TPOError(
                        f"{row.place}: the processor gives no {name!r} for this record and does for others: it "
                        "cannot mix records with and without media; put them into different batches"
                    )
                values = row.labels if name == "labels" else row.sequence[name]
                missing = lengths[name] - len(values)
                pad = (missing, 0) if self.for_generation and not self.decodes else (0, missing)
                parts.append(F.pad(values, (0, 0) * (values.dim() - 1) + pad, value=fill.get(name, 0)))
            batch[name] = torch.stack(parts)
        for name in dict.fromkeys(name for row in rows for name in row.media):
            batch[name] = _join(name, [row.media[name] for row in rows if name in row.media])
        return batch


def collate_tasks(
    codecs: Mapping[str, Codec], samples: Sequence[Sample], *, for_generation: bool = False
) -> tuple[dict[str, Any], dict[str, Any]]:
    """`task_targets` and `task_inputs` of a batch: each codec's own collation, in the order (batch row, position)."""
    tasks: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for sample in samples:
        for turn in sample.record.turns:
            for task in turn.tasks:
                roles = tasks.setdefault(task["head"], {"assistant": [], "user": []})
                roles[turn.role].append(task)
    targets, inputs = {}, {}
    for name, codec in codecs.items():
        if name not in tasks and not (for_generation and asks_for_samples(codec)):
            continue
        roles = tasks.get(name, {"assistant": [], "user": []})
        if roles["assistant"]:
            targets[name] = codec.collate_targets(roles["assistant"])
        # What a prompt has answered before is not to be predicted again.
        predicted = [] if for_generation else roles["assistant"]
        made = collate_inputs(codec, predicted, roles["user"], samples)
        if made is not None:
            inputs[name] = made
    return targets, inputs


def _join(name: str, parts: list[Any]) -> Any:
    """Joins a medium's tensors along their first dimension; smaller images are padded with zeros as processors do."""
    if not all(isinstance(part, Tensor) for part in parts):
        return [item for part in parts for item in part]
    shapes = [tuple(part.shape[1:]) for part in parts]
    if len(set(shapes)) > 1:
        if "video" in name:
            raise TPOError(
                f"the clips of a batch have different shapes {sorted(set(shapes))} in {name!r}, which this processor "
                "cannot batch; read as many frames of each (sampling 'uniform' or 'middle'), or one clip a batch"
            )
        sizes = [max(lengths) for lengths in zip(*shapes, strict=True)]
        parts = [_pad_to(part, sizes) for part in parts]
    return torch.cat(parts)


def _pad_to(part: Tensor, sizes: list[int]) -> Tensor:
    pad: list[int] = []
    for size, wanted in zip(reversed(part.shape[1:]), reversed(sizes), strict=True):
        pad += [0, wanted - size]
    return F.pad(part, pad)
