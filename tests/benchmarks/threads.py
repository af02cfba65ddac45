"""Requests a second of one model by 1, 2 and 8 threads at once, half of them boxes, half of them chat; wall time.

Each thread computes with one thread of its own, and all results are compared with those of a single thread.
"""

from __future__ import annotations

import argparse
import threading
import time

import torch
from common import build_host
from rich.console import Console
from rich.table import Table

from tpo_plugin import apply_tpo

PROMPT, NEW = 32, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=48, help="of each round, over all threads")
    num_requests = parser.parse_args().requests
    torch.set_num_threads(1)
    model, tokenizer = build_host()
    apply_tpo(model, tokenizer, heads=["region"])
    model.eval()
    ids = torch.randint(3, 30_000, (1, PROMPT), generator=torch.Generator().manual_seed(1))
    options = {"attention_mask": torch.ones_like(ids), "pad_token_id": 0, "do_sample": False, "max_new_tokens": NEW}

    def request(number: int) -> torch.Tensor:
        if number % 2:
            return model.generate(ids, **options)
        return model.tpo.generate(ids, **options, route="region").predictions[0][0].value

    expected = [request(0), request(1)]
    table = Table("threads", "requests a second", "of one thread", "wrong results", title=f"{num_requests} requests")
    alone = 0.0
    for num_threads in (1, 2, 8):
        wrong: list[int] = []

        def work(first: int, step: int = num_threads, wrong: list[int] = wrong) -> None:
            for number in range(first, num_requests, step):
                if not torch.allclose(request(number), expected[number % 2], atol=1e-5):
                    wrong.append(number)

        threads = [threading.Thread(target=work, args=(first,)) for first in range(num_threads)]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        rate = num_requests / (time.perf_counter() - start)
        alone = alone or rate
        table.add_row(str(num_threads), f"{rate:.2f}", f"{rate / alone:.2f}", str(len(wrong)))
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
