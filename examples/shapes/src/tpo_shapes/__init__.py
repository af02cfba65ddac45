"""The "shapes" example: a generated task world, a small host pretrained on it, and the demo of tpo-plugin."""
