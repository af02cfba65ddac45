"""Training: the trainer wrapper, the three stages, and runs from one YAML file."""
