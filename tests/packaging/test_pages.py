"""From the download of a set to a trained run in three commands, as the heads' pages have them."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

import tpo_plugin.cli
from tpo_plugin.training.run import read_run

pytestmark = [
    pytest.mark.packaging,
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:mtime may not be reliable"),  # checkpoints of one moment
]

ROOT = Path(__file__).parents[2]
HUB_NAME = "llava-hf/llava-onevision-qwen2-0.5b-ov-hf"


def charades(folder: Path) -> None:
    """Two clips of five seconds, and three lines, one of them wrong."""
    lines = ["AO8RW 0.5 2.0##a person sits down.", "AO8RW 2 4##a person runs.", "LEOL6 8.0 7.0##a person stands."]
    (folder / "charades_sta_train.txt").write_text("\n".join(lines))
    (folder / "Charades_v1_480").mkdir()
    for name in ("AO8RW", "LEOL6"):
        with av.open(str(folder / "Charades_v1_480" / f"{name}.mp4"), "w") as container:
            stream = container.add_stream("mpeg4", rate=4)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for index in range(20):
                frame = np.full((48, 64, 3), 12 * index, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())


def reason_seg(folder: Path) -> None:
    """Two pictures with a question, and one whose JSON is missing."""
    (folder / "ReasonSeg/train").mkdir(parents=True)
    for name in ("clock", "cup", "none"):
        Image.new("RGB", (64, 48), "grey").save(folder / f"ReasonSeg/train/{name}.jpg")
        shape = {"label": "target", "points": [[5, 5], [40, 5], [40, 40]]}
        data = {"text": [f"what is the {name} for?"], "is_sentence": True, "shapes": [shape]}
        if name != "none":
            (folder / f"ReasonSeg/train/{name}.json").write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("page", "name", "file", "make", "head", "heads"),
    [
        ("heads/temporal/README.md", "charades", "charades.yaml", charades, "temporal", {}),
        (
            "heads/mask/DATA.md",
            "reason-seg",
            "reason.yaml",
            reason_seg,
            "mask",
            {"mask": {"size": "micro", "image_size": 32, "train": "all"}},
        ),
    ],
)
def test_three_commands_from_the_download_to_a_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    page: str,
    name: str,
    file: str,
    make: Callable[[Path], None],
    head: str,
    heads: dict[str, object],
) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.search(rf"<!-- commands: {name} -->\n((?:    .+\n)+)", text)
    config = re.search(rf"<!-- file: {file} -->\n```yaml\n(.*?)```", text, re.DOTALL)
    assert found
    assert config
    monkeypatch.chdir(tmp_path)
    make(tmp_path)
    values = yaml.safe_load(config[1])
    assert values["model"] == HUB_NAME
    printed = run(found[1], file, values, heads)
    assert "2 records written, 1 left out" in printed[0]
    assert printed[1] == f"2 records: none wrong, 0 without tasks\n  {head}: 2 tasks in 2 records, 2 tokens\n"
    assert first_log(values)[f"loss_{head}"] > 0


def test_a_track_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LaSOT has boxes alone, from which the head learns by the loss of prompts."""
    monkeypatch.chdir(tmp_path)
    sequence = tmp_path / "LaSOT/bear/bear-1"
    (sequence / "img").mkdir(parents=True)
    for k in range(1, 5):
        Image.new("RGB", (64, 48), (60 * k, 0, 0)).save(sequence / f"img/{k:08d}.jpg")
    (sequence / "groundtruth.txt").write_text("".join(f"{4 * k},6,20,12\n" for k in range(1, 5)))
    (sequence / "full_occlusion.txt").write_text("0,0,0,0")
    (sequence / "out_of_view.txt").write_text("0,0,1,0")
    commands = """
    tpo convert lasot LaSOT -o tracks.jsonl
    tpo check --config tracks.yaml --media
    tpo train tracks.yaml
"""
    rates = {"lora": 2.0e-5, "heads": 1.0e-4, "tokens": 1.0e-4}
    stage = {"learning_rates": rates, "data": [{"file": "tracks.jsonl", "weight": 2}]}
    values = {"output_dir": "run", "heads": ["mask"], "tpo": {}, "stages": {"tracks": stage}}
    heads = {"mask": {"size": "micro", "image_size": 32, "losses": ["prompt"]}}
    printed = run(commands, "tracks.yaml", values, heads)
    assert "1 records written, 0 left out" in printed[0]
    assert "  mask: 2 tasks in 1 records, 2 tokens\ntracks: 2 samples an epoch\n" in printed[1]
    assert first_log(values)["loss_mask"] > 0


def run(commands: str, file: str, values: dict[str, Any], heads: dict[str, object]) -> list[str]:
    """What convert, check and train print, with a host and a SAM 2 that are there, and a run that takes seconds."""
    from tpo_shapes.host import build_model, build_processor

    processor = build_processor()
    build_model(processor.tokenizer, width=32, num_layers=2).save_pretrained("host")
    processor.save_pretrained("host")
    values |= {"model": "host", "dtype": "float32", "data": {"video": {"num_frames": 2}}}
    values["tpo"] |= {"heads": heads}
    (stage,) = values["stages"].values()
    stage |= {"steps": 1, "batch_size": 2, "micro_batch_size": 2, "logging_steps": 1}
    stage["trainer"] = {"use_cpu": True, "report_to": [], "disable_tqdm": True}
    Path(file).write_text(yaml.safe_dump(values))
    torch.set_num_threads(1)
    lines = [shlex.split(line) for line in commands.strip().splitlines()]
    assert [line[:2] for line in lines] == [["tpo", verb] for verb in ("convert", "check", "train")]
    printed = []
    for line in lines:
        result = CliRunner().invoke(tpo_plugin.cli.app, line[1:], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        printed.append(result.stdout)
    return printed


def first_log(values: dict[str, Any]) -> dict[str, float]:
    (stage,) = read_run(values["output_dir"])["stages"].values()
    return stage["log"][0]
