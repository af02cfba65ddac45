"""Configurations as plain keyword-only dataclasses that go to JSON and back. No torch in here."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tpo_plugin.errors import TPOError, did_you_mean

FORMAT_VERSION = 1
"""Version of `tpo_config.json`; a file with a higher one is refused."""

ConfigT = TypeVar("ConfigT")


def config_from_dict(cls: type[ConfigT], values: dict[str, Any], *, where: str) -> ConfigT:
    """Builds dataclass `cls` from plain values.

    Raises `TPOError` for an unknown key, naming `where` it stands and the nearest valid key.
    """
    valid = [f.name for f in dataclasses.fields(cls) if f.init]  # type: ignore[arg-type]
    for key in values:
        if key not in valid:
            raise TPOError(f"{where}: unknown key {key!r}{did_you_mean(key, valid)}")
    return cls(**values)


@dataclass(kw_only=True)
class HeadConfig:
    """Base of every head's configuration. A head's own config adds its fields."""

    trigger: str | None = None
    """Token that the LM emits to assign the task; None takes the one that the head is registered with."""
    task_token: str | None = None
    """Token behind the trigger whose last hidden state drives the head; None as registered."""
    input_token: str | None = None
    """Token in the prompt that carries an encoded input of the user (for example a box); None as registered."""


@dataclass(kw_only=True)
class TPOConfig:
    """What `apply_tpo` puts onto a host, besides the choice of heads."""

    loss_weights: dict[str, float] = field(default_factory=dict)
    """Weight of each loss by name: "mllm", "assign", or a head's name. Every weight is 1 unless set; at least 0."""
    heads: dict[str, Any] = field(default_factory=dict)
    """Configuration of a head by its name: a `HeadConfig` or a plain dict of its fields."""

    def __post_init__(self) -> None:
        for name, weight in self.loss_weights.items():
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < float("inf"):
                raise TPOError(f"loss_weights[{name!r}] is {weight!r}; expected a finite number of at least 0")

    def weight(self, name: str) -> float:
        """The weight of loss `name`."""
        return float(self.loss_weights.get(name, 1.0))
