"""`apply_tpo` on a model of 7 billion parameters, without memory for them, over PEFT's injection of LoRA into it."""

from __future__ import annotations

import argparse
import copy

import torch
from common import VOCABULARY, build_host, interleaved, print_ratios
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from tpo_plugin import apply_tpo


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    _, tokenizer = build_host(hidden_size=64, num_layers=1)
    with torch.device("meta"):
        host = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY))  # its other sizes are those of Llama 2 7B
    models = [copy.deepcopy(host) for _ in range(3 * (rounds + 1))]  # each is changed by what is measured
    every = LoraConfig(task_type="CAUSAL_LM", r=16, target_modules="all-linear")
    variants = {
        "PEFT, every Linear of the layers, rank 16": lambda: get_peft_model(models.pop(), every),
        "PEFT, its defaults": lambda: get_peft_model(models.pop(), LoraConfig(task_type="CAUSAL_LM")),
        "apply_tpo, head region": lambda: apply_tpo(models.pop(), tokenizer, heads=["region"]),
    }
    num = sum(parameter.numel() for parameter in host.parameters())
    print_ratios(f"Injection into {num / 1e9:.1f} billion parameters on meta", interleaved(variants, rounds))


if __name__ == "__main__":
    main()
