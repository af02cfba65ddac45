"""What SECURITY.md promises, each with files that mean harm."""

from __future__ import annotations

import http.server
import json
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from PIL import Image

from tpo_plugin import TPOConfig, TPOError, apply_tpo, load_tpo
from tpo_plugin.data import RecordFormat, Records, VideoOptions, read_image, read_sample, read_video
from tpo_plugin.errors import MediaError, RecordError
from tpo_plugin.files import CONFIG_FILE, WEIGHTS_FILE
from tpo_plugin.training.config import TrainConfig
from tpo_plugin.training.run import RUN_FILE, load_run

SECRET = "ffconcat-0815-secret"


class Harm:
    """Unpickled, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def done(tmp_path: Path) -> Path:
    """A folder that is there once harm is done."""
    return tmp_path / "harm"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    apply_tpo(zoo.host("llama").build(), zoo.tokenizer(), ["region"]).tpo.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


# -- no code from data or weights --------------------------------------------------------------------------------------


def test_the_harm_is_real(done: Path) -> None:
    pickle.loads(pickle.dumps(Harm(done)))
    assert done.is_dir()


def test_pickled_weights_in_place_of_ours(saved: Path, done: Path) -> None:
    (saved / WEIGHTS_FILE).write_bytes(pickle.dumps(Harm(done)))
    with pytest.raises(TPOError, match="cannot be read as safetensors"):
        load_tpo(zoo.host("llama").build(), saved)
    assert not done.exists()


def test_a_pickled_adapter(saved: Path, done: Path) -> None:
    adapter = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    (saved / "adapter_config.json").write_text(json.dumps(adapter))
    torch.save(Harm(done), saved / "adapter_model.bin")
    with pytest.raises(TPOError, match=r"adapter_model\.safetensors is missing"):
        load_tpo(zoo.host("llama").build(), saved)
    assert not done.exists()


@pytest.mark.parametrize("file", ["tokenizer_config.json", "processor_config.json"])
def test_a_tokenizer_or_processor_with_code_of_its_own(saved: Path, done: Path, file: str) -> None:
    code = f"import os\nos.mkdir({str(done)!r})\nclass Own: pass\n"
    (saved / "own.py").write_text(code)
    given = json.loads((saved / file).read_text()) if (saved / file).is_file() else {}
    given |= {"tokenizer_class": "Own", "processor_class": "Own"}
    given["auto_map"] = {"AutoTokenizer": ["own.Own", "own.Own"], "AutoProcessor": "own.Own"}
    (saved / file).write_text(json.dumps(given))
    with pytest.raises(TPOError):
        load_tpo(zoo.host("llama").build(), saved)
    assert not done.exists()


def test_a_host_with_code_of_its_own(saved: Path, done: Path, tmp_path: Path) -> None:
    host = tmp_path / "host"
    host.mkdir()
    (host / "own.py").write_text(f"import os\nos.mkdir({str(done)!r})\n")
    config = {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}}
    (host / "config.json").write_text(json.dumps(config))
    run = {"format_version": 1, "host": str(host), "config": {"model": str(host), "output_dir": "."}, "stages": {}}
    (saved / RUN_FILE).write_text(json.dumps(run))
    with pytest.raises(TPOError, match="its host .* cannot be loaded"):
        load_run(saved)
    assert not done.exists()


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.mkdir ['{done}']",
        "model: !!python/object/apply:os.mkdir ['{done}']",
        "model: !!python/object/new:os.mkdir {{args: ['{done}']}}",
        "model: !!python/name:os.mkdir",
        "model: !!python/module:os",
    ],
)
def test_yaml_that_calls_python(tmp_path: Path, done: Path, text: str) -> None:
    path = tmp_path / "train.yaml"
    path.write_text(text.format(done=done))
    with pytest.raises(TPOError, match="not a readable YAML file"):
        TrainConfig.from_yaml(path)
    assert not done.exists()


def test_an_npz_with_pickled_objects(tmp_path: Path, done: Path) -> None:
    features = pytest.importorskip("tpo_head_temporal.features")
    np.savez(tmp_path / "v.npz", features=np.array([[Harm(done)]], dtype=object))
    with pytest.raises(MediaError, match="Object arrays cannot be loaded"):
        features.read_features(tmp_path / "v.npz")
    assert not done.exists()


def test_a_pickled_checkpoint_of_sam2(tmp_path: Path, done: Path) -> None:
    checkpoints = pytest.importorskip("tpo_head_mask.checkpoints")
    torch.save({"model": Harm(done)}, tmp_path / "sam2.pt")
    with pytest.raises(TPOError, match=r"sam2\.pt cannot be read"):
        checkpoints._read(tmp_path / "sam2.pt")
    assert not done.exists()


def test_a_pickled_checkpoint_of_cg_detr(tmp_path: Path, done: Path) -> None:
    importing = pytest.importorskip("tpo_head_temporal.importing")
    torch.save({"model": Harm(done)}, tmp_path / "best.ckpt")
    with pytest.raises(TPOError, match="cannot be read as a checkpoint without executing code"):
        importing.read_checkpoint(tmp_path / "best.ckpt")
    assert not done.exists()


@pytest.mark.parametrize("kind", ["image", "video"])
def test_a_pickle_as_a_picture_or_video(tmp_path: Path, done: Path, kind: str) -> None:
    path = tmp_path / ("a.png" if kind == "image" else "a.mp4")
    path.write_bytes(pickle.dumps(Harm(done)))
    with pytest.raises(MediaError):
        (read_image if kind == "image" else read_video)(path)
    assert not done.exists()


# -- no request of media -----------------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """An address, and the requests that came there."""
    requests: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            self.send_error(404)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_address[1]}", requests
        listening.shutdown()
        thread.join()


PLAYLISTS: dict[str, str] = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{url}\n#EXT-X-ENDLIST\n",
    "hls of lists": "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{url}\n",
    "hls with a key": '#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="{url}"\n#EXTINF:1,\na.ts\n#EXT-X-ENDLIST\n',
    "concat": "ffconcat version 1.0\nfile '{url}'\nduration 1\n",
    "m3u": "#EXTM3U\n{url}\n",
    "dash": (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet>'
        '<Representation id="1" bandwidth="1"><BaseURL>{url}</BaseURL></Representation></AdaptationSet></Period></MPD>'
    ),
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=a\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    "smil": '<smil><body><video src="{url}"/></body></smil>',
    "asx": '<asx version="3.0"><entry><ref href="{url}"/></entry></asx>',
    "svg": '<svg xmlns="http://www.w3.org/2000/svg"><image href="{url}"/></svg>',
}


@pytest.mark.parametrize("kind", list(PLAYLISTS))
@pytest.mark.parametrize("suffix", [".mp4", ".m3u8", ".ffconcat"])
def test_a_playlist_makes_no_request(tmp_path: Path, server: tuple[str, list[str]], kind: str, suffix: str) -> None:
    url, requests = server
    path = tmp_path / f"a{suffix}"
    path.write_text(PLAYLISTS[kind].format(url=f"{url}/a.ts"))
    for backend in ("auto", "pyav"):
        with pytest.raises(MediaError):
            read_video(path, VideoOptions(backend=backend))  # type: ignore[arg-type]
    with pytest.raises(MediaError):
        read_image(path)
    assert requests == []


# -- confinement -------------------------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """A folder `media` with a picture, links and lists, beside a picture and a text that are not its."""
    media = tmp_path / "media"
    (media / "sub").mkdir(parents=True)
    picture = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    for path in (media / "in.png", media / "sub" / "in.png", tmp_path / "out.png"):
        picture.save(path)
    (tmp_path / "secret.txt").write_text(f"{SECRET}\nmore\n")
    (media / "link.png").symlink_to(tmp_path / "out.png")
    (media / "link.ffconcat").symlink_to(tmp_path / "secret.txt")
    (media / "away").symlink_to(tmp_path)
    (media / "circle.png").symlink_to(media / "circle.png")
    for name, file in (("in", "in.png"), ("out", "../out.png"), ("whole", tmp_path / "out.png"), ("far", "link.png")):
        (media / f"{name}.ffconcat").write_text(f"file '{file}'\nduration 1\n")
    (media / "text.ffconcat").write_text(f"file '{tmp_path / 'secret.txt'}'\nduration 1\n")
    for name in ("concat.mp4", "concat.ffconcat.mp4"):
        (media / name).write_text(f"ffconcat version 1.0\nfile '{tmp_path / 'secret.txt'}'\n")
    (media / "hls.mp4").write_text(f"#EXTM3U\n#EXTINF:1,\nfile://{tmp_path / 'secret.txt'}\n#EXT-X-ENDLIST\n")
    return tmp_path


def _records(folders: Path, kind: str, name: str) -> Path:
    turns = [{"from": "human", "value": f"<{kind}>\nwhat"}, {"from": "gpt", "value": "that"}]
    path = folders / "media" / "records.jsonl"
    path.write_text(json.dumps({"id": "1", kind: name, "conversations": turns}))
    return path


OUTSIDE = ("../out.png", "{top}/out.png", "link.png", "away/out.png", "sub/../../out.png", "circle.png")


@pytest.mark.parametrize("name", OUTSIDE)
def test_files_outside_are_refused_when_confined(folders: Path, name: str) -> None:
    path = _records(folders, "image", name.format(top=folders))
    format = RecordFormat.of_heads(["region"])
    with pytest.raises(RecordError, match="records.jsonl:1: image: is .* which lies outside of") as caught:
        Records(path, format, confine=True)
    assert caught.value.field == "image"
    assert Records(path, format)  # as ever


@pytest.mark.parametrize("name", ["in.png", "sub/in.png", "sub/../in.png", "./in.png", "away/media/in.png"])
def test_files_inside_are_read_when_confined(folders: Path, name: str) -> None:
    (record,) = Records(_records(folders, "image", name), RecordFormat.of_heads(["region"]), confine=True)
    assert len(read_sample(record).images) == 1


def test_lists_of_frames_inside_are_read_when_confined(folders: Path) -> None:
    (record,) = Records(_records(folders, "video", "in.ffconcat"), RecordFormat.of_heads(["region"]), confine=True)
    assert len(read_sample(record).videos) == 1


@pytest.mark.parametrize(
    "name",
    ["out.ffconcat", "whole.ffconcat", "far.ffconcat", "text.ffconcat", "concat.mp4", "concat.ffconcat.mp4", "hls.mp4"],
)
def test_lists_that_name_files_outside_are_refused_when_confined(folders: Path, name: str) -> None:
    (record,) = Records(_records(folders, "video", name), RecordFormat.of_heads(["region"]), confine=True)
    with pytest.raises(MediaError, match="lies outside of|is no video that holds its own frames") as caught:
        read_sample(record)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("name", ["link.ffconcat", "text.ffconcat", "concat.mp4", "hls.mp4", "../secret.txt"])
@pytest.mark.parametrize("confine", [False, True])
def test_no_error_quotes_what_a_file_holds(folders: Path, name: str, confine: bool) -> None:
    def read() -> None:
        (record,) = Records(_records(folders, "video", name), RecordFormat.of_heads(["region"]), confine=confine)
        read_sample(record)

    with pytest.raises((MediaError, RecordError)) as caught:
        read()
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in str(error)
        error = error.__cause__


def test_masks_outside_are_refused_when_confined(folders: Path) -> None:
    pytest.importorskip("tpo_head_mask")
    format = RecordFormat.of_heads(["mask"])
    for mask, inside in (("in.png", True), ("../out.png", False), ({"png": str(folders / "out.png"), "id": 1}, False)):
        turns = [{"from": "human", "value": "<image>\nwhat"}, {"from": "gpt", "value": "<mask>"}]
        record = {"image": "in.png", "conversations": turns, "tasks": [{"head": "mask", "masks": [mask]}]}
        path = folders / "media" / "records.jsonl"
        path.write_text(json.dumps(record))
        if inside:
            Records(path, format, confine=True)
            continue
        with pytest.raises(RecordError, match=r"tasks\[0\]: a file of the task is .* lies outside of"):
            Records(path, format, confine=True)


def test_features_are_found_by_a_files_name_alone(tmp_path: Path) -> None:
    features = pytest.importorskip("tpo_head_temporal.features")
    (tmp_path / "features").mkdir()
    np.savez(tmp_path / "a.npz", features=np.zeros((1, 2)))
    with pytest.raises(MediaError, match="is no file's name"):
        features.find_features(tmp_path / "features", "../a")


# -- sizes -------------------------------------------------------------------------------------------------------------


def test_a_mask_of_sixty_bytes_that_asks_for_gigabytes() -> None:
    rle = pytest.importorskip("tpo_head_mask.rle")
    bomb = {"size": [100_000, 100_000], "counts": [0, 10_000_000_000]}
    for read in (rle.decode, rle.check):
        with pytest.raises(TPOError, match="10000000000 pixels; expected at most max_mask_pixels=50000000"):
            read(bomb)
    for counts in ([2**63, 1], [-(2**70), 2], [2**62, 2**62, 2**62, 2**62, 48]):
        with pytest.raises(TPOError, match="counts holds"):
            rle.decode({"size": [6, 8], "counts": counts})


def test_a_png_that_unpacks_to_too_much(tmp_path: Path) -> None:
    masks = pytest.importorskip("tpo_head_mask.masks")
    Image.new("1", (20_000, 20_000)).save(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size < 200_000
    with pytest.raises(MediaError, match=r"a\.png: .*400000000 pixels; expected at most max_mask_pixels=50000000"):
        masks.read_mask(str(tmp_path / "a.png"))
    with pytest.raises(MediaError, match="expected at most max_mask_pixels=10"):
        masks.read_mask(str(tmp_path / "a.png"), max_pixels=10)


def _npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez_compressed(path, **arrays)
    return path


@pytest.mark.slow
def test_arrays_that_nobody_asked_for_are_not_unpacked(tmp_path: Path, peak: Callable[[], int]) -> None:
    features = pytest.importorskip("tpo_head_temporal.features")
    path = _npz(tmp_path / "v.npz", features=np.ones((2, 3)), unused=np.zeros(40_000_000))
    assert features.read_features(path).features.shape == (2, 3)
    assert peak() < 100 << 20
    path = _npz(tmp_path / "w.npz", features=np.zeros((40_000_000, 1)))
    with pytest.raises(MediaError, match="'features' holds 40000016 numbers; expected at most max_feature_numbers"):
        features.read_features(path)
    assert peak() < 100 << 20


@pytest.fixture
def peak() -> Callable[[], int]:
    """How many bytes this process's memory grew at the most since the first call before the reading."""
    import fuzzing

    state: dict[str, int] = {}

    def grown() -> int:
        return fuzzing._peak() - state["before"]

    state["before"] = fuzzing._forget_peak()
    return grown


