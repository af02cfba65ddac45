"""Features of a data set with a frozen encoder: true times, parallel, resumable, nothing lost in silence."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from tpo_head_temporal.caching import cache_features
from tpo_head_temporal.config import TemporalConfig
from tpo_head_temporal.encoder import FrozenEncoder
from tpo_head_temporal.features import load_features, load_times
from tpo_head_temporal.head import TemporalHead
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

import tpo_plugin as tpo
from tpo_plugin.data import Record, Sample, Turn

TEXT = {"vocab_size": 9, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
WORDS = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "a": 4, "dog": 5, "jumps": 6}


def write_tokenizer(folder: Path) -> None:
    backend = Tokenizer(models.WordLevel(WORDS, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(folder)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    text = TEXT | {"max_position_embeddings": 8, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=12)).save_pretrained(folder)
    sizes: dict[str, Any] = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    CLIPImageProcessor(**sizes).save_pretrained(folder)
    write_tokenizer(folder)
    return str(folder)


def write_video(path: Path, starts_ms: list[int]) -> Path:
    """An H.264 MP4 whose i-th frame is grey of value 8 i, first shown at `starts_ms[i]`."""
    import av

    milliseconds = Fraction(1, 1000)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
        stream.codec_context.time_base = stream.time_base = milliseconds
        stream.options = {"crf": "1"}
        for i, start in enumerate(starts_ms):
            frame = av.VideoFrame.from_ndarray(np.full((24, 32, 3), 8 * i, np.uint8), format="rgb24")
            frame.pts, frame.time_base = start, milliseconds
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


UNEVEN_MS = [0, 200, 400, 600, 800, 1000, 2000, 3000, 3100, 3200, 3300, 4500, 5000, 5500, 6000]


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """Three records: of a video of varying frame rate, of a broken one, and of one without a query."""
    write_video(tmp_path / "videos/uneven.mp4", UNEVEN_MS)
    write_video(tmp_path / "videos/even.mp4", [500 * i for i in range(8)])
    (tmp_path / "videos/broken.mp4").write_bytes(b"no video at all")

    def record(name: str, video: str, **task: Any) -> str:
        return json.dumps({"id": name, "video": video, "tasks": [{"head": "temporal", "spans": [[0, 1]]} | task]})

    lines = [
        record("1", "videos/uneven.mp4", query="a dog jumps"),
        record("2", "videos/broken.mp4", query="a dog"),
        record("3", "videos/even.mp4"),
    ]
    path = tmp_path / "records.jsonl"
    path.write_text("\n".join(lines))
    return path


def test_frames_have_the_files_own_times(records: Path, clip: str, tmp_path: Path) -> None:
    """Of a video of varying frame rate: for each clip the frame nearest to its middle, by real time stamps."""
    cache_features(records, clip, tmp_path / "out", clip_s=1.0, num_workers=0)
    times = load_times(tmp_path / "out/video/uneven.safetensors")
    assert times is not None
    middles = np.arange(len(times)) + 0.5
    starts_s = np.array(UNEVEN_MS) / 1000
    assert len(times) in (6, 7)
    nearest = np.abs(starts_s[None] - middles[:, None]).min(1)
    assert np.abs(times.numpy() - middles) == pytest.approx(nearest, abs=1e-6)
    # a frame index times a constant rate would be far from these
    guessed = np.rint(middles / starts_s[-1] * (len(starts_s) - 1)).astype(int).clip(max=len(starts_s) - 1)
    assert np.abs(starts_s[guessed] - middles).max() > 0.7


def test_features_are_those_of_the_frames(records: Path, clip: str, tmp_path: Path) -> None:
    cache_features(records, clip, tmp_path / "out", clip_s=1.0, num_workers=0, batch_size=3)
    options = tpo.VideoOptions(sampling="fps", fps=1.0, num_frames=100)
    video = tpo.read_video(tmp_path / "videos/uneven.mp4", options)
    encoder = FrozenEncoder(clip)
    expected = encoder.frames(video.frames)
    found = load_features([tmp_path / "out/video/uneven.safetensors"], normalise=False, duration_s=video.duration_s)
    assert expected.shape == (len(video.times_s), 12)
    assert torch.allclose(found, expected, atol=1e-5)
    assert expected.std(0).max() > 1e-3
    words = load_features([tmp_path / "out/text/1.safetensors"], normalise=False)
    assert torch.allclose(words, encoder.words("a dog jumps"), atol=1e-6)
    assert words.shape == (5, 16)


def test_files_hold_what_the_head_computes_online(records: Path, clip: str, tmp_path: Path) -> None:
    """Features "files" of this command and features "clip", of one question about a video of varying frame rate."""
    cache_features(records, clip, tmp_path / "out", clip_s=1.0, num_workers=0)
    path = tmp_path / "videos/uneven.mp4"
    video = tpo.read_video(path, tpo.VideoOptions(sampling="fps", fps=1.0, num_frames=100))
    sample = Sample(Record("1", "here", (Turn("user", "<video>\na dog jumps"),), (), (path,)), (), (video,))
    sizes = {"hidden": 16, "num_heads": 2, "feed_forward": 16, "video_size": 12, "text_size": 16}
    folders = {"video_features": [str(tmp_path / "out/video")], "text_features": str(tmp_path / "out/text")}
    files = TemporalHead(TemporalConfig(features="files", **folders, **sizes), 8)
    online = TemporalHead(TemporalConfig(features="clip", clip=clip, **sizes), 8)
    expected, _ = online._given(torch.zeros(1, 8), online.collate_inputs([], [], [sample]), torch.tensor([0]))
    found = files.collate_inputs([], [], [sample])
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


def test_a_query_longer_than_the_encoder_takes_is_cut_and_counted(clip: str, tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", [0, 500])
    task = {"head": "temporal", "spans": [[0, 1]], "query": "a dog jumps a dog jumps a dog"}
    (tmp_path / "records.jsonl").write_text(json.dumps({"id": "1", "video": "a.mp4", "tasks": [task]}))
    report = cache_features(tmp_path / "records.jsonl", clip, tmp_path / "out", num_workers=0)
    assert "1 queries have more than 8 tokens and were cut to as many" in str(report)
    assert load_features([tmp_path / "out/text/1.safetensors"]).shape == (8, 16)


def test_unreadable_videos_are_counted_and_named(records: Path, clip: str, tmp_path: Path) -> None:
    report = cache_features(records, clip, tmp_path / "out", num_workers=0)
    assert (report.computed, report.found, report.texts) == (2, 0, 2)
    ((path, reason),) = report.skipped
    assert path == tmp_path / "videos/broken.mp4"
    assert "cannot be read as a video" in reason
    text = str(report)
    assert "videos: 3 (2 computed, 0 were there, 1 cannot be read)" in text
    assert f"skipped {path}: cannot be read" in text
    assert "no text features of 1 records" in text


def test_a_run_goes_on_where_it_stopped(records: Path, clip: str, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    cache_features(records, clip, folder, num_workers=0)
    kept, lost = folder / "video/even.safetensors", folder / "video/uneven.safetensors"
    lost.unlink()
    (folder / "video/.uneven.safetensors.1.tmp").write_bytes(b"half")
    stamp = kept.stat().st_mtime_ns
    report = cache_features(records, clip, folder, num_workers=0)
    assert (report.computed, report.found, len(report.skipped)) == (1, 1, 1)
    assert kept.stat().st_mtime_ns == stamp
    assert lost.is_file()
    write_video(tmp_path / "videos/even.mp4", [500 * i for i in range(12)])  # another video of that name
    assert cache_features(records, clip, folder, num_workers=0).computed == 1


def test_features_of_another_encoder_are_not_mixed_in(records: Path, clip: str, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    cache_features(records, clip, folder, num_workers=0)
    with pytest.raises(tpo.TPOError, match=r"uneven\.safetensors: holds features of clips of 2\.0 s, not 1\.0 s; give"):
        cache_features(records, clip, folder, clip_s=1.0, num_workers=0)
    other = tmp_path / "other"
    model = CLIPModel.from_pretrained(clip)
    model.visual_projection.weight.data.mul_(2)
    model.save_pretrained(other)
    for name in ("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (other / name).write_bytes((Path(clip) / name).read_bytes())
    with pytest.raises(tpo.TPOError, match=r"uneven\.safetensors: holds features of another encoder; give another"):
        cache_features(records, str(other), folder, num_workers=0)


def test_words_of_another_question_of_that_id_are_not_replaced(records: Path, clip: str, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    cache_features(records, clip, folder, num_workers=0)
    other = tmp_path / "other.jsonl"
    other.write_text(records.read_text().splitlines()[0].replace("a dog jumps", "a dog"))
    with pytest.raises(tpo.TPOError, match="holds the words of 'a dog jumps', and a record of this id asks 'a dog'"):
        cache_features(other, clip, folder, num_workers=0)


def test_workers_give_the_same(records: Path, clip: str, tmp_path: Path) -> None:
    for name, num_workers in (("alone", 0), ("two", 2)):
        report = cache_features(records, clip, tmp_path / name, num_workers=num_workers)
        assert (report.computed, len(report.skipped)) == (2, 1)
    for video in ("even", "uneven"):
        first, second = (load_features([tmp_path / name / f"video/{video}.safetensors"]) for name in ("alone", "two"))
        assert torch.allclose(first, second, atol=1e-6)


def test_a_folder_of_videos(records: Path, clip: str, tmp_path: Path) -> None:
    report = cache_features(records.parent / "videos", clip, tmp_path / "out", num_workers=0)
    assert (report.computed, report.texts, len(report.skipped)) == (2, 0, 1)
    write_video(tmp_path / "videos/sub/even.mp4", [0, 40])
    with pytest.raises(tpo.TPOError, match=r"even\.mp4 and .*even\.mp4 would have features of the same name"):
        cache_features(records.parent / "videos", clip, tmp_path / "out", num_workers=0)


def test_wrong_sources(clip: str, tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps({"id": "1", "conversations": []}))
    with pytest.raises(tpo.TPOError, match=r"records\.jsonl: has no video; expected records with 'video', or a folder"):
        cache_features(path, clip, tmp_path / "out")
    path.write_text(json.dumps({"id": "1", "video": "missing.mp4"}))
    with pytest.raises(tpo.MediaError, match=r"none of its videos can be read\n(.*\n)*.*missing\.mp4: no such file"):
        cache_features(path, clip, tmp_path / "out", num_workers=0)
    task = {"head": "temporal", "query": "x"}
    path.write_text(json.dumps({"id": "a/b", "video": "x.mp4", "tasks": [task]}))
    with pytest.raises(tpo.RecordError, match=r"records\.jsonl:1: id: is 'a/b', which is no file name"):
        cache_features(path, clip, tmp_path / "out")
    with pytest.raises(tpo.TPOError, match="'.*nowhere' cannot be loaded as a frozen encoder .*expected a folder"):
        FrozenEncoder(str(tmp_path / "nowhere"))


def test_siglip_and_a_tower_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    text = TEXT | {"max_position_embeddings": 6, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=VISION)).eval()
    tower = model.vision_model
    for name, part in (("siglip", model), ("tower", type(tower).__name__ != "SiglipVisionModel" and _alone(model))):
        (part or tower).save_pretrained(tmp_path / name)
        SiglipImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path / name)
        write_tokenizer(tmp_path / name)
    frames = np.random.default_rng(0).integers(0, 255, (3, 24, 32, 3), dtype=np.uint8)
    siglip, alone = FrozenEncoder(str(tmp_path / "siglip")), FrozenEncoder(str(tmp_path / "tower"))
    assert siglip.frames(frames).shape == (3, 16)
    assert alone.frames(frames).shape == (3, 16)
    with torch.no_grad():
        states = tower(pixel_values=alone.preparer(frames)["pixel_values"]).last_hidden_state
        padded = torch.tensor([[1, 4, 5, 2, 0, 0]])
        words = model.text_model(input_ids=padded).last_hidden_state[0, :4]
    assert torch.allclose(alone.frames(frames), states.mean(1), atol=1e-5)
    assert torch.allclose(siglip.words("a dog"), words, atol=1e-5)
    assert siglip.words("a dog jumps a dog jumps a dog jumps").shape == (6, 16)
    with pytest.raises(tpo.TPOError, match="is a vision tower and takes no text"):
        alone.words("a dog")


def _alone(model: SiglipModel) -> Any:
    """The tower as a model of its own."""
    from transformers import SiglipVisionModel

    tower = SiglipVisionModel(model.config.vision_config)
    tower.vision_model.load_state_dict(model.vision_model.state_dict())
    return tower
