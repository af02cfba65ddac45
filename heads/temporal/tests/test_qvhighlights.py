"""QVHighlights' metrics: equal to the published evaluator's on all files there are, and to a plain implementation."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tpo_head_temporal.jsonlines import read_jsonl
from tpo_head_temporal.qvhighlights import evaluate, evaluate_files

import tpo_plugin as tpo

_spec = importlib.util.spec_from_file_location("plain_metrics", Path(__file__).with_name("plain_metrics.py"))
assert _spec is not None
assert _spec.loader is not None
plain = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(plain)

SHARED = Path(__file__).resolve().parents[4] / "shared"
DEFAULT = SHARED / "golden" / "qvhighlights"
GOLDEN = Path(os.environ["TPO_GOLDEN"]) / "qvhighlights" if "TPO_GOLDEN" in os.environ else DEFAULT
"""Annotations (*.jsonl with `relevant_windows`), predictions (*.jsonl, *.jsonl.gz), and beside these the metrics that
the published evaluator gives, <name of the predictions>_metrics*.json. Predictions for the public validation set need
no copy of its annotations."""


def files() -> Iterator[tuple[Path, Path, Path]]:
    """(predictions, truth, metrics) of every file of metrics."""
    folders = dict.fromkeys((GOLDEN, DEFAULT))
    lines = [path for folder in folders for end in ("jsonl", "jsonl.gz") for path in sorted(folder.glob(f"*.{end}"))]
    first = {path: read_jsonl(path)[0][1] for path in lines}
    truths = [path for path, line in first.items() if "relevant_windows" in line]
    for path, line in first.items():
        if path.parent == GOLDEN and {"pred_relevant_windows", "pred_saliency_scores"} & set(line):
            stem = path.name.removesuffix(".gz").removesuffix(".jsonl")
            for metrics in sorted(path.parent.glob(f"{stem}_metrics*.json")):
                yield path, nearest(path, truths), metrics


def nearest(path: Path, truths: list[Path]) -> Path:
    queries = {row["qid"] for _, row in read_jsonl(path)}
    same = (truth for truth in truths if {row["qid"] for _, row in read_jsonl(truth)} == queries)
    return next(same, truths[0])  # without such annotations the test says which queries are missing


CASES = list(files()) if GOLDEN.is_dir() else []


@pytest.fixture(scope="module")
def evaluated() -> Callable[[Path, Path], dict[str, Any]]:
    cache: dict[tuple[Path, Path], dict[str, Any]] = {}

    def get(predictions: Path, truth: Path) -> dict[str, Any]:
        if (predictions, truth) not in cache:
            cache[predictions, truth] = evaluate_files(predictions, truth)
        return cache[predictions, truth]

    return get


def entries(metrics: dict[str, Any], prefix: str = "") -> dict[str, float]:
    flat: dict[str, float] = {}
    for name, value in metrics.items():
        flat |= entries(value, f"{prefix}{name}/") if isinstance(value, dict) else {prefix + name: value}
    return flat


def test_golden_files_are_there() -> None:
    if not GOLDEN.is_dir():
        pytest.skip(f"needs shared/ (golden data) at {GOLDEN}")
    assert CASES, f"no predictions with metrics below {GOLDEN}"


@pytest.mark.parametrize(("predictions", "truth", "metrics"), CASES, ids=[case[2].stem for case in CASES])
def test_equal_to_the_published_evaluator(predictions: Path, truth: Path, metrics: Path, evaluated: Any) -> None:
    """To the printed digit, in every entry that the file has; older evaluators print fewer."""
    expected, found = entries(json.loads(metrics.read_text())), entries(evaluated(predictions, truth))
    assert expected
    assert {name: found.get(name) for name in expected} == expected


@pytest.mark.slow
@pytest.mark.parametrize(("predictions", "truth"), sorted({case[:2] for case in CASES}), ids=lambda path: path.stem)
def test_equal_to_a_plain_implementation_on_golden_files(predictions: Path, truth: Path, evaluated: Any) -> None:
    rows = [[row for _, row in read_jsonl(path)] for path in (predictions, truth)]
    found = evaluated(predictions, truth)
    assert {name: value for name, value in found.items() if name != "brief"} == plain.evaluate(*rows)


def made(seed: int, num: int = 60) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Queries with everything that is awkward: ties, odd lengths, empty and zero-length windows, no positive clip."""
    rng = np.random.default_rng(seed)
    truth, predictions = [], []
    for qid in range(num):
        duration = float(rng.choice([9.5, 20, 47, 150]))
        clips = int(duration / 2)
        windows = np.sort(rng.integers(0, clips + 1, (rng.integers(1, 5), 2)), 1) * 2.0
        windows = [w for w in windows.tolist() if w[1] > w[0]] or [[0.0, 2.0]]
        relevant = sorted(rng.permutation(clips)[: rng.integers(1, clips + 1)].tolist())
        scores = rng.integers(0, 5 if qid % 3 else 2, (len(relevant), 3)).tolist()
        truth.append(
            {
                "qid": qid,
                "duration": duration,
                "relevant_windows": windows,
                "relevant_clip_ids": relevant,
                "saliency_scores": scores,
            }
        )
        spans = np.sort(rng.integers(0, clips + 1, (rng.integers(0 if qid else 1, 14), 2)), 1) * 2.0
        spans[: len(spans) // 2] += rng.random((len(spans) // 2, 2)).round(3)
        ranked = np.c_[spans, rng.integers(0, 6, len(spans)) / 5].tolist()
        saliency = (rng.integers(-4, 5, max(1, clips + int(rng.integers(-3, 4)))) / 4).tolist()
        predictions.append({"qid": qid, "pred_relevant_windows": ranked, "pred_saliency_scores": saliency})
    return [predictions[i] for i in rng.permutation(num)], truth


@pytest.mark.parametrize("seed", range(8))
def test_equal_to_a_plain_implementation(seed: int) -> None:
    predictions, truth = made(seed)
    found = evaluate(predictions, truth)
    assert {name: value for name, value in found.items() if name != "brief"} == plain.evaluate(predictions, truth)


def test_only_what_the_first_prediction_has() -> None:
    predictions, truth = made(0)
    moments = [{k: v for k, v in line.items() if k != "pred_saliency_scores"} for line in predictions]
    assert set(evaluate(moments, truth)) == {"brief", "full", "long", "middle", "short"}
    highlights = [{k: v for k, v in line.items() if k != "pred_relevant_windows"} for line in predictions]
    assert set(evaluate(highlights, truth)) == {"brief", "HL-min-Fair", "HL-min-Good", "HL-min-VeryGood"}
    with pytest.raises(tpo.RecordError, match=r"predictions\[0\]: has neither 'pred_relevant_windows' nor"):
        evaluate([{"qid": 0}], truth[:1])


def test_an_empty_split_is_zero() -> None:
    truth = [{"qid": "a", "duration": 20, "relevant_windows": [[0, 12]]}]
    result = evaluate([{"qid": "a", "pred_relevant_windows": [[0, 12, 0.5]]}], truth)
    assert set(entries(result["full"]).values()) == {100.0}
    assert set(entries(result["middle"]).values()) == {100.0}
    assert set(entries(result["short"]).values()) == set(entries(result["long"]).values()) == {0.0}


def test_queries_of_one_side_alone() -> None:
    predictions, truth = made(1)
    with pytest.raises(tpo.RecordError, match=r"2 of 60 queries are missing in the truth \(qid .*--common-only"):
        evaluate(predictions, [line for line in truth if line["qid"] not in (3, 4)])
    with pytest.raises(tpo.RecordError, match=r"1 of 60 queries are missing in the predictions \(qid 7\)"):
        evaluate([line for line in predictions if line["qid"] != 7], truth)
    common = evaluate(predictions, truth[:30], common_only=True)
    assert common == evaluate([line for line in predictions if line["qid"] < 30], truth[:30])
    with pytest.raises(tpo.RecordError, match="have no query in common"):
        evaluate(predictions[:1], [truth[0] | {"qid": "x"}], common_only=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qid": None}, "p.jsonl:2: qid: is missing or no number or text"),
        ({"qid": 0}, "p.jsonl:2: qid: is 0, as in .*p.jsonl:1; expected each query once"),
        ({"pred_relevant_windows": None}, "p.jsonl:2: pred_relevant_windows: is missing"),
        (
            {"pred_relevant_windows": [[0, 2]]},
            "p.jsonl:2: pred_relevant_windows: .*expected a list of .start, end, score",
        ),
        (
            {"pred_relevant_windows": [[0, 2, "x"]]},
            "p.jsonl:2: pred_relevant_windows: holds something else than a list",
        ),
        ({"pred_relevant_windows": [[0, 2, float("nan")]]}, "p.jsonl:2: pred_relevant_windows: .*not finite"),
        ({"pred_saliency_scores": []}, "p.jsonl:2: pred_saliency_scores: expected a list of at least one number"),
        ({"relevant_windows": []}, "t.jsonl:2: relevant_windows: is empty"),
        ({"duration": 0}, "t.jsonl:2: duration: is 0, expected seconds"),
        ({"relevant_clip_ids": [99]}, "t.jsonl:2: relevant_clip_ids: is .99., expected numbers from 0 to 9"),
        ({"saliency_scores": [[1, 2]]}, r"t.jsonl:2: saliency_scores: has the shape \[1, 2\], expected \[1, 3\]"),
    ],
)
def test_wrong_lines_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    lines = {
        "p": {"pred_relevant_windows": [[0, 2, 0.5]], "pred_saliency_scores": [0.5] * 10},
        "t": {"duration": 20, "relevant_windows": [[0, 2]], "relevant_clip_ids": [0], "saliency_scores": [[1, 2, 3]]},
    }
    for name, line in lines.items():
        second = {"qid": 1} | line | {k: v for k, v in change.items() if k in line or (k == "qid" and name == "p")}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"qid": 0} | line) + "\n" + json.dumps(second))
    with pytest.raises(tpo.RecordError, match=message):
        evaluate_files(tmp_path / "p.jsonl", tmp_path / "t.jsonl")


def test_wrong_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    with pytest.raises(tpo.RecordError, match=r"p\.jsonl: cannot be read: No such file"):
        read_jsonl(path)
    path.write_text("\n")
    with pytest.raises(tpo.RecordError, match=r"p\.jsonl: holds no line"):
        read_jsonl(path)
    path.write_text('{"qid": 1}\n[1]\n')
    with pytest.raises(tpo.RecordError, match=r"p\.jsonl:2: is list, expected an object"):
        read_jsonl(path)
    path.write_text('{"qid": 1}\n\n{"qid\n')
    with pytest.raises(tpo.RecordError, match=r"p\.jsonl:3: is not valid JSON"):
        read_jsonl(path)
    path = tmp_path / "p.jsonl.gz"
    path.write_bytes(b"no gzip")
    with pytest.raises(tpo.RecordError, match=r"p\.jsonl\.gz: cannot be read: Not a gzipped file"):
        read_jsonl(path)
