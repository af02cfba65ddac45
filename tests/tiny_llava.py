"""Tiny random LLaVA hosts, of the packages that hold the real classes, and batches for them.

The vision tower is a CLIP of 56 x 56 pixels and 16 patches, made in a folder, because LLaVA loads its tower by path.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
    TrainingArguments,
)

import tpo_plugin as tpo

SIDE, PATCH = 56, 14
IMAGE_ID, IGNORED = -200, -100
NUM_ROWS = 320
"""Vocabulary rows of the hosts; the tokenizer has 259 ids."""
KINDS = ("image", "wide", "two", "video", "text")
"""Samples: one image, a wide one in tiles (anyres), two images, a video of four frames, text only."""
WORDS = [[65, 66, 67], [68, 69], [70, 71, 72, 73], [74], [75, 76]]
"""Ids of ordinary answers, one a kind."""
METHOD = "prepare_inputs_labels_for_multimodal"

FAMILIES = {"next": "llava_qwen", "original": "llava_llama"}
"""Module of the model's class in LLaVA-NeXT and in the original LLaVA."""
CLASSES = {"next": ("LlavaQwenConfig", "LlavaQwenForCausalLM"), "original": ("LlavaConfig", "LlavaLlamaForCausalLM")}


def package_of(family: str) -> str | None:
    """The installed package that has this family: `llava` in either form, or a derivative of LLaVA-NeXT."""
    for package in ("llava", "llavaction"):
        if importlib.util.find_spec(package) is None:
            continue
        arch = importlib.util.find_spec(f"{package}.model.llava_arch")
        if arch is not None and arch.origin is not None:
            is_next = "modalities" in Path(arch.origin).read_text(encoding="utf-8")
            if is_next == (family == "next"):
                return package
    return None


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and Qwen's special tokens: newline has id 198, as LLaVA-NeXT's preprocessing expects."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        model_max_length=4096,
    )


def make_tower(folder: Path) -> Path:
    """A random vision tower in a new folder."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    tower = CLIPVisionModel(CLIPVisionConfig(image_size=SIDE, patch_size=PATCH, projection_dim=32, **sizes))
    for parameter in tower.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, 0, 0.2)
    tower.half().float().save_pretrained(folder)  # some scripts cast it to float16, which then changes no weight
    crop = {"height": SIDE, "width": SIDE}
    CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=crop).save_pretrained(folder)
    return folder


def settings(tower: Path | None, **more: Any) -> dict[str, Any]:
    """Values of a host's config; without a tower only those of its language model."""
    tok = tokenizer()
    text = {
        "vocab_size": NUM_ROWS,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "initializer_range": 0.2,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": tok.eos_token_id,
        "pad_token_id": tok.pad_token_id,
    }
    media = {
        "mm_vision_tower": str(tower),
        "mm_hidden_size": 32,
        "mm_projector_type": "mlp2x_gelu",
        "mm_patch_merge_type": "spatial_unpad",
        "mm_newline_position": "grid",
        "mm_spatial_pool_mode": "bilinear",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "image_aspect_ratio": "anyres",
        "image_grid_pinpoints": [[SIDE * i, SIDE * j] for i in (1, 2) for j in (1, 2)],
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "tokenizer_model_max_length": 4096,
        "tokenizer_padding_side": "right",
        "use_mm_proj": True,
    }
    return text | ({} if tower is None else media) | more


def build(family: str, tower: Path, **more: Any) -> Any:
    """The same random host at every call, in evaluation mode, float32; `more` overrides its config."""
    package = package_of(family)
    module = importlib.import_module(f"{package}.model.language_model.{FAMILIES[family]}")
    config_class, model_class = (getattr(module, name) for name in CLASSES[family])
    torch.manual_seed(0)
    model = model_class(config_class(**settings(tower, **more)))
    if not model.get_vision_tower().is_loaded:
        model.get_vision_tower().load_model()
    if getattr(model.model, "image_newline", None) is not None:
        torch.nn.init.normal_(model.model.image_newline, 0, 0.2)
    return model.float().eval()


