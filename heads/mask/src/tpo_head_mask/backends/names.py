"""Weights of the sam2 package under transformers' names. One to one, but for the four point embeddings, which become
one matrix, and the position encoding of prompts, which `Sam2VideoModel` holds twice."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import torch
from torch import Tensor

_POINT = re.compile(r"sam_prompt_encoder\.point_embeddings\.\d\.weight")
_POSITION = "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"

_MASK_DOWNSCALING = {"0": "conv1", "1": "layer_norm1", "3": "conv2", "4": "layer_norm2", "6": "conv3"}
_UPSCALING = {"0": "upscale_conv1", "1": "upscale_layer_norm", "3": "upscale_conv2"}
_THREE_LAYERS = {"0": "proj_in", "1": "layers.0", "2": "proj_out"}
_TWO_LAYERS = {"0": "proj_in", "1": "proj_out"}

_TOP = {
    "maskmem_tpos_enc": "memory_temporal_positional_encoding",
    "no_mem_embed": "no_memory_embedding",
    "no_mem_pos_enc": "no_memory_positional_encoding",
    "no_obj_ptr": "no_object_pointer",
    "no_obj_embed_spatial": "occlusion_spatial_embedding_parameter",
}

_DOWNSAMPLER = re.compile(r"^memory_encoder\.mask_downsampler\.encoder\.(\d+)\.")
_DOWNSAMPLER_LAYERS = 4
"""Convolutions of a stride of 2, each with a norm and an activation, before the last convolution."""

_RULES: list[tuple[str, str | dict[str, str]]] = [
    (r"^image_encoder\.trunk\.", "vision_encoder.backbone."),
    (r"^image_encoder\.neck\.convs\.(\d+)\.conv\.", r"vision_encoder.neck.convs.\1."),
    (r"\.patch_embed\.proj\.", ".patch_embed.projection."),
    (r"(?<=^sam_prompt_encoder\.mask_downscaling\.)\d", _MASK_DOWNSCALING),
    (r"^sam_prompt_encoder\.mask_downscaling\.", "prompt_encoder.mask_embed."),
    (r"^sam_prompt_encoder\.", "prompt_encoder."),
    (r"(?<=^sam_mask_decoder\.)output_upscaling\.(\d)", _UPSCALING),
    (r"(?<=output_hypernetworks_mlps\.\d\.)layers\.(\d)", _THREE_LAYERS),
    (r"(?<=iou_prediction_head\.)layers\.(\d)", _THREE_LAYERS),
    (r"(?<=pred_obj_score_head\.)layers\.(\d)", _THREE_LAYERS),
    (r"(?<=^obj_ptr_proj\.)layers\.(\d)", _THREE_LAYERS),
    (r"(?<=\.mlp\.)layers\.(\d)", _TWO_LAYERS),
    (r"^sam_mask_decoder\.", "mask_decoder."),
    (r"^obj_ptr_proj\.", "object_pointer_proj."),
    (r"^obj_ptr_tpos_proj\.", "temporal_positional_encoding_projection_layer."),
    (r"^memory_encoder\.pix_feat_proj\.", "memory_encoder.feature_projection."),
    (r"^memory_encoder\.fuser\.", "memory_encoder.memory_fuser."),
    (r"^memory_encoder\.out_proj\.", "memory_encoder.projection."),
    (r"\.gamma$", ".scale"),
    (r"\.dwconv\.", ".depthwise_conv."),
    (r"\.pwconv(\d)\.", r".pointwise_conv\1."),
    (r"(?<=\.)norm_final_attn\.", "layer_norm_final_attn."),
    (r"(?<=\.)norm(\d?)\.", r"layer_norm\1."),
    (r"(?<=attn\.)out_proj\.", "o_proj."),
    (r"(?<=attn_token_to_image\.)out_proj\.", "o_proj."),
    (r"(?<=attn_image_to_token\.)out_proj\.", "o_proj."),
    (r"(?<=cross_attn_image\.)out_proj\.", "o_proj."),
]


def to_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the names of `Sam2VideoModel`; a name that no rule fits stays as it is."""
    renamed = {_rename(key): value for key, value in state.items() if key != _POSITION and not _POINT.fullmatch(key)}
    points = [state[key] for key in sorted(state) if _POINT.fullmatch(key)]
    if points:
        renamed["prompt_encoder.point_embed.weight"] = torch.cat(points)
    if _POSITION in state:
        for owner in ("prompt_encoder.shared_embedding", "shared_image_embedding"):
            renamed[f"{owner}.positional_embedding"] = state[_POSITION]
    return renamed


def _rename(key: str) -> str:
    if key in _TOP:
        return _TOP[key]
    step = _DOWNSAMPLER.match(key)
    if step:
        layer, part = divmod(int(step[1]), 3)
        name = f"layers.{layer}.{('conv', 'layer_norm')[part % 2]}" if layer < _DOWNSAMPLER_LAYERS else "final_conv"
        return f"memory_encoder.mask_downsampler.{name}.{key[step.end() :]}"
    for pattern, replacement in _RULES:
        new: Any = partial(_looked_up, replacement) if isinstance(replacement, dict) else replacement
        key = re.sub(pattern, new, key)
    return key


def _looked_up(table: dict[str, str], match: re.Match[str]) -> str:
    return table.get(match[match.lastindex or 0], match[0])
