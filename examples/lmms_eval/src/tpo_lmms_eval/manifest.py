"""How lmms-eval finds the model, by its entry point."""

from lmms_eval.models.registry_v2 import ModelManifest

MANIFEST = ModelManifest("tpo", chat_class_path="tpo_lmms_eval.model.TPO")
