"""Tiny random hosts of many kinds: real transformers classes with two layers, one tokenizer, and batches for them.

Vocabulary: the tokenizer has `NUM_WORDS` ids, the hosts have `NUM_ROWS` rows, so task tokens take spare rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from inspect import signature
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, UNK = 0, 1, 2, 3
IMAGE, VIDEO, VISION_START, VISION_END = 4, 5, 6, 7
FIRST_WORD, NUM_WORDS, NUM_ROWS = 8, 40, 99
MEDIA = [IMAGE, VIDEO, VISION_START, VISION_END]
"""Ids that no host should generate: its `suppress_tokens`."""
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>", "<video>", "<vision>", "</vision>")

IDS = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
TEXT = {
    "vocab_size": NUM_ROWS,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    **IDS,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
GEMMA = {**TEXT, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 64}


def tokenizer() -> PreTrainedTokenizerFast:
    """A fresh word-level tokenizer with `NUM_WORDS` ids."""
    words = [*SPECIAL, *(f"w{i}" for i in range(FIRST_WORD, NUM_WORDS))]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@dataclass(frozen=True)
class TinyHost:
    """A kind of host: how to build it, and the media that a row of a batch can hold."""

    name: str
    model_class: str
    config: Callable[[], Any]
    """A tiny configuration of its class."""
    media: Callable[[int], dict[str, Tensor]] | None = None
    """Media tensors for a batch of B rows, one image or video each; None for a text-only host."""
    media_ids: tuple[int, ...] = ()
    """Ids that stand for the media of one row."""
    prefix_lm: bool = False
    """Whether `token_type_ids` separate a prompt (0) from its answer (1), not words (0) from images (1)."""

    @property
    def missing(self) -> bool:
        """Whether the installed transformers does not have it."""
        return not hasattr(transformers, self.model_class)

    def build(self, **changes: Any) -> Any:
        """A random model in evaluation mode, the same weights at every call; `changes` go to the text configuration."""
        config = self.config()
        for key, value in changes.items():
            for owner in (config, config.get_text_config()):
                setattr(owner, key, value)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = getattr(transformers, self.model_class)(config).eval()
            for parameter in model.parameters():  # gates and position tables that start at zero or uninitialised
                if not parameter.isfinite().all() or not parameter.any():
                    nn.init.normal_(parameter, std=0.2)
        options = model.generation_config
        options.pad_token_id, options.bos_token_id, options.eos_token_id = PAD, BOS, EOS
        return model


def example(
    host: TinyHost, model: nn.Module, num_rows: int = 2, *, media: bool = False, padded: bool = False, length: int = 9
) -> dict[str, Tensor]:
    """A batch of words [B, T], each row with its image or video if `media`, row 0 with left padding if `padded`."""
    draw = torch.Generator().manual_seed(1)
    words = torch.randint(FIRST_WORD, NUM_WORDS, (num_rows, length), generator=draw)
    words[:, 0] = BOS
    ids = torch.tensor(host.media_ids if media else (), dtype=torch.int64).expand(num_rows, -1)
    input_ids = torch.cat([words[:, :2], ids, words[:, 2:]], 1)
    mask = torch.ones_like(input_ids)
    batch: dict[str, Tensor] = {}
    if media:
        assert host.media is not None
        batch |= host.media(num_rows)
    if host.media is not None:
        batch |= _per_token(host, model, input_ids, media)
    if padded:
        input_ids = torch.cat([torch.full((num_rows, 3), PAD), input_ids], 1)
        mask = torch.cat([torch.zeros((num_rows, 3), dtype=mask.dtype), mask], 1)
        for row in range(1, num_rows):  # the other rows get words there
            input_ids[row, :3] = torch.randint(FIRST_WORD, NUM_WORDS, (3,), generator=draw)
            mask[row, :3] = 1
        for key in PER_TOKEN & batch.keys():
            batch[key] = torch.cat([batch[key][:, :1].expand(-1, 3, *batch[key].shape[2:]), batch[key]], 1)
    return {"input_ids": input_ids, "attention_mask": mask, **batch}


PER_TOKEN = {"token_type_ids", "mm_token_type_ids", "cross_attention_mask"}


def _per_token(host: TinyHost, model: nn.Module, input_ids: Tensor, media: bool) -> dict[str, Tensor]:
    """Inputs with a column for each token, where the host takes them."""
    accepted = signature(model.forward).parameters
    kinds = (input_ids == IMAGE).long() + 2 * (input_ids == VIDEO)
    if host.prefix_lm:
        kinds = torch.zeros_like(kinds)
    tensors = {name: kinds for name in ("token_type_ids", "mm_token_type_ids") if name in accepted}
    if media and "cross_attention_mask" in accepted:  # [B, T, images, tiles]: each token sees both tiles
        tensors["cross_attention_mask"] = torch.ones(*input_ids.shape, 1, 2, dtype=torch.int64)
    return tensors


def row_of(host: TinyHost, batch: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    """One row of a batch without its padding; its media are those of the batch at that place."""
    num_rows, kept = len(batch["input_ids"]), batch["attention_mask"][row].bool()
    one = {}
    for key, value in batch.items():
        if key in PER_TOKEN or key in ("input_ids", "attention_mask"):
            one[key] = value[row : row + 1, kept]
        else:
            one[key] = value.chunk(num_rows)[row]
    return one


# -- media -------------------------------------------------------------------------------------------------------------


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


def _pixels(num_rows: int) -> dict[str, Tensor]:
    return {"pixel_values": _random(num_rows, 3, 28, 28)}


def _tiles(num_rows: int) -> dict[str, Tensor]:
    """The whole image and one tile of it, 28 x 28."""
    return {"pixel_values": _random(num_rows, 2, 3, 28, 28), "image_sizes": torch.full((num_rows, 2), 28)}


def _images(num_rows: int) -> dict[str, Tensor]:
    """One image a row, with a dimension for images."""
    pixels = _random(num_rows, 1, 3, 28, 28)
    return {"pixel_values": pixels, "pixel_attention_mask": torch.ones(num_rows, 1, 28, 28, dtype=torch.bool)}


def _aspect_tiles(num_rows: int) -> dict[str, Tensor]:
    return {
        "pixel_values": _random(num_rows, 1, 2, 3, 28, 28),
        "aspect_ratio_ids": torch.full((num_rows, 1), 2),
        "aspect_ratio_mask": torch.ones(num_rows, 1, 2, dtype=torch.int64),
    }


def _patches(num_rows: int) -> dict[str, Tensor]:
    """4 x 4 patches of 3 colours, 2 frames and 2 x 2 pixels; 2 x 2 of them make a token."""
    return {
        "pixel_values": _random(16 * num_rows, 3 * 2 * 2 * 2),
        "image_grid_thw": torch.tensor([[1, 4, 4]] * num_rows),
    }


def _video_patches(num_rows: int) -> dict[str, Tensor]:
    return {
        "pixel_values_videos": _random(32 * num_rows, 3 * 2 * 2 * 2),
        "video_grid_thw": torch.tensor([[2, 4, 4]] * num_rows),
    }


def _frames(num_rows: int) -> dict[str, Tensor]:
    return {"pixel_values_videos": _random(num_rows, 8, 3, 28, 28)}


# -- configurations ----------------------------------------------------------------------------------------------------


def _config(name: str, **options: Any) -> Any:
    return getattr(transformers, name)(**options)


def _llava(name: str, vision: str = "CLIPVisionConfig", text: str = "LlamaConfig", **options: Any) -> Any:
    image = {"image_token_index": IMAGE, "image_token_id": IMAGE, "video_token_index": VIDEO, "video_token_id": VIDEO}
    return _config(
        name,
        text_config=_config(text, **TEXT),
        vision_config=_config(vision, **VISION, projection_dim=32),
        image_seq_length=4,
        **{"vision_feature_layer": -1, "tie_word_embeddings": False} | image | options,
    )


PINPOINTS = [[28, 28], [28, 56], [56, 28]]


def _qwen_vl(name: str, vision: dict[str, Any], **text: Any) -> Any:
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2]}
    text = TEXT | text
    head = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": VISION_START}
    head |= {"vision_end_token_id": VISION_END, "tie_word_embeddings": False}
    vision = {"depth": 2, "num_heads": 4, "in_channels": 3, "in_chans": 3, "patch_size": 2, **vision}
    if hasattr(transformers, "Qwen2VLTextConfig"):
        parts = {"text_config": text | {"rope_scaling": rope}}
    else:  # before 4.52 the text configuration is the configuration itself
        parts = text | {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}
    return _config(name, vision_config=vision, **parts, **head)


def _qwen2_vl() -> Any:
    return _qwen_vl("Qwen2VLConfig", {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2})


def _qwen2_5_vl() -> Any:
    vision = {"hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 64, "fullatt_block_indexes": [1]}
    return _qwen_vl("Qwen2_5_VLConfig", vision | {"window_size": 8})


def _qwen3_vl() -> Any:
    vision = {"hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 64, "num_position_embeddings": 16}
    return _qwen_vl("Qwen3VLConfig", vision | {"deepstack_visual_indexes": [0, 1]}, head_dim=8)


def _internvl() -> Any:
    vision = {**VISION, "image_size": [28, 28], "patch_size": [7, 7]}
    return _config(
        "InternVLConfig",
        text_config=_config("Qwen2Config", **TEXT),
        vision_config=_config("InternVLVisionConfig", **vision),
        image_token_id=IMAGE,
        image_seq_length=4,
        tie_word_embeddings=False,
    )


def _idefics(name: str, vision: str) -> Any:
    return _config(
        name,
        text_config=_config("LlamaConfig", **TEXT),
        vision_config=_config(vision, **{**VISION, "patch_size": 7}).to_dict(),
        image_token_id=IMAGE,
        scale_factor=2,
        pad_token_id=PAD,
        tie_word_embeddings=False,
    )


def _paligemma() -> Any:
    return _config(
        "PaliGemmaConfig",
        text_config=_config("GemmaConfig", **TEXT, head_dim=8),
        vision_config=_config("SiglipVisionConfig", **VISION, projection_dim=32, vision_use_head=False),
        image_token_index=IMAGE,
        image_token_id=IMAGE,
        projection_dim=32,
        hidden_size=32,
        vocab_size=NUM_ROWS,
        **IDS,
    )


def _gemma3() -> Any:
    return _config(
        "Gemma3Config",
        text_config=_config("Gemma3TextConfig", **GEMMA),
        vision_config=_config("SiglipVisionConfig", **{**VISION, "patch_size": 7}, vision_use_head=False),
        image_token_index=IMAGE,
        image_token_id=IMAGE,
        boi_token_index=VISION_START,
        eoi_token_index=VISION_END,
        mm_tokens_per_image=4,
    )


def _mllama() -> Any:
    text = {**TEXT, "num_hidden_layers": 3, "cross_attention_layers": [1]}
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_global_layers": 1,
        "attention_heads": 4,
        "image_size": 28,
        "patch_size": 14,
        "max_num_tiles": 2,
        "intermediate_layers_indices": [0],
        "vision_output_dim": 64,
        "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
    }
    text["rope_scaling"] = {"rope_type": "default"}
    return _config("MllamaConfig", text_config=text, vision_config=vision, image_token_index=IMAGE)


def _video_llava() -> Any:
    return _llava("VideoLlavaConfig", video_seq_length=32)


def _text(name: str, **options: Any) -> Callable[[], Any]:
    return lambda: _config(name, **{**TEXT, **options})


def _gpt2() -> Any:
    sizes = {"vocab_size": NUM_ROWS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return _config("GPT2Config", **sizes, **no_dropout, initializer_range=0.2, **IDS)


def _image(num_tokens: int) -> tuple[int, ...]:
    return (VISION_START, *[IMAGE] * num_tokens, VISION_END)


def _video(num_tokens: int) -> tuple[int, ...]:
    return (VISION_START, *[VIDEO] * num_tokens, VISION_END)


HOSTS = (
    TinyHost("llama", "LlamaForCausalLM", _text("LlamaConfig")),
    TinyHost("qwen2", "Qwen2ForCausalLM", _text("Qwen2Config", tie_word_embeddings=True)),
    TinyHost("qwen3", "Qwen3ForCausalLM", _text("Qwen3Config", head_dim=8)),
    TinyHost("gemma2", "Gemma2ForCausalLM", lambda: _config("Gemma2Config", **GEMMA, final_logit_softcapping=3.0)),
    TinyHost("gemma3_text", "Gemma3ForCausalLM", lambda: _config("Gemma3TextConfig", **GEMMA)),
    TinyHost("phi", "PhiForCausalLM", _text("PhiConfig")),
    TinyHost("phi3", "Phi3ForCausalLM", _text("Phi3Config")),
    TinyHost("gpt2", "GPT2LMHeadModel", _gpt2),
    TinyHost("mixtral", "MixtralForCausalLM", _text("MixtralConfig", num_local_experts=4)),
    TinyHost("llava", "LlavaForConditionalGeneration", lambda: _llava("LlavaConfig"), _pixels, _image(4)),
    TinyHost(
        "llava_next",
        "LlavaNextForConditionalGeneration",
        lambda: _llava("LlavaNextConfig", image_grid_pinpoints=PINPOINTS),
        _tiles,
        _image(10),
    ),
    TinyHost(
        "llava_onevision",
        "LlavaOnevisionForConditionalGeneration",
        lambda: _llava(
            "LlavaOnevisionConfig",
            "SiglipVisionConfig",
            "Qwen2Config",
            image_grid_pinpoints=PINPOINTS,
            vision_feature_select_strategy="full",
        ),
        _tiles,
        _image(10),
    ),
    TinyHost("qwen2_vl", "Qwen2VLForConditionalGeneration", _qwen2_vl, _patches, _image(4)),
    TinyHost("qwen2_vl_video", "Qwen2VLForConditionalGeneration", _qwen2_vl, _video_patches, _video(8)),
    TinyHost("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", _qwen2_5_vl, _patches, _image(4)),
    TinyHost("qwen3_vl", "Qwen3VLForConditionalGeneration", _qwen3_vl, _patches, _image(4)),
    TinyHost("internvl", "InternVLForConditionalGeneration", _internvl, _pixels, _image(4)),
    TinyHost(
        "idefics3",
        "Idefics3ForConditionalGeneration",
        lambda: _idefics("Idefics3Config", "Idefics3VisionConfig"),
        _images,
        _image(4),
    ),
    TinyHost(
        "smolvlm",
        "SmolVLMForConditionalGeneration",
        lambda: _idefics("SmolVLMConfig", "SmolVLMVisionConfig"),
        _images,
        _image(4),
    ),
    TinyHost("paligemma", "PaliGemmaForConditionalGeneration", _paligemma, _pixels, (IMAGE,) * 4, prefix_lm=True),
    TinyHost("gemma3", "Gemma3ForConditionalGeneration", _gemma3, _pixels, _image(4)),
    TinyHost("mllama", "MllamaForConditionalGeneration", _mllama, _aspect_tiles, (IMAGE,)),
    TinyHost("video_llava", "VideoLlavaForConditionalGeneration", _video_llava, _frames, _video(40)),
)


@cache
def host(name: str) -> TinyHost:
    """The kind of host of that name."""
    return next(h for h in HOSTS if h.name == name)


# -- comparing ---------------------------------------------------------------------------------------------------------


MEMOS = ("rope_deltas",)
"""Attributes in which a host keeps something of its last forward."""


def snapshot(model: nn.Module, tokenizer: Any) -> dict[str, Any]:
    """Everything that a host and its tokenizer are, comparable with `==` to a later one."""
    modules = dict(model.named_modules())
    hooks = [key for key in vars(model) if key.endswith("_hooks")]
    return {
        "weights": {name: (v.dtype, v.shape, _bytes(v)) for name, v in model.state_dict().items()},
        "parameters": {name: (id(p), p.requires_grad) for name, p in model.named_parameters(remove_duplicate=False)},
        "attributes": {
            name: {k: _value(v) for k, v in vars(m).items() if k not in MEMOS} for name, m in modules.items()
        },
        "hooks": {(name, kind): list(getattr(m, kind).values()) for name, m in modules.items() for kind in hooks},
        "config": model.config.to_dict(),
        "generation config": model.generation_config.to_dict(),
        "vocabulary": tokenizer.get_vocab(),
        "tokenizer": tokenizer.backend_tokenizer.to_str(),
        "tokenizer attributes": {k: repr(v) for k, v in vars(tokenizer).items() if k != "_tokenizer"},
    }


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _value(value: Any) -> Any:
    return value if isinstance(value, (bool, int, float, str, type(None))) else id(value)


def talkative(model: Any) -> None:
    """Makes triggers likely: random output rows, with which an untrained host emits one every few words."""
    draw = torch.Generator().manual_seed(3)
    for rows in model.tpo.embeddings.values():
        rows.output.data.normal_(std=2, generator=draw)


def with_tasks(
    host: TinyHost, model: Any, batch: dict[str, Tensor], head: str = "region", num_tasks: int = 2
) -> dict[str, Any]:
    """The batch with an answer to learn: in each row `num_tasks` triggers and task tokens, and words between them."""
    trigger, task = model.tpo.token_ids[head]
    answer = torch.tensor([FIRST_WORD, *[trigger, task, FIRST_WORD + 1] * num_tasks])
    answers = answer.expand(len(batch["input_ids"]), -1)
    result = dict(extended(host, batch, answers))
    labels = result["input_ids"].clone()
    labels[:, : batch["input_ids"].shape[1]] = -100
    labels[labels == task] = -100
    return result | {"labels": labels}


def extended(host: TinyHost, batch: dict[str, Tensor], answers: Tensor) -> dict[str, Tensor]:
    """The batch with answers [B, N] behind its prompts."""
    result = dict(batch)
    result["input_ids"] = torch.cat([batch["input_ids"], answers], 1)
    result["attention_mask"] = torch.cat([batch["attention_mask"], torch.ones_like(answers)], 1)
    for key in PER_TOKEN & batch.keys():
        last = batch[key][:, -1:]
        filler = last if key == "cross_attention_mask" else torch.full_like(last, int(host.prefix_lm))
        result[key] = torch.cat([batch[key], filler.expand(-1, answers.shape[1], *last.shape[2:])], 1)
    return result


def boxes(num: int) -> Tensor:
    """Valid boxes [N, 4], xyxy, 0 to 1."""
    corners = torch.rand(num, 2, 2, generator=torch.Generator().manual_seed(4)).sort(1).values
    corners[:, 1] += 0.01
    return corners.flatten(1).clamp(max=1)
