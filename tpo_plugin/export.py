"""`tpo export`: a trained run as a plain checkpoint, which runs where nothing knows of TPO, with its heads beside it.

What the hooks do to a host is written into its weights: LoRA is merged, the input rows of triggers and task tokens and
the output rows of triggers go into the matrices. What a processor of logits does while it generates goes into
`generation_config.json`: a task token follows its trigger, and is never chosen otherwise.

Suffixes: K tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from tpo_plugin import sharding
from tpo_plugin.card import Kind, write_card
from tpo_plugin.config import FORMAT_VERSION
from tpo_plugin.errors import HostError, TPOError
from tpo_plugin.exported import (
    HEADS_FILE,
    Described,
    DescribedHead,
    DescribedReading,
    DescribedState,
    DescribedVision,
)
from tpo_plugin.host import Host
from tpo_plugin.host.follow import followed, moved
from tpo_plugin.model import TaskPreferenceModel
from tpo_plugin.training.config import DataConfig
from tpo_plugin.training.hosts import load_host
from tpo_plugin.training.run import load_run, read_run_config, run_metrics

_BIAS = 1e4
"""Added to a logit, it decides; float32 keeps what is added to others exact."""
_ROUNDINGS = 32
"""So many units in the last place may a logit differ that is one product in place of two."""


def export_run(run: str | Path, directory: str | Path, *, host: str | Path | None = None, merge: bool = False) -> bool:
    """Exports a run, or a checkpoint in the middle of one; see `export`. `host` says where its host lies now."""
    directory = Path(directory)
    _check_place(directory)
    model, config = load_run(run, host=host), read_run_config(run)
    return export(model, directory, merge=merge, metrics=run_metrics(run), reading=config.data)


def export(
    model: nn.Module,
    directory: str | Path,
    *,
    merge: bool = False,
    metrics: Mapping[str, float] | None = None,
    reading: DataConfig | None = None,
) -> bool:
    """Writes a model with TPO as a plain checkpoint, and uses it up: its weights are changed, its hooks taken off.

    Args:
        model: As `load_run` or `load_tpo` gives it, in evaluation mode.
        directory: A new or empty folder. It gets all or nothing.
        merge: Merge LoRA alone, and leave the rest to `load_tpo(host, directory)`, the host loaded from there.
        metrics: Measured numbers, by name, for the model card.
        reading: How pictures and clips were read in training, for those who ask the checkpoint.

    The checkpoint is loaded again and compared before it takes its place. Returns whether input and output embeddings,
    which were one matrix, had to become two. Raises `TPOError` for a folder that holds anything, and `HostError` for a
    host whose rows cannot be written, or that is not the same once loaded.
    """
    directory = Path(directory)
    _check_place(directory)
    plain = _merged(model)
    tpo = plain.tpo
    untied = False
    with _new_folder(directory) as folder:
        if not merge:
            tpo.hooks.detach()
            host = followed(plain, tpo.host, tpo.num_ids) if moved(plain, tpo.host) else tpo.host
            described = _describe(plain, tpo, host, reading or DataConfig())
            untied = described.untied
            _write_rows(plain, tpo, host)
            _set_generation(plain, tpo, described.never_emitted)
        plain.save_pretrained(folder)
        tpo.save_pretrained(folder)
        if not merge:
            head = {"format_version": FORMAT_VERSION, "tpo_plugin": version("tpo-plugin")}
            text = json.dumps(head | dataclasses.asdict(described), indent=2)
            (folder / HEADS_FILE).write_text(text + "\n", encoding="utf-8")
        kind: Kind = "merged" if merge else "exported"
        write_card(folder, tpo, name=directory.name, kind=kind, metrics=metrics or {}, untied=untied)
        _check_saved(plain, folder)
    return untied


def _merged(model: nn.Module) -> Any:
    """The host, with LoRA merged into its weights."""
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    if getattr(plain, "tpo", None) is None:
        raise TPOError(
            f"this {type(plain).__name__} has no TPO, so there is nothing to export; see apply_tpo, load_tpo"
        )
    if getattr(plain, "is_quantized", False):
        raise HostError(
            f"this {type(plain).__name__} is quantised, and LoRA merged into rounded weights is another model; load "
            "the run with its host in full precision: host="
        )
    if sharding.split(plain.parameters()):
        raise HostError("ZeRO-3 left a part of the host to each rank; export in one process, from the saved run")
    if hasattr(model, "merge_and_unload"):
        plain = model.merge_and_unload()
    return plain


# -- into the weights --------------------------------------------------------------------------------------------------


@torch.no_grad()
def _write_rows(model: Any, tpo: TaskPreferenceModel, host: Host) -> None:
    """Writes the rows of all tokens into the host's matrices, and nothing is left for the hooks to add.

    Checked by running both embeddings before and after.
    """
    embed, head = host.embed, host.head
    pairs = [(name, kind) for name in tpo.heads for kind in ("trigger", "task")]
    ids = torch.tensor([tpo.tokens[name].by_kind()[kind] for name, kind in pairs], device=embed.weight.device)
    rows = torch.stack([tpo.embeddings[name](kind) for name, kind in pairs])
    probe = torch.randn(4, host.hidden_size, generator=torch.Generator().manual_seed(0)).to(head.weight)
    before, wanted = head(probe), head(probe)
    tpo.trigger_logits.add_to(wanted, probe, tpo.output_rows())
    if embed.weight is head.weight:
        _untie(model, embed)
    _write_inputs(embed, ids, rows)
    for name in tpo.heads:
        trigger, added = tpo.tokens[name].trigger_id, tpo.embeddings[name]("output")
        head.weight[trigger] = (head.weight[trigger].float() + added).to(head.weight.dtype)
        tpo.embeddings[name].output.zero_()
    got, triggers = head(probe), tpo.trigger_logits.triggers
    wanted[:, tpo.trigger_logits.unused] = before[:, tpo.trigger_logits.unused]
    others = torch.ones(got.shape[-1], dtype=torch.bool, device=got.device)
    others[triggers] = False
    limit = _ROUNDINGS * torch.finfo(got.dtype).eps * wanted[:, triggers].abs().max()
    if not torch.equal(got[:, others], wanted[:, others]) or (got - wanted)[:, triggers].abs().max() > limit:
        raise HostError(
            f"{type(model).__name__}: its logits are not its output embedding's weights times the state, so the "
            "triggers' rows cannot be written into them; serve the run itself"
        )


def _write_inputs(embed: nn.Module, ids: Tensor, rows_KE: Tensor) -> None:
    """Has the input embedding give these rows for these ids; some multiply by a number what they look up."""
    wanted = rows_KE.to(embed.weight.dtype)
    embed.weight[ids] = wanted
    if torch.equal(embed(ids), wanted):
        return
    scale = embed(ids).float().norm() / wanted.float().norm()
    embed.weight[ids] = (rows_KE / scale).to(embed.weight.dtype)
    limit = 4 * torch.finfo(wanted.dtype).eps
    if not torch.allclose(embed(ids), wanted, rtol=limit, atol=limit):
        raise HostError(
            f"the input embedding ({type(embed).__name__}) does not give out the rows of its weights, so those of "
            "triggers and task tokens cannot be written into it; serve the run itself"
        )


def _untie(model: Any, embed: nn.Module) -> None:
    """Gives every module that shares the input embedding's matrix one of its own."""
    shared = embed.weight
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is shared and module is not embed:
                module._parameters[name] = nn.Parameter(shared.detach().clone(), requires_grad=False)
    for config in _configs(model.config):
        if getattr(config, "tie_word_embeddings", False):
            config.tie_word_embeddings = False
    if hasattr(model, "all_tied_weights_keys"):
        model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)


