"""Pretrains the host: patches of the vision tower first, then conversations. No task tokens, no coordinates.

    python -m tpo_shapes.pretrain OUTPUT_DIRECTORY

B rows, T tokens, G patches, D hidden size.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlavaOnevisionForConditionalGeneration, PreTrainedTokenizerFast

from tpo_shapes.host import build_model, build_processor, save_host
from tpo_shapes.packing import Batch, Packer, image_prefix, video_prefix, vision_features
from tpo_shapes.pool import NUM_CLASSES, Pool, make_pool, normalise
from tpo_shapes.questions import CHAT, CLIP_CHAT, ask


@dataclass(kw_only=True)
class PretrainConfig:
    """Everything that decides the weights."""

    seed: int = 0
    num_pictures: int = 16000
    num_clips: int = 3000
    vision_steps: int = 1000
    """Steps of 64 pictures on patch labels alone."""
    steps: int = 3500
    """Steps of conversations."""
    pictures: int = 40
    """Pictures a step."""
    clips: int = 8
    """Clips a step."""
    turns: int = 6
    """Questions about one picture or clip, at most."""
    rate: float = 2e-3
    patch_weight: float = 0.7
    """Weight of the patch loss beside the conversation loss."""
    threads: int = 1


NUM_BINS = 12
"""Each side of a patch's box is also told as one of so many bins: that makes places as loud as classes."""


PLACES = ("relation", "side", "place")
"""Kinds of question asked twice as often: they are learnt last."""


class PatchHead(nn.Module):
    """Class and box of the object that covers a patch; only pretraining has it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, NUM_CLASSES + 4 + 4 * NUM_BINS)

    def loss(
        self, features: torch.Tensor, classes: torch.Tensor, boxes_xyxy: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss and share of right classes, from features [..., G, D] and labels of `Pool`."""
        scores, boxes, bins = self.linear(features).split([NUM_CLASSES, 4, 4 * NUM_BINS], -1)
        seen = (classes < NUM_CLASSES - 1)[..., None].float()
        distance = ((boxes - boxes_xyxy).abs() * seen).sum() / (4 * seen.sum()).clamp(min=1)
        wanted = (boxes_xyxy * NUM_BINS).long().clamp(0, NUM_BINS - 1).masked_fill(seen == 0, -100)
        coarse = F.cross_entropy(bins.reshape(-1, NUM_BINS), wanted.flatten())
        loss = F.cross_entropy(scores.flatten(0, -2), classes.flatten()) + 5 * distance + 0.5 * coarse
        return loss, (scores.argmax(-1) == classes).float().mean()


def pretrain_vision(
    model: LlavaOnevisionForConditionalGeneration, head: PatchHead, pool: Pool, config: PretrainConfig
) -> None:
    """Stage 0: the vision tower on patch labels."""
    parameters = [*model.model.vision_tower.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, config.rate, betas=(0.9, 0.98), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.vision_steps)
    for step in range(config.vision_steps):
        rows = torch.randint(len(pool), (64,))
        features = vision_features(model, normalise(pool.pixels[rows, 0]))
        loss, accuracy = head.loss(features, pool.classes[rows, 0], pool.boxes_xyxy[rows, 0])
        _step(optimizer, schedule, parameters, loss)
        if step % 200 == 199:
            log(stage="vision", step=step + 1, loss=loss, patch_accuracy=accuracy)


def pretrain_chat(
    model: LlavaOnevisionForConditionalGeneration,
    head: PatchHead,
    packer: Packer,
    pools: tuple[Pool, Pool],
    heldout: tuple[Pool, Pool],
    config: PretrainConfig,
) -> None:
    """Stage 1: the whole host on conversations about pictures and clips."""
    rng = random.Random(config.seed)
    parameters = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, config.rate, betas=(0.9, 0.98), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 100, 1.0, max(config.steps - step, 1) / (0.4 * config.steps))
    )
    for step in range(config.steps):
        batch = sample_batch(rng, packer, pools, (config.pictures, config.clips), config.turns)
        hidden, patches = batch.forward(model)
        loss = F.cross_entropy(model.lm_head(hidden), batch.targets)
        patch_loss, _ = head.loss(patches, batch.classes, batch.boxes_xyxy)
        _step(optimizer, schedule, parameters, loss + config.patch_weight * patch_loss)
        if step % 50 == 49:
            log(stage="chat", step=step + 1, loss=loss, patch_loss=patch_loss)
        if step % 500 == 499:
            log(stage="chat", step=step + 1, heldout=chat_accuracy(model, packer, heldout, 300))


