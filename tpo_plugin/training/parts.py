"""Parts of a model that a stage trains, found by the host's own module names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tpo_plugin.apply import host_class_of
from tpo_plugin.errors import TPOError, did_you_mean
from tpo_plugin.host_weights import LORA


def parts_of(model: nn.Module, modules: Mapping[str, str] | None = None) -> dict[str, list[str]]:
    """The parts that each parameter of a model with TPO belongs to, by its name; the most exact part comes first.

    `modules` are regular expressions by part, tried before those of the host (`Host.parts`). Parameters that a head
    keeps frozen for good, and quantised ones, belong to no part.
    """
    custom = dict(modules or {})
    patterns = {part: re.compile(pattern) for part, pattern in (custom | {**model.tpo.host.parts, **custom}).items()}
    of_tpo = _parts_of_tpo(model.tpo)
    parts: dict[str, list[str]] = {}
    for name, parameter in model.named_parameters():
        if id(parameter) in of_tpo:
            parts[name] = of_tpo[id(parameter)]
        elif LORA.search(name):
            parts[name] = ["lora"]
        else:
            found = next((part for part, pattern in patterns.items() if pattern.search(name)), "language")
            parts[name] = [found] if parameter.is_floating_point() else []
    return parts


def _parts_of_tpo(tpo: Any) -> dict[int, list[str]]:
    parts: dict[int, list[str]] = {}
    for head, module in tpo.heads.items():
        for name, parameter in module.named_parameters():
            trainable = f"heads.{head}.{name}" in tpo.trainable
            parts[id(parameter)] = [f"heads.{head}", "heads"] if trainable else []
    for head, rows in tpo.embeddings.items():
        for name, parameter in rows.named_parameters():
            kind = "task_tokens" if name == "task" else "triggers"
            parts[id(parameter)] = [f"{kind}.{head}", f"tokens.{head}", kind, "tokens"]
    return parts


def set_trainable(
    model: nn.Module,
    learning_rates: Mapping[str, float],
    modules: Mapping[str, str] | None = None,
    *,
    where: str = "stage",
) -> dict[str, float]:
    """Trains exactly the parts of `learning_rates`, and freezes the rest; returns the rate of each parameter by name.

    Raises `TPOError` for a part that the model does not have.
    """
    parts = parts_of(model, modules)
    valid = {part for names in parts.values() for part in names} | {"lora", *model.tpo.host.parts, *(modules or {})}
    present = {part for names in parts.values() for part in names}
    for part in learning_rates:
        if part not in valid:
            raise TPOError(
                f"{where}: learning_rates has {part!r}, which is no part of this model{did_you_mean(part, valid)}"
            )
        if part not in present:
            raise TPOError(f"{where}: learning_rates has {part!r}, and no parameter belongs to it; {_remedy(part)}")
    rates: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        chosen = next((part for part in parts[name] if part in learning_rates), None)
        parameter.requires_grad_(chosen is not None)
        if chosen is not None:
            rates[name] = learning_rates[chosen]
    return rates


def _remedy(part: str) -> str:
    if part == "lora":
        return "lora is null in the config: set it, or leave the part out"
    return (
        "leave it out of the stage (a text-only host has none), or say its parameter names: "
        f"modules: {{{part}: <regular expression>}}"
    )


def optimizer_groups(model: nn.Module, rates: Mapping[str, float], weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer, one for each rate, with and without decay.

    Parameters of one dimension (biases, norms, token rows) do not decay.
    """
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if name in rates:
            groups.setdefault((rates[name], weight_decay if parameter.ndim > 1 else 0.0), []).append(parameter)
    return [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()]


def can_learn_triggers(model: nn.Module) -> bool:
    """Whether something that decides over the trigger's logit trains: its output row, or anything of the host."""
    tpo = model.tpo
    own = {id(parameter) for parameter in tpo.parameters()}
    rows = (rows.output for rows in tpo.embeddings.values())
    host = (parameter for parameter in model.parameters() if id(parameter) not in own)
    return all(row.requires_grad for row in rows) or any(parameter.requires_grad for parameter in host)


def language_linears(model: nn.Module, modules: Mapping[str, str] | None = None) -> str:
    """PEFT's `target_modules` for every Linear of the language model except its output embedding, as one expression."""
    skip = [re.compile(pattern) for pattern in (*host_class_of(model).parts.values(), *(modules or {}).values())]
    head = model.get_output_embeddings()
    leaves: set[str] = set()
    prefixes: set[str] = set()
    for name, module in model.named_modules():
        if not isinstance(module, (nn.Linear, Conv1D)) or module is head:
            continue
        match = next((found for pattern in skip if (found := pattern.search(name))), None)
        if match is None:
            leaves.add(name.rpartition(".")[2])
        else:
            prefixes.add(name[: match.end()].rstrip("."))
    if not leaves:
        raise TPOError(f"{type(model).__name__} has no Linear in its language model; name lora.targets in the config")
    excluded = rf"(?!{_any(prefixes)}(\.|$))" if prefixes else ""
    return rf"{excluded}(.*\.)?{_any(leaves)}"


def _any(names: Iterable[str]) -> str:
    return f"({'|'.join(re.escape(name) for name in sorted(names))})"
