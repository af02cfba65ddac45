"""What reads records: the heads' codecs and the names of their tokens, without weights and host. No torch in here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tpo_plugin.codec import Codec, registered_codec
from tpo_plugin.config import HeadConfig, TPOConfig
from tpo_plugin.names import TokenNames, resolve_tokens
from tpo_plugin.plugins import HeadSpec, registry


@dataclass(frozen=True)
class RecordFormat:
    """What `Records` and `parse_record` need of `model.tpo`, for use without a host."""

    codecs: Mapping[str, Codec]
    """Codec by head."""
    tokens: Mapping[str, TokenNames]
    """Tokens by head."""

    @classmethod
    def of_heads(cls, heads: Sequence[str] | None = None, config: TPOConfig | None = None) -> RecordFormat:
        """The format of installed heads by name; None takes all. `config` has the heads' own configurations.

        Raises `TPOError` as `apply_tpo` does.
        """
        specs = registry().choose(list(registry().heads) if heads is None else heads)
        given = (config or TPOConfig()).heads
        configs = {spec.name: spec.make_config(given.get(spec.name, {})) for spec in specs}
        names = resolve_tokens(specs, configs)
        return cls(
            {name: _codec(spec, configs[name]) for name, spec in zip(names, specs, strict=True)},
            {name: TokenNames(**fields) for name, fields in names.items()},  # type: ignore[arg-type]
        )

    @classmethod
    def of(cls, tpo: Any) -> RecordFormat:
        """The format of `model.tpo`; without the model, for a worker process may get a copy of it."""
        return tpo if isinstance(tpo, cls) else cls(dict(tpo.codecs), dict(tpo.tokens))

    @cached_property
    def placeholder(self) -> re.Pattern[str]:
        """Any head's placeholder in a text; group 1 is the head."""
        return re.compile(f"<({'|'.join(map(re.escape, self.codecs))})>" if self.codecs else r"(?!)()")

    @cached_property
    def reserved(self) -> dict[str, str]:
        """Head by each token that no text may hold."""
        # A token may be spelled like its head's placeholder, as <point> of a head "point": then it is one.
        return {
            token: name
            for name, tokens in self.tokens.items()
            for token in (tokens.trigger, tokens.task_token, tokens.input_token)
            if token and token[1:-1] not in self.codecs
        }


def _codec(spec: HeadSpec, config: HeadConfig) -> Codec:
    codec = registered_codec(spec, config)
    if codec is not None:
        return codec
    from tpo_plugin.head import bare_codec  # such a head is a torch module

    return bare_codec(spec, config)
