"""Runs of tpo-plugin as the model `tpo` of lmms-eval."""
