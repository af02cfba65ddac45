"""Checkpoints of the public CG-DETR code: their names in terms of ours.

| theirs | ours |
|---|---|
| input_vid_proj, input_txt_proj .{i}.LayerNorm, .{i}.net.1 | project_video, project_text .norms.{i}, .linears.{i} |
| token_type_embeddings | types |
| dummy_rep_token, dummy_rep_pos, txtproj_encoder | dummies.tokens, .positions, .encoder |
| transformer.t2v_encoder | trunk.text_to_video |
| global_rep_token, global_rep_pos | trunk.token.prompts, .position |
| transformer.encoder | trunk.encoder |
| saliency_proj1, saliency_proj2 | trunk.score.clip_proj, .whole_proj |
| query_embed | decoder.anchors |
| transformer.decoder | decoder |
| span_embed, class_embed | decoder.span_head, .class_head |
| moment_rep_token, moment_rep_pos, transformer.mcls_encoder | alignment.moment.token, .position, .encoder |
| sent_rep_token, sent_rep_pos, scls_encoder | alignment.sentence.token, .position, .encoder |

Inside an encoder layer `self_attn.in_proj` is split into `q_proj`, `k_proj` and `v_proj`. What the public code keeps
without using it, `txt_position_embed` and `txt_proj_linear`, has no counterpart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tpo_head_temporal.config import TemporalConfig

UNUSED = ("txt_position_embed.", "txt_proj_linear.")
"""Prefixes of weights that no result depends on."""

_RULES = [
    (r"^module\.", ""),
    (r"^input_(vid|txt)_proj\.(\d+)\.LayerNorm\.", r"project_\1.norms.\2."),
    (r"^input_(vid|txt)_proj\.(\d+)\.net\.1\.", r"project_\1.linears.\2."),
    (r"^project_vid\.", "project_video."),
    (r"^project_txt\.", "project_text."),
    (r"^token_type_embeddings\.", "types."),
    (r"^dummy_rep_token$", "dummies.tokens.weight"),
    (r"^dummy_rep_pos$", "dummies.positions.weight"),
    (r"^txtproj_encoder\.", "dummies.encoder."),
    (r"^global_rep_token$", "trunk.token.prompts.weight"),
    (r"^global_rep_pos$", "trunk.token.position.weight"),
    (r"^saliency_proj1\.", "trunk.score.clip_proj."),
    (r"^saliency_proj2\.", "trunk.score.whole_proj."),
    (r"^query_embed\.", "decoder.anchors."),
    (r"^span_embed\.", "decoder.span_head."),
    (r"^class_embed\.", "decoder.class_head."),
    (r"^moment_rep_token$", "alignment.moment.token.weight"),
    (r"^moment_rep_pos$", "alignment.moment.position.weight"),
    (r"^sent_rep_token$", "alignment.sentence.token.weight"),
    (r"^sent_rep_pos$", "alignment.sentence.position.weight"),
    (r"^scls_encoder\.", "alignment.sentence.encoder."),
    (r"^transformer\.mcls_encoder\.", "alignment.moment.encoder."),
    (r"^transformer\.t2v_encoder\.", "trunk.text_to_video."),
    (r"^transformer\.encoder\.", "trunk.encoder."),
    (r"^transformer\.decoder\.", "decoder."),
    (r"^decoder\.ref_point_head\.", "decoder.query_pos."),
    (r"^decoder\.ref_anchor_head\.", "decoder.width_scale."),
    (r"^decoder\.bbox_embed\.", "decoder.anchor_update."),
    (r"\.sa_(q|k)(content|pos)_proj\.", r".self_\1_\2."),
    (r"\.sa_v_proj\.", ".self_v."),
    (r"\.ca_(q|k)(content|pos)_proj\.", r".cross_\1_\2."),
    (r"\.ca_qpos_sine_proj\.", ".cross_q_sine."),
    (r"\.ca_v_proj\.", ".cross_v."),
    (r"^(decoder\.layers\.\d+)\.self_attn\.out_proj\.", r"\1.self_out."),
    (r"^(decoder\.layers\.\d+)\.cross_attn\.out_proj\.", r"\1.cross_out."),
    (r"^(trunk\.text_to_video\.layers\.\d+)\.self_attn\.out_proj\.", r"\1.out_proj."),
    (r"\.self_attn\.", ".attention."),
    (r"\.linear1\.", ".feed_forward.fc1."),
    (r"\.linear2\.", ".feed_forward.fc2."),
    (r"\.activation\.", ".feed_forward.activation."),
]
"""Replacements, each of which is tried in turn."""


def our_name(name: str) -> str:
    """Our name of a weight of theirs; a packed `in_proj` keeps that last part."""
    for pattern, replacement in _RULES:
        name = re.sub(pattern, replacement, name)
    return name


def from_reference(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of theirs, or gradients by their names, in our names; what is unused is left out."""
    ours: dict[str, Tensor] = {}
    for name, value in weights.items():
        name = our_name(name)
        if name.startswith(UNUSED):
            continue
        match = re.fullmatch(r"(.*)\.in_proj_(weight|bias)", name)
        if match is None:
            ours[name] = value.reshape(1, -1) if name in _VECTORS else value
            continue
        for part, rows in zip("qkv", value.chunk(3), strict=True):
            ours[f"{match[1]}.{part}_proj.{match[2]}"] = rows
    return ours


