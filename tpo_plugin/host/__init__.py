"""Where to hook a host, and how it is found."""

from tpo_plugin.host.base import Host

__all__ = ["Host"]
