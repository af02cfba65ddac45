"""The hook points of the original LLaVA's models."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import tpo_plugin as tpo
from tpo_patch_llava import METHOD


class LlavaHost(tpo.SplicingHost):
    """A language model of transformers whose forward first splices the features of images."""

    splice_method: ClassVar[str] = METHOD
    records: ClassVar[str | None] = "list_data_dict"

    @classmethod
    def locate(cls, model: Any, example_inputs: dict[str, Any] | None = None) -> tpo.Host:
        """As for any model of transformers, with the vision tower that is beside its language model."""
        host = super().locate(model, example_inputs)
        tower = model.get_vision_tower()
        return host if tower is None else replace(host, towers=[tower], vision_size=tower.hidden_size)

    @classmethod
    def media_root(cls, dataset: Any, record: dict[str, Any]) -> str:
        """The folder of images that LLaVA's arguments name."""
        return dataset.data_args.image_folder or "."
