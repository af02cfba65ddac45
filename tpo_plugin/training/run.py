"""A run: the stages of one configuration, resumable anywhere, and its result.

output_dir/config.yaml          the configuration, as understood
output_dir/log.jsonl            every number that a stage logged
output_dir/inputs.json          data, host and libraries as they were at its start
output_dir/run.lock             while it trains: which process does
output_dir/<stage>/             checkpoints of the Trainer; final/ has the weights at its end, stage.json its metrics
output_dir/run.json             written at the very end, beside the adapter, the tpo files and the processor
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import yaml
from accelerate import PartialState
from annotated_types import MinLen
from rich.console import Console
from torch import nn
from transformers import AutoProcessor, set_seed
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from tpo_plugin import sharding
from tpo_plugin.apply import apply_tpo
from tpo_plugin.atomic import replace_file
from tpo_plugin.card import write_card
from tpo_plugin.checkpoint import load_tpo
from tpo_plugin.config import FORMAT_VERSION, config_from_dict
from tpo_plugin.errors import HostError, TPOError
from tpo_plugin.extras import needed
from tpo_plugin.files import CONFIG_FILE as TPO_CONFIG_FILE
from tpo_plugin.files import load_weights, read_saved
from tpo_plugin.host_weights import LORA, load_host_weights, save_host_weights
from tpo_plugin.hub import RUN_FILE, hub_name, local_folder
from tpo_plugin.json_file import read_json
from tpo_plugin.plugins import registry
from tpo_plugin.training.config import CONFIG_FILE, TrainConfig
from tpo_plugin.training.folder import held_by_main, writing
from tpo_plugin.training.hosts import host_named, load_host
from tpo_plugin.training.inputs import Inputs, of_data, of_host
from tpo_plugin.training.outlook import outlook
from tpo_plugin.training.parts import language_linears, set_trainable
from tpo_plugin.training.ranks import ending_together, joined_ranks, on_main
from tpo_plugin.training.resume import check_settings, moved_sources
from tpo_plugin.training.stages import check_stages, train_stage
from tpo_plugin.training.whole import check_whole, written_whole
from tpo_plugin.yaml_file import read_yaml

logger = logging.getLogger(__name__)

STAGE_FILE, FINAL = "stage.json", "final"
STATE_FILE = "trainer_state.json"
"""Of a checkpoint."""


@dataclass(kw_only=True)
class SavedRun:
    """What `run.json` holds of the run, beside versions."""

    host: Annotated[str, MinLen(1)]
    """Folder or hub name."""
    host_name: str | None = None
    """Its name on the hub, where it came from there, also where `host` is a folder of the hub's cache."""
    host_revision: str | None = None
    """Commit of `host_name`."""
    config: dict[str, Any]
    """The fields of `TrainConfig`."""
    stages: dict[str, Any]
    """What each stage logged."""


@ending_together()
def train(config: TrainConfig | str | os.PathLike[str], *, resume: bool = True, accept_changes: bool = False) -> Path:
    """Trains all stages and returns the run's folder; what happens is printed, and written to its `log.jsonl`.

    The same call on a folder with an unfinished run goes on where it stopped, in whichever stage. With `resume=False`
    such a folder is refused. What cannot change what is trained already may change: the stages that have not begun, how
    is saved, logged and evaluated, and where host, data and the folder lie. What they hold may not, unless
    `accept_changes` is set. Started by torchrun or accelerate, it trains on all ranks. Raises `TPOError` for what is
    wrong in the configuration, its data, or the folder, of any stage, before the first one trains; and for a folder in
    which another call trains.
    """
    if isinstance(config, TrainConfig):  # whose fields may have been set since it was made
        config = config_from_dict(TrainConfig, config.to_dict(), where="config")
        config.check_heads(where="config")
    else:
        config = TrainConfig.from_yaml(Path(config))
    directory = Path(config.output_dir)
    state = joined_ranks()
    with writing(directory):
        finished = (directory / RUN_FILE).is_file()
    if finished:
        _check_run(config, directory, resume)
        logger.info("%s is finished already", directory)
        return directory
    with held_by_main(directory):
        return _train(config, directory, state, resume, accept_changes)


