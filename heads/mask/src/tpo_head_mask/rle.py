"""COCO run-length encoding of masks: {"size": [H, W], "counts": ...}. numpy only.

Runs go down the columns, from the top left, and begin with a run of background, which may be of length 0. `counts` are
their lengths: a list, or COCO's compressed string. In that string every length, from the fourth on as its difference to
the one two before, is cut into groups of five bits, the lowest first, in two's complement; a group is the character
48 + bits, with 32 added where more groups follow.

Unlike pycocotools, which fills what wrong `counts` leave open with whatever stands in memory, everything here refuses
counts that do not cover the mask exactly, and a mask of more pixels than it is told to accept: sixty bytes can ask for
any amount of memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

import tpo_plugin as tpo
from tpo_plugin.errors import shown

RLE = dict[str, Any]

MAX_PIXELS = 50_000_000
"""Of a mask, unless the head's configuration says otherwise (`max_mask_pixels`); 8K video has 33 million."""

_MOST_GROUPS = 7
"""35 bits: more than any run of a mask needs."""


def encode(mask: Any) -> RLE:
    """A mask [H, W] (bool, or 0 for background) as compressed RLE, fit for JSON."""
    mask = np.asarray(mask)
    if mask.ndim != 2:
        raise ValueError(f"a mask of shape {list(mask.shape)} was given; expected [height, width]")
    pixels = (mask != 0).T.ravel()
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    first = [0, 0] if pixels.size and pixels[0] else [0]
    counts = np.diff(np.concatenate([first, changes, [pixels.size]]))
    return {"size": [int(n) for n in mask.shape], "counts": _compress(counts)}


def decode(rle: Mapping[str, Any], max_pixels: int | None = MAX_PIXELS) -> np.ndarray:
    """The mask, bool [H, W]. Raises `TPOError` for what is no RLE, or of more than `max_pixels` (None: of any size)."""
    height, width = _size(rle)
    check_pixels("size", height, width, max_pixels)
    counts = _checked_counts(rle)
    foreground = np.arange(len(counts)) % 2 == 1
    return np.repeat(foreground, counts).reshape(width, height).T


def area(rle: Mapping[str, Any]) -> int:
    """Number of foreground pixels. Raises `TPOError` for what is no RLE."""
    return int(_checked_counts(rle)[1::2].sum())


def check(rle: Any, max_pixels: int = MAX_PIXELS) -> None:
    """Raises `TPOError` that says what is wrong with an RLE, also where `decode` would."""
    check_pixels("size", *_size(rle), max_pixels)
    _checked_counts(rle)


def check_pixels(where: str, height: int, width: int, max_pixels: int | None) -> None:
    """Raises `TPOError` that begins with `where` for a mask of more than `max_pixels`."""
    if max_pixels is not None and height * width > max_pixels:
        raise tpo.TPOError(
            f"{where} is {shown([height, width])}, {shown(height * width)} pixels; expected at most "
            f"max_mask_pixels={max_pixels}, which the mask head's configuration may raise"
        )


def _size(rle: Any) -> tuple[int, int]:
    if not isinstance(rle, Mapping) or not {"size", "counts"} <= set(rle):
        raise tpo.TPOError(f'is {shown(rle)}; expected COCO RLE {{"size": [height, width], "counts": ...}}')
    size = rle["size"]
    valid = isinstance(size, (list, tuple)) and len(size) == 2
    if not valid or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in size):
        raise tpo.TPOError(f"size is {shown(size)}; expected [height, width] in pixels")
    return size[0], size[1]


def _checked_counts(rle: Any) -> np.ndarray:
    """Run lengths, int64, that cover the mask exactly."""
    height, width = _size(rle)
    counts = rle["counts"]
    if isinstance(counts, (str, bytes)):
        runs = _decompress(counts if isinstance(counts, bytes) else counts.encode("utf-8", "surrogatepass"))
        if runs is None:
            raise tpo.TPOError(f"counts is {shown(counts)}, which is no compressed RLE")
    elif isinstance(counts, (list, tuple)) and all(isinstance(n, int) and not isinstance(n, bool) for n in counts):
        wrong = next((n for n in counts if abs(n) >> 5 * _MOST_GROUPS), None)
        if wrong is not None:
            raise tpo.TPOError(f"counts holds {shown(wrong)}, which is longer than any run of a mask")
        runs = np.array(counts, dtype=np.int64)
    else:
        raise tpo.TPOError(f"counts is {shown(counts)}; expected COCO's compressed string or a list of run lengths")
    if (runs < 0).any():
        raise tpo.TPOError("counts holds a negative run length")
    total, most = int(runs.sum()), int(runs.max(initial=0))
    if total != height * width or most > total:  # more than all: the sum ran over
        raise tpo.TPOError(f"counts covers {total} pixels, its size {[height, width]} has {height * width}")
    return runs


def _compress(counts: np.ndarray) -> str:
    values = counts.copy()
    values[3:] -= counts[1:-2]
    groups = values[:, None] >> np.arange(0, 5 * _MOST_GROUPS, 5)  # [runs, groups], each still with all higher bits
    sign_extended = np.where(groups & 16, -1, 0)
    more = (groups >> 5) != (sign_extended >> 5)  # what lies above is not just this group's sign
    used = np.concatenate([np.ones_like(more[:, :1]), np.logical_and.accumulate(more, axis=1)[:, :-1]], axis=1)
    codes = (groups & 31) + 32 * more + 48
    return codes[used].astype(np.uint8).tobytes().decode("ascii")


def _decompress(text: bytes) -> np.ndarray | None:
    """Run lengths, or None where the string holds other characters or ends too early."""
    codes = np.frombuffer(text, dtype=np.uint8).astype(np.int64) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    last = np.flatnonzero(codes < 32)
    first = np.concatenate([[0], last[:-1] + 1])
    lengths = last - first + 1
    if lengths.max() > _MOST_GROUPS:
        return None
    shifts = 5 * (np.arange(len(codes)) - np.repeat(first, lengths))
    values = np.add.reduceat((codes & 31) << shifts, first)
    values -= np.where(codes[last] & 16, np.int64(1) << (5 * lengths), 0)
    for start in (1, 2):  # from the fourth on they are differences to the one two before
        values[start::2] = np.cumsum(values[start::2])
    return values
