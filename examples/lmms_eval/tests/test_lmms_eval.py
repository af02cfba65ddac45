"""lmms-eval's own command line on local tasks, with a tiny run; its numbers are those of the run's own answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tpo_plugin as tpo

pytest.importorskip("lmms_eval")  # tests/envs/lmms-eval.txt

import datasets
from lmms_eval.tasks.timelens import utils as timelens
from tpo_head_region.config import RegionConfig
from tpo_lmms_eval.model import in_words
from tpo_shapes.host import build_model, build_processor

from tpo_plugin.asking import Answer, ask, load
from tpo_plugin.data import Sample, prompt_record, read_sample
from tpo_plugin.training.run import train

SMALL = {
    "hidden": 32, "num_heads": 4, "feed_forward": 64, "encoder_layers": 1, "decoder_layers": 2,
    "cross_layers": 1, "dummy_layers": 1, "num_dummies": 4, "num_queries": 4,
}  # fmt: skip
GREEDY = "generation_kwargs: {max_new_tokens: 8, temperature: 0, num_beams: 1, do_sample: false}\n"
BOXES = (
    "task: local_boxes\ndataset_path: parquet\ndataset_kwargs: {data_files: {test: BOXES}}\ntest_split: test\n"
    "output_type: generate_until\nprocess_results_use_image: true\ndoc_to_visual: !function boxes.visual\n"
    "doc_to_text: !function boxes.text\ndoc_to_target: bbox\nprocess_results: !function boxes.results\n"
    + GREEDY
    + "metric_list:\n"
    "- {metric: refcoco_grounding_IoU, aggregation: !function boxes.iou, higher_is_better: true}\n"
    "- {metric: refcoco_grounding_ACC@0.1, aggregation: !function boxes.acc, higher_is_better: true}\n"
)
BOXES_CODE = """
from lmms_eval.tasks.refcoco_grounding.utils import (
    refcoco_grounding_acc01 as acc, refcoco_grounding_doc_to_text as text, refcoco_grounding_doc_to_visual as visual,
    refcoco_grounding_iou as iou, refcoco_grounding_process_result as results,
)
"""
SPANS = (
    "task: local_spans\ndataset_path: json\ndataset_kwargs: {data_files: {test: SPANS}}\ntest_split: test\n"
    "output_type: generate_until\ndoc_to_visual: !function spans.visual\ndoc_to_text: !function spans.text\n"
    "doc_to_target: !function spans.target\nprocess_results: !function spans.results\n"
    + GREEDY
    + "metric_list:\n- {metric: timelens_mIOU, aggregation: !function spans.miou, higher_is_better: true}\n"
    "lmms_eval_specific_kwargs: {default: {pre_prompt: 'when is ', post_prompt: '?'}}\n"
)
SPANS_CODE = """
from lmms_eval.tasks.timelens.utils import (
    timelens_aggregate_miou as miou, timelens_doc_to_target as target, timelens_doc_to_text as text,
    timelens_doc_to_visual as visual, timelens_process_results as results,
)
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step with the region and the temporal head, three pictures and two clips."""
    folder = tmp_path_factory.mktemp("world")
    processor = build_processor()
    build_model(processor.tokenizer, width=32, num_layers=2).save_pretrained(folder / "host")
    processor.save_pretrained(folder / "host")
    draw = np.random.default_rng(0)
    for index in range(3):
        Image.fromarray(draw.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    for index in range(2):
        lines = ["ffconcat version 1.0"]
        for frame in range(4):
            Image.fromarray(draw.integers(0, 255, (48, 48, 3), dtype=np.uint8)).save(folder / f"c{index}{frame}.png")
            lines += [f"file 'c{index}{frame}.png'", "duration 0.5"]
        (folder / f"{index}.ffconcat").write_text("\n".join(lines))
    turns = [{"from": "human", "value": "<image>\nwhere is it?"}, {"from": "gpt", "value": "here <region>"}]
    record = {"image": "0.png", "conversations": turns, "tasks": [{"head": "region", "boxes": [[0.1, 0.2, 0.5, 0.6]]}]}
    (folder / "records.jsonl").write_text(json.dumps(record) + "\n")
    stage = {
        "learning_rates": {"lora": 1e-4, "heads": 1e-4}, "data": [{"file": str(folder / "records.jsonl")}], "steps": 1,
        "batch_size": 1, "micro_batch_size": 1, "trainer": {"use_cpu": True, "disable_tqdm": True, "report_to": []},
    }  # fmt: skip
    config = {"model": str(folder / "host"), "output_dir": str(folder / "run"), "heads": ["region", "temporal"]}
    config |= {"stages": {"only": stage}, "data": {"video": {"num_frames": 4}}, "tpo": {"heads": {"temporal": SMALL}}}
    (folder / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    train(folder / "config.yaml")
    return folder


def evaluated(folder: Path, task: str, **model_args: Any) -> tuple[dict[str, float], list[str]]:
    """The metrics of lmms-eval's command line, and the answers that it logged."""
    given = ",".join(f"{name}={value}" for name, value in model_args.items())
    command = [sys.executable, "-m", "lmms_eval", "--model", "tpo", "--model_args", given, "--tasks", task]
    command += ["--include_path", str(folder / "tasks"), "--batch_size", "2", "--device", "cpu", "--log_samples"]
    home = {"HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    subprocess.run([*command, "--output_path", str(folder / task)], env={**os.environ, **home}, check=True)
    (results,) = (folder / task).rglob("*results.json")
    (samples,) = (folder / task).rglob("*samples*.jsonl")
    answers = [json.loads(line)["filtered_resps"] for line in samples.read_text().splitlines()]
    return json.loads(results.read_text())["results"][task], [a[0] if isinstance(a, list) else a for a in answers]


@pytest.mark.slow
def test_boxes_as_refcoco_grounding_reads_them(world):
    (world / "tasks").mkdir(exist_ok=True)
    truth = [[10, 10, 30, 25], [0, 0, 64, 48], [20, 12, 30, 24]]  # x, y, w, h
    rows = [
        {"image": str(world / f"{i}.png"), "bbox": box, "answer": [f"shape {i}"], "question_id": str(i)}
        for i, box in enumerate(truth)
    ]
    data = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    data.to_parquet(str(world / "boxes.parquet"))
    (world / "tasks" / "boxes.yaml").write_text(BOXES.replace("BOXES", str(world / "boxes.parquet")))
    (world / "tasks" / "boxes.py").write_text(BOXES_CODE)
    metrics, answers = evaluated(world, "local_boxes", run=world / "run", route="region")
    model, _ = load(world / "run")
    overlaps = []
    for i, (x, y, w, h) in enumerate(truth):
        prompt = f'Locate every object that matches the description "shape {i}" in the image.'
        prompt += " Report bbox coordinates in JSON format."
        sample = read_sample(prompt_record(model.tpo, prompt, images=[world / f"{i}.png"]))
        answer = ask(model, [sample], route="region", max_new_tokens=8)[0]
        assert answers[i] == in_words(answer, sample)
        found = [[box["bbox_2d"] for box in json.loads(text)] for text in (answers[i], in_words(answer, sample))]
        np.testing.assert_allclose(*found, atol=0.02)  # rounded to 0.01, of batches of another size
        boxes = [p.to_units(width=64, height=48).tolist() for p in answer.predictions]
        boxes += [[v * side / 1000 for v, side in zip(b, (64, 48, 64, 48), strict=True)] for b in boxes]
        overlaps.append(max(iou(box, [x, y, x + w, y + h]) for box in boxes))
    assert metrics["refcoco_grounding_IoU,none"] == pytest.approx(np.mean(overlaps), abs=1e-3)
    assert metrics["refcoco_grounding_ACC@0.1,none"] == pytest.approx(np.mean(np.array(overlaps) >= 0.1))
    assert np.mean(overlaps) > 0.1


def iou(a: list[float], b: list[float]) -> float:
    overlap = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    return overlap / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap)


