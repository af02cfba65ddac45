"""Runs of tpo-plugin as the model `tpo` of lmms-eval."""

from lmms_eval.models.registry_v2 import ModelManifest

MANIFEST = ModelManifest("tpo", chat_class_path="tpo_lmms_eval.model.TPO")
