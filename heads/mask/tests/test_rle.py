from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
from tpo_head_mask import rle

# Written by pycocotools 2.0.11 (`pycocotools.mask.encode`), column-major as COCO has it.
KNOWN = [
    (["0000", "0000", "0000"], "<"),
    (["1111", "1111", "1111"], "0<"),
    (["0110", "1111", "0010"], "1111010N0"),
    (["1000", "0000", "0000"], "01;"),
    (["0000", "0000", "0001"], ";1"),
]

PYCOCOTOOLS = "9174f2d701c8123abb5d4f3d51471f0504ecd582602c956880a5920618e0532d"
"""SHA-256 of what it makes of the 500 masks below, one a line."""


def mask_of(rows: list[str]) -> np.ndarray:
    return np.array([[pixel == "1" for pixel in row] for row in rows])


@pytest.mark.parametrize(("rows", "counts"), KNOWN)
def test_strings_are_cocos(rows: list[str], counts: str) -> None:
    mask = mask_of(rows)
    assert rle.encode(mask) == {"size": [3, 4], "counts": counts}
    for given in (counts, counts.encode()):
        assert (rle.decode({"size": [3, 4], "counts": given}) == mask).all()


def test_random_masks_are_encoded_as_pycocotools_does() -> None:
    rng = np.random.default_rng(0)
    digest = hashlib.sha256()
    for _ in range(500):
        mask = rng.random(rng.integers(1, 60, 2)) < rng.choice([0, 0.01, 0.1, 0.5, 0.99, 1])
        digest.update(rle.encode(mask)["counts"].encode() + b"\n")
    assert digest.hexdigest() == PYCOCOTOOLS


def test_round_trip_of_random_and_large_masks() -> None:
    rng = np.random.default_rng(1)
    masks = [rng.random(rng.integers(1, 40, 2)) < rng.choice([0, 0.02, 0.5, 0.98, 1]) for _ in range(300)]
    corner = np.zeros((1500, 2000), dtype=bool)
    corner[-1, -1] = True  # a run of three million
    for mask in [*masks, corner, ~corner]:
        encoded = rle.encode(mask)
        decoded = rle.decode(encoded)
        assert decoded.dtype == bool
        assert (decoded == mask).all()
        assert rle.area(encoded) == mask.sum()


def test_plain_counts_and_tensors() -> None:
    torch = pytest.importorskip("torch")
    plain = {"size": [2, 3], "counts": [1, 2, 3]}
    assert rle.decode(plain).tolist() == [[False, True, False], [True, False, False]]
    assert rle.area(plain) == 2
    assert rle.encode(torch.tensor([[0, 1, 0], [1, 0, 0]])) == rle.encode(rle.decode(plain))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (5, "is 5; expected COCO RLE"),
        ({"size": [2, 3]}, "expected COCO RLE"),
        ({"size": [2, 0], "counts": "6"}, r"size is \[2, 0\]; expected \[height, width\] in pixels"),
        ({"size": [2, 3], "counts": "5"}, r"counts covers 5 pixels, its size \[2, 3\] has 6"),
        ({"size": [2, 3], "counts": ""}, "which is no compressed RLE"),
        ({"size": [2, 3], "counts": "o"}, "which is no compressed RLE"),  # announces another group
        ({"size": [2, 3], "counts": "oooooooo0"}, "which is no compressed RLE"),  # a length of more than 35 bits
        ({"size": [2, 3], "counts": " é"}, "which is no compressed RLE"),
        ({"size": [2, 3], "counts": [7, -1]}, "counts holds a negative run length"),
        ({"size": [2, 3], "counts": [2.0, 4]}, "expected COCO's compressed string or a list of run lengths"),
        ({"size": [2, 3], "counts": None}, "counts is None; expected"),
    ],
)
def test_wrong_rle_is_refused(wrong: Any, message: str) -> None:
    for use in (rle.check, rle.decode, rle.area):
        with pytest.raises(ValueError, match=message):
            use(wrong)


def test_only_masks_are_encoded() -> None:
    with pytest.raises(ValueError, match=r"a mask of shape \[1, 2, 3\] was given; expected \[height, width\]"):
        rle.encode(np.zeros((1, 2, 3)))
