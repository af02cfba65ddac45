"""`tpo predict`: questions to a trained run, answered with text, predictions and pictures."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tpo_plugin.cli.options import Confine, Host
from tpo_plugin.errors import TPOError
from tpo_plugin.json_file import parse_json

if TYPE_CHECKING:
    from tpo_plugin.cli.predicting import Question, Result

_EXAMPLE = """for example --task '{"head": "region", "boxes": [[0.1, 0.2, 0.5, 0.6]]}'"""


def predict(
    run: Annotated[Path, typer.Argument(help="Directory of a run, or of a checkpoint of one: RUN/STAGE/checkpoint-N.")],
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FILE]...", help="Images, videos, and folders of them: each is asked about by itself."),
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="The question.")] = None,
    image: Annotated[
        list[Path] | None, typer.Option(help="Image that the question is about; repeatable, it is then about all.")
    ] = None,
    video: Annotated[Path | None, typer.Option(help="Video that the question is about.")] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Questions: records, JSON Lines, whose last answer is left out where they have one."),
    ] = None,
    media: Annotated[Path | None, typer.Option(help="Folder that the media of --data start from.")] = None,
    confine: Confine = False,
    task: Annotated[
        list[str] | None,
        typer.Option(help="What a placeholder in the prompt (<region>) stands for, as JSON; repeatable."),
    ] = None,
    route: Annotated[str | None, typer.Option(help="Head that must be called, even if the model would not.")] = None,
    time: Annotated[float | None, typer.Option(help="Second of the video whose frame the boxes belong to.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 64,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions that are answered together.")] = 8,
    host: Host = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Picture to write, with what was found on it; heads may add files. For several: a folder."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; of several questions JSON Lines.")] = False,
) -> None:
    """Ask a trained run about images or videos.

    One question about --image or --video, or the same about each FILE, or those of --data. A box belongs to one frame
    of a video: that of --time, else of the time stated in the question ("at 1.5 seconds"), else the middle of the
    video. An answer is printed before it is drawn. Of several questions one that cannot be asked is told with its
    reason, and the others go on; the exit status is then 1.
    """
    several = bool(files) or data is not None
    _check_use(files, prompt, image, video, data, time, output)
    _check_records_use(data, media, confine, task)
    given = [_parse_task(text) for text in task or []]

    from tpo_plugin.asking import load
    from tpo_plugin.cli.predicting import answered, of_files, of_records, question_of

    model, reading = load(run, host)
    questions: Iterable[Question]
    if data is not None:
        questions = of_records(model.tpo, data, media, confine)
    elif files:
        questions = of_files(model.tpo, files, str(prompt), given)
    else:
        questions = [question_of(model.tpo, str(prompt), given, image or [], [video] if video else [])]
    if time is not None:
        questions = list(questions)
        if not any(question.has_video for question in questions):
            raise TPOError("--time was given, and nothing that is asked about is a video; leave it out")
    if output is not None:
        (output if several else output.parent).mkdir(parents=True, exist_ok=True)
    failed = 0
    found = answered(
        model, questions, reading, route=route, time=time, max_new_tokens=max_new_tokens, batch_size=batch_size
    )
    for number, (question, result) in enumerate(found):
        if isinstance(result, Exception) and not several:
            raise result
        if isinstance(result, Exception):
            failed += 1
            _tell(question, result, as_json=as_json)
            continue
        _print(question, result.plain(), as_json=as_json, several=several)
        if output is not None:
            place = output / f"{number:05d}-{question.stem}.png" if several else output
            failed += not _draw(question, result, place, as_json=as_json)
    if failed:
        raise typer.Exit(1)


def _check_use(
    files: Sequence[Path] | None,
    prompt: str | None,
    image: Sequence[Path] | None,
    video: Path | None,
    data: Path | None,
    time: float | None,
    output: Path | None,
) -> None:
    """Raises `TPOError` for options that do not go together."""
    if image and video is not None:
        raise TPOError("both --image and --video were given; expected one of them")
    if files and (image or video is not None or data is not None):
        raise TPOError(
            f"{files[0]} was given beside --image, --video or --data; expected one way to say what is asked about"
        )
    if data is not None and (prompt is not None or image or video is not None):
        raise TPOError("--data has the questions with their media; leave --prompt, --image and --video out")
    if data is None and prompt is None:
        raise TPOError("no question was given; expected --prompt, or --data with records")
    if video is None and not files and data is None and time is not None:
        raise TPOError("--time was given without --video")
    if output is not None and not (image or video is not None or files or data is not None):
        raise TPOError("--output draws on an image or a frame of a video; give --image or --video")


def _check_records_use(data: Path | None, media: Path | None, confine: bool, task: Sequence[str] | None) -> None:
    """Raises `TPOError` for options of records without records, and for what stands in records given beside them."""
    if data is None and (media is not None or confine):
        option = "--media" if media is not None else "--confine"
        raise TPOError(f"{option} was given without --data; it is about the media that records name, so leave it out")
    if data is not None and task:
        raise TPOError("--task was given with --data; expected the tasks in the records, as their field tasks")


def _print(question: Question, result: dict[str, Any], *, as_json: bool, several: bool) -> None:
    if as_json:
        typer.echo(json.dumps(result, indent=None if several else 2))
    else:
        typer.echo((f"{question.name}: " if several else "") + _as_text(result))
    sys.stdout.flush()


def _tell(question: Question, error: Exception, *, as_json: bool) -> None:
    """Why a question has no answer, in place of it."""
    if as_json:
        typer.echo(json.dumps(question.named | {"error": str(error)}))
    else:
        typer.echo(f"Error: {question.name}: {error}", err=True)


def _draw(question: Question, result: Result, place: Path, *, as_json: bool) -> bool:
    """Draws what is printed already, and says where it is, beside JSON on stderr; whether it could be drawn."""
    try:
        drawing = result.draw(place)
    except Exception as error:  # whatever a head, or the file system, raises: the answer is there
        typer.echo(
            f"Error: {question.name}: is answered, and cannot be drawn ({error}); give another --output, or none",
            err=True,
        )
        return False
    for line in [f"drawn: {file}" for file in drawing.files] + [f"not drawn: {why}" for why in drawing.undrawn]:
        typer.echo(line, err=as_json)
    return True


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
        scores = (("score", found["head_score"]), ("called with probability", found["score"]))
        named = "".join(f", {name} {score:.3f}" for name, score in scores if score is not None)
        lines.append(f"{found['head']}: {_rounded(found['value'], 4)}{units}{named}")
    if "frame" in result:
        lines.append(f"frame: at {result['frame']['time_s']:.3f} s (from {result['frame']['from']})")
    return "\n".join(lines)


def _rounded(value: Any, digits: int) -> Any:
    if isinstance(value, float):
        return round(value, digits)
    if isinstance(value, list):
        return [_rounded(item, digits) for item in value]
    if isinstance(value, dict):
        return {key: _rounded(item, digits) for key, item in value.items()}
    return value
