"""The model card of a trained model: what it is, its tokens, and the numbers that were measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from tpo_plugin.hub import hub_name, loaded_revision
from tpo_plugin.tasks import Tasks

Kind = Literal["run", "merged", "exported"]

_WHAT = {
    "run": "LoRA, task tokens and heads, without the host that they were trained on",
    "merged": "the host with LoRA merged into it, task tokens and heads",
    "exported": "a plain checkpoint with the heads beside it",
}
_USE = {
    "run": "from tpo_plugin.training.run import load_run\n\nmodel = load_run({name!r})",
    "merged": (
        "from transformers import {auto}\nfrom tpo_plugin import load_tpo\n\n"
        "model = load_tpo({auto}.from_pretrained({name!r}), {name!r})"
    ),
    "exported": (
        "from transformers import {auto}\nfrom tpo_plugin import load_heads\n\n"
        "model = {auto}.from_pretrained({name!r})  # needs no tpo-plugin\n"
        "heads = load_heads({name!r})  # heads.predict(sequences, states, ...)"
    ),
}


def write_card(
    folder: Path, tpo: Any, *, name: str, kind: Kind, metrics: Mapping[str, float], untied: bool = False
) -> None:
    """Writes README.md into `folder`, over what another library wrote there.

    Args:
        tpo: `model.tpo`.
        name: By which it is loaded, in the card's example.
        metrics: Measured numbers by name, in the order in which they are shown.
        untied: Whether input and output embeddings were one matrix before.
    """
    path = getattr(tpo.model.config, "_name_or_path", "")
    base, revision = _base(path)
    host = base or Path(path).name or type(tpo.model).__name__
    known, at = f"\nbase_model: {base}" if base else "", f", revision {revision}" if revision else ""
    lines = [
        f"---\nlibrary_name: {'transformers' if kind == 'exported' else 'tpo-plugin'}{known}\ntags:\n- tpo\n---",
        f"# {type(tpo.model).__name__} with {_listed(list(tpo.heads))}",
        f"This is {_WHAT[kind]}: a model that calls a head by a token, as in [Task Preference Optimization]"
        f"(https://arxiv.org/abs/2412.19326). Its host is {host}{at}.",
    ]
    if untied:
        lines.append(
            "The input and the output embedding of the host were one matrix. Here they are two, for a trigger's row is "
            "another in each."
        )
    lines += [_tokens(tpo), f"```python\n{_USE[kind].format(name=name, auto=_auto(tpo.model))}\n```"]
    if metrics:
        rows = "\n".join(f"| {name} | {value:.4g} |" for name, value in metrics.items())
        lines.append(f"Measured on the evaluation data of its training:\n\n| metric | value |\n|---|---|\n{rows}")
    else:
        lines.append("Nothing was measured when it was trained: its configuration names no evaluation data.")
    (folder / "README.md").write_text("\n\n".join(lines) + "\n", encoding="utf-8")


def _base(path: str) -> tuple[str | None, str | None]:
    """Name and revision of a host on the hub, of where it was loaded from; both None of any other folder."""
    if Path(path).exists() or Path(path).is_absolute():
        return hub_name(path) or (None, None)
    return path or None, loaded_revision(path)


def _tokens(tpo: Tasks) -> str:
    rows = ["| head | trigger | task token | given in the prompt |", "|---|---|---|---|"]
    for name, tokens in tpo.tokens.items():
        given = "-" if tokens.input_token is None else f"`{tokens.input_token}`"
        rows.append(f"| {name} | `{tokens.trigger}` | `{tokens.task_token}` | {given} |")
    return "\n".join(rows)


def _listed(heads: list[str]) -> str:
    return f"the head{'s' if len(heads) > 1 else ''} {', '.join(heads)}"


def _auto(model: Any) -> str:
    return "AutoModelForImageTextToText" if getattr(model.config, "vision_config", None) else "AutoModelForCausalLM"