def batch(
    kinds: tuple[str, ...], answers: list[list[int]], *, family: str = "next", left: bool = False
) -> dict[str, Any]:
    """One row a kind: media, a question, and the ids of its answer; the labels are those of the answer.

    A kind's media are the same in every batch.
    """
    tok = tokenizer()
    rows: list[tuple[list[int], list[int]]] = []
    media: list[tuple[torch.Tensor, tuple[int, int], str]] = []
    for kind, answer in zip(kinds, answers, strict=True):
        for pixels, size, modality in _media(kind):
            media.append((pixels, size, modality))
        question = tok(f"what is in this {kind}").input_ids
        ids = [*tok("<|im_start|>").input_ids, *[IMAGE_ID] * {"two": 2, "text": 0}.get(kind, 1), *question]
        rows.append((ids + answer, [IGNORED] * len(ids) + answer))
    length = max(len(ids) for ids, _ in rows)

    def padded(values: list[list[int]], fill: int) -> torch.Tensor:
        pads = [[fill] * (length - len(v)) for v in values]
        return torch.tensor([pad + v if left else v + pad for pad, v in zip(pads, values, strict=True)])

    ids = padded([ids for ids, _ in rows], tok.pad_token_id)
    made = {
        "input_ids": ids,
        "labels": padded([labels for _, labels in rows], IGNORED),
        "attention_mask": ids.ne(tok.pad_token_id),
        "images": [pixels for pixels, _, _ in media],
        "image_sizes": [size for _, size, _ in media],
    }
    return made | ({"modalities": [modality for *_, modality in media]} if family == "next" else {})


def _media(kind: str) -> list[tuple[torch.Tensor, tuple[int, int], str]]:
    generator = torch.Generator().manual_seed(KINDS.index(kind))

    def pixels(*first: int) -> torch.Tensor:
        return torch.rand(*first, 3, SIDE, SIDE, generator=generator)

    return {
        "image": [(pixels(2), (SIDE, SIDE), "image")],
        "wide": [(pixels(3), (2 * SIDE, SIDE), "image")],
        "two": [(pixels(), (SIDE, SIDE), "image"), (pixels(), (SIDE, SIDE), "image")],
        "video": [(pixels(4), (SIDE, SIDE), "video")],
        "text": [(torch.zeros(1, 3, SIDE, SIDE), (SIDE, SIDE), "text")],
    }[kind]


# -- task tokens -------------------------------------------------------------------------------------------------------


class EchoHead(tpo.TaskHead):
    """Gives back the task embedding, through a weight, so that tests see what reached it and that it learns."""

    def __init__(self, config: tpo.HeadConfig, hidden_size: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, e_ND: Tensor) -> dict[str, Tensor]:
        return {"state": e_ND * self.gain}

    def loss(self, outputs: dict[str, Tensor], targets: dict[str, Any], num_targets: Tensor | int) -> dict[str, Tensor]:
        return {"loss_echo": (outputs["state"].mean(-1) - targets["value"]).pow(2).sum() / num_targets}


def with_tasks(model: Any, numbers: list[int]) -> list[list[int]]:
    """Answers with that many pairs of trigger and task token."""
    pair = list(model.tpo.token_ids["echo"])
    return [[words[0], *pair * number, *words[1:]] for words, number in zip(WORDS, numbers, strict=False)]


def labelled(model: Any, given: dict[str, Any]) -> dict[str, Any]:
    """The batch with the labels that TPO expects: none at task tokens."""
    labels = given["labels"]
    return {**given, "labels": labels.masked_fill(labels == model.tpo.token_ids["echo"][1], IGNORED)}


def targets(number: int) -> dict[str, Any]:
    return {"echo": {"value": torch.linspace(0, 1, number)}}


def spliced(model: Any, given: dict[str, Any]) -> Any:
    """What the host's method makes of a batch without labels."""
    names = list(inspect.signature(getattr(type(model), METHOD)).parameters)[1:]
    values = {name: None if name == "labels" else given.get(name) for name in names}
    return getattr(model, METHOD)(**values)


