"""The conformance kit for heads, and a tiny random host to try them on."""

from tpo_plugin.testing.heads import TaskHeadTests
from tpo_plugin.testing.tiny import tiny_host

__all__ = ["TaskHeadTests", "tiny_host"]
