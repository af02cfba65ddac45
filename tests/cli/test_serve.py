"""`tpo serve`: a real process, asked by OpenAI's own client and by plain sockets."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_requests import BROKEN, medium, text, upload
from PIL import Image
from typer.testing import CliRunner

import tpo_plugin.cli
from tpo_plugin import TPOError
from tpo_plugin.asking import load
from tpo_plugin.serve.limits import Limits
from tpo_plugin.serve.request import WITHOUT_EFFECT

openai = pytest.importorskip("openai")
uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("starlette")
pytest.importorskip("prometheus_client")

from tpo_plugin.serve.app import Server, application  # noqa: E402  (it needs what may be missing)

pytestmark = pytest.mark.slow

KEY = "a key of this test"
QUESTION = "where is the red circle?"


class Served:
    """A server's process, and a client of it."""

    def __init__(self, process: subprocess.Popen[str], port: int, api_key: str = KEY) -> None:
        self.process, self.port = process, port
        self.client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=api_key, max_retries=0)

    def ask(self, *content: Any, **options: Any) -> Any:
        """A chat completion, or a stream, of one user message."""
        messages = options.pop("messages", [{"role": "user", "content": list(content)}])
        own = {name: options.pop(name) for name in ("route", "tasks", "unknown") if name in options}
        return self.client.chat.completions.create(
            **({"model": "run", "messages": messages, "max_tokens": 8} | options), extra_body=own
        )

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}") as response:
            return response.read().decode()


@contextmanager
def serving(*arguments: object, **environment: str) -> Iterator[Served]:
    """Starts `tpo serve` on a free port."""
    code = "from tpo_plugin.cli import main; main()"
    command = [sys.executable, "-c", code, "serve", *map(str, arguments), "--port", "0"]
    names = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | names)
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        address = re.search(r"answers at http://127\.0\.0\.1:(\d+)/v1", said)
        assert address, said
        yield Served(process, int(address[1]))
    finally:
        process.terminate()
        try:
            process.communicate(timeout=60)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def served(world: Path) -> Iterator[Served]:
    """A server of the tiny run with an API key and the world's media; `outside.png` lies beside them."""
    (world / "media").mkdir()
    (world / "uploads").mkdir()
    for name in ("picture.png", "clip.mp4", "records.jsonl"):
        (world / "media" / name).write_bytes((world / name).read_bytes())
    (world / "media" / "link.png").symlink_to(world / "picture.png")
    (world / "media" / "list.ffconcat").write_text(f"file '{world / 'picture.png'}'\nduration 1\n")
    options = ("--media", world / "media", "--max-new-tokens", 16, "--max-body-mb", 1, "--max-media", 3)
    with serving(
        world / "run", *options, "--max-pixels", 64 * 48 * 4, TPO_API_KEY=KEY, TMPDIR=str(world / "uploads")
    ) as server:
        yield server


def predicted(world: Path, *arguments: object) -> dict[str, Any]:
    command = ["predict", str(world / "run"), "--max-new-tokens", "8", "--json", *map(str, arguments)]
    result = CliRunner().invoke(tpo_plugin.cli.app, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def assert_same(message: Any, expected: dict[str, Any]) -> None:
    """Text and columns exactly, numbers to the rounding of another batch."""
    assert message.content == expected["text"]
    assert len(message.tpo_predictions) == len(expected["predictions"])
    for found, wanted in zip(message.tpo_predictions, expected["predictions"], strict=True):
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            if value is not None and name in ("value", "value_in_units", "score", "head_score"):
                np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=1e-4, err_msg=name)
            else:
                assert found[name] == value, name


