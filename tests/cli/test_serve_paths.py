"""What leaves a server names no file of its disk, and what is long is not made on the event loop."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from chat_requests import medium, text, upload
from tpo_shapes.host import build_model, build_processor

import tpo_plugin as tpo
from tpo_plugin.data import VideoOptions
from tpo_plugin.serve.answer import Completion
from tpo_plugin.serve.errors import without_paths
from tpo_plugin.serve.limits import Limits
from tpo_plugin.training.config import DataConfig

pytest.importorskip("openai")
pytest.importorskip("sam2")
pytest.importorskip("prometheus_client")
testclient = pytest.importorskip("starlette.testclient")

from tpo_plugin.serve.app import Server, application  # noqa: E402  (it needs what may be missing)

LATE = {"head": "mask", "box": [0.1, 0.1, 0.5, 0.5], "time": 99.0}


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`clips/a.mp4`, a second of grey, below a link: its files have two paths."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "real/clips").mkdir(parents=True)
    with av.open(str(folder / "real/clips/a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(4):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 90, dtype=np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    (folder / "media").symlink_to(folder / "real")
    return folder / "media"


@pytest.fixture(scope="module")
def client(media: Path) -> Iterator[Any]:
    """Of a server of a tiny model with the mask head."""
    torch.manual_seed(0)
    processor = build_processor()
    host = build_model(processor.tokenizer, width=32, num_layers=2)
    mask = {"backend": "sam2", "size": "micro", "image_size": 96}
    model = tpo.apply_tpo(host, processor, heads=["mask"], config=tpo.TPOConfig(heads={"mask": mask})).eval()
    reading = DataConfig(video=VideoOptions(num_frames=2))
    server = Server(model, reading, "tiny", Limits(max_new_tokens=4), media_root=media)
    with testclient.TestClient(application(server)) as asking:
        yield asking


def asked(client: Any, url: dict[str, Any], words: str, **options: Any) -> Any:
    messages = [{"role": "user", "content": [url, text(words)]}]
    body = {"model": "tiny", "messages": messages, "route": "mask", **options}
    return client.post("/v1/chat/completions", json=body)


def sources(media: Path) -> dict[str, dict[str, Any]]:
    content = (media / "clips/a.mp4").read_bytes()
    return {"data": upload("video", content), "clips/a.mp4": medium("video", "clips/a.mp4")}


@pytest.mark.parametrize("name", ["data", "clips/a.mp4"])
@pytest.mark.parametrize("streamed", [False, True])
def test_answers_and_errors_name_no_file_of_the_server(name: str, streamed: bool, client: Any, media: Path) -> None:
    source = sources(media)[name]
    answer = asked(client, source, "follow it", stream=streamed)
    assert answer.status_code == 200
    assert '"masks": [' in answer.text.replace('"masks":[', '"masks": [')
    refused = asked(client, source, "follow <mask>", stream=streamed, tasks=[LATE])
    assert refused.status_code == (200 if streamed else 400)  # it is the last event of a stream that has begun
    error = json.loads(refused.text.strip().split("\n\n")[-1].removeprefix("data: "))["error"]
    assert error["message"].startswith(f"{name}: has no frame at 99.0 s; it lasts 1.")
    for told in (answer.text, refused.text):
        assert str(media) not in told
        assert str(media.resolve()) not in told
        assert "tpo-serve-" not in told


def test_paths_are_called_by_their_names() -> None:
    uploads, media = Path("/tmp/tpo-serve-a"), Path("/srv/media")
    message = "/tmp/tpo-serve-a/tmpb_1/0: bad, as /srv/media/clips/a.mp4 is"
    assert without_paths(message, uploads, media) == "data: bad, as clips/a.mp4 is"
    assert without_paths(message, uploads, None) == "data: bad, as /srv/media/clips/a.mp4 is"


@pytest.mark.parametrize(("method", "streamed"), [("whole", False), ("end", True)])
def test_an_answer_is_written_beside_the_event_loop(
    method: str, streamed: bool, client: Any, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = {}

    def noting(name: str, real: Any) -> Any:
        def call(*arguments: Any) -> Any:
            threads[name] = threading.get_ident()
            return real(*arguments)

        return call

    monkeypatch.setattr(Server, "_answered", noting("loop", Server._answered))
    monkeypatch.setattr(Completion, method, noting("answer", getattr(Completion, method)))
    answer = asked(client, sources(media)["data"], "follow it", stream=streamed)
    assert answer.status_code == 200
    assert threads["loop"] != threads["answer"]
    last = answer.text.split("\n\n")[-3].removeprefix("data: ") if streamed else answer.text
    assert "tpo_predictions" in json.loads(last)["choices"][0]["delta" if streamed else "message"]
