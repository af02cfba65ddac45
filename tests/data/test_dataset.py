from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from tpo_plugin.data.dataset import RecordDataset, Sample, read_sample
from tpo_plugin.data.media import VideoOptions, read_video
from tpo_plugin.data.records import Records
from tpo_plugin.errors import MediaError, TPOError

Write = Callable[..., Path]


def chat(name: str, **media: str) -> dict[str, Any]:
    tag = "".join(f"<{kind}>" for kind in media)
    return {
        "id": name,
        **media,
        "conversations": [{"from": "human", "value": f"{tag}Hi"}, {"from": "gpt", "value": "Hello"}],
    }


def ids(samples: Any) -> list[str]:
    return [sample.record.id for sample in samples]


def epoch_of(dataset: RecordDataset) -> list[str]:
    return ids(dataset[i] for i in range(len(dataset)))


def source(tpo: Any, name: str, size: int) -> Records:
    return Records([chat(f"{name}{i}") for i in range(size)], tpo)


def test_without_weights_every_record_once(tpo: Any) -> None:
    dataset = RecordDataset([source(tpo, "a", 3), source(tpo, "b", 2)])
    assert epoch_of(dataset) == ["a0", "a1", "a2", "b0", "b1"]
    with pytest.raises(IndexError):
        dataset[5]


def test_weights_mix_sources_in_proportion(tpo: Any) -> None:
    sources = [source(tpo, "a", 30), source(tpo, "b", 5), source(tpo, "c", 7)]
    dataset = RecordDataset(sources, weights=[2, 1, 0], num_samples=30, seed=3)
    epochs = []
    for epoch in range(4):
        dataset.set_epoch(epoch)
        epochs.append(epoch_of(dataset))
        assert Counter(name[0] for name in epochs[-1]) == {"a": 20, "b": 10}
        assert {Counter(epochs[-1])[f"b{i}"] for i in range(5)} == {2}  # evenly, in a new order each time round
    assert epochs[0] != epochs[1]
    # A source that is larger than its share goes on where the epoch before stopped.
    assert Counter(name for epoch in epochs[:3] for name in epoch if name[0] == "a") == {f"a{i}": 2 for i in range(30)}
    again = RecordDataset(sources, weights=[2, 1, 0], num_samples=30, seed=3)
    again.set_epoch(2)
    assert epoch_of(again) == epochs[2]
    again.set_epoch(0)
    assert epoch_of(again) == epochs[0]
    assert epoch_of(RecordDataset(sources, weights=[2, 1, 0], num_samples=30, seed=4)) != epochs[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": [1]}, r"weights are \[1\]; expected 2 numbers"),
        ({"weights": [1, -1]}, "expected 2 numbers of at least 0"),
        ({"weights": [0, 0]}, "one above it"),
        ({"num_samples": 3}, "num_samples needs weights"),
    ],
)
def test_wrong_options(tpo: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TPOError, match=message):
        RecordDataset([source(tpo, "a", 2), source(tpo, "b", 2)], **options)
    with pytest.raises(TPOError, match="no source"):
        RecordDataset([])


@pytest.fixture
def mixed_media(tpo: Any, tmp_path: Path, write_records: Write, video_maker: Callable[..., Path]) -> Records:
    """Twenty good images, and a broken image, a truncated video and a missing file."""
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    for i in range(21):
        Image.fromarray(noise).save(tmp_path / f"{i}.png")
    broken = tmp_path / "20.png"
    broken.write_bytes(broken.read_bytes()[:500])
    clip = video_maker(tmp_path / "cut.mp4", [40 * i for i in range(50)])
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    records = [chat(f"good{i}", image=f"{i}.png") for i in range(20)]
    records += [chat("bad0", image="20.png"), chat("bad1", video="cut.mp4"), chat("bad2", image="gone.png")]
    return Records(write_records(records), tpo)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_unreadable_media_are_replaced_counted_and_reported(mixed_media: Records, num_workers: int) -> None:
    dataset = RecordDataset([mixed_media], max_bad_share=0.2, seed=1)
    loader = DataLoader(dataset, batch_size=5, num_workers=num_workers, collate_fn=ids, timeout=600 * bool(num_workers))
    batches = list(loader)
    served = [name for batch in batches for name in batch]
    assert [len(batch) for batch in batches] == [5, 5, 5, 5, 3]
    assert served[:20] == [f"good{i}" for i in range(20)]
    assert all(name.startswith("good") for name in served)
    assert served == epoch_of(RecordDataset([mixed_media], max_bad_share=0.2, seed=1))  # whoever reads them
    assert {s.id for s in dataset.skipped} == {"bad0", "bad1", "bad2"}
    lines = dataset.report().splitlines()
    assert lines[0] == "media: 23 records read, 3 skipped because they cannot be read"
    assert f"{mixed_media.name}:21 (id bad0): " in lines[1]
    assert "20.png: cannot be read as an image" in lines[1]
    assert "cut.mp4: cannot be read as a video by pyav: " in lines[2]
    assert "gone.png: no such file" in lines[3]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_too_many_unreadable_media_stop_the_run(mixed_media: Records, num_workers: int) -> None:
    dataset = RecordDataset([mixed_media], max_bad_share=0.1)
    loader = DataLoader(dataset, batch_size=5, num_workers=num_workers, collate_fn=ids, timeout=600 * bool(num_workers))
    message = r"3 of \d+ records read so far cannot be read, more than the share of 0.1 .*gone\.png"
    with pytest.raises(MediaError, match=message):
        list(loader)


