"""Generation with heads."""
