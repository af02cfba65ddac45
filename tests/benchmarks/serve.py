"""`tpo serve` under load: many clients at once, mixed media, some requests broken, beside one question after the other.

Every good answer is compared with that of a single call in this process, every broken request must get a 4xx with a
sentence, and the server's memory is read as it goes.
"""

from __future__ import annotations

import argparse
import base64
import io
import math
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
import openai
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from tpo_plugin.asking import Answer, ask, load
from tpo_plugin.data import Sample, prompt_record, read_sample

NEW_TOKENS = 24
SHARE_BROKEN = 0.05
QUESTIONS = ("where is the red circle?", "how many shapes are there?", "what is this picture of?")


@dataclass(frozen=True)
class Case:
    """A question, as the server gets it and as a sample, with the answer to it alone."""

    content: list[dict[str, Any]]
    route: str | None
    sample: Sample
    answer: Answer
    seconds: float


@dataclass
class Load:
    """What came of the requests."""

    seconds: list[float] = field(default_factory=list)
    """Of each good one."""
    wrong: list[str] = field(default_factory=list)
    """What was not as it has to be."""
    statuses: Counter[int] = field(default_factory=Counter)
    memory_mb: list[float] = field(default_factory=list)
    """Of the server, after every tenth of the requests."""
    wall_s: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a trained run with the region head")
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--clients", type=int, default=16)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cases = single_calls(arguments.run, Path(folder))
    result = under_load(arguments.run, cases, arguments.requests, arguments.clients)
    show(result, cases, arguments.clients)
    print(
        "\n".join(result.wrong)
        or "every good answer is that of a single call, every broken request a 4xx with a sentence"
    )
    sys.exit(bool(result.wrong))


def show(result: Load, cases: Sequence[Case], clients: int) -> None:
    """Prints latencies beside those of single calls, statuses and memory."""
    table = Table("", "p50 s", "p95 s", "answers a second", title=f"{sum(result.statuses.values())} requests")
    alone = [case.seconds for case in cases]
    table.add_row("one after the other, in one process", *quantiles(alone), f"{len(alone) / sum(alone):.1f}")
    served = f"{len(result.seconds) / result.wall_s:.1f}"
    table.add_row(f"tpo serve, {clients} clients", *quantiles(result.seconds), served)
    Console(width=110).print(table)
    print("statuses:", dict(sorted(result.statuses.items())))
    print("memory of the server, MB:", *(f"{value:.0f}" for value in result.memory_mb))


def quantiles(seconds: Sequence[float]) -> tuple[str, str]:
    """p50 and p95."""
    cuts = statistics.quantiles(seconds, n=20)
    return f"{cuts[9]:.3f}", f"{cuts[18]:.3f}"


def single_calls(run: Path, folder: Path) -> list[Case]:
    """Questions about text, pictures and clips of several sizes, each asked alone, one after the other."""
    model, reading = load(run)
    cases = []
    for kind, file in [("", None), *(("image", f) for f in pictures(folder)), *(("video", f) for f in clips(folder))]:
        for number, prompt in enumerate(QUESTIONS):
            route = "region" if number == 0 else None
            given = {"images": [file] if kind == "image" else [], "videos": [file] if kind == "video" else []}
            content: list[dict[str, Any]] = [{"type": "text", "text": prompt}]
            if file is not None:
                url = f"data:{kind}/any;base64,{base64.b64encode(file.read_bytes()).decode()}"
                content.insert(0, {"type": f"{kind}_url", f"{kind}_url": {"url": url}})
            for warm in (True, False):
                start = time.perf_counter()
                sample = read_sample(prompt_record(model.tpo, prompt, **given), reading.video, reading.image)
                answer = ask(model, [sample], route=route, max_new_tokens=NEW_TOKENS)[0]
                if not warm:
                    cases.append(Case(content, route, sample, answer, time.perf_counter() - start))
    return cases


def pictures(folder: Path) -> Iterator[Path]:
    rng = np.random.default_rng(0)
    for width, height, kind in ((64, 48, "png"), (200, 300, "jpg"), (640, 480, "webp")):
        pixels = rng.integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((width, height)).save(folder / f"{width}.{kind}")
        yield folder / f"{width}.{kind}"


def clips(folder: Path) -> Iterator[Path]:
    for seconds, size in ((1, 64), (3, 160)):
        path = folder / f"{seconds}.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=10)
            stream.width, stream.height, stream.pix_fmt = size, size, "yuv420p"
            for index in range(10 * seconds):
                pixels = np.full((size, size, 3), 8 * index, dtype=np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())
        yield path