def test_text_images_and_videos_are_answered_as_predict_does(served: Served, world: Path) -> None:
    picture, clip = world / "picture.png", world / "clip.mp4"
    box = {"head": "region", "boxes": [[0.1, 0.1, 0.5, 0.5]]}
    cases: list[tuple[list[Any], dict[str, Any], list[Any]]] = [
        ([text("how many?")], {}, ["--prompt", "how many?"]),
        ([upload("image", picture.read_bytes()), text(QUESTION)], {"route": "region"}, ["--image", picture]),
        ([medium("image", "picture.png"), text(QUESTION)], {"route": "region"}, ["--image", picture]),
        ([medium("image", "file:picture.png"), text("what is <region>?")], {"tasks": [box]},
         ["--image", picture, "--task", json.dumps(box), "--prompt", "what is <region>?"]),
        ([upload("video", clip.read_bytes()), text(QUESTION)], {"route": "region"}, ["--video", clip]),
        ([medium("video", f"file://{world}/media/clip.mp4"), text(QUESTION)], {"route": "region"}, ["--video", clip]),
    ]  # fmt: skip
    for content, options, arguments in cases:
        own = ["--prompt", QUESTION] if "--prompt" not in arguments else []
        expected = predicted(world, *arguments, *own, *(["--route", "region"] if "route" in options else []))
        answer = served.ask(*content, **options)
        message = answer.choices[0].message
        assert_same(message, expected)
        assert len(message.tpo_media) == len(content) - 1
        assert answer.usage.completion_tokens <= 8
        assert answer.choices[0].finish_reason == ("length" if answer.usage.completion_tokens == 8 else "stop")
        assert bool(message.tpo_predictions) == ("route" in options)
        for note, found in zip(message.annotations, message.tpo_predictions, strict=True):
            place = note.tpo_prediction
            assert message.content[place["start_index"] : place["end_index"]].strip() == found["text"].strip()
            assert place["head"] == found["head"] == "region"
    (folder,) = (world / "uploads").glob("tpo-serve-*")
    assert not list(folder.iterdir())


def test_a_stream_is_the_same_answer_in_pieces(served: Served, world: Path) -> None:
    content = (upload("video", (world / "clip.mp4").read_bytes()), text(QUESTION))
    whole = served.ask(*content, route="region")
    chunks = list(served.ask(*content, route="region", stream=True, stream_options={"include_usage": True}))
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert sum(map(bool, pieces)) > 2
    last = chunks[-2].choices[0]
    assert last.finish_reason == whole.choices[0].finish_reason
    assert last.delta.tpo_predictions[0]["text_span"] == whole.choices[0].message.tpo_predictions[0]["text_span"]
    assert len(last.delta.annotations) == len(last.delta.tpo_predictions) == 1
    assert chunks[-1].usage == whole.usage


def test_a_conversation_goes_on_with_the_answer_as_it_came(served: Served) -> None:
    question = {"role": "user", "content": [medium("image", "picture.png"), text(QUESTION)]}
    first = served.ask(messages=[question], route="region").choices[0].message
    assert first.tpo_predictions
    again = served.ask(messages=[question, first, {"role": "user", "content": "how many?"}])
    assert again.usage.prompt_tokens > 44
    assert served.ask(text("how many?"), temperature=0, n=1, stop=[], seed=3).choices[0].message.content


def test_what_arrives_together_is_answered_as_alone(served: Served) -> None:
    prompts = [" ".join(["how many?"] * (1 + number % 5)) for number in range(12)]
    contents = [[text(p)] if n % 2 else [medium("image", "picture.png"), text(p)] for n, p in enumerate(prompts)]
    route = {"route": "region"}
    alone = [served.ask(*content, **route).choices[0].message for content in contents]
    found: dict[int, Any] = {}

    def ask(number: int) -> None:
        found[number] = served.ask(*contents[number], **route, stream=False).choices[0].message

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(contents))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, message in enumerate(alone):
        assert_same(found[number], {"text": message.content, "predictions": message.tpo_predictions})


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_request_is_refused_with_a_sentence(name: str, served: Served) -> None:
    options, status, message = BROKEN[name]
    content = options.get("content", text("how many?"))
    rest = {key: value for key, value in options.items() if key != "content"}
    with pytest.raises(openai.APIStatusError) as refused:
        served.ask(*(content if isinstance(content, list) else [content]), **rest)
    assert refused.value.status_code == status
    assert re.search(message, refused.value.body["message"], re.DOTALL), refused.value.body
    assert refused.value.body["type"] == "invalid_request_error"


