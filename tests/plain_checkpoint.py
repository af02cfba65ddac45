"""Asks a checkpoint with transformers alone: `ask` in a test, or `python plain_checkpoint.py FOLDER GIVEN.pt OUT.pt`.

As a script it runs as if tpo-plugin were not installed.
"""

import json
import sys
from pathlib import Path
from typing import Any

BLOCKED = ("tpo_plugin", "tpo_head_region", "tpo_head_temporal", "tpo_head_mask")
if __name__ == "__main__":
    for name in BLOCKED:
        sys.modules[name] = None  # type: ignore[assignment]  # as if it were not installed

import torch  # noqa: E402
import transformers  # noqa: E402


def ask(folder: Path, inputs: dict[str, Any], **options: Any) -> dict[str, Any]:
    """A greedy answer, and what heads need of it: the states of all columns but the last, which is never fed."""
    config = transformers.AutoConfig.from_pretrained(folder)
    vision = "vision_config" in config.to_dict()
    auto = transformers.AutoModelForImageTextToText if vision else transformers.AutoModelForCausalLM
    model = auto.from_pretrained(folder)
    tower: list[Any] = []
    for name in json.loads((Path(folder) / "tpo_heads.json").read_text())["vision"]["modules"]:
        model.get_submodule(name).register_forward_hook(lambda module, args, out: tower.append(out.last_hidden_state))
    asked = {"do_sample": False, "return_dict_in_generate": True, "output_hidden_states": True, "output_scores": True}
    answer = model.generate(**inputs, **{**asked, "max_new_tokens": 24, **options})
    scores = model.compute_transition_scores(answer.sequences, answer.scores, normalize_logits=True)
    with torch.no_grad():
        words = model.get_input_embeddings()(inputs["input_ids"])
    return {
        "sequences": answer.sequences,
        "states": torch.cat([step[-1] for step in answer.hidden_states], 1),
        "words": words,
        "logprobs": torch.cat([torch.zeros(inputs["input_ids"].shape), scores], 1),
        "vision": tower[-1] if tower else None,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.save(ask(Path(sys.argv[1]), torch.load(sys.argv[2])), sys.argv[3])
    assert all(sys.modules[name] is None for name in BLOCKED)
