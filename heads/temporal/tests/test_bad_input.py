"""Records that cannot be used: each a clear error, or a skip that is counted with its reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

import tpo_plugin as tpo
from tpo_plugin.data import RecordDataset, Records
from tpo_plugin.testing import tiny_host

SMALL = {"hidden": 16, "num_heads": 2, "feed_forward": 16, "encoder_layers": 1, "num_dummies": 2, "num_queries": 3}


def write_video(path: Path, num_frames: int) -> None:
    """10 frames a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
        for i in range(num_frames):
            frame = np.full((24, 32, 3), 5 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Videos of 4 seconds and of one frame, an empty file, and features of clips of a second: of some of the videos."""
    (tmp_path / "features").mkdir()
    for name, num_frames, num_clips in (("good", 40, 4), ("one", 1, 1), ("bare", 40, 0), ("longer", 40, 9)):
        write_video(tmp_path / f"{name}.mp4", num_frames)
        if num_clips:
            features = np.random.default_rng(0).normal(size=(num_clips, 6)).astype(np.float32)
            np.savez(tmp_path / "features" / f"{name}.npz", features=features)
    (tmp_path / "empty.mp4").touch()
    return tmp_path


@pytest.fixture
def model(folder: Path) -> Any:
    options = {"features": "files", "video_features": [str(folder / "features")], "video_size": 6, "clip_s": 1.0}
    config = tpo.TPOConfig(heads={"temporal": SMALL | options})
    return tpo.apply_tpo(*tiny_host(), heads=["temporal"], config=config)


def record(name: str, video: str, span: list[float]) -> dict[str, Any]:
    turns = [{"from": "human", "value": "<video>\nwhen"}, {"from": "gpt", "value": "then <temporal>"}]
    return {"id": name, "video": video, "conversations": turns, "tasks": [{"head": "temporal", "spans": [span]}]}


def test_records_whose_media_do_not_fit_are_counted_skips(model, folder):
    expected = {
        "empty": (record("empty", "empty.mp4", [0, 1]), "empty.mp4: cannot be read as a video"),
        "gone": (record("gone", "gone.mp4", [0, 1]), "gone.mp4: no such file"),
        "late": (
            record("late", "good.mp4", [5, 7]),
            "spans[0] is [5, 7], behind the end of its video, which lasts 4.0",
        ),
        "past": (record("past", "good.mp4", [3, 7]), "spans[0] is [3, 7], behind the end of its video"),
        "bare": (record("bare", "bare.mp4", [0, 1]), "has no features bare{.safetensors,.npz}; compute them with `tpo"),
        "longer": (record("longer", "longer.mp4", [0, 1]), "longer.npz: has 9 clips, but the video lasts 4.00 s"),
    }
    given = [record("good", "good.mp4", [1, 2]), *(entry for entry, _ in expected.values())]
    dataset = RecordDataset([Records(given, model.tpo, media_root=folder)], max_bad_share=0.9)
    assert {dataset[i].record.id for i in range(len(dataset))} == {"good"}
    reasons = {skipped.id: skipped.reason for skipped in dataset.skipped}
    assert set(reasons) == set(expected)
    for name, (_, message) in expected.items():
        assert message in reasons[name]
    assert "7 records read, 6 skipped because they cannot be read" in dataset.report()


def test_a_span_that_ends_before_it_starts_names_its_line(model, folder):
    file = folder / "records.jsonl"
    file.write_text("\n".join(json.dumps(record("1", "good.mp4", span)) for span in ([1, 2], [3, 2])))
    message = r"records\.jsonl:2: tasks\[0\]\.spans\[0\]: is \[3, 2\]; expected 0 <= start < end, in seconds"
    with pytest.raises(tpo.RecordError, match=message):
        Records(file, model.tpo)[1]


def test_a_video_of_one_frame_is_learned_from_and_answered(model, folder):
    given = record("1", "one.mp4", [0, 0.1])
    sample = RecordDataset([Records([given], model.tpo, media_root=folder)])[0]
    head = model.tpo.heads["temporal"].train()
    tasks = list(sample.record.turns[-1].tasks)
    inputs = head.collate_inputs(tasks, [], [sample])
    e_ND = torch.randn(1, head.text_size, requires_grad=True)
    inputs |= {"words": torch.randn(1, 2, head.text_size), "num_words": torch.tensor([2.0])}
    outputs = head(e_ND, inputs=inputs, batch_rows=torch.tensor([0]))
    total = sum(head.loss(outputs, head.collate_targets(tasks), 1).values())
    total.backward()
    assert torch.isfinite(total)
    assert all(torch.isfinite(p.grad).all() for p in head.parameters())
    (value,) = head.postprocess(outputs)
    duration_s = sample.videos[0].duration_s
    assert len(value["saliency"]) == 1
    assert ((value["spans_s"] >= 0) & (value["spans_s"] <= duration_s)).all()
