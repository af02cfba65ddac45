"""A run's own answers to held-out questions, and what they are worth: `tpo eval`."""
