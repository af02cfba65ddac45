"""Configurations as plain keyword-only dataclasses that go to JSON and back. No torch in here.

A field's annotation is what is checked: `Annotated[float, Interval(ge=0, le=1)]`, with the constraints of the package
annotated-types, is a number from 0 to 1; `Literal` is a choice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from annotated_types import Ge, Gt, Interval, Predicate, doc

from tpo_plugin.validation import WrongValues, build, check

FORMAT_VERSION = 1
"""Version of `tpo_config.json`; a file with a higher one is refused."""

Count = Annotated[int, Ge(1)]
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Interval(ge=0, le=1)]

ConfigT = TypeVar("ConfigT")


def config_from_dict(cls: type[ConfigT], values: Mapping[str, Any], *, where: str) -> ConfigT:
    """Builds dataclass `cls` from plain values, checked by its annotations.

    Raises one `TPOError` for all that is wrong: for each mistake `where` and the path to it, what was given and what
    was expected; for an unknown key the nearest valid one.
    """
    try:
        return build(cls, values)
    except WrongValues as error:
        raise error.at(where) from error


def check_config(config: Any, *, where: str) -> None:
    """Checks the fields of a dataclass, which may have been set since it was made; `TPOError` as `config_from_dict`."""
    try:
        values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.init}
        for name, value in check(type(config), values).items():
            object.__setattr__(config, name, value)  # of a frozen dataclass too
    except WrongValues as error:
        raise error.at(where) from error


class Config:
    """Base of a dataclass whose fields are checked by their annotations wherever one is made.

    A subclass with a `__post_init__` of its own, for what holds between fields, calls this one first.
    """

    def __post_init__(self) -> None:
        check_config(self, where=type(self).__name__)


@dataclass(kw_only=True)
class HeadConfig(Config):
    """Base of every head's configuration. A head's own config adds its fields."""

    weight_beside_others: ClassVar[float] = 1.0
    """Weight of the head's loss in a model with other heads, unless `TPOConfig.loss_weights` sets it: of a published
    loss whose size is another than theirs."""

    trigger: str | None = None
    """Token that the LM emits to assign the task; None takes the one that the head is registered with."""
    task_token: str | None = None
    """Token after the trigger, whose last hidden state drives the head; None as registered."""
    input_token: str | None = None
    """Token in the prompt that carries an encoded input of the user (for example a box); None as registered."""


def _is_head_config(value: Any) -> bool:
    return isinstance(value, (HeadConfig, dict))


@dataclass(kw_only=True)
class TPOConfig(Config):
    """What `apply_tpo` puts onto a host, besides the choice of heads."""

    loss_weights: dict[str, NotNegative] = field(default_factory=dict)
    """Weight of each loss by name: "mllm", "assign", "retain", or a head's name; at least 0. Every weight is 1 unless
    set, but for that of a head which names another beside other heads (`HeadConfig.weight_beside_others`), and that of
    "retain", which is 0: it holds the answers of conversation where the host without LoRA has them, at the cost of one
    more forward of the host without a gradient; the vision encoder and connector of that host are those of now."""
    heads: dict[str, Annotated[Any, Predicate(_is_head_config), doc("a HeadConfig or keys and values")]] = field(
        default_factory=dict
    )
    """Configuration of a head by its name: a `HeadConfig` or a plain dict of its fields."""

    supervised_logits: Literal["auto"] | bool | None = None
    """Whether the host's output embedding runs at labelled positions alone in training, which saves memory and time;
    `out.logits` is `None` then. "auto": where its loss on a first batch is the same both ways; true: raise where not.
    None: as "auto" under `wrap_trainer`, unless the trainer computes its loss by itself and may read logits, and not in
    a forward that you call yourself."""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of the host's chat template, such as `enable_thinking`, for all that is trained and asked."""

    def weight(self, name: str) -> float:
        """The weight of loss `name`, in a model with the heads of `heads`."""
        if name == "retain":
            return float(self.loss_weights.get(name, 0.0))
        head = self.heads.get(name)
        default = head.weight_beside_others if isinstance(head, HeadConfig) and len(self.heads) > 1 else 1.0
        return float(self.loss_weights.get(name, default))