_VECTORS = tuple(f"alignment.{side}.{part}.weight" for side in ("moment", "sentence") for part in ("token", "position"))
"""Stored as [d] there and as [1, d] here."""


OPTIONS = {
    "nheads": "num_heads",
    "num_prompts": "num_prompts",
    "dropout": "dropout",
    "input_dropout": "input_dropout",
    "span_loss_coef": "span_weight",
    "giou_loss_coef": "giou_weight",
    "label_loss_coef": "label_weight",
    "lw_saliency": "saliency_weight",
    "lw_wattn": "attention_weight",
    "lw_ms_align": "align_weight",
    "lw_distill": "distill_weight",
    "set_cost_span": "span_cost",
    "set_cost_giou": "giou_cost",
    "set_cost_class": "label_cost",
    "eos_coef": "background_weight",
    "saliency_margin": "margin",
}
"""Our field by the public code's option, of those that go over as they are."""


def config_of(weights: Mapping[str, Tensor], options: Mapping[str, Any], *, dropout: bool = True) -> TemporalConfig:
    """The configuration of the head whose weights these are, after their shapes.

    `options` are the public code's, for what no shape tells (`OPTIONS`, by default those published); without `dropout`
    both dropouts are 0.
    """
    ours = from_reference(weights)
    given: dict[str, Any] = {field: options[name] for name, field in OPTIONS.items() if name in options}
    if "lw_distill" in options:
        given["orthogonal_weight"] = options["lw_distill"]  # there one option weighs both losses
    if options.get("nms_thd", -1) >= 0:
        given["nms"] = options["nms_thd"]  # negative: off

    def layers(prefix: str) -> int:
        return len({match[1] for name in ours if (match := re.match(rf"{re.escape(prefix)}\.(\d+)\.", name))})

    return TemporalConfig(
        features="files",
        video_size=ours["project_video.norms.0.weight"].shape[0] - 2,  # without the endpoint columns
        text_size=ours["project_text.norms.0.weight"].shape[0],
        hidden=ours["types.weight"].shape[1],
        feed_forward=ours["trunk.encoder.layers.0.feed_forward.fc1.weight"].shape[0],
        input_layers=layers("project_video.linears"),
        cross_layers=layers("trunk.text_to_video.layers"),
        encoder_layers=layers("trunk.encoder.layers"),
        decoder_layers=layers("decoder.layers"),
        dummy_layers=layers("dummies.encoder.layers"),
        moment_layers=layers("alignment.moment.encoder.layers"),
        sentence_layers=layers("alignment.sentence.encoder.layers"),
        num_dummies=ours["dummies.tokens.weight"].shape[0],
        num_queries=ours["decoder.anchors.weight"].shape[0],
        total_prompts=ours["trunk.token.prompts.weight"].shape[0],
        **given | ({} if dropout else {"dropout": 0.0, "input_dropout": 0.0}),
    )
