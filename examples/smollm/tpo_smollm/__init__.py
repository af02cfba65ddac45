"""SmolLM2-135M-Instruct as the language model of a LLaVA-OneVision, and what the region head is worth on it."""