def slow_states(model: Any, given: dict[str, Any]) -> Tensor:
    """Each task token's last hidden state: its row alone, embeddings put together and run by hand.

    The host's own splice embeds the row with a word in the place of each token of ours; all media stand before them, so
    places are counted from the row's end.
    """
    trigger, task = model.tpo.token_ids["echo"]
    bare, rows, medium = copy.deepcopy(model), model.tpo.embeddings["echo"], 0
    tpo.remove_tpo(bare)
    states = []
    for ids, mask in zip(given["input_ids"], given["attention_mask"], strict=True):
        ids = ids[mask]
        num_media = max(int((ids == IMAGE_ID).sum()), 1)
        own = slice(medium, medium + num_media)
        media = {name: given[name][own] for name in ("images", "image_sizes", "modalities") if name in given}
        medium += num_media
        ordinary = ids.masked_fill((ids == trigger) | (ids == task), 5)[None]
        embeds = spliced(bare, {**media, "input_ids": ordinary, "attention_mask": torch.ones_like(ordinary)})[4]
        for place, kind in ((trigger, "trigger"), (task, "task")):
            for column in (ids == place).nonzero()[:, 0].tolist():
                embeds[0, column - len(ids)] = rows(kind)
        hidden = bare.model(inputs_embeds=embeds).last_hidden_state[0]
        states += [hidden[column - len(ids)] for column in (ids == task).nonzero()[:, 0].tolist()]
    return torch.stack(states)


# -- training ----------------------------------------------------------------------------------------------------------


class Kinds(Dataset[str]):
    """One sample a kind, with the attribute that LLaVATrainer's sampler reads."""

    def __init__(self, kinds: tuple[str, ...] = KINDS) -> None:
        self.kinds = kinds
        self.modality_lengths = [-30 if kind == "text" else 30 for kind in kinds]

    def __len__(self) -> int:
        return len(self.kinds)

    def __getitem__(self, index: int) -> str:
        return self.kinds[index]


def collate_for(model: Any, family: str = "next") -> Callable[[list[str]], dict[str, Any]]:
    """A collator of kinds, whose rows have 0, 1 or 2 task tokens."""
    pair = list(model.tpo.token_ids["echo"])

    def collate(kinds: list[str]) -> dict[str, Any]:
        numbers = [KINDS.index(kind) % 3 for kind in kinds]
        made = batch(tuple(kinds), [[65, *pair * number, 66] for number in numbers], family=family)
        return {**labelled(model, made), "task_targets": {"echo": {"value": torch.full((sum(numbers),), 0.5)}}}

    return collate


def make_trainer(
    trainer: type, model: Any, folder: Path, *, kinds: tuple[str, ...] = KINDS, family: str = "next", **options: Any
) -> Any:
    """A trainer over `kinds` for two steps; `options` are training arguments, also those that only LLaVA's have."""
    given = {
        "per_device_train_batch_size": 2,
        "max_steps": 2,
        "learning_rate": 1e-2,
        "save_steps": 1,
        "logging_steps": 1,
        "use_cpu": True,
        "remove_unused_columns": False,
        "report_to": [],
        "seed": 3,
        "group_by_modality_length": True,
        "group_by_modality_length_auto": False,
        "group_by_varlen": False,
        "verbose_logging": False,
        "mm_projector_lr": 1e-3,
        "mm_vision_tower_lr": None,
        "mm_tunable_parts": "mm_mlp_adapter,mm_language_model",
        "tune_mm_mlp_adapter": False,
        "use_im_start_end": False,
        "lora_enable": False,
    } | options
    known = inspect.signature(TrainingArguments).parameters
    args = TrainingArguments(output_dir=str(folder), **{k: v for k, v in given.items() if k in known})
    for name, value in given.items():
        setattr(args, name, value)
    return trainer(
        model=model,
        args=args,
        tokenizer=model.tpo.tokenizer,
        train_dataset=Kinds(kinds),
        data_collator=collate_for(model, family),
    )