@pytest.mark.slow
def test_spans_as_timelens_reads_them(world):
    (world / "tasks").mkdir(exist_ok=True)
    truth = [[0.0, 1.0], [0.5, 2.0]]
    rows = [
        {"video_path": str(world / f"{i}.ffconcat"), "query": f"shape {i}", "span": json.dumps([span])}
        for i, span in enumerate(truth)
    ]
    (world / "spans.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (world / "tasks" / "spans.yaml").write_text(SPANS.replace("SPANS", str(world / "spans.json")))
    (world / "tasks" / "spans.py").write_text(SPANS_CODE)
    metrics, _ = evaluated(world, "local_spans", run=world / "run", route="temporal")
    model, reading = load(world / "run")
    overlaps = []
    for i, (start, end) in enumerate(truth):
        record = prompt_record(model.tpo, f"when is shape {i}?", videos=[world / f"{i}.ffconcat"])
        answer = ask(model, [read_sample(record, reading.video)], route="temporal", max_new_tokens=8)[0]
        a, b = answer.predictions[0].value["spans_s"][0].tolist()
        overlaps.append(max(0, min(b, end) - max(a, start)) / (max(b, end) - min(a, start)))
    assert metrics["timelens_mIOU,none"] == pytest.approx(100 * np.mean(overlaps), abs=0.5)
    assert np.mean(overlaps) > 0


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


def test_what_it_does_not_take_is_named(world):
    from tpo_lmms_eval.model import TPO

    with pytest.raises(tpo.TPOError, match=r"--model_args has \['runs'\]; expected run, host and route"):
        TPO(str(world / "run"), runs="x")
    request = SimpleNamespace(args=("", None, {"do_sample": True, "temperature": 0.7}, 0, "task", "test"))
    with pytest.raises(tpo.TPOError, match="0.7}; the model tpo answers greedily: set do_sample: false, num_beams: 1"):
        TPO(str(world / "run")).generate_until([request])
