"""For each format a small download of its layout, from layouts.yaml of its head's tests: laid out, and converted."""

from __future__ import annotations

import functools
import io
import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import av
import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

import tpo_plugin.cli
from tpo_plugin import TPOError
from tpo_plugin.convert import convert

HEADS = Path(__file__).parents[1] / "heads"
SIZE = (24, 32)
"""Height and width of the maps and videos, and of the pictures that they belong to."""
Corners = tuple[int, int, int, int]
"""y1, x1, y2, x2 in pixels."""
Download = dict[str, Any]


def downloads(head: str) -> list[Download]:
    """Those of a head's formats."""
    return [*_read(head, "layouts.yaml"), *map(_dialogue, _read(head, "dialogues.yaml"))]


def download(head: str, format: str) -> Download:
    """The first of a format."""
    return next(each for each in downloads(head) if format_of(each) == format)


def format_of(download: Download) -> str:
    return download["command"].split()[0]


def _read(head: str, name: str) -> list[Download]:
    path = HEADS / head / "tests" / name
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else []


def _dialogue(example: Download) -> Download:
    """An answer about one picture, or a row of its own, as a download."""
    turns = [("user", "Where?"), ("assistant", example.get("answer"))]
    row = {"messages": [{"role": role, "content": text} for role, text in turns], "images": ["a.png"]}
    text = json.dumps(example.get("row", row))
    file = example["command"].split()[1]
    return example | {
        "pictures": {"a.png": [640, 480]},
        "files": {file: f"[{text}]" if file.endswith(".parquet") else text + "\n"},
    }


# -- from a download to records, in the working folder -----------------------------------------------------------------


def unpack(download: Download, file: str = "", old: str = "", new: str = "") -> None:
    """Its files; in one of them a text may be swapped for another."""
    for name, (width, height) in download.get("pictures", {}).items():
        picture(Path(name), size=(height, width))
    for name, objects in download.get("maps", {}).items():
        labels(Path(name), objects)
    for name, (num_frames, fps) in download.get("videos", {}).items():
        video(Path(name), num_frames, fps)
    for name, text in download.get("files", {}).items():
        if name == file:
            assert old in text, f"{old!r} is not in {name}"
            text = text.replace(old, new, 1)
        _write(Path(name), text)


def converted(download: Download) -> tuple[str, list[dict[str, Any]]]:
    """What its command says, and the records that it gives."""
    said = tpo("convert", *download["command"].split(), "-o", "records.jsonl")
    path = Path("records.jsonl")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return said, [json.loads(line) for line in lines]


def converter(download: Download) -> Callable[[], Any]:
    """Its command without the command line, which takes longer than the rest: it raises what is refused."""
    with mock.patch("tpo_plugin.cli.convert._run") as run:
        tpo("convert", *download["command"].split(), "-o", "records.jsonl")
    return functools.partial(convert, run.call_args.args[0], Path("records.jsonl"))


def tpo(*arguments: str) -> str:
    """What a command says, also when it is refused."""
    result = CliRunner().invoke(tpo_plugin.cli.app, arguments)
    if isinstance(result.exception, TPOError):
        return str(result.exception)
    assert result.exit_code == 0, result.output
    return result.stdout


# -- files -------------------------------------------------------------------------------------------------------------


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".p", ".pkl"):
        path.write_bytes(pickle.dumps(json.loads(text), protocol=2))
    elif path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet")
        rows = json.loads(text)
        for row in rows:
            for image in row.get("images", ()):
                image["bytes"] = _png(640, 480)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text(text, encoding="utf-8")


def _png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (width, height)).save(file, "PNG")
    return file.getvalue()


def picture(path: Path, grey: int = 128, size: tuple[int, int] = SIZE) -> None:
    """A picture of that height and width, all of one grey."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size[::-1], (grey,) * 3).save(path)


def labels(path: Path, objects: Mapping[int, Corners], size: tuple[int, int] = SIZE) -> None:
    """A palette PNG with boxes of object ids."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.zeros(size, np.uint8)
    for number, (y1, x1, y2, x2) in objects.items():
        values[y1:y2, x1:x2] = number
    image = Image.fromarray(values)
    image.putpalette(list(range(256)) * 3)
    image.save(path)


def video(path: Path, num_frames: int, fps: int) -> None:
    """A video that grows brighter."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.height, stream.width = SIZE
        stream.pix_fmt = "yuv420p"
        for index in range(num_frames):
            frame = np.full((*SIZE, 3), 2 * index, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