def test_early_bad_luck_does_not_stop_a_large_run(tpo: Any, tmp_path: Path) -> None:
    records = [chat(f"x{i}", image="gone.png") for i in range(10)] + [chat(f"y{i}") for i in range(990)]
    dataset = RecordDataset([Records(records, tpo, media_root=tmp_path)])
    assert all(name.startswith("y") for name in epoch_of(dataset))
    assert len(dataset.skipped) == 10


def test_a_missing_reader_stops_at_once(tpo: Any, steady_video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tpo_plugin.data import media

    monkeypatch.setitem(media.BACKENDS, "pyav", "no_such_reader")
    records = Records([chat("a", video=str(steady_video))], tpo)
    with pytest.raises(TPOError, match="pip install no_such_reader") as caught:
        RecordDataset([records], video=VideoOptions(backend="pyav"), max_bad_share=1)[0]
    assert not isinstance(caught.value, MediaError)


def test_samples_hold_their_media(tpo: Any, steady_video: Path, tmp_path: Path) -> None:
    Image.new("RGB", (5, 4)).save(tmp_path / "a.png")
    record = Records([chat("a", image=str(tmp_path / "a.png"), video=str(steady_video))], tpo)[0]
    sample = read_sample(record, VideoOptions(num_frames=3))
    assert [image.size for image in sample.images] == [(5, 4)]
    assert [clip.frames.shape for clip in sample.videos] == [(3, 48, 64, 3)]


def test_workers_see_the_epoch_though_they_persist(tpo: Any) -> None:
    dataset = RecordDataset([source(tpo, "a", 8), source(tpo, "b", 8)], weights=[1, 1], seed=5)
    loader = DataLoader(dataset, batch_size=16, num_workers=1, collate_fn=ids, persistent_workers=True, timeout=600)
    for epoch in range(3):
        dataset.set_epoch(epoch)
        (batch,) = loader
        assert batch == epoch_of(dataset), epoch
    del loader
    gc.collect()


@pytest.fixture(params=["decord", "pyav"])
def used_backend(request: pytest.FixtureRequest, steady_video: Path) -> Iterator[str]:
    """A video reader that this process has used, and still holds open, before workers are forked from it."""
    pytest.importorskip({"decord": "decord", "pyav": "av"}[request.param])
    read_video(steady_video, VideoOptions(backend=request.param))
    held: Any = None
    if request.param == "decord":
        import decord

        held = decord.VideoReader(str(steady_video))
        held.get_batch([0, 30])
    yield request.param
    del held


@pytest.mark.timeout(900)
def test_forked_workers_read_videos_after_their_parent_did(tpo: Any, steady_video: Path, used_backend: str) -> None:
    records = Records([chat(f"v{i}", video=str(steady_video)) for i in range(8)], tpo)
    options = VideoOptions(num_frames=4, backend=used_backend)
    dataset = RecordDataset([records], video=options)
    context = torch.multiprocessing.get_context("fork")
    loader = DataLoader(
        dataset, batch_size=2, num_workers=2, collate_fn=list, timeout=600, multiprocessing_context=context
    )
    samples: list[Sample] = [sample for batch in loader for sample in batch]
    assert ids(samples) == [f"v{i}" for i in range(8)]
    expected = read_video(steady_video, options)
    assert all(np.array_equal(sample.videos[0].frames, expected.frames) for sample in samples)
