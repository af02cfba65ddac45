"""Published scorers of boxes, on examples worked out by hand or by the published code."""

from __future__ import annotations

import contextlib
import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from tpo_head_region.benchmarks import benchmarks, grec, refcoco, sets
from tpo_head_region.coco_ap import coco_ap

import tpo_plugin as tpo

WHOLE = [0.0, 0.0, 100.0, 100.0]


def test_refcoco_takes_an_iou_of_exactly_one_half() -> None:
    half, less = [0, 0, 100, 50], [0, 0, 100, 49.9]
    assert refcoco([half, less, None], [WHOLE] * 3) == {"Acc@0.5": pytest.approx(1 / 3), "sentences": 3, "missing": 1}
    with pytest.raises(tpo.TPOError, match="1 predictions were given for 2 true ones"):
        refcoco([half], [WHOLE] * 2)


def test_grec_by_iou_and_by_giou() -> None:
    offset = [17.0, 17.0, 117.0, 117.0]  # IoU 0.525, GIoU 0.483
    samples: Any = [[offset], []], [[WHOLE], []]
    assert grec(*samples, giou=True) == {"F1_score": 0.5, "samples": 2, "T-acc": 1.0, "N-acc": 1.0}
    assert grec(*samples)["F1_score"] == 1.0


def test_grec_wants_all_boxes_and_no_other() -> None:
    other = [200.0, 0.0, 300.0, 100.0]
    assert grec([[WHOLE, other]], [[other, WHOLE]])["F1_score"] == 1.0
    assert grec([[WHOLE]], [[other, WHOLE]])["F1_score"] == 0.0
    assert grec([[WHOLE, WHOLE]], [[WHOLE]])["F1_score"] == 0.0
    assert grec([[WHOLE, other]], [[WHOLE]], [[0.7, 0.69]])["F1_score"] == 1.0
    nothing = grec([[], [WHOLE]], [[], []])
    assert nothing == {"F1_score": 0.5, "samples": 2, "N-acc": 0.5}
    assert grec([[]], [[WHOLE]]) == {"F1_score": 0.0, "samples": 1, "T-acc": 0.0}


def test_sets_by_hand() -> None:
    other, far = [200.0, 0.0, 300.0, 100.0], [500.0, 500.0, 600.0, 600.0]
    predicted: Any = [[other, WHOLE], [WHOLE, far, WHOLE], [], [far]]
    truth: Any = [[WHOLE, other], [WHOLE], [], []]
    found = sets(predicted, truth, [[0.9, 0.8], [0.7, 0.6, 0.5], [], [0.1]])
    assert found == pytest.approx(
        {"recall": 1.0, "precision": 3 / 6, "F1": 6 / 9, "ap@0.5": 1.0, "ap": 1.0}
        | {"F1_score": 0.5, "samples": 4, "T-acc": 1.0, "N-acc": 0.5}
    )
    assert sets([[]], [[]]) == {"F1_score": 1.0, "samples": 1, "N-acc": 1.0}, "nothing to take the others of"
    assert sets([[]], [[WHOLE]]) == {"recall": 0.0, "F1": 0.0, "F1_score": 0.0, "samples": 1, "T-acc": 0.0}


# -- COCO --------------------------------------------------------------------------------------------------------------


