"""`tpo doctor`: whether the tokens of a run's heads can be learned, emitted and seen."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tpo_plugin.cli.options import Confine, Host, head_names
from tpo_plugin.errors import TPOError

if TYPE_CHECKING:
    from tpo_plugin.data import Record
    from tpo_plugin.model import TaskPreferenceModel
    from tpo_plugin.training.config import DataConfig

_RECORDS = re.compile(r"\.(jsonl?|parquet|arrow|tar|tgz)(\.gz|\.zst)?$", re.IGNORECASE)
"""Names of files of records; other files are text."""


def doctor(
    run: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="Directory of a run, or host (folder or hub name).")],
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Prompts to answer: records (.jsonl, .json; also packed, or in a tar), or text, one prompt a line."
        ),
    ] = None,
    confine: Confine = False,
    host: Host = None,
    heads: Annotated[
        str | None, typer.Option(help="For a host: names of heads, with commas between them; else all that work.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer to a prompt, in tokens.")] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check each head's tokens: one id? trainable? tied? hidden by decoding? how often emitted on given prompts?

    Of a run it also tells how its last evaluations' free answers went, and of a head that was not called which question
    it was, what was said instead, and how likely its trigger was; and of a head that is no better than a constant
    prediction, what to do. A host without TPO gets heads first, in memory; one
    that is broken is named with the reason, and left out. Exit status 1 if a token is not one id of its own.
    """
    from tpo_plugin.asking import load_run_or_host
    from tpo_plugin.cli.doctor_free import free_answers
    from tpo_plugin.cli.doctor_heads import untaught
    from tpo_plugin.hub import RUN_FILE

    if confine and prompts is None:
        raise TPOError(
            "--confine was given without --prompts; it is about the media that records name, so leave it out"
        )
    model, reading, left_out = load_run_or_host(run, host, None if heads is None else head_names(heads))
    report = examine(model) | ({"left_out": left_out} if left_out else {})
    if (Path(run) / RUN_FILE).is_file():
        report["untaught"] = untaught(Path(run), list(model.tpo.heads))
        report["free"] = free_answers(Path(run), list(model.tpo.heads))
    if prompts is not None:
        report["emitted"] = emitted(model, prompts, reading, max_new_tokens, confine=confine)
    if as_json:
        typer.echo(json.dumps(report, indent=2))
    else:
        _print(report)
    if not all(token["one_id"] for token in report["tokens"]):
        raise typer.Exit(1)


def examine(model: Any) -> dict[str, Any]:
    """What can be said without running the host."""
    tpo = model.tpo
    embed, head = tpo.host.embed, tpo.host.head
    return {
        "host": type(tpo.model).__name__,
        "tied": embed.weight is head.weight,
        "vocabulary": {
            "tokenizer": len(tpo.tokenizer),
            "rows": embed.weight.shape[0],
            "grown_from": tpo.growth.old_size if tpo.growth is not None else None,
        },
        "tokens": [_token(tpo, name, kind) for name, tokens in tpo.tokens.items() for kind in tokens.by_kind()],
    }


def _token(tpo: TaskPreferenceModel, name: str, kind: str) -> dict[str, Any]:
    tokens, tokenizer = tpo.tokens[name], tpo.tokenizer
    text = {"trigger": tokens.trigger, "task": tokens.task_token, "input": tokens.input_token}[kind]
    token_id = tokens.by_kind()[kind]
    rows = {"trigger": ["trigger", "output"], "task": ["task"], "input": []}[kind]
    parameters = {row: getattr(tpo.embeddings[name], row) for row in rows}
    return {
        "head": name,
        "kind": kind,
        "token": text,
        "id": token_id,
        "one_id": tokenizer.encode(text, add_special_tokens=False) == [token_id],
        # an input token has no row: the head encodes what the user gives
        "trainable_rows": {row: parameter.requires_grad for row, parameter in parameters.items()},
        "hidden_by_decoding": text not in tokenizer.decode([token_id], skip_special_tokens=True),
    }


def emitted(
    model: Any, prompts: Path, reading: DataConfig, max_new_tokens: int, *, confine: bool = False
) -> dict[str, dict[str, int]]:
    """For each head, how many prompts had its trigger in the greedy answer.

    Where the prompts are records with answers: of those that have a task of the head, and of the others.
    """
    from tpo_plugin.asking import ask
    from tpo_plugin.data import read_sample

    counts = {name: Counter[str]() for name in model.tpo.heads}
    for record, expected in _prompts(model.tpo, prompts, confine):
        sample = read_sample(record, reading.video, reading.image)
        found = {prediction.head for prediction in ask(model, [sample], max_new_tokens=max_new_tokens)[0].predictions}
        for name, count in counts.items():
            group = "prompts" if expected is None else "with_task" if name in expected else "without_task"
            count[group] += 1
            count[f"{group}_emitted"] += name in found
    return {name: dict(count) for name, count in counts.items()}


def _prompts(tpo: TaskPreferenceModel, file: Path, confine: bool) -> list[tuple[Record, set[str] | None]]:
    """Prompts, each with the heads that its answer calls, or None where there is no answer to know it from."""
    from tpo_plugin.data import Records, prompt_record
    from tpo_plugin.data.storage import local_path

    if _RECORDS.search(file.name) or file.is_dir():
        return [(record.prompt(), _called(record)) for record in Records(file, tpo, open_ended=True, confine=confine)]
    try:
        lines = [line for line in local_path(file).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise TPOError(f"{file}: cannot be read ({error}); expected prompts, one a line, or records") from error
    if not lines:
        raise TPOError(f"{file}: holds no prompt; expected prompts, one a line, or records")
    return [(prompt_record(tpo, line), None) for line in lines]


def _called(record: Record) -> set[str] | None:
    last = record.turns[-1]
    return {task["head"] for task in last.tasks} if last.role == "assistant" else None


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from tpo_plugin.cli.doctor_free import lines

    console = Console(soft_wrap=True, highlight=False, markup=False)
    vocabulary = report["vocabulary"]
    grown = f", grown from {vocabulary['grown_from']}" if vocabulary["grown_from"] is not None else ""
    console.print(f"host: {report['host']}, input and output embeddings {'tied' if report['tied'] else 'untied'}")
    console.print(f"vocabulary: {vocabulary['tokenizer']} tokens, {vocabulary['rows']} rows{grown}")
    table = Table("head", "token", "id", "one id", "rows trainable", "hidden by decoding", box=None, pad_edge=False)
    for token in report["tokens"]:
        rows = ", ".join(f"{row} {_yes(trains)}" for row, trains in token["trainable_rows"].items())
        one, hidden = _yes(token["one_id"]), _yes(token["hidden_by_decoding"])
        table.add_row(token["head"], token["token"], str(token["id"]), one, rows or "the head's encoder", hidden)
    console.print(table)
    for name, reason in report.get("left_out", {}).items():
        console.print(f"{name}: left out, {reason.strip().splitlines()[-1]}")
    for sentence in report.get("untaught", ()):
        console.print(f"WARNING: {sentence}")
    for line in lines(report.get("free", {}), list(dict.fromkeys(token["head"] for token in report["tokens"]))):
        console.print(line)
    for name, count in report.get("emitted", {}).items():
        for group, words in _GROUPS.items():
            if count.get(group):
                console.print(f"{name}: trigger emitted on {count[f'{group}_emitted']} of {count[group]} {words}")


_GROUPS = {"prompts": "prompts", "with_task": "prompts with its task", "without_task": "others"}


def _yes(value: bool) -> str:
    return "yes" if value else "NO"
