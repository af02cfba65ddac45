"""What may differ between a run and the settings that it shall go on with. No torch in here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tpo_plugin.errors import TPOError
from tpo_plugin.training.config import TrainConfig
from tpo_plugin.validation import Path, path_text

_FREE = {("output_dir",), ("attn",), ("data", "num_workers"), ("data", "confine"), ("data", "max_bad_share")}
_FREE_IN_A_STAGE = {"save_steps", "logging_steps"}
"""What trains the same weights: on another machine, from a folder that moved. An evaluation moves the random state."""


def check_settings(there: TrainConfig, here: TrainConfig, *, begun: Sequence[str], finished: bool, where: str) -> None:
    """Raises `TPOError` for settings that would have trained something else than the run has trained so far.

    Args:
        begun: The stages that have trained, in their order. Before the first has, every setting may change.
        finished: Whether the run is, so that no stage can be added.
        where: The file of the run's own settings.
    """
    if not begun:
        return
    names = list(here.stages) if finished else list(here.stages)[: len(begun)]
    changes = []
    if names != list(begun):
        changes.append(f"stages: began with {', '.join(begun)}, and would be {', '.join(here.stages)}")
    before, now = dict(_settings(there, begun)), dict(_settings(here, begun))
    for path in dict.fromkeys([*before, *now]):
        was, given = (repr(values[path]) if path in values else "not set" for values in (before, now))
        if was != given and (path[0] != "stages" or path[1] in here.stages):
            changes.append(f"{path_text(path)}: was {was}, is {given}")
    if changes:
        lines = "".join(f"\n  {change}" for change in changes)
        raise TPOError(
            f"{where}: the run cannot go on with other settings; give another output_dir, or change back{lines}"
        )


def _settings(config: TrainConfig, begun: Sequence[str]) -> Iterator[tuple[Path, Any]]:
    values = config.to_dict()
    values["stages"] = {name: values["stages"][name] for name in begun if name in values["stages"]}
    for path, value in _leaves(values):
        if path not in _FREE and not (path[0] == "stages" and path[2] in _FREE_IN_A_STAGE):
            yield path, value


def _leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    if isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(inner, (*path, key))
    else:
        yield path, value
