"""The tokens of heads as they stand in a text. No torch in here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tpo_plugin.config import HeadConfig
from tpo_plugin.errors import TPOError
from tpo_plugin.plugins import HeadSpec


@dataclass(frozen=True)
class TokenNames:
    """Tokens of one head."""

    trigger: str
    task_token: str
    input_token: str | None

    def text(self, kind: str) -> str | None:
        """The token of `kind` "trigger", "task" or "input" as it stands in a text."""
        return {"trigger": self.trigger, "task": self.task_token, "input": self.input_token}[kind]


def resolve_tokens(specs: Iterable[HeadSpec], configs: Mapping[str, HeadConfig]) -> dict[str, dict[str, str | None]]:
    """Token strings by head and kind, from the config or as registered.

    Raises `TPOError` where two heads claim a token, naming both.
    """
    owners: dict[str, HeadSpec] = {}
    resolved: dict[str, dict[str, str | None]] = {}
    for spec in specs:
        config = configs[spec.name]
        fields = {
            kind: getattr(config, kind) or getattr(spec, kind) for kind in ("trigger", "task_token", "input_token")
        }
        for kind, token in fields.items():
            if token is None:
                continue
            if token in owners:
                owner = owners[token]
                raise TPOError(
                    f"head {spec.name!r} ({spec.plugin}) claims token {token!r}, already claimed by {owner.name!r} "
                    f"({owner.plugin}); set {kind}= in the config of one of them"
                )
            owners[token] = spec
        resolved[spec.name] = fields
    return resolved