def true(box: list[float], image: int = 1, id: int = 1, **more: Any) -> dict[str, Any]:
    entry = {"id": id, "image_id": image, "category_id": 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
    return entry | more


def given(box: list[float], score: float, image: int = 1, category: int = 1) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


A, B, FAR = [0.0, 0.0, 50.0, 50.0], [100.0, 0.0, 50.0, 50.0], [300.0, 300.0, 50.0, 50.0]


def test_coco_of_one_category() -> None:
    found = [given(A, 0.9), given(FAR, 0.8), given(B, 0.7)]
    assert coco_ap([true(A), true(B, id=2)], found)["AP50"] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert coco_ap([true(A)], [*(given(FAR, 0.9) for _ in range(100)), given(A, 0.1)])["AP"] == 0.0
    assert coco_ap([true(A)], [*(given(FAR, 0.9) for _ in range(99)), given(A, 0.1)])["AP"] == pytest.approx(0.01)


def test_coco_of_an_overlap_of_exactly_one_half() -> None:
    result = coco_ap([true(A)], [given([0.0, 0.0, 50.0, 25.0], 0.9)])
    assert (result["AP50"], result["AP"]) == pytest.approx((1.0, 0.1))


def test_coco_of_a_false_box_in_a_picture_without_truth() -> None:
    result = coco_ap([true(A)], [given(A, 0.5), given(A, 0.9, image=2)], images=[1, 2])
    assert result["AP50"] == pytest.approx(0.5)
    with pytest.raises(tpo.TPOError, match="a detection is in image 2, of which there is no truth"):
        coco_ap([true(A)], [given(A, 0.9, image=2)])


def test_coco_never_finds_id_0() -> None:
    assert coco_ap([true(A, id=0)], [given(A, 0.9)])["AP"] == 0.0
    assert coco_ap([true(A, id=1)], [given(A, 0.9)])["AP"] == pytest.approx(1.0)


def test_coco_of_nothing() -> None:
    assert coco_ap([true(A)], [])["AP"] == 0.0
    assert set(coco_ap([], [], images=[1]).values()) == {-1.0}


def random_set(seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[int]]:
    """Truth with crowds, equal scores and overlaps, sizes of all kinds, and pictures without one or the other."""
    rng = np.random.default_rng(seed)
    truth: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for image in range(1, 13):
        for category in (1, 2, 3):
            boxes = [
                [float(v) for v in (*rng.integers(0, 200, 2), *rng.choice([8, 20, 32, 60, 96, 150], 2))]
                for _ in range(rng.integers(0, 5))
            ]
            for box in boxes:
                crowd = int(rng.random() < 0.15)
                area = box[2] * box[3] * float(rng.choice([0.6, 1.0]))
                truth.append(true(box, image, len(truth) + 1, category_id=category, iscrowd=crowd, area=area))
            for box in boxes * int(rng.integers(0, 3)):
                moved = (np.array(box) + rng.integers(-8, 9, 4)).clip(1).tolist()
                found.append(given(moved, float(rng.integers(0, 10)) / 10, image, category))
            for _ in range(rng.integers(0, 3)):
                spare = [float(v) for v in (*rng.integers(0, 200, 2), *rng.integers(5, 120, 2))]
                found.append(given(spare, float(rng.random()), image, category))
    return truth, found, list(range(1, 15))


@pytest.mark.parametrize("seed", range(8))
def test_coco_as_pycocotools_has_it(seed: int) -> None:
    coco = pytest.importorskip("pycocotools.coco", reason="needs pycocotools")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    truth, found, images = random_set(seed)
    if seed == 0:
        truth[3]["id"] = 0
        found += [given(truth[0]["bbox"], 0.95)] * 120  # more than count
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = coco.COCO()
        categories = [{"id": c} for c in (1, 2, 3, 4)]
        theirs.dataset = {"images": [{"id": i} for i in images], "annotations": truth, "categories": categories}
        theirs.createIndex()
        evaluation = cocoeval.COCOeval(theirs, theirs.loadRes([dict(entry) for entry in found]), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    ours = coco_ap(truth, found, images)
    assert list(ours.values()) == pytest.approx(evaluation.stats.tolist(), abs=1e-12)
    assert 0 < ours["AP"] < 1


# -- of answers --------------------------------------------------------------------------------------------------------


def answer(boxes: list[list[float]], wanted: list[list[float]], **more: Any) -> tpo.HeadAnswer:
    named: dict[str, Any] = {"question": "the red one?", "text": "here", "reference": "here", "medium": "a.png"}
    return tpo.HeadAnswer(
        values=[torch.tensor(box) for box in boxes],
        scores=[0.9] * len(boxes),
        tasks=[{"head": "region", "boxes": wanted}] if wanted else [],
        **named | {"width": 200, "height": 100} | more,
    )


def test_answers_are_scored() -> None:
    scorers, left, right = benchmarks(empty_sets=False), [0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0]
    answers = [answer([left], [left]), answer([], [left]), answer([right, left], [left]), answer([], [])]
    assert scorers["refcoco"].score(answers) == {"Acc@0.5": pytest.approx(1 / 3), "sentences": 3, "missing": 1}
    assert scorers["grefcoco"].score(answers) == {
        "F1_score": 0.5, "samples": 4, "targeted": 3, "untargeted": 1, "T-acc": pytest.approx(2 / 3), "N-acc": 1.0
    }  # fmt: skip
    result = scorers["coco"].score([answer([left], [left]), answer([left], [right], question="the blue one?")])
    assert result["AP"] == pytest.approx(0.5)
    assert result["APlarge"] == pytest.approx(0.5)
    assert math.isclose(result["APsmall"], -1)
    with pytest.raises(tpo.TPOError, match="'the red one\\?' wants 2 boxes; expected one a sentence"):
        scorers["refcoco"].score([answer([], [left, right])])
    assert all(
        "lmms" in s.convention or "pycocotools" in s.convention or "GIoU" in s.convention for s in scorers.values()
    )


def test_an_answer_is_a_set_of_boxes_whichever_head_gave_them() -> None:
    """`region` gives a value for each box, `region_set` one for all."""
    left, right = [0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0]
    each = answer([right, left], [left, right])
    both = tpo.HeadAnswer(
        **{**vars(each), "values": [{"boxes_xyxy": torch.tensor([right, left]), "scores": torch.tensor([0.9, 0.9])}]}
        | {"scores": [0.5]}
    )
    none = tpo.HeadAnswer(
        **{**vars(answer([], [left])), "values": [{"boxes_xyxy": torch.zeros(0, 4), "scores": torch.zeros(0)}]}
        | {"scores": [0.5]}
    )
    of_region, of_set = (benchmarks(empty_sets=sets) for sets in (False, True))
    for name in ("sets", "grefcoco", "coco"):
        found = of_region[name].score([each, answer([], [left])])
        assert found == of_set[name].score([both, none]) != of_region[name].score([each])
    assert of_region["sets"].score([each])["F1"] == 1.0


def test_of_sets_only_an_empty_list_is_a_sample_without_a_target() -> None:
    """Of `region` a question without a task is one: its records cannot say it otherwise."""
    left = [0.0, 0.0, 0.5, 1.0]

    def of_set(found: list[list[float]], tasks: list[dict[str, Any]]) -> tpo.HeadAnswer:
        value = {"boxes_xyxy": torch.tensor(found).reshape(-1, 4), "scores": torch.ones(len(found))}
        return tpo.HeadAnswer(**{**vars(answer([], [])), "values": [value], "scores": [0.5], "tasks": tasks})

    empty, some = ({"head": "region_set", "boxes": boxes} for boxes in ([], [left]))
    plain = answer([], [])
    for name in ("sets", "grefcoco"):
        of_sets, of_region = (benchmarks(empty_sets=sets)[name] for sets in (True, False))
        answers = [of_set([left], [some]), of_set([], [empty]), of_set([left], [empty]), plain, of_set([left], [])]
        found = of_sets.score(answers)
        assert (found["targeted"], found["untargeted"], found["N-acc"]) == (1, 2, 0.5)
        silent = of_sets.score([plain])
        assert (silent["targeted"], silent["untargeted"]) == (0, 0)
        found = of_region.score([answer([left], [left]), plain, answer([left], [])])
        assert (found["targeted"], found["untargeted"], found["N-acc"]) == (1, 2, 0.5)
        assert "without any task is a sample without a target" in of_region.convention