def _configs(config: PretrainedConfig) -> Iterator[PretrainedConfig]:
    yield config
    for value in vars(config).values():
        if isinstance(value, PretrainedConfig):
            yield from _configs(value)


def _set_generation(model: Any, tpo: TaskPreferenceModel, never: list[int]) -> None:
    """Has `generate` put the task token behind its trigger, by the biases of its configuration."""
    pairs = [[[trigger, task], 2 * _BIAS] for trigger, task in tpo.token_ids.values()]
    ours = [[[i], -_BIAS] for i in never] + pairs
    there = model.generation_config.sequence_bias or []
    if isinstance(there, dict):
        there = [[list(ids), bias] for ids, bias in there.items()]
    model.generation_config.sequence_bias = [*there, *ours]


# -- files -------------------------------------------------------------------------------------------------------------


def _describe(model: Any, tpo: TaskPreferenceModel, host: Host, reading: DataConfig) -> Described:
    names = {id(module): name for name, module in model.named_modules()}
    hidden = host.hidden
    never = {i for t in tpo.tokens.values() for i in (t.task_id, t.input_id) if i is not None}
    heads = {}
    for name, tokens in tpo.tokens.items():
        parameters = inspect.signature(type(tpo.heads[name]).forward).parameters
        heads[name] = DescribedHead(
            config=dataclasses.asdict(tpo.config.heads[name]),
            trigger=tokens.trigger,
            trigger_id=tokens.trigger_id,
            task_token=tokens.task_token,
            task_id=tokens.task_id,
            input_token=tokens.input_token,
            input_id=tokens.input_id,
            needs=[needed for needed in ("inputs", "seen") if needed in parameters],
        )
    return Described(
        host_class=type(model).__name__,
        state=DescribedState(
            at="task_token",
            size=host.hidden_size,
            module=None if hidden is None else names.get(id(hidden)),
            module_class=None if hidden is None else type(hidden).__name__,
            after_last_norm=None if hidden is None else "norm" in type(hidden).__name__.lower(),
        ),
        vision=DescribedVision(modules=[names[id(tower)] for tower in host.towers], size=host.vision_size),
        reading=DescribedReading(image=dataclasses.asdict(reading.image), video=dataclasses.asdict(reading.video)),
        heads=heads,
        decodes=host.decodes,
        label_shift=host.label_shift,
        untied=host.embed.weight is host.head.weight,
        never_emitted=sorted(never | set(tpo.trigger_logits.unused.tolist())),
    )


