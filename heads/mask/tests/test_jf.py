from __future__ import annotations

import json
import os
from collections.abc import Iterator
from math import ceil, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tpo_head_mask import jf
from tpo_head_mask.jf import JFScores, frame_scores

import tpo_plugin as tpo

SETTINGS = ("sav.skip_first_last", "sav.all_frames", "davis.skip_first_last", "davis.all_frames")


@pytest.fixture(scope="session")
def golden(shared: Path) -> Path:
    """The golden set of this metric: `$TPO_GOLDEN/video_masks`, or that in shared/."""
    return Path(os.environ.get("TPO_GOLDEN", shared / "golden")) / "video_masks"


def sequences(golden: Path) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    for path in sorted(golden.glob("seq*.npz")):
        with np.load(path) as data:
            yield path.stem, dict(data)


def scored(golden: Path, setting: str) -> JFScores:
    layout, _, frames = setting.partition(".")
    scores = JFScores(skip_ends=frames == "skip_first_last")
    for name, data in sequences(golden):
        if layout == "sav":
            truth, predicted = ({f"{k:03d}": masks for k, masks in enumerate(data[key])} for key in ("gt", "pred"))
            scores.add_objects(name, truth, predicted)
        else:
            scores.add_labels(name, iter(data["gt_labels"]), iter(data["pred_labels"]))
    return scores


@pytest.mark.parametrize("setting", SETTINGS)
def test_scores_equal_the_reference(golden: Path, setting: str) -> None:
    expected = json.loads((golden / "expected.json").read_text())["results"][setting]
    scores = scored(golden, setting)
    assert len(expected["sequences"]) >= 7
    assert scores.mean() == pytest.approx(expected["global"], abs=1e-9)
    reference = {(s, o): values for s, objects in expected["sequences"].items() for o, values in objects.items()}
    assert set(scores.objects) == set(reference)
    for key, values in reference.items():
        item = scores.objects[key]
        assert {"J": item.j, "F": item.f, "J&F": item.jf} == pytest.approx(values, abs=1e-9), key


def test_every_frame_equals_the_reference(golden: Path) -> None:
    expected = json.loads((golden / "expected.json").read_text())["per_frame_sav_all_frames"]
    scores = scored(golden, "sav.all_frames")
    compared = 0
    for sequence, objects in expected.items():
        for name, values in objects.items():
            item = scores.objects[sequence, f"{int(name):03d}"]
            assert item.first_frame == values["first_scored_frame"]
            assert item.j_frames == pytest.approx(values["J"], abs=1e-12)
            assert item.f_frames == pytest.approx(values["F"], abs=1e-12)
            compared += len(values["J"])
    assert compared > 100


def plain_scores(predicted: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """J and F written out pixel by pixel, as an independent check."""
    height, width = truth.shape
    union = (predicted | truth).sum()
    j = (predicted & truth).sum() / union if union else 1.0

    def boundary(mask: np.ndarray) -> set[tuple[int, int]]:
        def differs(y: int, x: int, dy: int, dx: int) -> bool:
            return y + dy < height and x + dx < width and mask[y, x] != mask[y + dy, x + dx]

        steps = ((0, 1), (1, 0), (1, 1))
        return {(y, x) for y in range(height) for x in range(width) if any(differs(y, x, *step) for step in steps)}

    def share(inner: set[tuple[int, int]], outer: set[tuple[int, int]]) -> float:
        radius = ceil(0.008 * sqrt(height**2 + width**2))
        near = sum(any((y - v) ** 2 + (x - u) ** 2 <= radius**2 for v, u in outer) for y, x in inner)
        return near / len(inner)

    a, b = boundary(predicted), boundary(truth)
    if not a or not b:
        return j, float(len(a) == len(b))
    precision, recall = share(a, b), share(b, a)
    return j, 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (9, 13), (20, 300)])
