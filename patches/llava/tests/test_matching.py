"""Which of the two hosts a model gets, told by the arguments of its splicing method alone."""

from __future__ import annotations

from typing import Any

import pytest
from tpo_patch_llava.host import LlavaHost, LlavaNextHost

from tpo_plugin import registry


class Original:
    def prepare_inputs_labels_for_multimodal(self, input_ids, position_ids, attention_mask, cache, labels, images): ...


class Next:
    def prepare_inputs_labels_for_multimodal(self, input_ids, *ids, labels, images, modalities=None): ...


class Derived(Next): ...


@pytest.mark.parametrize(
    ("model", "name", "host"),
    [(Original(), "llava", LlavaHost), (Next(), "llava_next", LlavaNextHost), (Derived(), "llava_next", LlavaNextHost)],
)
def test_each_codebase_gets_its_host(model: Any, name: str, host: type) -> None:
    patch = registry().patch_for(model)
    assert patch is not None
    assert (patch.name, patch.host_class()) == (name, host)


def test_other_models_get_none() -> None:
    assert registry().patch_for(object()) is None
