"""Masks and tracks, as they are published: one class a layout, each a command `tpo convert NAME`. No torch in here."""