def _check_saved(model: Any, folder: Path) -> None:
    """Raises `HostError` where the checkpoint, loaded as its users will, is not the model that was saved."""
    try:
        loaded = load_host(str(folder)).state_dict()
    except Exception as error:  # whatever transformers raises for a checkpoint that it wrote
        raise HostError(
            f"{type(model).__name__}: transformers does not load again what it saved ({error}), so nothing was "
            "exported; serve the run itself"
        ) from error
    wanted = {name: value for name, value in model.state_dict().items() if not name.startswith("tpo.")}
    wrong = [n for n, value in wanted.items() if n not in loaded or not torch.equal(loaded[n].to(value.device), value)]
    if wrong:
        raise HostError(
            f"{type(model).__name__}: {len(wrong)} of {len(wanted)} weights, such as {wrong[0]!r}, are others once the "
            "checkpoint is loaded again, so nothing was exported; serve the run itself"
        )


def _check_place(directory: Path) -> None:
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise TPOError(f"{directory} is there already and not empty; give a new folder")


@contextmanager
def _new_folder(directory: Path) -> Iterator[Path]:
    """A folder beside `directory`, which is moved to its place when nothing was raised."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    folder = directory.with_name(f".{directory.name}.{uuid4().hex[:8]}.tmp")
    folder.mkdir()
    try:
        yield folder
        if directory.is_dir():
            directory.rmdir()
        folder.rename(directory)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
