"""Pretrains the host: the vision tower, conversations, the words of questions. No task tokens, coordinates, moments.

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
from tpo_shapes.pool import NUM_THINGS, Pool, make_pool, normalise
from tpo_shapes.questions import CHAT, CLIP_CHAT, ask
from tpo_shapes.world import CLIP_FRAMES


@dataclass(kw_only=True)
class PretrainConfig:
    """Everything that decides the weights."""

    seed: int = 0
    num_pictures: int = 16000
    num_clips: int = 5000
    vision_steps: int = 4000
    """Steps of the vision tower alone, on 32 pictures (in which shapes stand turned) and 32 frames of clips each."""
    steps: int = 6000
    """Steps of conversations."""
    word_steps: int = 400
    """Steps of the language model alone, in which it learns to keep what was asked."""
    pictures: int = 24
    """Pictures a step."""
    clips: int = 12
    """Clips a step."""
    turns: int = 10
    """Questions about one picture or clip, at most."""
    rate: float = 2e-3
    vision_weight: float = 0.7
    """Weight of the tower's own loss beside the conversation loss."""
    threads: int = 1


NUM_BINS = 12
"""Each side of a patch's box is also told as one of so many bins: that makes places as loud as classes."""


HARD = ("relation", "place", "there", "motion", "event")
"""Kinds of question asked three times as often: they are learnt last."""


class VisionHead(nn.Module):
    """What a patch shows, and in which frame of a clip, and what a whole frame shows, all read linearly; only
    pretraining has it.

    The last stands in for what towers like SigLIP's learn from texts of whole pictures.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patch = nn.Linear(width, NUM_THINGS + 1 + 4 + 4 * NUM_BINS + CLIP_FRAMES)
        self.frame = nn.Linear(width, NUM_THINGS)

    def loss(
        self,
        seen: tuple[torch.Tensor, torch.Tensor],
        classes: torch.Tensor,
        boxes_xyxy: torch.Tensor,
        present: torch.Tensor,
        number: torch.Tensor,
    ) -> torch.Tensor:
        """From what `vision_features` gives of some frames, and their labels of `Pool`."""
        patches, frames = seen
        scores, boxes, bins, when = self.patch(patches).split([NUM_THINGS + 1, 4, 4 * NUM_BINS, CLIP_FRAMES], -1)
        covered = (classes < NUM_THINGS)[..., None].float()
        distance = ((boxes - boxes_xyxy).abs() * covered).sum() / (4 * covered.sum()).clamp(min=1)
        wanted = (boxes_xyxy * NUM_BINS).long().clamp(0, NUM_BINS - 1).masked_fill(covered == 0, -100)
        coarse = F.cross_entropy(bins.reshape(-1, NUM_BINS), wanted.flatten())
        frame = F.cross_entropy(when.flatten(0, -2), number[:, None].expand(when.shape[:-1]).flatten())
        presence = F.binary_cross_entropy_with_logits(self.frame(frames), present.float())
        thing = F.cross_entropy(scores.flatten(0, -2), classes.flatten())
        return thing + 5 * distance + 0.5 * coarse + 10 * presence + 0.5 * frame

    @torch.no_grad()
    def accuracy(self, model: LlavaOnevisionForConditionalGeneration, pool: Pool) -> dict[str, float]:
        """Share of patches told right, and the F1 of telling which things a frame has, plain ones and turned ones."""
        right, there, said = [], [], []
        for start in range(0, len(pool), 64):
            some = slice(start, start + 64)
            patches, frames = vision_features(model, normalise(pool.pixels[some].flatten(0, 1)))
            scores = self.patch(patches)[..., : NUM_THINGS + 1]
            right.append(scores.argmax(-1) == pool.classes[some].flatten(0, 1))
            said.append(self.frame(frames) > 0)
            there.append(pool.present[some].flatten(0, 1))
        found, true = (torch.cat(values).unflatten(-1, (2, -1)).transpose(0, 1).flatten(1) for values in (said, there))
        f1 = 2 * (found & true).sum(1) / (found.sum(1) + true.sum(1)).clamp(min=1)
        values = (torch.cat(right).float().mean(), *f1)
        return {k: round(v.item(), 4) for k, v in zip(("patches", "plain", "turned"), values, strict=True)}


def pretrain_vision(
    model: LlavaOnevisionForConditionalGeneration,
    head: VisionHead,
    pools: tuple[Pool, Pool],
    heldout: Pool,
    config: PretrainConfig,
) -> None:
    """Stage 0: the vision tower alone."""
    parameters = [*model.model.vision_tower.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, config.rate, betas=(0.9, 0.98), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.vision_steps)
    for step in range(config.vision_steps):
        chosen = [(pool, torch.randint(len(pool), (32,)), torch.randint(pool.pixels.shape[1], (32,))) for pool in pools]
        pixels, *labels = (
            torch.cat([getattr(pool, name)[rows, frames] for pool, rows, frames in chosen])
            for name in ("pixels", "classes", "boxes_xyxy", "present", "number")
        )
        loss = head.loss(vision_features(model, normalise(pixels)), *labels)
        _step(optimizer, schedule, parameters, loss)
        if step % 200 == 199:
            log(stage="vision", step=step + 1, loss=loss)
        if step % 1000 == 999:
            log(stage="vision", step=step + 1, heldout=head.accuracy(model, heldout))


def pretrain_chat(
    model: LlavaOnevisionForConditionalGeneration,
    head: VisionHead,
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
        batch = sample_batch(rng, packer, pools, config)
        hidden, *vision = batch.forward(model)
        loss = F.cross_entropy(model.lm_head(hidden), batch.targets)
        vision_loss = head.loss((vision[0], vision[1]), batch.classes, batch.boxes_xyxy, batch.present, batch.number)
        _step(optimizer, schedule, parameters, loss + config.vision_weight * vision_loss)
        if step % 50 == 49:
            log(stage="chat", step=step + 1, loss=loss, vision_loss=vision_loss)
        if step % 500 == 499:
            log(stage="chat", step=step + 1, heldout=chat_accuracy(model, packer, heldout, 300))


class WordHead(nn.Module):
    """Which word a token of a question is, and which one stands before it, read linearly off its last hidden state.

    The states of large language models tell this; a small one that is only trained on answers forgets it. What a head
    sees of a question are these states.
    """

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        self.word, self.before = nn.Linear(width, vocabulary), nn.Linear(width, vocabulary)

    def loss(self, hidden_BTD: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss, and the share of words told right."""
        places, ids = batch.asked(), batch.ids_BT.flatten()
        states = hidden_BTD.flatten(0, 1)[places]
        scores = self.word(states)
        loss = F.cross_entropy(scores, ids[places]) + F.cross_entropy(self.before(states), ids[places - 1])
        return loss, (scores.argmax(-1) == ids[places]).float().mean()


