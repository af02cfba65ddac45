"""The conformance kit for a head that is registered in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from good_head import GoodConfig, GoodHead, Kit

import tpo_plugin as tpo


@pytest.fixture
def kit() -> Iterator[Callable[..., Kit]]:
    """Registers a head in this process and gives the kit for it."""

    class Plugin:
        head, config = GoodHead, GoodConfig

        @tpo.hookimpl
        def register_heads(self, register):
            register("under_test", head=self.head, config=self.config, trigger="<test_begin>", task_token="<test>")

    def install(head: type = GoodHead, config: type = GoodConfig, kit_class: type[Kit] = Kit) -> Kit:
        Plugin.head, Plugin.config = head, config
        tpo.register_plugin(Plugin(), "under_test")
        return kit_class()

    yield install
    tpo.unregister_plugin("under_test")
