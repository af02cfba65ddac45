"""Tiny random models of every architecture that transformers knows, from its own configuration classes.

Configurations are shrunk by the names of their fields; `EXCEPTIONS` holds what an architecture needs beside that.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PretrainedConfig
from transformers.models.auto import configuration_auto, modeling_auto

from .exceptions import EXCEPTIONS

NUM_ROWS, NUM_WORDS, FIRST_WORD = 192, 96, 64
"""Rows of a host's matrices, ids of the tokenizer, and the first of its ordinary words; specials are below."""

RULES: tuple[tuple[str, Any], ...] = (
    # sizes of the vocabulary and of the sequence
    (
        r"(padded_|text_|decoder_|audio_)?vocab_size(_per_layer_input)?$|n_vocab$|vocab_size_(or_config_json_file)?$",
        NUM_ROWS,
    ),
    (r"(max_position_embeddings|n_positions|n_ctx|max_seq_len|max_sequence_length|context_length)$", 256),
    (r"(max_source_positions|max_target_positions)$", 256),
    # experts, before widths
    (
        r"(num_experts_per_tok|num_experts_per_token|moe_topk|moe_top_k|top_k|experts_per_token|moe_k|num_selected_experts|num_experts_per_topk|router_top_k)$",
        2,
    ),
    (r"(n_group|topk_group|num_expert_groups?)$", 1),
    (r"(n_shared_experts|moe_num_shared_experts|num_shared_experts?)$", 1),
    (
        r"(num_local_experts|num_experts|n_routed_experts|moe_num_experts|num_routed_experts|num_zero_experts|zero_expert_num)$",
        4,
    ),
    # widths of attention heads
    (r"rotary_dim$", 4),
    (
        r"(qk_nope_head_dim|qk_rope_head_dim|v_head_dim|global_head_dim|.*head_dim|kv_channels|attention_head_size|head_size|d_kv|.*_head_size)$",
        8,
    ),
    (r"(q_lora_rank|kv_lora_rank|o_lora_rank)$", 16),
    (r"(mamba_d_state|state_size|ssm_state_size|mamba_state_dim|d_state)$", 8),
    # numbers of heads
    (
        r"(num_key_value_heads|num_kv_heads|multi_query_num_heads|.*num_key_value_heads|num_global_key_value_heads|n_kv_heads|num_key_value_heads_per_layer|attention_num_kv_heads)$",
        2,
    ),
    (
        r"(.*num_attention_heads|n_heads?|num_heads?|.*attention_heads|linear_num_key_heads|linear_num_value_heads|heads|attention_num_heads)$",
        4,
    ),
    # depth
    (r"(num_hidden_layers|n_layers?|.*num_layers|.*_layers|depth|num_blocks|num_decoder_layers|num_layers_.*)$", 2),
    # widths
    (
        r".*(intermediate_size|ffn_dim|ffn_hidden_size|d_ff|d_inner|n_inner|inner_dim|feed_forward_size|ffn_size|ffn_hidden|dense_intermediate_size|mlp_dim|intermediate_dim)$",
        64,
    ),
    (
        r".*(hidden_size|hidden_dim|d_model|n_embd|embed_dim|embedding_size|emb_dim|width|dim_model|embedding_dim|projection_dim|hidden_dims?|lru_width|hidden_size_per_layer_input)$",
        32,
    ),
    (r"(dim|output_dim|out_dim|proj_dim|projector_dim)$", 32),
    # vision
    (r".*(image_size|img_size|input_size)$", 28),
    (r".*(patch_size|crop_size)$", 14),
)


def architectures() -> dict[str, list[str]]:
    """Class names of AutoModelForCausalLM and AutoModelForImageTextToText, with the model types that name them."""
    found: dict[str, list[str]] = {}
    for names in (
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    ):
        for model_type, class_name in names.items():
            kinds = found.setdefault(class_name, [])
            if model_type not in kinds:
                kinds.append(model_type)
    return found


def config_of(class_name: str) -> type[PretrainedConfig]:
    model_class = getattr(transformers, class_name)
    config_class = model_class.config_class
    if config_class is not None:
        return config_class
    model_type = architectures()[class_name][0]
    return getattr(transformers, configuration_auto.CONFIG_MAPPING_NAMES[model_type])


