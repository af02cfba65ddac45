"""lmms-eval's own command line on local tasks, with a small trained run; its numbers are those of `tpo eval`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import tpo_plugin as tpo

pytest.importorskip("lmms_eval")  # tests/envs/lmms-eval.txt

import datasets
import tpo_shapes
from lmms_eval.tasks.saco import utils as saco
from lmms_eval.tasks.timelens import utils as timelens
from tpo_head_mask import rle
from tpo_head_region.config import RegionConfig
from tpo_lmms_eval.model import TPO
from tpo_lmms_eval.words import in_words

from tpo_plugin.asking import Answer
from tpo_plugin.data import Sample
from tpo_plugin.training.run import train

HOST = Path(tpo_shapes.__file__).parent / "weights"
SIZE = (96, 72)
COLOURS = ("red", "green", "blue", "yellow")
CG_DETR = {
    "hidden": 32, "num_heads": 4, "feed_forward": 64, "encoder_layers": 1, "decoder_layers": 2,
    "cross_layers": 1, "dummy_layers": 1, "num_dummies": 4, "num_queries": 4,
}  # fmt: skip
QUESTIONS = """
def text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]
"""
TASK = """
task: NAME
dataset_path: parquet
dataset_kwargs: {data_files: {test: NAME.parquet}}
test_split: test
output_type: generate_until
doc_to_visual: !function NAME.visual
doc_to_text: !function NAME.text
doc_to_target: !function NAME.target
process_results: !function NAME.results
process_results_use_image: true
generation_kwargs: {max_new_tokens: 16, temperature: 0, num_beams: 1, do_sample: false}
metric_list:
"""
METRICS = {
    "region": ("refcoco_grounding_IoU", "refcoco_grounding_ACC@0.5"),
    "temporal": ("timelens_mIOU", "timelens_IOU@5"),
    "mask": ("sample_f1", "count_accuracy"),
}
CODE = {
    "region": """
from lmms_eval.tasks.refcoco_grounding.utils import (
    refcoco_grounding_acc05 as metric1, refcoco_grounding_doc_to_visual as visual, refcoco_grounding_iou as metric0,
    refcoco_grounding_process_result as results,
)
target = "bbox"
""",
    "temporal": """
from lmms_eval.tasks.timelens.utils import (
    timelens_aggregate_iou5 as metric1, timelens_aggregate_miou as metric0, timelens_doc_to_target as target,
    timelens_doc_to_visual as visual, timelens_process_results as results,
)
""",
    "mask": """
