"""The host: the demo's vision tower, a new connector, and the language model, as one LLaVA-OneVision.

N pictures, G patches, D width of the language model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tpo_shapes.demo import HOST_DIRECTORY
from tpo_shapes.packing import vision_features
from tpo_shapes.pool import NUM_THINGS, make_pool, normalise
from tpo_shapes.world import COLOURS, SHAPES
from transformers import AutoProcessor, LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

from tpo_plugin import remove_tpo
from tpo_plugin.training.run import load_run

IMAGE, VIDEO = "<image>", "<video>"
BACKGROUND = " background"
PATCHES = 512
"""Of a step of `align`."""


def build_host(
    language: Any, tokenizer: Any
) -> tuple[LlavaOnevisionForConditionalGeneration, LlavaOnevisionForConditionalGeneration, Any]:
    """The host with an untrained connector, in the language model's precision, the demo's host whose tower it has, and
    its processor, 78 tokens a picture."""
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE, VIDEO]})
    language.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64, mean_resizing=False)
    demo = LlavaOnevisionForConditionalGeneration.from_pretrained(HOST_DIRECTORY)
    text = language.config
    config = LlavaOnevisionConfig(
        vision_config=demo.config.vision_config,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        video_token_id=tokenizer.convert_tokens_to_ids(VIDEO),
        image_grid_pinpoints=demo.config.image_grid_pinpoints,
        vision_feature_select_strategy="full",
        vision_feature_layer=demo.config.vision_feature_layer,
        tie_word_embeddings=text.tie_word_embeddings,
    )
    torch.manual_seed(0)
    model = LlavaOnevisionForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(demo.model.vision_tower.state_dict())
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.lm_head.load_state_dict(language.lm_head.state_dict())
    model.to(language.dtype).tie_weights()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    processor = AutoProcessor.from_pretrained(HOST_DIRECTORY)
    processor.tokenizer, processor.chat_template = tokenizer, tokenizer.chat_template
    for kind, token in (("image", IMAGE), ("video", VIDEO)):
        setattr(processor, f"{kind}_token_id", tokenizer.convert_tokens_to_ids(token))
    return model, demo, processor


def align(
    model: LlavaOnevisionForConditionalGeneration,
    demo: LlavaOnevisionForConditionalGeneration,
    tokenizer: Any,
    steps: int,
    num_pictures: int,
) -> float:
    """Trains the connector alone, without running the language model; returns the share of a last sample's patches
    whose nearest thing by name is right.

    A patch shall become what the language model reads words as: the sum of the input embeddings of its object's colour
    and shape, and of four fixed random directions times the object's box, -1 to 1 of the picture. So it takes, of
    training pictures, the boxes that the demo's tower was pretrained with too. Everything that is compared later
    stands on it.
    """
    pool = make_pool(7, num_pictures, "train")
    with torch.no_grad():
        parts = pool.pixels[:, 0].split(256)
        features = torch.cat([vision_features(demo, normalise(part))[0] for part in parts]).flatten(0, 1)
    classes, boxes = pool.classes[:, 0].flatten(), pool.boxes_xyxy[:, 0].flatten(0, 1)
    table = model.get_input_embeddings().weight.detach().float()
    names = _name_embeddings(tokenizer, table)
    directions = torch.randn(4, table.shape[1], generator=torch.Generator().manual_seed(0))
    directions *= names.norm(dim=-1).mean() / directions.norm(dim=-1, keepdim=True)
    places = (2 * boxes - 1) @ directions
    places[classes == NUM_THINGS] = 0
    connector = model.model.multi_modal_projector.float()
    optimizer = torch.optim.AdamW(connector.parameters(), 2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(1)
    scale = names.pow(2).mean()
    for _ in range(steps):
        some = torch.randint(len(features), (PATCHES,), generator=generator)
        loss = F.mse_loss(connector(features[some]), names[classes[some]] + places[some]) / scale
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    right = _share_right(connector, features[some], places[some], names, classes[some])
    connector.to(model.dtype)
    return right


def _name_embeddings(tokenizer: Any, table: Tensor) -> Tensor:
    """Of each thing of a `Pool`, plain ones and turned ones, and of the background: [things + 1, D]."""

    def embedded(text: str) -> Tensor:
        return table[tokenizer(text, add_special_tokens=False)["input_ids"]].sum(0)

    names = [embedded(f" {colour} {shape}") for colour in COLOURS for shape in SHAPES]
    return torch.stack([*names, *names, embedded(BACKGROUND)])


@torch.no_grad()
def _share_right(connector: nn.Module, features: Tensor, places: Tensor, names: Tensor, classes: Tensor) -> float:
    said = torch.cdist(connector(features) - places, names[[*range(NUM_THINGS // 2), NUM_THINGS]]).argmin(-1)
    wanted = torch.where(classes == NUM_THINGS, NUM_THINGS // 2, classes % (NUM_THINGS // 2))
    return (said == wanted).float().mean().item()


def merge_run(run: Path, start: Path, host: Path) -> None:
    """Writes what a run of conversations made of the host `start`, LoRA merged and TPO taken off, as a host."""
    plain = remove_tpo(load_run(run).merge_and_unload())
    plain.save_pretrained(host)
    AutoProcessor.from_pretrained(start).save_pretrained(host)