def _train(config: TrainConfig, directory: Path, state: PartialState, resume: bool, accept: bool) -> Path:
    begun, inputs = _check_run(config, directory, resume)
    on_main(lambda: inputs.compare(of_host(config, inputs.marks), begun=bool(begun), accept=accept))
    model = build_model(config)
    finished = [name for name in config.stages if (directory / name / STAGE_FILE).is_file()]
    if finished:
        for name in finished:
            _logged(directory / name)
        check_whole(directory / finished[-1] / FINAL, f"remove {directory / finished[-1]} to train this stage again")
        _load_weights(model, directory / finished[-1] / FINAL)
    unfinished = [name for name in config.stages if name not in finished]
    sources = check_stages(model, config, unfinished)
    on_main(lambda: inputs.compare(of_data(config, unfinished, sources), begun=bool(begun), accept=accept))
    on_main(lambda: _open_run(config, directory, inputs))
    if not begun:
        for sentence in on_main(lambda: outlook(config, unfinished, sources)) or ():
            logger.warning("%s", sentence)
    trained: set[str] = set()
    console = Console()
    for number, (name, stage) in enumerate(config.stages.items()):
        rates = set_trainable(model, stage.learning_rates, config.modules, where=f"stages.{name}")
        trained |= set(rates)
        if name in finished:
            if state.is_main_process:
                console.print(f"stage {number + 1} of {len(config.stages)} ({name}): finished already", highlight=False)
            continue
        trainer, metrics = train_stage(model, config, name, rates, sources, console)
        with written_whole(directory / name / FINAL, writer=state.is_main_process) as folder:
            if state.is_main_process or trainer.is_fsdp_enabled or sharding.split(model.parameters()):
                _save_weights(model, folder, trained)
        if state.is_main_process:
            _write_json(directory / name / STAGE_FILE, metrics)
        state.wait_for_everyone()
        if trainer.runs_in_step:  # its engine has hooks in the model, and parts of it
            if trainer.deepspeed is not None:
                trainer.deepspeed.destroy()
                unset_hf_deepspeed_config()
            del trainer, model
            model = build_model(config)
            _load_weights(model, directory / name / FINAL)
    model.tpo.config.loss_weights = dict(config.tpo.loss_weights)
    if state.is_main_process:
        _save_weights(model, directory, trained)
        described = _describe(config, directory, inputs)
        write_card(directory, model.tpo, name=directory.name, kind="run", metrics=_measured(described["stages"]))
        _write_json(directory / RUN_FILE, described)
    state.wait_for_everyone()
    return directory


def load_run(
    directory: str | os.PathLike[str], *, host: str | os.PathLike[str] | None = None, revision: str | None = None
) -> nn.Module:
    """The trained model of a run, in evaluation mode, with `model.tpo` and `model.tpo.processor` ready.

    `directory` is a finished run, or of any run a checkpoint or a stage's `final`; or a finished run by its name on the
    hub, at `revision`. `host` says where the host lies now, if it has moved; one that came from the hub is found there.
    Raises `TPOError` for a folder that is neither, for a damaged checkpoint, for one of a newer version, and for a head
    that is not installed.
    """
    directory = local_folder(directory, revision)
    config = read_run_config(directory)
    before: Path | None = None
    commit: str | None = None
    if (directory / RUN_FILE).is_file():
        saved = read_saved(directory / RUN_FILE, SavedRun)[1]
        source = saved.host
        if saved.host_name is not None and not Path(source).exists():
            source, commit = saved.host_name, saved.host_revision
    else:
        check_whole(directory, "take another checkpoint")
        # A checkpoint without LoRA has the host itself; one with it lacks what earlier stages trained of the host.
        has_host = (directory / "config.json").is_file()
        source = str(directory) if has_host else config.model
        stages = list(config.stages)
        earlier = stages[: stages.index(directory.absolute().parent.name)]
        before = directory.absolute().parent.parent / earlier[-1] / FINAL if earlier and not has_host else None
    if host is not None:
        source, commit = str(host), None
    try:
        model = load_host(source, config.dtype, revision=commit)
    except HostError as error:
        raise TPOError(f"{directory}: its {error}; give host= (--host) if it has moved") from error
    model = load_tpo(model, directory)
    if before is not None:
        for folder in (before, directory):
            load_host_weights(model, folder)
    return model.eval()


def read_run_config(directory: str | os.PathLike[str]) -> TrainConfig:
    """The configuration of a run, given by its folder, its name on the hub, or a checkpoint of it.

    Raises `TPOError` for neither.
    """
    directory = local_folder(directory)
    if (directory / RUN_FILE).is_file():
        return TrainConfig.from_dict(read_run(directory)["config"], where=f"{directory / RUN_FILE}: config")
    path = directory.absolute().parent.parent / CONFIG_FILE
    if not ((directory / TPO_CONFIG_FILE).is_file() and path.is_file()):
        read_run(directory)  # which says what is wrong with it
    config = TrainConfig.from_dict(read_yaml(path), where=str(path))
    if directory.absolute().parent.name not in config.stages:
        raise TPOError(
            f"{directory} lies in no stage of {path}, which has {list(config.stages)}; expected a checkpoint"
        )
    return config


def run_metrics(directory: str | os.PathLike[str]) -> dict[str, float]:
    """What the last evaluation of a run, or before a checkpoint of it, measured; empty where there was none."""
    directory = local_folder(directory)
    if (directory / RUN_FILE).is_file():
        return _measured(read_run(directory)["stages"])
    if (directory / STATE_FILE).is_file():
        entries = read_json(directory / STATE_FILE, "the state of a Trainer")["log_history"]
    else:
        entries = _logged(directory.absolute().parent)["log"]
    return _measured({"": {"log": entries}})


