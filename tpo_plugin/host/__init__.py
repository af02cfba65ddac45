"""Where to hook a host, and how it is found."""

from tpo_plugin.host.base import Host, device_of

__all__ = ["Host", "device_of"]
