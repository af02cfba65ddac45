"""Time and peak memory of a training step with one region target a sample, over the host alone on as many tokens."""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from collections.abc import Callable

import torch
from common import build_host, interleaved, print_ratios
from peft import LoraConfig, get_peft_model

from tpo_plugin import apply_tpo

BATCH, LENGTH = 4, 256
VARIANTS = ("host alone", "host with TPO", "host alone, output_hidden_states=True")


def make_step(variant: str, trainable: str) -> Callable[[], None]:
    """One forward and backward of a variant on tokens of the same number."""
    model, tokenizer = build_host()
    if trainable == "lora":
        model = get_peft_model(
            model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        )
    model.train()
    torch.manual_seed(1)
    ids = torch.randint(3, 30_000, (BATCH, LENGTH))
    inputs = {}
    if variant == "host with TPO":
        apply_tpo(model, tokenizer, heads=["region"])
        model.tpo.train()
        inputs["task_targets"] = {"region": {"boxes_xyxy": torch.tensor([[0.1, 0.2, 0.5, 0.6]]).repeat(BATCH, 1)}}
        ids[:, -3], ids[:, -2] = model.tpo.token_ids["region"][0], model.tpo.token_ids["region"][1]
    labels = ids.clone()
    labels[:, -2] = -100
    if variant.endswith("output_hidden_states=True"):
        inputs["output_hidden_states"] = True

    def step() -> None:
        model(input_ids=ids, labels=labels, **inputs).loss.backward()
        model.zero_grad(set_to_none=True)

    return step


def peak_megabytes(variant: str, trainable: str) -> float:
    """Growth of the resident set over two steps in a fresh process."""
    step = make_step(variant, trainable)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step()
    step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--trainable", choices=("lora", "all"), default="lora", help="LoRA as in TPO, or the whole host"
    )
    parser.add_argument("--memory-of", choices=VARIANTS, help="print the peak of one variant (used by itself)")
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(peak_megabytes(arguments.memory_of, arguments.trainable))
        return
    command = [sys.executable, __file__, "--trainable", arguments.trainable, "--memory-of"]
    peaks = {name: f"{float(subprocess.check_output([*command, name], text=True)):.0f}" for name in VARIANTS}
    seconds = interleaved({name: make_step(name, arguments.trainable) for name in VARIANTS}, arguments.rounds)
    title = (
        f"Training step ({arguments.trainable}), batch {BATCH} x {LENGTH} tokens, {torch.get_num_threads()} thread(s)"
    )
    print_ratios(title, seconds, peaks)


if __name__ == "__main__":
    main()