def test_pixels_are_bounded_before_they_take_memory(served: Served, tmp_path: Path) -> None:
    Image.new("1", (8000, 8000)).save(tmp_path / "large.png")
    with pytest.raises(
        openai.BadRequestError, match="a picture of 8000 x 8000 has 64,000,000 pixels, more than 12,288"
    ):
        served.ask(upload("image", (tmp_path / "large.png").read_bytes()))
    with pytest.raises(openai.BadRequestError, match=r"content\[2\].video_url: .*a clip of 2 frames of 64 x 48"):
        served.ask(*[medium("video", "clip.mp4")] * 2, medium("video", "clip.mp4"))


def test_every_parameter_of_openais_is_served_or_refused_by_name() -> None:
    from openai.types.chat import completion_create_params

    names = set(completion_create_params.CompletionCreateParamsBase.__annotations__)
    served = {"messages", "model", "max_tokens", "max_completion_tokens", "seed", "stream", "stream_options"}
    assert names - served == set(WITHOUT_EFFECT)


def raw(served: Served, body: bytes, **headers: str) -> tuple[int, dict[str, Any]]:
    """Status and body of a POST of any bytes."""
    request = urllib.request.Request(f"http://127.0.0.1:{served.port}/v1/chat/completions", body, method="POST")
    for name, value in ({"Content_Type": "application/json", "Authorization": f"Bearer {KEY}"} | headers).items():
        request.add_header(name.replace("_", "-"), value)
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)["error"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body is no JSON"),
        (b"{", "the body is no JSON"),
        (b"\xff", "the body is no JSON"),
        (b"[" * 100_000, "it nests too deep"),
        (b'{"seed": NaN}', "NaN is not JSON"),
        (b'{"seed": "\\ud800"}', "the body is no JSON"),
        (b"[]", "the body is []; expected an object with model and messages"),
        (b"{}", "messages: is missing"),
        (b'{"model": "run", "messages": [1]}', "messages[0]: is 1; expected keys and values"),
        (
            b'{"model": "run", "messages": [{"role": "user", "content": 1}]}',
            "messages[0].content: is 1; expected a list",
        ),
        (b'{"model": 1, "messages": "a"}', "model: is 1; expected text"),
    ],
)
def test_a_body_that_is_none(body: bytes, message: str, served: Served) -> None:
    status, error = raw(served, body)
    assert status == 400
    assert message in error["message"]


