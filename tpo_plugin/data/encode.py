"""One sample as token ids, labels and media tensors. Suffix of tensor names: T sequence.

A processor expands the placeholder of an image into many tokens, and only it knows how. So the text is tokenised twice,
by the tokenizer with offsets and by the processor with the media, and each answer of the first is found in the second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import transformers
from packaging.version import Version
from torch import Tensor

from tpo_plugin.data.chat import ChatTemplate
from tpo_plugin.data.dataset import Sample
from tpo_plugin.data.media import VideoClip
from tpo_plugin.errors import MediaError, TPOError
from tpo_plugin.tokens import HeadTokens

_NESTED_IMAGES = Version(transformers.__version__) >= Version("4.50")

IGNORED = -100
"""Label of a position that is not learned."""


@dataclass(frozen=True)
class Row:
    """One row of a batch, not padded."""

    place: str
    """Where its record comes from, for messages."""
    sequence: dict[str, Tensor]
    """Tensors over the sequence [T, ...]: `input_ids`, `attention_mask`, and whatever else the processor makes."""
    labels: Tensor
    """[T]"""
    media: dict[str, Any]
    """What the processor makes of the media, first dimension as it gives it."""


def encode(
    sample: Sample,
    chat: ChatTemplate,
    tokens: Mapping[str, HeadTokens],
    *,
    for_generation: bool = False,
    max_length: int | None = None,
) -> Row:
    """Encodes one sample; `for_generation` ends it where the assistant begins to speak. Raises `TPOError`."""
    origin, turns = sample.record.place, sample.record.turns
    try:
        text, spans = chat.render_prompt(turns) if for_generation else chat.render_answers(turns)
        plain_ids, offsets = chat.tokenize(text)
        encoded = _run(chat, text, sample)
    except MediaError:
        raise
    except Exception as error:
        raise TPOError(f"{origin}: cannot be encoded: {type(error).__name__}: {error}") from error
    sequence, media = _split(encoded)
    ids = sequence["input_ids"].tolist()
    task_ids = {t.task_id for t in tokens.values()}
    labels = torch.full((len(ids),), IGNORED)
    for answer in chat.answer_tokens(spans, plain_ids, offsets):
        start = locate(answer, plain_ids, ids) if answer else 0
        if start is None:
            raise TPOError(
                f"{origin}: the answer {chat.tokenizer.decode([plain_ids[i] for i in answer])!r} is not found in what "
                f"{type(chat.processor).__name__} makes of the conversation, so it cannot be labelled"
            )
        for position in range(start, start + len(answer)):
            labels[position] = IGNORED if ids[position] in task_ids else ids[position]
    row = Row(origin, sequence, labels, media)
    if max_length is None or len(ids) <= max_length:
        return row
    if for_generation:
        raise TPOError(f"{origin}: the prompt has {len(ids)} tokens, more than max_length={max_length}")
    return _cut(row, max_length, tokens, _media_end(plain_ids, ids))


def encode_pair(
    sample: Sample, chat: ChatTemplate, tokens: Mapping[str, HeadTokens], *, max_length: int | None = None
) -> Row:
    """One sample for an encoder-decoder: the prompt up to the last answer, and that answer's tokens as its labels.

    `max_length` bounds each of the two. Raises `TPOError` where the record has no answer, or tasks in an earlier one,
    which would stand on the encoder's side, where no head reads them.
    """
    record = sample.record
    *earlier, last = record.turns
    if last.role != "assistant":
        raise TPOError(f"{record.place}: ends with a turn of the user, expected an answer to learn from")
    if any(turn.role == "assistant" and turn.tasks for turn in earlier):
        raise TPOError(
            f"{record.place}: an answer before the last has tasks, and an encoder-decoder learns the last answer only; "
            "give it one record for each answer"
        )
    prompt = Sample(record.prompt(), sample.images, sample.videos)
    row = encode(prompt, chat, tokens, for_generation=True, max_length=max_length)
    answer = chat.tokenizer(last.text, add_special_tokens=False, return_tensors="pt").input_ids[0].long()
    answer = torch.cat([answer, torch.tensor([chat.tokenizer.eos_token_id])])
    if max_length is not None and len(answer) > max_length:
        raise TPOError(f"{record.place}: the answer has {len(answer)} tokens, more than max_length={max_length}")
    task_ids = torch.tensor([t.task_id for t in tokens.values()])
    labels = answer.masked_fill(torch.isin(answer, task_ids), IGNORED)
    return Row(row.place, row.sequence, labels, row.media)


def locate(answer: range, plain: Sequence[int], full: Sequence[int]) -> int | None:
    """Where the tokens `plain[answer]` begin in `full`, which is `plain` with tokens put in or changed at the media.

    The k-th place where they, with up to four tokens before them, stand in `plain` is the k-th in `full`, provided that
    there are as many in both; None where that holds for no number of tokens before them. Those may be needed, for a
    short answer can also stand in what was put in; and they may be changed, where a medium ends the question.
    """
    for before in range(min(4, answer.start), -1, -1):
        start = answer.start - before
        tokens = _as_text(plain[start : answer.stop])
        in_plain, in_full = _places(tokens, _as_text(plain)), _places(tokens, _as_text(full))
        if tokens and len(in_plain) == len(in_full):
            return in_full[in_plain.index(start)] + before
    return None


def _as_text(ids: Sequence[int]) -> str:
    """Ids as characters, since Python searches text fast."""
    return "".join(map(chr, ids))


def _places(part: str, whole: str) -> list[int]:
    places, at = [], whole.find(part)
    while at >= 0:
        places.append(at)
        at = whole.find(part, at + 1)
    return places


def _media_end(plain: Sequence[int], full: Sequence[int]) -> int:
    """Index in `full` behind the last token of a medium; 0 where nothing was put in."""
    if len(full) == len(plain):
        return 0
    end = len(full)
    while end > len(full) - len(plain) and full[end - 1] == plain[end - 1 - len(full)]:
        end -= 1
    while end < len(full) and full[end] == full[end - 1]:  # the last copy of a repeated placeholder
        end += 1
    return end


def _run(chat: ChatTemplate, text: str, sample: Sample) -> Mapping[str, Any]:
    if chat.processor is None:
        return chat.tokenizer([text], add_special_tokens=False, return_tensors="pt")
    media: dict[str, Any] = {}
    if sample.images:
        images = list(sample.images)
        # Since 4.50 processors take one list a conversation; LLaVA-OneVision's cuts only a single image into tiles.
        media["images"] = [images] if _NESTED_IMAGES else images
    if sample.videos:
        media |= {"videos": [clip.frames for clip in sample.videos], **_video_arguments(chat.processor, sample.videos)}
    return chat.processor(text=[text], return_tensors="pt", **media)


def _video_arguments(processor: Any, clips: Sequence[VideoClip]) -> dict[str, Any]:
    """Tells a processor that would sample frames itself (transformers from 4.52) that they are sampled, and when."""
    try:
        from transformers.video_processing_utils import BaseVideoProcessor
        from transformers.video_utils import VideoMetadata
    except ImportError:
        return {}
    if not isinstance(getattr(processor, "video_processor", None), BaseVideoProcessor):
        return {}
    # Frames are counted in milliseconds, so that the times which a processor derives are true for any frame rate.
    known = {f.name for f in fields(VideoMetadata)}
    metadata = []
    for clip in clips:
        values: dict[str, Any] = {
            "total_num_frames": max(1, round(1000 * clip.duration_s)),
            "fps": 1000.0,
            "width": clip.width,
            "height": clip.height,
            "duration": clip.duration_s,
            "frames_indices": [round(1000 * t) for t in clip.times_s.tolist()],
        }
        metadata.append(VideoMetadata(**{name: value for name, value in values.items() if name in known}))
    return {"do_sample_frames": False, "video_metadata": metadata}


def _split(encoded: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors over the sequence, without their batch dimension, and those of the media."""
    length = encoded["input_ids"].shape[1]
    sequence: dict[str, Tensor] = {}
    media: dict[str, Any] = {}
    for name, value in encoded.items():
        over_sequence = isinstance(value, Tensor) and value.shape[:2] == (1, length) and not value.is_floating_point()
        (sequence if over_sequence else media)[name] = value[0] if over_sequence else value
    return sequence, media


def _cut(row: Row, max_length: int, tokens: Mapping[str, HeadTokens], media_end: int) -> Row:
    def lost(what: str) -> TPOError:
        length = len(row.labels)
        return TPOError(f"{row.place}: cutting its {length} tokens to max_length={max_length} {what}; raise max_length")

    ids_lost = set(row.sequence["input_ids"][max_length:].tolist())
    for name, kinds in tokens.items():
        for kind, token_id in kinds.by_kind().items():
            if token_id in ids_lost:
                raise lost(f"would cut off the {kind} token of head {name!r}")
    if media_end > max_length:
        raise lost("would cut off tokens of an image or video")
    labels = row.labels[:max_length]
    if not (labels != IGNORED).any():
        raise lost("would leave no token of an answer to learn from")
    return Row(row.place, {name: values[:max_length] for name, values in row.sequence.items()}, labels, row.media)
