"""`model.tpo`: the face of TPO on a host, and the only module that it adds to it."""

from __future__ import annotations

import os
from typing import Any

from torch import nn

from tpo_plugin import files
from tpo_plugin.codec import Codec
from tpo_plugin.config import TPOConfig
from tpo_plugin.generation.generate import GenerateOutput, generate
from tpo_plugin.head import TaskHead
from tpo_plugin.hooks import Hooks
from tpo_plugin.host.base import Host
from tpo_plugin.losses import TPOOutput
from tpo_plugin.seen import special_ids
from tpo_plugin.step import Step
from tpo_plugin.tasks import Tasks
from tpo_plugin.tokens import HeadTokens, TokenRows, Undo


class TaskPreferenceModel(Tasks):
    """All task tokens and heads of a host together, hooked to it."""

    def __init__(
        self,
        model: nn.Module,
        host: Host,
        heads: dict[str, TaskHead],
        rows: dict[str, TokenRows],
        tokens: dict[str, HeadTokens],
        config: TPOConfig,
        tokenizer: Any,
        processor: Any,
        codecs: dict[str, Codec],
    ) -> None:
        text_ids = special_ids(tokenizer, model.config)
        super().__init__(heads, rows, tokens, config, tokenizer, processor, codecs=codecs, special_ids=text_ids)
        self.hooks = Hooks(model, host, self)
        self.undo: list[Undo] = []
        """The way back for each change of `apply_tpo`, in the order in which they were made."""
        self.changed_host: set[str] = set()
        """Names of the host's own weights that training changed beside an adapter, as far as is known."""

    @property
    def model(self) -> nn.Module:
        """The host."""
        return self.hooks.model

    @property
    def host(self) -> Host:
        """Where it is hooked."""
        return self.hooks.host

    @property
    def call(self) -> Step | None:
        """The forward that this thread runs, or None."""
        return self.hooks.now.step

    @property
    def hidden_size(self) -> int:
        """Width of the host's last hidden state."""
        return self.host.hidden_size

    @property
    def last_output(self) -> TPOOutput | None:
        """What the last forward of this thread with a head gave: `out.tpo`, where a wrapper rebuilds the output."""
        return self.hooks.now.last_output

    @last_output.setter
    def last_output(self, output: TPOOutput | None) -> None:
        self.hooks.now.last_output = output

    @property
    def last_generated(self) -> GenerateOutput | None:
        """What this thread generated last, by `model.tpo.generate` or by the host's own `generate`."""
        return self.hooks.now.last_generated

    def generate(self, *args: Any, **kwargs: Any) -> GenerateOutput:
        """Generates with the heads; see `tpo_plugin.generation.generate.generate`."""
        return generate(self.hooks, *args, **kwargs)

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Writes config, task tokens, heads and tokenizer; see `tpo_plugin.files.save_tpo`."""
        files.save_tpo(self, directory, host_class=type(self.model).__name__)
