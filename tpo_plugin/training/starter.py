"""A training file to start from, of data that has been looked at: every key with its meaning as a comment. No torch."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from tpo_plugin.data.check import CheckReport
from tpo_plugin.errors import TPOError
from tpo_plugin.keys import keys_of
from tpo_plugin.training.config import StageConfig, TrainConfig, paper_stages

_WIDTH = 100
_MICRO_BATCH = 4
_STEPS = 10
"""Steps that an epoch shall have at least."""

_STAGES = {
    "stage1": "Task assignment: the language model learns when to call which head.",
    "stage2": "Task training: heads and their tokens learn with it.",
    "stage3": "Multi-task training: connector and vision encoder too. Add conversations, so that none is lost.",
}


def starting_values(
    *,
    host: str,
    output_dir: str,
    heads: Sequence[str] | None,
    data: Sequence[Mapping[str, str]],
    eval_data: Sequence[Mapping[str, str]],
    report: CheckReport,
) -> dict[str, Any]:
    """The keys to be named in a training file: the paper's stages on the data of `report`.

    `data` and `eval_data` are values of `DataSource`. Without `heads` those that the records have tasks for. A batch is
    the paper's, or the largest power of two that leaves an epoch ten steps. Raises `TPOError` where no record has a
    task, or one has a task of a head that is not among `heads`.
    """
    found = list(report.heads)
    files = ", ".join(source["file"] for source in data)
    if not found:
        raise TPOError(f"{files}: no record has a task; expected records with tasks of a head that is installed")
    missing = [name for name in found if heads is not None and name not in heads]
    if missing:
        raise TPOError(f"{files}: has tasks of {', '.join(missing)}; expected tasks of the heads in --heads alone")
    stages = {}
    for name, stage in paper_stages().items():
        batch = _batch(report.records, stage.batch_size)
        stages[name] = {
            "learning_rates": stage.learning_rates,
            **({"losses": stage.losses} if stage.losses else {}),
            "data": [dict(source) for source in data],
            **({"eval_data": [dict(source) for source in eval_data]} if eval_data else {}),
            "epochs": stage.epochs,
            "batch_size": batch,
            "micro_batch_size": min(batch, _MICRO_BATCH),
        }
    return {"model": host, "output_dir": output_dir, "heads": list(heads or found), "stages": stages}


def _batch(records: int, most: int) -> int:
    size = 1
    while size * 2 <= min(most, records // _STEPS):
        size *= 2
    return size


def as_yaml(values: Mapping[str, Any], report: CheckReport) -> str:
    """The file: above each key what it means; those that are not named stand behind # with their defaults."""
    counted = ", ".join(f"{count.tasks} tasks of {name}" for name, count in report.heads.items())
    lines = [
        f"# Written by `tpo init` for {report.records} records: {counted}.",
        "# What stands behind # is what a key has without being named. Paths start where `tpo train` is started.",
        "",
        *_lines(TrainConfig, {key: value for key, value in values.items() if key != "stages"}),
    ]
    for number, (name, given) in enumerate(values["stages"].items()):
        lines += [*(f"  {line}" for line in _comment(_STAGES[name])), f"  {name}:"]
        named = [f"{key}: {_flow(value)}" for key, value in given.items()]
        # What the keys mean stands in the first stage; the others have the same ones.
        lines += [f"    {line}" for line in (_lines(StageConfig, given) if number == 0 else named)]
        lines += [""] * bool(number)
    return "\n".join(line.rstrip() for line in lines).rstrip() + "\n"


def _lines(config: type, given: Mapping[str, Any]) -> Iterator[str]:
    for key in keys_of(config):
        yield from _comment(key.about)
        if key.below is StageConfig:
            yield f"{key.name}:"
        elif key.name in given or key.default is dataclasses.MISSING:
            yield f"{key.name}: {_flow(given[key.name])}"
            yield ""
        else:
            yield f"# {key.name}: {_flow(key.default)}"
            yield ""


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, _WIDTH)]


def _flow(value: Any) -> str:
    """A value on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10_000)
    return text.removesuffix("...\n").strip()
