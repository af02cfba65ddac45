"""`python -m tpo_plugin` prints what `tpo heads` prints."""

from tpo_plugin.cli.heads import show_heads

show_heads()
