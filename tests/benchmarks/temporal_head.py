"""CG-DETR at QVHighlights' size: forward, losses and backward of a batch of 32, 75 clips, 32 words, and their phases.

With `--reference FOLDER`, a checkout of github.com/wjun0830/CGDETR (commit 212b2e49), its training step runs beside
ours, in turn, in the same process. The last row is the least that ours can take: its matrix products and nothing else.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from common import interleaved, print_ratios
from rich.console import Console
from rich.table import Table
from torch.utils._python_dispatch import TorchDispatchMode
from tpo_head_temporal.config import TemporalConfig
from tpo_head_temporal.head import TemporalHead

BATCH, CLIPS, WORDS, VIDEO, TEXT = 32, 75, 32, 2816, 512
DURATION_S = 150.0


def make_batch() -> dict[str, Any]:
    """Random features; a moment in each video, no two of the same source."""
    generator = torch.Generator().manual_seed(0)
    edges = torch.linspace(0, DURATION_S, CLIPS + 1)
    clips_s = torch.stack(((edges[:-1] + edges[1:]) / 2, edges[:-1], edges[1:]), -1)
    start = torch.rand(BATCH, generator=generator) * 100
    spans_s = torch.stack((start, start + 10 + torch.rand(BATCH, generator=generator) * 40), -1)
    inside = (clips_s[:, 0] >= spans_s[:, :1]) & (clips_s[:, 0] <= spans_s[:, 1:])
    saliency = inside * torch.randint(1, 13, inside.shape, generator=generator)
    inputs = {
        "clips_s": clips_s.expand(BATCH, -1, -1),
        "num_clips": torch.full((BATCH,), float(CLIPS)),
        "duration_s": torch.full((BATCH,), DURATION_S),
        "video_group": torch.arange(BATCH),
        "question_group": torch.arange(BATCH),
        "video": torch.randn(BATCH, CLIPS, VIDEO, generator=generator),
        "words": torch.randn(BATCH, WORDS - 1, TEXT, generator=generator),
        "num_words": torch.full((BATCH,), WORDS - 1.0),
    }
    targets = {"spans_s": list(spans_s[:, None]), "saliency": list(saliency.float())}
    return {"inputs": inputs, "targets": targets, "e_ND": torch.randn(BATCH, TEXT, generator=generator)}


class Phases:
    """CPU seconds of each phase of a step, the median over steps."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    @contextmanager
    def __call__(self, name: str) -> Any:
        start = time.process_time()
        yield
        self.seconds.setdefault(name, []).append(time.process_time() - start)

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self(name):
                return function(*args, **kwargs)

        return timed


def our_head() -> TemporalHead:
    torch.manual_seed(0)
    config = TemporalConfig(features="files", video_size=VIDEO, text_features="given", text_size=TEXT)
    return TemporalHead(config, TEXT).train()


def our_step(head: TemporalHead, batch: dict[str, Any], phases: Phases | None = None) -> None:
    """Forward, losses and backward; with `phases`, each timed."""
    phases = phases or Phases()
    e_ND = batch["e_ND"].clone().requires_grad_()
    with phases("forward"):
        outputs = head(e_ND, inputs=batch["inputs"], batch_rows=torch.arange(BATCH))
    with phases("losses, with the three above"):
        total = torch.stack([*head.loss(outputs, batch["targets"], BATCH).values()]).sum()
    with phases("backward"):
        total.backward()
    head.zero_grad()