def broken() -> list[dict[str, Any]]:
    """Arguments of requests of which none may be answered."""
    picture = io.BytesIO()
    Image.new("RGB", (64, 64)).save(picture, "PNG")
    half = base64.b64encode(picture.getvalue()[: len(picture.getvalue()) // 2]).decode()

    def of(*content: dict[str, Any], **options: Any) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": list(content)}], **options}

    text = {"type": "text", "text": "how many?"}
    return [
        of({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{half}"}}, text),
        of({"type": "image_url", "image_url": {"url": "data:image/png;base64,?"}}, text),
        of({"type": "image_url", "image_url": {"url": "https://127.0.0.1/a.png"}}, text),
        of({"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}, text),
        of({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}, text),
        of(text, temperature=1.5),
        of(text, max_tokens=10**6),
        of({"type": "text", "text": "many " * 4000}),
        of(text, extra_body={"route": "nobody"}),
        {"messages": []},
        {"messages": [{"role": "user", "content": "a"}], "model": "other"},
    ]


@contextmanager
def server(run: Path) -> Iterator[tuple[int, int]]:
    """Process id and port of a server of the run."""
    code = "from tpo_plugin.cli import main; main()"
    command = [sys.executable, "-c", code, "serve", str(run), "--name", "run", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    try:
        assert process.stdout is not None
        address = re.search(r":(\d+)/v1", process.stdout.readline())
        assert address, "the server did not start"
        yield process.pid, int(address[1])
    finally:
        process.terminate()
        process.communicate()


def under_load(run: Path, cases: Sequence[Case], num_requests: int, num_clients: int) -> Load:
    """Sends the requests from as many threads as there are clients."""
    rng, result, bad = random.Random(0), Load(), broken()
    is_broken = [number % round(1 / SHARE_BROKEN) == 0 for number in range(num_requests)]
    jobs: list[Any] = [rng.choice(bad) if off else rng.choice(cases) for off in is_broken]
    lock, numbers = threading.Lock(), iter(range(num_requests))
    with server(run) as (pid, port):

        def work() -> None:
            client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    client.close()
                    return
                job = jobs[number]
                start = time.perf_counter()
                status, wrong = ask_broken(client, job) if is_broken[number] else ask_good(client, job, number)
                with lock:
                    result.statuses[status] += 1
                    result.wrong += [f"request {number}: {text}" for text in wrong]
                    if not is_broken[number]:
                        result.seconds.append(time.perf_counter() - start)
                    if sum(result.statuses.values()) % max(1, num_requests // 10) == 0:
                        result.memory_mb.append(memory_mb(pid))

        threads = [threading.Thread(target=work) for _ in range(num_clients)]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        result.wall_s = time.perf_counter() - start
    return result


def ask_good(client: Any, case: Case, number: int) -> tuple[int, list[str]]:
    """Status, and what differs from the answer alone. Every third is streamed."""
    options = {"extra_body": {"route": case.route} if case.route else {}, "max_tokens": NEW_TOKENS, "model": "run"}
    messages = [{"role": "user", "content": case.content}]
    try:
        if number % 3 == 0:
            chunks = list(client.chat.completions.create(messages=messages, stream=True, **options))
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            predictions = chunks[-1].choices[0].delta.tpo_predictions
        else:
            message = client.chat.completions.create(messages=messages, **options).choices[0].message
            text, predictions = message.content, message.tpo_predictions
    except openai.APIStatusError as error:
        return error.status_code, [f"is good and got {error.status_code}: {error}"]
    wrong = [] if text == case.answer.text else [f"{text!r} is not {case.answer.text!r}"]
    wanted = [found.to_json() for found in case.answer.predictions]
    if [found["text_span"] for found in predictions] != [found["text_span"] for found in wanted]:
        wrong.append(f"its predictions {predictions} are not {wanted}")
    elif not all(alike(a["value"], b["value"]) for a, b in zip(predictions, wanted, strict=True)):
        wrong.append(f"its values {predictions} are not {wanted}")
    return 200, wrong


def alike(one: Any, other: Any) -> bool:
    """Whether two values of a prediction are the same, numbers to 1e-4; a mask's text to the pixel."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, int | float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=1e-5, abs_tol=1e-4)
    return bool(one == other)


def ask_broken(client: Any, options: dict[str, Any]) -> tuple[int, list[str]]:
    """Status, and what is not as it has to be."""
    try:
        client.chat.completions.create(**({"model": "run"} | options))
    except openai.APIStatusError as error:
        said = (error.body or {}).get("message", "") if isinstance(error.body, dict) else ""
        fine = 400 <= error.status_code < 500 and len(said.split()) > 3
        return error.status_code, [] if fine else [f"is broken and got {error.status_code} with {said!r}"]
    return 200, ["is broken and was answered"]


def memory_mb(pid: int) -> float:
    """Resident memory of a process; Linux."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