def pretrain_words(
    model: LlavaOnevisionForConditionalGeneration,
    packer: Packer,
    pools: tuple[Pool, Pool],
    heldout: tuple[Pool, Pool],
    config: PretrainConfig,
) -> None:
    """Stage 2: the language model on conversations, and on keeping the words of questions.

    Among these are questions about places and moments, which have no answers here.
    """
    rng = random.Random(config.seed + 1)
    width, vocabulary = model.lm_head.in_features, model.lm_head.out_features
    head = WordHead(width, vocabulary)
    parameters = [*model.model.language_model.parameters(), *model.lm_head.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, config.rate / 2, betas=(0.9, 0.98), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.word_steps)
    for step in range(config.word_steps):
        batch = sample_batch(rng, packer, pools, config, tasks=True)
        hidden, *_ = batch.encode(model, model.get_input_embeddings()(batch.ids_BT))
        loss = F.cross_entropy(model.lm_head(hidden.flatten(0, 1)[batch.positions]), batch.targets)
        word_loss, told = head.loss(hidden, batch)
        _step(optimizer, schedule, parameters, loss + word_loss)
        if step % 50 == 49:
            log(stage="words", step=step + 1, loss=loss, word_loss=word_loss, told=told)
        if step % 200 == 199:
            log(stage="words", step=step + 1, heldout=chat_accuracy(model, packer, heldout, 300))


def sample_batch(
    rng: random.Random, packer: Packer, pools: tuple[Pool, Pool], config: PretrainConfig, tasks: bool = False
) -> Batch:
    """Random conversations about random pictures and clips, with `tasks` a question about a place or moment behind."""
    sizes = (config.pictures, config.clips)
    rows = [[rng.randrange(len(pool)) for _ in range(size)] for pool, size in zip(pools, sizes, strict=True)]
    talks = []
    for pool, chosen in zip(pools, rows, strict=True):
        kinds = {kind: 3.0 if kind in HARD else 1.0 for kind in (CLIP_CHAT if pool.clip else CHAT)}
        talks.append([ask(rng, pool.objects[row], kinds, config.turns, pool.clip) for row in chosen])
        if tasks:
            wanted = {"region": 1.0, **({"moment": 3.0} if pool.clip else {})}
            for row, talk in zip(chosen, talks[-1], strict=True):
                talk += [replace(t, answer="") for t in ask(rng, pool.objects[row], wanted, 1, pool.clip)]
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


@torch.no_grad()
def spread_frames(model: LlavaOnevisionForConditionalGeneration, pool: Pool) -> None:
    """Fits the tower's last norm, which the language model does not read: frames' features get mean 0, variance 1.

    Otherwise what tells one frame from another is small beside what all frames share.
    """
    frames = torch.cat([vision_features(model, normalise(part.flatten(0, 1)))[1] for part in pool.pixels.split(64)])
    deviation, mean = torch.std_mean(frames, 0)
    norm = model.model.vision_tower.get_submodule("post_layernorm")
    norm.bias.copy_((norm.bias - mean) / deviation)
    norm.weight.div_(deviation)


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
    """Runs the stages, spreads the frames' features, and writes host, processor and config to a directory."""
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    processor = build_processor()
    tokenizer: PreTrainedTokenizerFast = processor.tokenizer
    model = build_model(tokenizer, config.seed)
    head = VisionHead(model.config.vision_config.hidden_size)
    pools = (
        make_pool(config.seed + 1, config.num_pictures, "train"),
        make_pool(config.seed + 2, config.num_clips, "train", clip=True),
    )
    heldout = (make_pool(10**6, 1000, "heldout"), make_pool(10**6 + 1, 500, "heldout", clip=True))
    log(stage="scenes", parameters=sum(p.numel() for p in model.parameters()), config=asdict(config))
    packer = Packer(tokenizer, image_prefix(model.config), video_prefix(model.config))
    turned = make_pool(config.seed + 3, config.num_pictures, "train", turned=0.5)
    pretrain_vision(model, head, (turned, pools[1]), heldout[1], config)
    del turned
    pretrain_chat(model, head, packer, pools, heldout, config)
    pretrain_words(model, packer, pools, heldout, config)
    log(stage="done", heldout=chat_accuracy(model, packer, heldout, 1000), frames=head.accuracy(model, heldout[1]))
    spread_frames(model, pools[1])
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
