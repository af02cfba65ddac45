"""Files that the temporal head reads: records, features, predictions, weights and its configuration."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import zoo
from downloads import download
from fuzzing import Files, changed, files, fuzz, texts
from safetensors.numpy import save

from tpo_plugin import TPOConfig, apply_tpo, load_tpo, remove_tpo
from tpo_plugin.data import RecordFormat, Records
from tpo_plugin.files import CONFIG_FILE

pytest.importorskip("tpo_head_temporal")

from tpo_head_temporal.features import load_features
from tpo_head_temporal.importing import read_checkpoint
from tpo_head_temporal.qvhighlights import evaluate_files

RECORD = {
    "id": "1",
    "video": "a.mp4",
    "conversations": [{"from": "human", "value": "<video>\nWhen?"}, {"from": "gpt", "value": "At <temporal>."}],
    "tasks": [
        {"head": "temporal", "spans": [[1, 2.5], [4, 5]], "saliency": [1, 2.5, 12], "clip_s": 2.0, "query": "it"}
    ],
}
TRUTH = json.loads(download("temporal", "qvhighlights")["files"]["highlight_train_release.jsonl"])
PREDICTION = {
    "qid": TRUTH["qid"],
    "pred_relevant_windows": [[0, 3, 0.9], [2, 4, 0.1]],
    "pred_saliency_scores": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0],
}


def test_records(tmp_path: Path) -> None:
    format = RecordFormat.of_heads(["temporal"])

    def read(path: Path) -> None:
        for record in Records(path, format):
            for task in record.turns[-1].tasks:
                format.codecs["temporal"].collate_targets([task])

    fuzz(files(RECORD), tmp_path / "a.jsonl", read, tries=120)


def _npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


FEATURES = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)


def test_npz(tmp_path: Path) -> None:
    good = texts(_npz(features=FEATURES, unused=FEATURES), _npz(a=FEATURES.astype(np.float64)))
    fuzz(good, tmp_path / "v.npz", lambda path: load_features([path], duration_s=8.0, clip_s=2.0), tries=120)


def test_safetensors(tmp_path: Path) -> None:
    arrays = {"features": FEATURES, "times_s": np.arange(4.0)}
    good = save(arrays, metadata={"tpo": json.dumps({"duration_s": 8.0, "clip_s": 2.0})})
    fuzz(texts(good), tmp_path / "v.safetensors", lambda path: load_features([path], duration_s=8.0), tries=120)


@pytest.mark.parametrize("name", ["predictions.jsonl", "truth.jsonl"])
def test_predictions_and_truth(tmp_path: Path, name: str) -> None:
    good = {"predictions.jsonl": PREDICTION, "truth.jsonl": TRUTH}
    paths = [tmp_path / each for each in good]
    for path in paths:
        path.write_text(json.dumps(good[path.name]))
    fuzz(files(good[name]), tmp_path / name, lambda _: evaluate_files(*paths), tries=60)


def test_checkpoints_of_others(tmp_path: Path) -> None:
    file = io.BytesIO()
    torch.save({"model": {"dummy_rep_token": torch.zeros(2, 2)}, "opt": {"nheads": 2}}, file)
    fuzz(Files((), changed((file.getvalue(),))), tmp_path / "best.ckpt", read_checkpoint, tries=40)


SMALL = {"hidden": 16, "num_heads": 2, "feed_forward": 16, "encoder_layers": 1, "num_dummies": 2, "num_queries": 3}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    options = {"features": "files", "video_features": ["."], "video_size": 6}
    config = TPOConfig(heads={"temporal": SMALL | options})
    apply_tpo(zoo.host("llama").build(), zoo.tokenizer(), ["temporal"], config).tpo.save_pretrained(folder)
    return folder


def test_configurations_with_sizes(saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "saved"))
    host, tokenizer = zoo.host("llama").build(), zoo.tokenizer()
    fuzz(
        files(json.loads((saved / CONFIG_FILE).read_text())),
        folder / CONFIG_FILE,
        lambda path: remove_tpo(load_tpo(host, folder, tokenizer)),
        tries=100,
    )
