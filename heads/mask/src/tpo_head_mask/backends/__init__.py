"""SAM 2 from the `sam2` package or from transformers, behind one interface."""