def test_a_head_larger_than_its_weights(saved: Path) -> None:
    pytest.importorskip("tpo_head_temporal")
    folder = saved.parent / "temporal"
    small = {
        "hidden": 16,
        "num_heads": 2,
        "feed_forward": 16,
        "features": "files",
        "video_features": ["."],
        "video_size": 6,
    }
    config = TPOConfig(heads={"temporal": small})
    apply_tpo(zoo.host("llama").build(), zoo.tokenizer(), ["temporal"], config).tpo.save_pretrained(folder)
    load_tpo(zoo.host("llama").build(), folder, zoo.tokenizer())
    text = (folder / CONFIG_FILE).read_text()
    (folder / CONFIG_FILE).write_text(text.replace('"hidden": 16', '"hidden": 160000'))
    with pytest.raises(TPOError, match="head 'temporal' would have .* numbers with its configuration"):
        load_tpo(zoo.host("llama").build(), folder, zoo.tokenizer())


def test_yaml_whose_aliases_grow(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    (tmp_path / "a.yaml").write_text("\n".join(lines))
    with pytest.raises(TPOError, match="its aliases repeat it to more than 1000000 values"):
        TrainConfig.from_yaml(tmp_path / "a.yaml")


def test_every_promise_stands_in_the_page() -> None:
    page = (Path(__file__).parents[1] / "SECURITY.md").read_text()
    for name in ("confine=True", "--confine", "trust_remote_code=False", "max_mask_pixels", "max_feature_numbers"):
        assert name in page