def test_random_masks_equal_a_plain_implementation(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(sum(size))
    for share in (0, 0.02, 0.2, 0.6, 1):
        coarse = rng.random((2, *size)) < share
        assert frame_scores(*coarse) == pytest.approx(plain_scores(*coarse), abs=1e-12)


def test_shapes_near_the_border_equal_a_plain_implementation() -> None:
    rng = np.random.default_rng(7)
    y, x = np.mgrid[:75, :101]  # a tolerance of 2: a full disk, not a square
    for _ in range(12):
        centres, radii = rng.uniform([[-5, -5]] * 2, [[80, 106]] * 2), rng.uniform(1, 30, 2)
        masks = [(y - c[0]) ** 2 + (x - c[1]) ** 2 < r**2 for c, r in zip(centres, radii, strict=True)]
        assert frame_scores(*masks) == pytest.approx(plain_scores(*masks), abs=1e-12)


def test_consequences_of_the_definition() -> None:
    empty, full, square = np.zeros((64, 96), bool), np.ones((64, 96), bool), np.zeros((64, 96), bool)
    square[20:40, 30:60] = True
    assert frame_scores(empty, empty) == (1, 1)
    assert frame_scores(full, full) == (1, 1)
    assert frame_scores(empty, square) == (0, 0)
    assert frame_scores(square, empty) == (0, 0)
    assert frame_scores(~square, square) == (0, 1)  # an inverted mask has the same boundary
    assert frame_scores(full, square) == (pytest.approx(600 / 6144), 0)  # a mask that fills the frame has none
    assert frame_scores(full, empty) == (0, 1)


def test_ends_are_dropped_and_counting_starts_at_the_first_appearance() -> None:
    def frames(*shown: int) -> np.ndarray:
        masks = np.zeros((6, 8, 8), bool)
        masks[list(shown), 2:5, 2:5] = True
        return masks

    scores = JFScores()
    truth = {"late": frames(0, 3), "hallucinated": frames(4), "ends": frames(0, 5), "gone": frames(1, 2)}
    predicted = {"late": frames(3), "hallucinated": frames(2, 4), "ends": frames(1), "gone": frames(1, 2, 3)}
    scores.add_objects("a", truth, predicted | {"unknown": frames(1)})
    assert scores.objects["a", "late"].j_frames == [1, 1]  # frames 3 and 4; the last, 5, is dropped
    assert scores.objects["a", "late"].first_frame == 2
    assert scores.objects["a", "hallucinated"].j_frames == [0, 1, 1]
    assert scores.objects["a", "gone"].j_frames == [1, 1, 0, 1]
    assert scores.skipped == {("a", "ends"): "the truth has no mask of it in the scored frames"}
    assert len(scores.objects) == 3
    assert scores.mean()["J"] == pytest.approx(100 * (1 + 2 / 3 + 3 / 4) / 3)


def test_nothing_to_score() -> None:
    assert JFScores().mean() == {}
    scores = JFScores()
    scores.add_labels("short", np.ones((2, 4, 4), np.uint8), np.ones((2, 4, 4), np.uint8))
    assert scores.mean() == {}


def test_frames_are_read_one_by_one() -> None:
    read: list[str] = []

    def lazily(name: str) -> Iterator[np.ndarray]:
        for _ in range(3):
            read.append(name)
            yield np.ones((4, 4), bool)

    scores = JFScores(skip_ends=False)
    scores.add_objects("a", {"x": lazily("true")}, {"x": lazily("predicted"), "y": lazily("never")})
    assert read == ["true", "predicted"] * 3


@pytest.mark.parametrize("skip_ends", [True, False])
def test_labels_wider_than_a_byte(skip_ends: bool) -> None:
    maps = np.zeros((4, 6, 6), np.uint16)
    maps[:, 1:3, 1:3] = 1000
    scores = JFScores(skip_ends=skip_ends)
    scores.add_labels("a", maps, maps)
    assert list(scores.objects) == [("a", "1000")]


def test_what_does_not_fit_is_named() -> None:
    masks, scores = np.ones((4, 8, 8), bool), JFScores(skip_ends=False)

    def add(truth: Any, predicted: Any) -> None:
        scores.add_objects("cat", {"1": truth}, predicted)

    with pytest.raises(tpo.TPOError, match=r"cat: the prediction has no object '1'; it has \['2'\]"):
        add(masks, {"2": masks})
    with pytest.raises(tpo.TPOError, match=r"cat, object 1: the prediction ends before frame 3 of the truth"):
        add(masks, {"1": masks[:3]})
    with pytest.raises(tpo.TPOError, match=r"frame 0: the prediction is of shape \[4, 8\], the truth of \[8, 8\]"):
        add(masks, {"1": masks[:, :4]})
    with pytest.raises(tpo.TPOError, match=r"cat, object 1, frame 0: a mask has the values \[0, 1, 2\].*at most two"):
        add(masks, {"1": np.array([[[0, 1], [1, 2]]] * 4).repeat(4, 1).repeat(4, 2)})
    add(masks, {"1": [*masks, masks[0]]})  # an extra prediction is ignored
    with pytest.raises(tpo.TPOError, match="cat, object 1: was added before"):
        add(masks, {"1": masks})
    with pytest.raises(tpo.TPOError, match="dog: the prediction ends before frame 1"):
        scores.add_labels("dog", masks.astype(np.uint8), masks.astype(np.uint8)[:1])


def test_ids_of_a_label_map() -> None:
    assert jf.object_ids(np.array([[0, 255], [3, 3]], np.uint8)) == [3, 255]
    assert jf.object_ids(np.zeros((2, 2), np.int64)) == []