def _measured(stages: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Of the last evaluation that these stages logged."""
    entries = [entry for stage in stages.values() for entry in (*stage["log"], stage.get("evaluation", {}))]
    measured = [entry for entry in entries if any(key.startswith("eval_") for key in entry)]
    left_out = ("_runtime", "_per_second", "_preparation_time")
    return {
        key.removeprefix("eval_"): value
        for key, value in (measured[-1] if measured else {}).items()
        if key.startswith("eval_") and not key.endswith(left_out) and isinstance(value, (int, float))
    }


def read_run(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """`run.json` of a finished run: its configuration, host, versions and the metrics of each stage."""
    path = Path(directory) / RUN_FILE
    if not path.is_file():
        started = (Path(directory) / CONFIG_FILE).is_file()
        remedy = "expected the output_dir of tpo train, or a checkpoint in it (output_dir/STAGE/checkpoint-N)"
        if started:
            remedy = (
                f"its run is unfinished, and goes on with: tpo train {Path(directory) / CONFIG_FILE}; its checkpoints "
                "can be asked already (STAGE/checkpoint-N)"
            )
        raise TPOError(f"{directory} has no {RUN_FILE}; {remedy}")
    return read_saved(path, SavedRun)[0]


def build_model(config: TrainConfig) -> nn.Module:
    """The host with LoRA and TPO, as a run starts with it; the same for the same seed."""
    set_seed(config.seed)
    model: nn.Module = load_host(config.model, config.dtype, config.attn)
    with host_named(config.model):
        processor = AutoProcessor.from_pretrained(config.model, trust_remote_code=False)
    if config.lora is not None:
        with needed():
            from peft import LoraConfig, get_peft_model

        lora = config.lora
        targets = lora.targets or language_linears(model, config.modules)
        settings = LoraConfig(
            r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, task_type="CAUSAL_LM"
        )
        model = get_peft_model(model, settings)
    return apply_tpo(model, processor, heads=config.heads or None, config=config.tpo)


# -- files -------------------------------------------------------------------------------------------------------------


def _check_run(config: TrainConfig, directory: Path, resume: bool) -> tuple[list[str], Inputs]:
    """The stages that have begun in the folder, and what the run was given; both empty where there is no run.

    Raises `TPOError` for a run that cannot go on with these settings.
    """
    inputs, path = Inputs(directory), directory / CONFIG_FILE
    if not path.is_file():
        return [], inputs
    if not resume:
        raise TPOError(f"{directory} has a run already: resume it, or give another output_dir")
    there = TrainConfig.from_dict(read_yaml(path), where=str(path))
    begun = [name for name in there.stages if _has_begun(directory / name)]
    finished = (directory / RUN_FILE).is_file()
    check_settings(there, config, begun=begun, finished=finished, where=str(path), recorded=inputs.marks)
    inputs.forget(moved_sources(there, config, begun))
    return begun, inputs


def _open_run(config: TrainConfig, directory: Path, inputs: Inputs) -> None:
    """Writes down the configuration, and what the run is given."""
    inputs.compare_versions(config.heads or registry().default_heads)
    inputs.save()
    text = yaml.safe_dump(config.to_dict(), sort_keys=False)
    replace_file(directory / CONFIG_FILE, lambda name: Path(name).write_text(text, encoding="utf-8"))


def _has_begun(stage: Path) -> bool:
    return (stage / STAGE_FILE).is_file() or any(stage.glob("checkpoint-*"))


def _save_weights(model: nn.Module, directory: Path, host_names: set[str]) -> None:
    """Everything that training changed: adapter, tpo, and the host's own weights of these names.

    Under ZeRO-3 and FSDP every rank must call it.
    """
    sharding.at_rest(model)
    parts = {name: parameter for name, parameter in model.named_parameters() if LORA.search(name)}
    adapter = sharding.whole(parts)
    if adapter and sharding.writes(parts.values()):
        model.save_pretrained(str(directory), state_dict=adapter, save_embedding_layers=False)
    save_host_weights(model, directory, host_names)
    model.tpo.save_pretrained(directory)


def _load_weights(model: nn.Module, directory: Path) -> None:
    if hasattr(model, "peft_config"):
        model.load_adapter(str(directory), model.active_adapter, is_trainable=True)
    load_host_weights(model, directory)
    load_weights(model.tpo, directory)


def _describe(config: TrainConfig, directory: Path, inputs: Inputs) -> dict[str, Any]:
    host = Path(config.model)
    revision = inputs.marks.get("model", {}).get("revision")
    of_hub = hub_name(host) if host.exists() else (config.model, None if revision is None else str(revision))
    return {
        "format_version": FORMAT_VERSION,
        "tpo_plugin": version("tpo-plugin"),
        "versions": inputs.versions,
        "host": str(host.resolve()) if host.exists() else config.model,
        **({} if of_hub is None else {"host_name": of_hub[0], "host_revision": of_hub[1]}),
        "config": config.to_dict(),
        "stages": {name: _logged(directory / name) for name in config.stages},
    }


def _logged(stage: Path) -> dict[str, Any]:
    """What a finished stage logged. Raises `TPOError` for a damaged file."""
    return read_json(stage / STAGE_FILE, f"what the stage logged; remove {stage} to train it again")


def _write_json(path: Path, values: dict[str, Any]) -> None:
    replace_file(path, lambda name: Path(name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8"))
