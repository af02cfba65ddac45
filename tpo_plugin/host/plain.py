"""Models that are no transformers ones: what TPO asks of a model, and a base class that adds it to a plain one."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

from torch import nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel

from tpo_plugin.errors import HostError

ATTRIBUTES = (
    "get_input_embeddings",
    "get_output_embeddings",
    "config",
    "device",
    "main_input_name",
    "generation_config",
    "generate",
)
"""What the plugin asks of a model, beside its forward."""
ARGUMENTS = {"forward": ("input_ids", "labels"), "generate": ("logits_processor",)}
"""What these methods take at least."""


def check_model(model: nn.Module) -> None:
    """Raises `HostError` with all that a model lacks; nothing where it is one of transformers."""
    if isinstance(model, PreTrainedModel):
        return
    missing = [name for name in ATTRIBUTES if not hasattr(model, name)]
    for method, names in ARGUMENTS.items():
        if method not in missing:
            parameters = inspect.signature(getattr(model, method)).parameters
            takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
            missing += [f"{method}(…, {name}=…)" for name in names if name not in parameters and not takes_all]
    if missing:
        raise HostError(
            f"{type(model).__name__} is no transformers model and lacks {', '.join(missing)}; expected a model with "
            "all of these: a subclass of tpo_plugin.PlainModel has them (see patches/README.md)"
        )


class PlainModel(PreTrainedModel, GenerationMixin):
    """A plain `nn.Module` with the interface of a transformers model; TPO goes onto this object, as `.tpo`.

    A subclass says where the embeddings are, and writes `forward(input_ids, attention_mask=…, labels=…, …)` over
    `self.model`, with more arguments for media; it returns a `transformers.modeling_outputs.CausalLMOutput`. Labels
    stand at the tokens that they name: a model whose targets stand where they are predicted gets them shifted by one
    column. The plain model itself stays as it is: it gets no submodule, and is saved as before. Generation is that of
    transformers, by whole forwards, without a cache.
    """

    embed: ClassVar[str]
    """Name of the plain model's input embedding, for example `decoder.token_embedding`."""
    head: ClassVar[str]
    """Name of its output embedding, a Linear."""

    def __init__(self, model: nn.Module) -> None:
        embed, head = model.get_submodule(self.embed), model.get_submodule(self.head)
        tied = embed.weight is head.weight
        super().__init__(PretrainedConfig(vocab_size=len(embed.weight), tie_word_embeddings=tied))
        if tied:
            self._tied_weights_keys = {f"model.{self.head}.weight": f"model.{self.embed}.weight"}
        self.model = model
        self.post_init()

    def __call__(self, *args: Any, return_dict: bool | None = None, **kwargs: Any) -> Any:
        """Calls the forward, which need not take the `return_dict` that generation passes."""
        return super().__call__(*args, **kwargs)

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: the weights are those of the plain model."""

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_submodule(self.embed)

    def set_input_embeddings(self, value: nn.Module) -> None:
        self._set(self.embed, value)

    def get_output_embeddings(self) -> nn.Module:
        return self.model.get_submodule(self.head)

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self._set(self.head, new_embeddings)

    def _set(self, name: str, module: nn.Module) -> None:
        owner, _, child = name.rpartition(".")
        setattr(self.model.get_submodule(owner), child, module)

    def prepare_inputs_for_generation(self, input_ids: Any, **kwargs: Any) -> dict[str, Any]:
        """Of what generation carries along, all that the forward takes; of the ids all, as there is no cache."""
        taken = inspect.signature(self.forward).parameters
        return {"input_ids": input_ids} | {name: value for name, value in kwargs.items() if name in taken}

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As `generate` of transformers, with `use_cache=False`."""
        return super().generate(*args, **kwargs | {"use_cache": False})
