"""`tpo predict`: one question to a trained run, answered with text, predictions and a picture."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tpo_plugin.cli.options import Host
from tpo_plugin.errors import TPOError
from tpo_plugin.json_file import parse_json

if TYPE_CHECKING:
    from PIL.Image import Image

    from tpo_plugin.data import VideoClip
    from tpo_plugin.generation.answers import Prediction
    from tpo_plugin.head import TaskHead

_STATED_TIME = re.compile(r"\bat\s+(\d+(?:\.\d+)?)\s*s(?:ec(?:ond)?s?)?\b", re.IGNORECASE)
_EXAMPLE = """for example --task '{"head": "region", "boxes": [[0.1, 0.2, 0.5, 0.6]]}'"""


def predict(
    run: Annotated[Path, typer.Argument(help="Directory of a trained run.")],
    prompt: Annotated[str, typer.Option(help="The question.")],
    image: Annotated[Path | None, typer.Option(help="Image that the question is about.")] = None,
    video: Annotated[Path | None, typer.Option(help="Video that the question is about.")] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(help="What a placeholder in the prompt (<region>) stands for, as JSON; repeatable."),
    ] = None,
    route: Annotated[str | None, typer.Option(help="Head that must be called, even if the model would not.")] = None,
    time: Annotated[float | None, typer.Option(help="Second of the video whose frame the boxes belong to.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 64,
    host: Host = None,
    output: Annotated[
        Path | None, typer.Option(help="Picture to write, with the predictions drawn on it; heads may add files.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Ask a trained run about an image or a video.

    A box belongs to one frame of a video: that of --time, else of the time stated in the prompt ("at 1.5 seconds"),
    else the middle of the video.
    """
    if image is not None and video is not None:
        raise TPOError("both --image and --video were given; expected one of them")
    if video is None and time is not None:
        raise TPOError("--time was given without --video")
    if output is not None and image is None and video is None:
        raise TPOError("--output draws on an image or a frame of a video; give --image or --video")
    given = [_parse_task(text) for text in task or []]

    from tpo_plugin.asking import ask, load
    from tpo_plugin.data import prompt_record, read_frame, read_sample

    model, reading = load(run, host)
    media = {"images": [image] if image else [], "videos": [video] if video else []}
    sample = read_sample(prompt_record(model.tpo, prompt, tasks=given, **media), reading.video, reading.image)
    result: dict[str, Any] = {}
    picture, duration_s = None, None
    if image is not None:
        picture = sample.images[0]
        result["image"] = str(image)
    elif video is not None:
        duration_s = sample.videos[0].duration_s
        time_s, source = frame_time(time, prompt, duration_s)
        picture = read_frame(video, time_s)
        result |= {"video": str(video), "duration_s": duration_s, "frame": {"time_s": time_s, "from": source}}
    if picture is not None:
        result |= {"width": picture.width, "height": picture.height}
    answer = ask(model, [sample], route=route, max_new_tokens=max_new_tokens)[0]
    result |= {"text": answer.text, "predictions": []}
    for prediction in answer.predictions:
        plain = prediction.to_json()
        if prediction.value is not None and picture is not None:
            units = prediction.to_units(width=picture.width, height=picture.height, duration=duration_s)
            plain["value_in_units"] = model.tpo.heads[prediction.head].to_json(units)
        result["predictions"].append(plain)
    if output is not None and picture is not None:
        files = draw(
            model.tpo.heads, answer.predictions, picture, sample.videos[0] if video is not None else None, output
        )
        result["outputs"] = [str(file) for file in files]
    typer.echo(json.dumps(result, indent=2) if as_json else _as_text(result))


def draw(
    heads: Mapping[str, TaskHead],
    predictions: Sequence[Prediction],
    picture: Image,
    clip: VideoClip | None,
    output: Path,
) -> list[Path]:
    """Writes `output` with all that belongs to one picture, and for a head that draws a whole clip a file of its own.

    Where there is only one file, it has the stem of `output`; others end in their head's name. Returns the files.
    """
    values: dict[str, list[Any]] = {}
    for prediction in predictions:
        if prediction.value is not None:
            values.setdefault(prediction.head, []).append(prediction.value)
    files, on_picture = [], not values
    for name, found in values.items():
        stem = output.with_name(output.stem if len(values) == 1 else f"{output.stem}_{name}")
        file = heads[name].draw_video(clip, found, stem) if clip is not None else None
        if file is not None:
            files.append(file)
            continue
        on_picture = True
        for value in found:
            picture = heads[name].draw(picture, value)
    if on_picture:
        picture.save(output)
        files.append(output)
    return files


def frame_time(given: float | None, prompt: str, duration_s: float) -> tuple[float, str]:
    """Second of the frame that boxes belong to, and where it comes from: "option", "prompt" or "middle"."""
    if given is not None:
        return given, "option"
    stated = _STATED_TIME.search(prompt)
    if stated is not None:
        return float(stated[1]), "prompt"
    return duration_s / 2, "middle"


def _parse_task(text: str) -> dict[str, Any]:
    try:
        task = parse_json(text, finite=True)
    except ValueError as error:
        raise TPOError(f"--task {text!r} is not JSON ({error}); {_EXAMPLE}") from error
    if not isinstance(task, dict):
        raise TPOError(f"--task {text!r} is no object; {_EXAMPLE}")
    return task


def _as_text(result: dict[str, Any]) -> str:
    lines = [result["text"]]
    for found in result["predictions"]:
        if found["cut_off"]:
            lines.append(f"{found['head']}: cut off by the longest answer; raise --max-new-tokens")
            continue
        units = f", in pixels or seconds {_rounded(found['value_in_units'], 1)}" if "value_in_units" in found else ""
        score = "" if found["score"] is None else f", score {found['score']:.3f}"
        lines.append(f"{found['head']}: {_rounded(found['value'], 4)}{units}{score}")
    if "frame" in result:
        lines.append(f"frame: at {result['frame']['time_s']:.3f} s (from {result['frame']['from']})")
    lines += [f"drawn: {file}" for file in result.get("outputs", ())]
    return "\n".join(lines)


def _rounded(value: Any, digits: int) -> Any:
    if isinstance(value, float):
        return round(value, digits)
    if isinstance(value, list):
        return [_rounded(item, digits) for item in value]
    if isinstance(value, dict):
        return {key: _rounded(item, digits) for key, item in value.items()}
    return value
