"""A training step with a region head and its output embedding at labelled positions alone, over the bare host's step.

    python tests/benchmarks/supervised_logits.py [--rounds 3] [--unlabelled 0.9]

All of a llama with 32 000 vocabulary rows is trained, forward and backward. Memory is the peak of the allocator's live
bytes over one step, which, unlike the resident set, is the same in every run. Beside it: the product with all logits;
TRL's loss, in the form that it has off Triton devices (all rows). Liger's fused cross entropy needs a Triton driver,
which a CPU does not have. A batch without a task of the head shows what its empty path costs.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from importlib.util import find_spec

import torch
from common import build_host, interleaved, print_ratios
from torch.profiler import ProfilerActivity, profile

from tpo_plugin import TPOConfig, apply_tpo

BATCH, LENGTH = 4, 256
VARIANTS = ("bare host", "supervised logits", "all logits", "all logits, no task", "TRL")


def make_step(variant: str, unlabelled: float) -> Callable[[], None]:
    """One forward and backward of a variant on tokens of the same number."""
    model, tokenizer = build_host()
    model.train()
    torch.manual_seed(1)
    ids = torch.randint(3, 30_000, (BATCH, LENGTH))
    labels = ids.masked_fill(torch.rand(BATCH, LENGTH) < unlabelled, -100)
    inputs: dict[str, object] = {}
    if variant.startswith(("supervised", "all")):
        config = TPOConfig(supervised_logits=variant.startswith("supervised"))
        apply_tpo(model, tokenizer, heads=["region"], config=config)
        model.tpo.train()
        if not variant.endswith("no task"):
            boxes = torch.tensor([[0.1, 0.2, 0.5, 0.6]]).repeat(BATCH, 1)
            inputs["task_targets"] = {"region": {"boxes_xyxy": boxes}}
            ids[:, -3], ids[:, -2] = model.tpo.token_ids["region"]
            labels[:, -3], labels[:, -2] = ids[:, -3], -100
    elif variant == "TRL":
        from trl.trainer.utils import add_fused_lm_head

        add_fused_lm_head(model)
        inputs["fused_lm_head"] = True

    def step() -> None:
        model(input_ids=ids, labels=labels, **inputs).loss.backward()
        model.zero_grad(set_to_none=True)

    return step


def peak_mib(step: Callable[[], None]) -> float:
    """The highest sum of live bytes that a step allocates."""
    step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    live = peak = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--unlabelled", type=float, default=0.9, help="share of the positions without a label")
    options = parser.parse_args()
    names = [name for name in VARIANTS if name != "TRL" or find_spec("trl")]
    steps = {name: make_step(name, options.unlabelled) for name in names}
    peaks = {name: peak_mib(step) for name, step in steps.items()}
    seconds = interleaved(steps, options.rounds)
    base = peaks["bare host"]
    extra = {name: f"{peak:.0f} ({peak / base:.3f})" for name, peak in peaks.items()}
    title = f"Training step, {BATCH} x {LENGTH} tokens, {options.unlabelled:.0%} without a label; peak of live bytes"
    print_ratios(title, seconds, extra)
    empty, bare = (statistics.median(seconds[name]) for name in ("all logits, no task", "bare host"))
    print(f"a batch without a task of the head: {empty / bare - 1:+.2%} of the bare host's step")


if __name__ == "__main__":
    main()