def test_only_json_with_the_key_is_read(served: Served) -> None:
    body = json.dumps({"model": "run", "messages": [{"role": "user", "content": "how many?"}]}).encode()
    assert raw(served, body)[0] == 200
    status, error = raw(served, body, Content_Type="text/plain")
    assert (status, error["message"]) == (415, "the body is of type 'text/plain'; expected application/json")
    for given in ("", "Bearer wrong", f"Basic {KEY}"):
        status, error = raw(served, body, Authorization=given)
        assert (status, error["code"]) == (401, "invalid_api_key")
    stranger = openai.OpenAI(base_url=f"http://127.0.0.1:{served.port}/v1", api_key="wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError, match="the API key is missing or wrong"):
        stranger.models.list()
    assert [model.id for model in served.client.models.list()] == ["run"]
    assert served.client.models.retrieve("run").owned_by == "tpo-plugin"
    with pytest.raises(openai.NotFoundError, match="there is no model 'other'"):
        served.client.models.retrieve("other")
    with pytest.raises(openai.NotFoundError, match="expected POST /v1/chat/completions"):
        served.client.embeddings.create(model="run", input="a")


def test_health_and_metrics(served: Served) -> None:
    served.ask(medium("image", "picture.png"), route="region")
    health = json.loads(served.get("/health"))
    assert health == {"status": "ok", "model": "run", "requests": 0}
    page = served.get("/metrics")
    for line in ('tpo_requests_total{status="200"}', "tpo_requests_running 0.0", "tpo_request_seconds_bucket",
                 'tpo_tokens_total{kind="answer"}', 'tpo_predictions_total{head="region"}'):  # fmt: skip
        assert line in page


PAGE = (Path(__file__).parents[2] / "docs/serve.md").read_text(encoding="utf-8")


def test_the_pages_client(
    served: Served, world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = re.search(r"<!-- code: client -->\n```python\n(.*?)```", PAGE, re.DOTALL)
    assert code
    (world / "a.png").write_bytes((world / "picture.png").read_bytes())
    monkeypatch.chdir(world)
    names: dict[str, Any] = {}
    exec(code[1].replace(":8000/", f":{served.port}/").replace('"none"', repr(KEY)), names)
    names["client"].close()
    box, pixels, score = re.search(r"region (\[.*?\]) (\[.*?\]) (\S+)", capsys.readouterr().out).groups()  # type: ignore
    np.testing.assert_allclose(json.loads(pixels), np.array(json.loads(box)) * [64, 48, 64, 48], rtol=1e-5)
    assert 0 < float(score) < 1


def test_the_pages_defaults() -> None:
    options = {field.name.removesuffix("_s"): field.default for field in dataclasses.fields(Limits)}
    told: dict[str, float] = {}
    for names, values in re.findall(r"^\| (`--.*?) \| ([\d., ]+) \|", PAGE, re.MULTILINE):
        named = [name.replace("-", "_") for name in re.findall(r"--([\w-]+)", names)]
        told |= dict(zip(named, map(float, values.split(", ")), strict=True))
    assert told == options


# -- one server for each -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_no_more_than_there_is_room_for_and_sigterm_finishes_what_is_running(world: Path, tmp_path: Path) -> None:
    body = json.dumps({"model": "run", "messages": [{"role": "user", "content": "how many?"}]}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json"
    with serving(world / "run", "--max-requests", 1, "--max-new-tokens", 8, TMPDIR=str(tmp_path)) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as slow:
            slow.sendall(f"{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body[:10])
            while json.loads(server.get("/health"))["requests"] == 0:
                time.sleep(0.05)
            with pytest.raises(
                openai.RateLimitError, match="1 requests are in progress, and no more are taken"
            ) as full:
                server.ask(text("how many?"))
            assert full.value.response.headers["Retry-After"] == "1"
            server.process.send_signal(signal.SIGTERM)
            while accepts(server.port):
                time.sleep(0.05)
            assert server.process.poll() is None
            slow.sendall(body[10:])
            answer = b"".join(iter(lambda: slow.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["choices"][0]["message"]["content"]
        assert server.process.wait() in (0, -signal.SIGTERM)
        assert not list(tmp_path.iterdir())


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionError:
        return False
    return True


def test_a_request_has_its_time(world: Path) -> None:
    limits = Limits(timeout_s=0.2, window_s=600.0, max_batch=2, max_new_tokens=8)
    model, reading = load(world / "run")
    app = application(Server(model, reading, "run", limits))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.InternalServerError, match="within the time limit of this server") as late:
            client.chat.completions.create(model="run", messages=[{"role": "user", "content": "how many?"}])
        assert late.value.status_code == 504
        server.should_exit = True
        thread.join()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--media", "nowhere"], "--media nowhere: no such folder"),
        (["--api-key", ""], "the API key is empty"),
        (["--max-new-tokens", 1024], "the host has 1024 positions for question and answer"),
        (["--host", "nowhere"], "nowhere"),
    ],
)
def test_wrong_use(arguments: list[Any], message: str, world: Path) -> None:
    command = ["serve", str(world / "run"), *map(str, arguments)]
    with pytest.raises(TPOError, match=message):
        CliRunner().invoke(tpo_plugin.cli.app, command, catch_exceptions=False)


def test_a_port_that_is_taken(world: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = ["serve", str(world / "run"), "--port", str(taken.getsockname()[1])]
        with pytest.raises(TPOError, match="cannot listen at 127.0.0.1:.*choose another --port"):
            CliRunner().invoke(tpo_plugin.cli.app, command, catch_exceptions=False)


@pytest.mark.parametrize("package", ["starlette", "uvicorn", "prometheus_client"])
def test_a_package_that_is_missing_is_named(package: str, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("tpo_plugin.serve.", package))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(TPOError, match=rf"the package {package} is not installed; pip install 'tpo-plugin\[serve\]'"):
        CliRunner().invoke(tpo_plugin.cli.app, ["serve", str(world / "run")], catch_exceptions=False)
