"""Generation with heads over the host's plain generate, batch 1 and 8, the same new tokens in both."""

from __future__ import annotations

import argparse
from functools import partial

import torch
from common import build_host, interleaved, print_ratios

from tpo_plugin import apply_tpo

PROMPT, NEW = 32, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    (plain, _), (with_heads, tokenizer) = build_host(), build_host()
    apply_tpo(with_heads, tokenizer, heads=["region"])
    plain.eval(), with_heads.eval()
    for batch in (1, 8):
        torch.manual_seed(1)
        ids = torch.randint(3, 30_000, (batch, PROMPT))
        options = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pad_token_id": 0, "do_sample": False}
        options |= {"max_new_tokens": NEW, "min_new_tokens": NEW}
        variants = {
            "plain generate": partial(plain.generate, **options),
            "generate with heads": partial(with_heads.tpo.generate, **options),
            "generate with a region prediction": partial(with_heads.tpo.generate, **options, route="region"),
        }
        title = f"Generate, batch {batch}, {PROMPT} + {NEW} tokens, {torch.get_num_threads()} thread(s)"
        print_ratios(title, interleaved(variants, rounds))


if __name__ == "__main__":
    main()