from lmms_eval.tasks.saco.utils import (
    count_accuracy as metric1, saco_doc_to_visual as visual, saco_process_results as results, sample_f1 as metric0,
)
target = "expression"
""",
}


def local_task(folder: Path, head: str, records: Path) -> None:
    """Writes a task of lmms-eval, `local_HEAD`, that asks single-turn records with the scorer of a published one."""
    folder.mkdir(exist_ok=True)
    name, rows = f"local_{head}", []
    for number, line in enumerate(records.read_text().splitlines()):
        record = json.loads(line)
        question = record["conversations"][0]["value"].removeprefix("<image>\n")
        row = {"question": question, "question_id": str(number), "answer": [question], "expression": question}
        (task,) = record["tasks"]
        if head == "temporal":
            row |= {"video_path": str(records.parent / record["video"]), "span": json.dumps(task["spans"])}
            row["query"] = f"{number} {question}"
        else:
            row["image"] = str(records.parent / record["image"])
        if head == "region":
            with Image.open(row["image"]) as picture:
                x1, y1, x2, y2 = np.array(task["boxes"][0]) * [*picture.size, *picture.size]
            row["bbox"] = [float(x1), float(y1), float(x2 - x1), float(y2 - y1)]
        if head == "mask":
            row |= {f"human_{n}_masks": task["masks"] for n in (1, 2, 3)}
        rows.append(row)
    data = datasets.Dataset.from_list(rows)
    data = data if head == "temporal" else data.cast_column("image", datasets.Image())
    data.to_parquet(str(folder / f"{name}.parquet"))
    text = TASK.replace("NAME.parquet", str(folder / f"{name}.parquet")).replace("NAME", name)
    metrics = [
        f"- {{metric: {metric}, aggregation: !function {name}.metric{number}, higher_is_better: true}}\n"
        for number, metric in enumerate(METRICS[head])
    ]
    column = next(
        (line.partition('"')[2][:-1] for line in CODE[head].splitlines() if line.startswith("target =")), None
    )
    text = text if column is None else text.replace(f"!function {name}.target", column)
    (folder / f"{name}.yaml").write_text(text.lstrip() + "".join(metrics))
    (folder / f"{name}.py").write_text(CODE[head] + QUESTIONS)


def of_lmms_eval(tasks: Path, head: str, run: Path) -> tuple[dict[str, float], list[str]]:
    """The two metrics that lmms-eval's command line prints for a local task, and the answers that it logged."""
    name = f"local_{head}"
    command = [sys.executable, "-m", "lmms_eval", "--model", "tpo", "--model_args", f"run={run}", "--tasks", name]
    command += ["--include_path", str(tasks), "--batch_size", "4", "--device", "cpu", "--log_samples"]
    home = {"HF_HOME": str(tasks / "home"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    subprocess.run([*command, "--output_path", str(tasks / name)], env={**os.environ, **home}, check=True)
    (results,) = (tasks / name).rglob("*results.json")
    (samples,) = (tasks / name).rglob("*samples*.jsonl")
    answers = [json.loads(line)["filtered_resps"] for line in samples.read_text().splitlines()]
    found = json.loads(results.read_text())["results"][name]
    return {m: found[f"{m},none"] for m in METRICS[head]}, [a[0] if isinstance(a, list) else a for a in answers]


def of_tpo_eval(run: Path, records: Path, output: Path, benchmark: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The scores that `tpo eval` gives the same records, and its predictions."""
    command = [str(Path(sys.executable).with_name("tpo")), "eval", str(run), "--data", str(records)]
    command += ["--output", str(output), "--benchmark", benchmark, "--max-new-tokens", "16"]
    subprocess.run(command, check=True)
    lines = (output / "predictions.jsonl").read_text().splitlines()
    return json.loads((output / "results.json").read_text())["splits"][str(records)], [json.loads(x) for x in lines]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures and clips, records of each head, and a run that learned these by heart from the demo's host."""
    folder = tmp_path_factory.mktemp("world")
    lines: dict[str, list[str]] = {"region": [], "mask": [], "temporal": []}
    for number, colour in enumerate(COLOURS):
        box = (8 + 14 * number, 6 + 9 * number, 40 + 14 * number, 34 + 9 * number)
        picture = Image.new("RGB", SIZE, "gray")
        ImageDraw.Draw(picture).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=colour)
        picture.save(folder / f"{number}.png")
        covered = np.zeros(SIZE[::-1], dtype=bool)
        covered[box[1] : box[3], box[0] : box[2]] = True
        share = [end / side for end, side in zip(box, SIZE * 2, strict=True)]
        span = [0.5 * number, 0.5 * number + 1.5]
        _write_clip(folder / f"{number}.mp4", colour, span)
        for head, asked, task in (
            ("region", f"where is the {colour} square?", {"boxes": [share]}),
            ("mask", f"outline the {colour} square.", {"masks": [rle.encode(covered)]}),
            ("temporal", f"when is the {colour} square there?", {"spans": [span]}),
        ):
            turns = [{"from": "human", "value": f"<image>\n{asked}"}, {"from": "gpt", "value": f"it is here <{head}>"}]
            medium = {"video": f"{number}.mp4"} if head == "temporal" else {"image": f"{number}.png"}
            lines[head].append(json.dumps({**medium, "conversations": turns, "tasks": [{"head": head, **task}]}) + "\n")
    for head, records in lines.items():
        (folder / f"{head}.jsonl").write_text("".join(records))
    stage = {
        "learning_rates": {"lora": 3e-3, "heads": 3e-3, "tokens": 3e-3}, "steps": 60, "batch_size": 12,
        "micro_batch_size": 12, "data": [{"file": str(folder / f"{head}.jsonl")} for head in lines],
        "trainer": {"use_cpu": True, "disable_tqdm": True, "report_to": []},
    }  # fmt: skip
    config = {"model": str(HOST), "output_dir": str(folder / "run"), "heads": list(lines)}
    heads = {"temporal": CG_DETR, "mask": {"train": "all", "image_size": 64}}
    config |= {"stages": {"only": stage}, "data": {"video": {"num_frames": 8}}, "tpo": {"heads": heads}}
    (folder / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    train(folder / "config.yaml")
    return folder


def _write_clip(path: Path, colour: str, span: list[float]) -> None:
    """Four seconds of grey, in which a square is there from the start of the span to its end."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for index in range(16):
            frame = Image.new("RGB", SIZE, "gray")
            if span[0] <= index / 4 < span[1]:
                ImageDraw.Draw(frame).rectangle((20, 10, 70, 60), fill=colour)
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())


@pytest.mark.slow
def test_boxes_as_refcoco_grounding_reads_them(world):
    local_task(world / "tasks", "region", world / "region.jsonl")
    metrics, answers = of_lmms_eval(world / "tasks", "region", world / "run")
    scores, lines = of_tpo_eval(world / "run", world / "region.jsonl", world / "eval-region", "refcoco")
    found = scores["heads"]["region"]
    assert found["emission"] == 1.0
    assert metrics["refcoco_grounding_IoU"] == pytest.approx(found["metrics"]["mean_iou"], abs=1e-3)  # pixels to 0.01
    assert metrics["refcoco_grounding_ACC@0.5"] == scores["benchmark"]["scores"]["Acc@0.5"]
    assert found["metrics"]["mean_iou"] > 0.5
    for answer, line in zip(answers, lines, strict=True):
        (box,), (said,) = json.loads(answer), line["predictions"]
        np.testing.assert_allclose(box["bbox_2d"], said["value_in_units"], atol=0.02)


@pytest.mark.slow
def test_spans_as_timelens_reads_them(world):
    local_task(world / "tasks", "temporal", world / "temporal.jsonl")
    metrics, answers = of_lmms_eval(world / "tasks", "temporal", world / "run")
    scores, lines = of_tpo_eval(world / "run", world / "temporal.jsonl", world / "eval-temporal", "charades")
    assert scores["heads"]["temporal"]["emission"] == 1.0
    published = scores["benchmark"]["scores"]
    assert metrics["timelens_mIOU"] == pytest.approx(published["mIoU"], abs=0.5)  # seconds to 0.01
    assert metrics["timelens_IOU@5"] == published["R@1, IoU=0.5"]
    assert published["mIoU"] > 50
    for answer, line in zip(answers, lines, strict=True):
        best = line["predictions"][0]["value"]["spans_s"][0]
        np.testing.assert_allclose(timelens.extract_time(answer)[0], best, atol=0.02)


@pytest.mark.slow
def test_masks_as_the_scorer_of_sam_3_reads_them(world):
    local_task(world / "tasks", "mask", world / "mask.jsonl")
    metrics, answers = of_lmms_eval(world / "tasks", "mask", world / "run")
    scores, lines = of_tpo_eval(world / "run", world / "mask.jsonl", world / "eval-mask", "reasonseg")
    assert scores["heads"]["mask"]["emission"] == 1.0
    assert metrics["count_accuracy"] == 1.0
    overlaps, expected = [], []
    for answer, line, record in zip(answers, lines, (world / "mask.jsonl").read_text().splitlines(), strict=True):
        (given,) = saco.parse_predicted_masks(answer)
        assert rle.decode(given).tolist() == rle.decode(line["predictions"][0]["value"]["masks"][0]).tolist()
        true = saco.decode_coco_rle(json.loads(record)["tasks"][0]["masks"][0])
        overlaps.append(saco.compute_mask_iou(saco.decode_coco_rle(given), true))
        expected.append(np.mean([overlaps[-1] >= threshold for threshold in saco.IOU_THRESHOLDS]))
    assert np.mean(overlaps) == pytest.approx(scores["benchmark"]["scores"]["gIoU"], abs=1e-6)
    assert metrics["sample_f1"] == pytest.approx(np.mean(expected), abs=2e-4)  # its 1e-4 in each denominator
    assert np.mean(overlaps) > 0.5


def prediction(head: Any, value: Any) -> tpo.Prediction:
    return tpo.Prediction("any", 0, value, None, None, "", (0, 0), _head=head)


def test_answers_in_words():
    picture = Sample(None, (Image.new("RGB", (100, 50)),), ())
    head = tpo.registry().head("region").head_class()(RegionConfig(), 8)
    boxes = [prediction(head, torch.tensor(box)) for box in ([0.1, 0.2, 0.5, 0.6], [0.0, 0.0, 1.0, 1.0])]
    words = in_words(Answer("here", boxes), picture)
    assert json.loads(words) == [{"bbox_2d": [10.0, 10.0, 50.0, 30.0]}, {"bbox_2d": [0.0, 0.0, 100.0, 50.0]}]
    spans = [prediction(None, {"spans_s": torch.tensor(found)}) for found in ([[1.5, 2.25], [0.0, 9.0]], [[3.0, 4.0]])]
    words = in_words(Answer("then", spans), picture)
    assert words == "The event happens in 1.50 - 2.25 seconds."
    assert timelens.extract_time(words) == [(1.5, 2.25)]
    assert (
        in_words(Answer("no", [prediction(None, {"spans_s": torch.zeros(0, 2)}), prediction(None, None)]), picture)
        == "no"
    )
    assert in_words(Answer("A", []), picture) == "A"


def test_masks_in_the_words_of_sam_3():
    from lmms_eval.models.simple.sam3 import SAM3

    picture = Sample(None, (Image.new("RGB", (8, 4)),), ())
    mask = np.zeros((4, 8), dtype=bool)
    mask[1:3, 2:6] = True
    values = [
        {"masks": [rle.encode(drawn)], "score": score} for drawn, score in ((mask, 0.75), (np.zeros_like(mask), 0.1))
    ]
    words = in_words(Answer("here", [prediction(None, value) for value in values]), picture)
    of_sam = {"masks": [torch.tensor(mask)], "boxes": torch.tensor([[2, 1, 6, 3]]), "scores": [0.75]}
    assert json.loads(words) == json.loads(SAM3._format_results(of_sam, 8, 4))
    nothing = in_words(Answer("here", [prediction(None, values[1])]), picture)
    assert json.loads(nothing) == {"masks": [], "boxes": [], "scores": []}
    assert in_words(Answer("a clip", [prediction(None, values[0])]), Sample(None, (), ())) == "a clip"


def test_what_it_does_not_take_is_named(world):
    with pytest.raises(tpo.TPOError, match=r"--model_args has \['runs'\]; expected run, host and route"):
        TPO(str(world / "run"), runs="x")
    request = SimpleNamespace(args=("", None, {"do_sample": True, "temperature": 0.7}, 0, "task", "test"))
    with pytest.raises(tpo.TPOError, match="0.7}; the model tpo answers greedily: set do_sample: false, num_beams: 1"):
        TPO(str(world / "run")).generate_until([request])
