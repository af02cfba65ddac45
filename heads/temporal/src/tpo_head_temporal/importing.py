"""`tpo import cg-detr`: a checkpoint of the public CG-DETR code as a file that `init_from` reads."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import tpo_plugin as tpo
from tpo_plugin.errors import shown
from tpo_plugin.json_file import parse_json

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tpo_head_temporal.config import TemporalConfig

SHAPE_FIELDS = (
    "video_size",
    "text_size",
    "hidden",
    "num_heads",
    "feed_forward",
    "input_layers",
    "cross_layers",
    "encoder_layers",
    "decoder_layers",
    "dummy_layers",
    "moment_layers",
    "sentence_layers",
    "num_dummies",
    "num_queries",
    "total_prompts",
    "num_prompts",
)
"""Fields of the configuration that say which network the weights are of."""


def import_cg_detr(
    file: Annotated[Path, typer.Argument(help="Checkpoint: best.ckpt of the public code, or its state dict.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")] = Path("cg_detr.safetensors"),
) -> None:
    """Convert a checkpoint of the public CG-DETR code for the temporal head.

    The result is named in the head's configuration as init_from. The run's weights of losses, costs of the matcher,
    dropouts and NMS threshold are printed with it. Nothing in the checkpoint is executed.
    """
    from safetensors.torch import save_file

    weights, config = read_checkpoint(file)
    fields = {name: getattr(config, name) for name in SHAPE_FIELDS}
    metadata = {"format": "pt", "temporal": json.dumps(fields)}
    save_file({name: value.contiguous() for name, value in weights.items()}, str(output), metadata=metadata)
    total = sum(value.numel() for value in weights.values())
    typer.echo(f"{output}: {len(weights)} tensors, {total:,} numbers")
    typer.echo("In the head's configuration (features 'files', of the kinds that it was trained on):")
    published = dataclasses.asdict(type(config)())
    others = {name: value for name, value in dataclasses.asdict(config).items() if value != published[name]}
    typer.echo(json.dumps(fields | others | {"init_from": str(output)}, indent=2))


def read_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], TemporalConfig]:
    """Weights in our names, and the configuration that fits them. Raises `TPOError`.

    Reads what the public code saves (a dict with "model" and "opt"; `weights_only`), a bare state dict of its names,
    also as safetensors, with or without "module." before each.
    """
    import torch
    from safetensors.torch import load_file

    from tpo_head_temporal.reference import config_of, from_reference

    if not Path(path).is_file():
        raise tpo.TPOError(f"{path}: no such file; expected a checkpoint of the public CG-DETR code")
    try:
        if Path(path).suffix == ".safetensors":
            saved: Any = load_file(path)
        else:
            import argparse

            torch.serialization.add_safe_globals([argparse.Namespace])  # plain options, which the public code saves
            saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise tpo.TPOError(f"{path}: cannot be read as a checkpoint without executing code: {reason}") from error
    options = saved.get("opt", {}) if isinstance(saved, dict) else {}
    weights = saved.get("model", saved) if isinstance(saved, dict) else None
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in weights.items()
    ):
        raise tpo.TPOError(f"{path}: holds no state dict; expected the weights, or a dict with them under 'model'")
    names = {name.removeprefix("module."): value for name, value in weights.items()}
    missing = [name for name in ("transformer.encoder.layers.0.linear1.weight", "dummy_rep_token") if name not in names]
    if missing:
        raise tpo.TPOError(f"{path}: has no {missing[0]!r}; expected a checkpoint of the public CG-DETR code")
    options = options if isinstance(options, dict) else getattr(options, "__dict__", {})
    try:
        return {name: value.float() for name, value in from_reference(names).items()}, config_of(names, options)
    except (LookupError, ValueError, RuntimeError, TypeError) as error:  # of weights that are not there, or others
        reason = f"{type(error).__name__}: {error}"
        raise tpo.TPOError(
            f"{path}: does not hold the weights of one CG-DETR ({reason}); expected all of them"
        ) from error


def load_imported(network: nn.Module, config: TemporalConfig, path: str | Path, sizes: dict[str, int]) -> None:
    """Loads a file of `tpo import cg-detr` into a network of configuration `config` and widths `sizes`."""
    from safetensors import safe_open

    if not Path(path).is_file():
        raise tpo.TPOError(f"init_from: {path}: no such file; expected what `tpo import cg-detr` writes")
    try:
        with safe_open(path, "pt") as file:
            fields = parse_json((file.metadata() or {}).get("temporal", "null"))
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # of safetensors, and of torch for a type that it does not have
        raise tpo.TPOError(f"init_from: {path} cannot be read as safetensors: {error}; import it anew") from error
    if not isinstance(fields, dict):
        raise tpo.TPOError(f"init_from: {path} was not written by `tpo import cg-detr`; import the checkpoint first")
    own = dataclasses.asdict(config) | sizes
    other = {name: value for name, value in fields.items() if own.get(name) != value}
    wrong = [f"{name} is {own.get(name)}, there {shown(value)}" for name, value in other.items()]
    if wrong:
        raise tpo.TPOError(f"init_from: {path} is of another network: {'; '.join(wrong)}")
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise tpo.TPOError(f"init_from: {path} does not fit its own description: {error}; import it anew") from error


def register(app: typer.Typer) -> None:
    """Adds `tpo import cg-detr`."""
    group = typer.Typer(help="Convert weights of other codebases.", no_args_is_help=True)
    group.command("cg-detr")(import_cg_detr)
    group.callback()(lambda: None)
    app.add_typer(group, name="import")