def reference_step(folder: Path) -> Callable[[], None]:
    """The public code's step on a batch of the same sizes."""
    sys.path.insert(0, str(folder))
    from cg_detr.model import build_model  # type: ignore[import-not-found]

    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]  # it is written for a GPU

    options = {
        "device": "cpu", "hidden_dim": 256, "nheads": 8, "dim_feedforward": 1024, "enc_layers": 3, "dec_layers": 3,
        "t2v_layers": 2, "moment_layers": 1, "dummy_layers": 2, "sent_layers": 1, "num_dummies": 45, "num_queries": 10,
        "total_prompts": 10, "num_prompts": 1, "n_input_proj": 2, "input_dropout": 0.5, "dropout": 0.1,
        "use_txt_pos": False, "max_q_l": 32, "max_v_l": 75, "v_feat_dim": VIDEO + 2, "t_feat_dim": TEXT,
        "a_feat_dir": None, "aux_loss": True, "span_loss_type": "l1", "pre_norm": False, "contrastive_hdim": 64,
        "contrastive_align_loss": False, "position_embedding": "sine", "dset_name": "hl", "set_cost_span": 10,
        "set_cost_giou": 1, "set_cost_class": 4, "span_loss_coef": 10, "giou_loss_coef": 1, "label_loss_coef": 4,
        "eos_coef": 0.1, "lw_saliency": 1, "lw_wattn": 1, "lw_ms_align": 1, "lw_distill": 1, "saliency_margin": 0.2,
        "temperature": 0.07, "query_dim": 2,
    }  # fmt: skip
    torch.manual_seed(0)
    model, criterion = build_model(Namespace(**options))
    model.train(), criterion.train()
    batch = make_batch()
    video = torch.cat((batch["inputs"]["video"], batch["inputs"]["clips_s"][..., 1:] / DURATION_S), -1)
    text = torch.cat((batch["inputs"]["words"], batch["e_ND"][:, None]), 1)
    saliency = torch.stack(batch["targets"]["saliency"])
    spans = [s / DURATION_S for s in batch["targets"]["spans_s"]]
    labels = [{"spans": torch.stack((s.mean(-1), s[:, 1] - s[:, 0]), -1)} for s in spans]
    best, other = saliency.argmax(-1, keepdim=True), saliency.argmin(-1, keepdim=True)
    targets = {
        "span_labels": labels,
        "saliency_pos_labels": best.expand(-1, 2),
        "saliency_neg_labels": other.expand(-1, 2),
        "saliency_all_labels": saliency,
        "relevant_clips": saliency,
    }
    arguments = (text, torch.ones(BATCH, WORDS), video, torch.ones(BATCH, CLIPS))
    names = [f"video{i}_0_150" for i in range(BATCH)]

    def step() -> None:
        outputs = model(*arguments, vid=names, qid=list(range(BATCH)), targets=targets)
        losses = criterion(outputs, targets)
        weights = criterion.weight_dict
        sum(losses[name] * weights[name] for name in losses if name in weights).backward()
        model.zero_grad()

    return step


class Products(TorchDispatchMode):
    """Records the operands' shapes and strides of every matrix product of a step, backward included."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs: list[tuple[tuple[torch.Size, tuple[int, ...]], ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        if func in (aten.mm.default, aten.bmm.default, aten.addmm.default):
            self.pairs.append(tuple((x.shape, x.stride()) for x in args[-2:]))
        return func(*args, **(kwargs or {}))

    def gigaflops(self) -> float:
        return sum(2 * a.numel() * b[-1] / 1e9 for (a, _), (b, _) in self.pairs)

    def replay(self) -> Callable[[], None]:
        """Computes the same products of random numbers."""
        operands = {key: torch.empty_strided(*key).normal_() for pair in self.pairs for key in pair}
        return lambda: [torch.matmul(operands[a], operands[b]) for a, b in self.pairs] and None


def print_phases(head: TemporalHead, batch: dict[str, Any], rounds: int) -> None:
    """One table of phases: where a step's time goes."""
    from tpo_head_temporal import losses

    phases = Phases()
    network: Any = head.network
    for name in ("negatives", "alignment"):
        inner = getattr(network, name)
        object.__setattr__(network, name, phases.wrap(f"  {name}", inner.forward if name == "alignment" else inner))
    matching = losses.match
    losses.match = phases.wrap("  matching", matching)
    try:
        for _ in range(rounds + 1):
            our_step(head, batch, phases)
    finally:
        losses.match = matching
    table = Table("phase", "CPU s (median)", title=f"Phases of our step, {torch.get_num_threads()} thread(s)")
    for name, seconds in phases.seconds.items():
        table.add_row(name, f"{statistics.median(seconds[1:]):.4f}")
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--reference", type=Path, help="checkout of the public code, to run beside ours")
    arguments = parser.parse_args()
    head, batch = our_head(), make_batch()
    variants: dict[str, Callable[[], object]] = {}
    if arguments.reference:
        variants["the public code"] = reference_step(arguments.reference)
    variants["ours"] = lambda: our_step(head, batch)
    with Products() as products:
        our_step(head, batch)
    variants[f"our matrix products alone, {products.gigaflops():.0f} GFLOP"] = products.replay()
    count = sum(p.numel() for p in head.parameters()) / 1e6
    size = f"batch {BATCH}, {CLIPS} clips, {WORDS} words, {count:.1f} M parameters, {torch.get_num_threads()} thread(s)"
    print_ratios(f"Training step of CG-DETR, {size}", interleaved(variants, arguments.rounds))
    print_phases(head, batch, arguments.rounds)


if __name__ == "__main__":
    main()
