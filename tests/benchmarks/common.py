"""What the benchmarks share: a mid-sized random llama on the CPU, and an interleaved side-by-side timer."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 32_000


def build_host(hidden_size: int = 512, num_layers: int = 6) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A llama with 32 000 vocabulary rows, some of them spare."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 11 // 4,
        num_hidden_layers=num_layers,
        num_attention_heads=8,
    )
    words = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {f"w{i}": i for i in range(3, VOCABULARY - 64)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    return LlamaForCausalLM(config), tokenizer


def interleaved(variants: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each variant in each round; a first round warms up and is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for round_number in range(rounds + 1):
        for name, run in variants.items():
            start = time.process_time()
            run()
            if round_number:
                seconds[name].append(time.process_time() - start)
    return seconds


def print_ratios(title: str, seconds: dict[str, list[float]], extra: dict[str, str] | None = None) -> None:
    """Median CPU seconds and the median of the per-round ratios to the first variant."""
    base = next(iter(seconds.values()))
    table = Table(
        "variant",
        "CPU s (median)",
        "ratio (median)",
        "ratio (min to max)",
        *(["peak MB"] if extra else []),
        title=title,
    )
    for name, values in seconds.items():
        ratios = [value / reference for value, reference in zip(values, base, strict=True)]
        row = [
            name,
            f"{statistics.median(values):.3f}",
            f"{statistics.median(ratios):.3f}",
            f"{min(ratios):.3f} to {max(ratios):.3f}",
        ]
        table.add_row(*row, *([extra[name]] if extra else []))
    Console(width=120).print(table)
