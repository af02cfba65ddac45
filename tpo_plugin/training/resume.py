"""What may differ between a run and the settings that it shall go on with. No torch in here."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from tpo_plugin.errors import TPOError
from tpo_plugin.training.config import StageConfig, TrainConfig
from tpo_plugin.validation import Path, path_text

_FREE: set[tuple[str, ...]] = {("output_dir",), ("attn",), ("on_nonfinite",), ("report_to",)}
_FREE |= {("data", name) for name in ("num_workers", "confine", "max_bad_share")}
_FREE_IN_A_STAGE = {"save_steps", "logging_steps", "eval_data", "eval_steps", "eval_generations"}
_FREE_IN_A_TRAINER = re.compile(
    r"(save|logging|log|eval|hub|trackio)_.*|per_device_eval_batch_size|include_.*|batch_eval_metrics"
    r"|prediction_loss_only|report_to|run_name|project|disable_tqdm|push_to_hub|skip_memory_metrics|do_eval"
    r"|torch_empty_cache_steps|enable_jit_checkpoint|ddp_timeout"
    r"|dataloader_(num_workers|pin_memory|persistent_workers|prefetch_factor|multiprocessing_context)"
)
"""What trains the same weights: how is saved, logged and evaluated, by how many workers, on another machine."""

_BY_EVALUATION = re.compile(r"(save|eval)_.*|per_device_eval_batch_size")
"""Of these what decides which weights are kept, where the trainer chooses them by an evaluation."""


def check_settings(
    there: TrainConfig,
    here: TrainConfig,
    *,
    begun: Sequence[str],
    finished: bool,
    where: str,
    recorded: Collection[str] = (),
) -> None:
    """Raises `TPOError` for settings that would have trained something else than the run has trained so far.

    Args:
        begun: The stages that have trained, in their order. Before the first has, every setting may change.
        finished: Whether the run is, so that no stage can be added.
        where: The file of the run's own settings.
        recorded: Settings that name files of which the content is compared (`inputs.check_inputs`): they may move.
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
        known = path_text(path[:-1] if _names_a_file(path) and len(path) > 1 else path) in recorded
        if was != given and not known and (path[0] != "stages" or path[1] in here.stages):
            changes.append(f"{path_text(path)}: was {was}, is {given}")
    if changes:
        lines = "".join(f"\n  {change}" for change in changes)
        raise TPOError(
            f"{where}: the run cannot go on with other settings; give another output_dir, or change back{lines}"
        )


def moved_sources(there: TrainConfig, here: TrainConfig, begun: Sequence[str]) -> list[str]:
    """The sources of data that have been changed for stages that have not begun, as `stages.stage2.data[0]`."""
    old, new = (dict(_leaves(config.to_dict()["stages"], ("stages",))) for config in (there, here))
    later = [path for path in old if path[1] not in begun and _names_a_file(path)]
    return [path_text(path[:-1]) for path in later if old[path] != new.get(path)]


def _settings(config: TrainConfig, begun: Sequence[str]) -> Iterator[tuple[Path, Any]]:
    values = config.to_dict()
    values["stages"] = {name: values["stages"][name] for name in begun if name in values["stages"]}
    for path, value in _leaves(values):
        if path not in _FREE and not (path[0] == "stages" and _is_free(path[2:], config.stages[str(path[1])])):
            yield path, os.path.normpath(value) if _names_a_file(path) and value is not None else value


def _is_free(path: Path, stage: StageConfig) -> bool:
    key = str(path[1] if path[0] == "trainer" and len(path) > 1 else path[0])
    if not (_FREE_IN_A_TRAINER.fullmatch(key) if path[0] == "trainer" else key in _FREE_IN_A_STAGE):
        return False
    chosen = stage.trainer.get("load_best_model_at_end")
    scheduler = stage.trainer.get("lr_scheduler_type", stage.scheduler)
    return not (_BY_EVALUATION.fullmatch(key) and (chosen or scheduler in ("reduce_lr_on_plateau", "greedy")))


def _names_a_file(path: Path) -> bool:
    return path == ("model",) or (path[0] == "stages" and path[-1] in ("file", "media"))


def _leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    if isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(inner, (*path, key))
    else:
        yield path, value