def sample_batch(
    rng: random.Random, packer: Packer, pools: tuple[Pool, Pool], sizes: tuple[int, int], turns: int
) -> Batch:
    """Random conversations about random pictures and clips."""
    rows = [[rng.randrange(len(pool)) for _ in range(size)] for pool, size in zip(pools, sizes, strict=True)]
    talks = []
    for pool, chosen in zip(pools, rows, strict=True):
        kinds = {kind: 2.0 if kind in PLACES else 1.0 for kind in (CLIP_CHAT if pool.clip else CHAT)}
        talks.append([ask(rng, pool.objects[row], kinds, turns, pool.clip) for row in chosen])
    return packer.pack(pools, rows, talks)


@torch.no_grad()
def chat_accuracy(
    model: LlavaOnevisionForConditionalGeneration, packer: Packer, pools: tuple[Pool, Pool], num_scenes: int
) -> dict[str, float]:
    """Share of questions of each kind answered word for word, one question a scene and kind; `clip_` for clips."""
    rng = random.Random(0)
    hits: dict[str, list[float]] = defaultdict(list)
    for index, kinds in enumerate((CHAT, CLIP_CHAT)):
        for kind in kinds:
            chosen, talks = [], []
            for row in range(min(num_scenes, len(pools[index]))):
                turns = ask(rng, pools[index].objects[row], {kind: 1.0}, 1, pools[index].clip)
                chosen += [row] * len(turns)
                talks += [[turn] for turn in turns]
            rows: list[list[int]] = [[], []]
            both: list[list[list]] = [[], []]
            rows[index], both[index] = chosen, talks
            batch = packer.pack(pools, rows, both)
            right = model.lm_head(batch.forward(model)[0]).argmax(-1) == batch.targets
            whole = torch.ones(len(talks)).scatter_reduce(0, batch.target_rows, right.float(), "amin")
            hits[f"clip_{kind}" if index else kind] = whole.tolist()
    return {kind: round(sum(values) / max(len(values), 1), 4) for kind, values in hits.items()}


def _step(
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    parameters: list[nn.Parameter],
    loss: torch.Tensor,
) -> None:
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    schedule.step()


_START = time.monotonic()


def log(**values: object) -> None:
    """One JSON line with seconds of wall and of processor time."""
    plain = {k: round(v.item(), 4) if isinstance(v, torch.Tensor) else v for k, v in values.items()}
    clock = {"wall_s": round(time.monotonic() - _START), "cpu_s": round(time.process_time())}
    print(json.dumps({**plain, **clock}), flush=True)


def pretrain(config: PretrainConfig, directory: str | Path) -> LlavaOnevisionForConditionalGeneration:
    """Runs both stages and writes host, processor and config to a directory."""
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    processor = build_processor()
    tokenizer: PreTrainedTokenizerFast = processor.tokenizer
    model = build_model(tokenizer, config.seed)
    head = PatchHead(model.config.vision_config.hidden_size)
    pools = (
        make_pool(config.seed + 1, config.num_pictures, "train"),
        make_pool(config.seed + 2, config.num_clips, "train", clip=True),
    )
    heldout = (make_pool(10**6, 1000, "heldout"), make_pool(10**6 + 1, 1000, "heldout", clip=True))
    log(stage="scenes", parameters=sum(p.numel() for p in model.parameters()), config=asdict(config))
    packer = Packer(tokenizer, image_prefix(model.config), video_prefix(model.config))
    pretrain_vision(model, head, pools[0], config)
    pretrain_chat(model, head, packer, pools, heldout, config)
    log(stage="done", heldout=chat_accuracy(model, packer, heldout, 1000))
    save_host(directory, model, processor)
    (Path(directory) / "pretrain_config.json").write_text(json.dumps(asdict(config), indent=2) + "\n")
    return model


def main() -> None:
    """Command line: every field of the config is an option."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    for name, value in asdict(PretrainConfig()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    options = vars(parser.parse_args())
    pretrain(replace(PretrainConfig(), **{k: v for k, v in options.items() if k != "directory"}), options["directory"])


if __name__ == "__main__":
    main()