def _small(name: str, default: Any) -> Any:
    """A small value for a field, or its default."""
    if isinstance(default, bool):
        return default
    number = isinstance(default, int) or default is None
    for pattern, value in RULES:
        if re.match(pattern, name):
            if number:
                return value if default is None or default > value else default
            if isinstance(default, (list, tuple)) and default and all(isinstance(v, int) for v in default):
                return type(default)(value for _ in default)
            return default
    return default


class Ids:
    """Gives each special id of a configuration a row of its own."""

    def __init__(self) -> None:
        self.next, self.seen = 8, {}

    def __call__(self, name: str, default: Any) -> Any:
        if default not in self.seen:
            self.seen[default] = default if default < 8 else self.next
            self.next += default >= 8
        return self.seen[default]


def shrink(config_class: type[PretrainedConfig], table: dict[str, Any], ids: Ids, path: str = "") -> Any:
    """A small configuration; `table` has what differs, by dotted path of the field."""
    given = {k: v for k, v in table.items() if "." not in k}
    try:
        default = config_class()
    except Exception:
        default = None
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(config_class.__init__).parameters.items():
        if name in ("self", "kwargs", "args") or parameter.kind is parameter.VAR_KEYWORD:
            continue
        value = parameter.default if parameter.default is not inspect.Parameter.empty else None
        try:
            actual = getattr(default, name, None)
        except Exception:  # a field that differs from layer to layer has an error of its own
            actual = value
        sub = {k.removeprefix(name + "."): v for k, v in table.items() if k.startswith(name + ".")}
        if isinstance(actual, PretrainedConfig) or "class" in sub:
            sub_class = sub.pop("class", None)
            sub_class = getattr(transformers, sub_class) if sub_class else type(actual)
            fields[name] = shrink(sub_class, sub, ids, f"{path}{name}.")
            continue
        small = value
        if name == "initializer_range" and isinstance(actual, float) and actual < 1e-4:
            small = 0.02  # so that an image is seen at all
        elif (
            re.search(r"(_token_id|_token_index|_token_ids|_id|_index)$", name) and type(actual) is int and actual >= 0
        ):
            small = ids(name, actual)
        elif re.search(r"_token_id$", name) and isinstance(actual, list):
            small = [ids(name, i) for i in actual]
        elif value is not None:
            small = _small(name, value)
        elif name == "head_dim":
            small = 8
        elif name == "num_key_value_heads" and actual is None:
            small = 4
        elif isinstance(actual, int) and not isinstance(actual, bool) and _small(name, actual) != actual:
            small = _small(name, actual)
        if small != value:
            fields[name] = small
    fields |= _one_layer_of_each_kind(config_class, default, fields)
    if "qk_nope_head_dim" in fields and "num_key_value_heads" in fields:  # latent attention has one for each head
        fields["num_key_value_heads"] = 4
    rope = getattr(default, "rope_parameters", None)
    if isinstance(rope, dict) and "mrope_section" in rope:
        fields["rope_parameters"] = rope | {"mrope_section": [2, 1, 1]}
    fields |= given
    return config_class(**fields)


LAYER_KINDS = ("layer_types", "mlp_layer_types", "layers_block_type")


def _one_layer_of_each_kind(
    config_class: type[PretrainedConfig], default: Any, fields: dict[str, Any]
) -> dict[str, Any]:
    """Lists of layers that hold each kind of the default configuration once, at least two layers."""
    accepted = inspect.signature(config_class.__init__).parameters
    kinds = {
        name: list(dict.fromkeys(getattr(default, name)))
        for name in LAYER_KINDS
        if name in accepted and isinstance(getattr(default, name, None), (list, tuple))
    }
    depth = max([2, *map(len, kinds.values())])
    if not kinds or "num_hidden_layers" not in accepted:
        return {}
    return {"num_hidden_layers": depth} | {k: (v + [v[-1]] * depth)[:depth] for k, v in kinds.items()}


def build(class_name: str) -> nn.Module:
    """A random model in evaluation mode, the same weights at every call."""
    table = dict(EXCEPTIONS.get(class_name, {}))
    config = shrink(config_of(class_name), table, Ids())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, class_name)(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.is_floating_point() and (not parameter.isfinite().all() or not parameter.any()):
                    parameter.normal_(std=0.2)
    return model.eval()
