"""SAM 2 of the `sam2` package, driven through `track_step` and the modules of its model."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from tpo_head_mask.architecture import Architecture
from tpo_head_mask.backends.base import UNKNOWN_LENGTH, Backend, Decoded, Features, Tracker, mismatches, normalised


class Sam2PackageBackend(Backend):
    name = "sam2"

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # hydra, which sam2 imports, on a newer omegaconf
            self.model: Any = _micro(architecture) if architecture.size == "micro" else _released(architecture)
        self.eval()

    @property
    def prompt_encoder(self) -> nn.Module:
        return self.model.sam_prompt_encoder

    @property
    def mask_decoder(self) -> nn.Module:
        return self.model.sam_mask_decoder

    def embed_boxes(self, boxes_xyxy: Tensor) -> Tensor:
        points = boxes_xyxy.reshape(-1, 2, 2) * self.model.image_size
        with self.turn:
            return self.prompt_encoder(points=(points, _corner_labels(points)), boxes=None, masks=None)[0]

    def encode(self, pixels: Tensor) -> Features:
        out = self.model.forward_image(normalised(pixels, self.model.no_mem_embed))
        return Features(*out["backbone_fpn"])

    def decode(
        self, features: Features, prompts_N3C: Tensor, *, multimask: bool = False, dynamic: bool = True
    ) -> Decoded:
        num = len(prompts_N3C)
        fine, middle, coarse = (m.expand(num, -1, -1, -1) for m in features.maps)
        if self.model.directly_add_no_mem_embed:
            coarse = coarse + self.model.no_mem_embed.reshape(1, -1, 1, 1)
        # The dense embedding of no mask; the prompt encoder gives it to whatever prompt it gets.
        dense = self.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand_as(coarse)
        with self.dynamic_multimask(dynamic):
            out = self.mask_decoder(
                image_embeddings=coarse,
                image_pe=self.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=prompts_N3C,
                dense_prompt_embeddings=dense,
                multimask_output=multimask,
                repeat_image=False,
                high_res_features=[fine, middle],
            )
        return _decoded(out)

    def start(self, prompts_N3C: Tensor) -> Tracker:
        return _Tracker(self, prompts_N3C)

    def load(self, state: dict[str, Tensor]) -> list[str]:
        wrong = mismatches(self.model, state)
        if not wrong:
            self.model.load_state_dict(state)
        return wrong


class _Tracker(Tracker):
    def __init__(self, backend: Sam2PackageBackend, prompts_N3C: Tensor) -> None:
        self.backend, self.prompts = backend, prompts_N3C
        self.memory: dict[str, dict[int, Any]] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
        model = backend.model
        self.reach = max(model.num_maskmem * model.memory_temporal_stride_for_eval, model.max_obj_ptrs_in_encoder)
        self.index = 0

    def step(self, features: Features) -> Decoded:
        model, index, num, first = self.backend.model, self.index, len(self.prompts), self.index == 0
        maps = [m.expand(num, -1, -1, -1) for m in features.maps]
        position = model.image_encoder.neck.position_encoding(features.coarse).expand_as(maps[-1])
        corners = self.prompts.new_zeros(num, 2, 2)
        with self.backend.hooked([self.prompts] if first else None) as collected:
            out = model.track_step(
                frame_idx=index,
                is_init_cond_frame=first,
                current_vision_feats=[m.flatten(2).permute(2, 0, 1) for m in maps],
                current_vision_pos_embeds=[position.flatten(2).permute(2, 0, 1)],
                feat_sizes=[m.shape[-2:] for m in maps],
                point_inputs={"point_coords": corners, "point_labels": _corner_labels(corners)} if first else None,
                mask_inputs=None,
                output_dict=self.memory,
                num_frames=UNKNOWN_LENGTH,
            )
        kept = {
            # bfloat16, as the package's own video predictor keeps it
            "maskmem_features": out["maskmem_features"].to(torch.bfloat16),
            "maskmem_pos_enc": out["maskmem_pos_enc"],
            "obj_ptr": out["obj_ptr"],
        }
        self.memory["cond_frame_outputs" if first else "non_cond_frame_outputs"][index] = kept
        self.memory["non_cond_frame_outputs"].pop(index - self.reach, None)
        self.index += 1
        return _decoded(collected[0]).best()


def _corner_labels(points: Tensor) -> Tensor:
    return torch.tensor([2, 3], dtype=torch.int32, device=points.device).expand(len(points), 2)


def _decoded(output: tuple[Tensor, Tensor, Tensor, Tensor]) -> Decoded:
    masks, iou, tokens, object_score_logits = output
    return Decoded(masks, iou, object_score_logits[:, 0], tokens)


# -- building ----------------------------------------------------------------------------------------------------------


def _released(a: Architecture) -> nn.Module:
    from sam2.build_sam import HF_MODEL_ID_TO_FILENAMES, build_sam2

    config_file, _ = HF_MODEL_ID_TO_FILENAMES[a.name]
    overrides = [f"++model.image_size={a.image_size}", "++model.binarize_mask_from_pts_for_mem_enc=true"]
    return build_sam2(config_file, device="cpu", hydra_overrides_extra=overrides)


def _micro(a: Architecture) -> nn.Module:
    from sam2.modeling.backbones.hieradet import Hiera
    from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder
    from sam2.modeling.memory_attention import MemoryAttention, MemoryAttentionLayer
    from sam2.modeling.memory_encoder import CXBlock, Fuser, MaskDownSampler, MemoryEncoder
    from sam2.modeling.position_encoding import PositionEmbeddingSine
    from sam2.modeling.sam.transformer import RoPEAttention
    from sam2.modeling.sam2_base import SAM2Base

    def attention(**options: Any) -> nn.Module:
        return RoPEAttention(
            feat_sizes=(a.grid, a.grid),
            embedding_dim=a.hidden_size,
            num_heads=1,
            downsample_rate=1,
            dropout=0.1,
            **options,
        )

    encoder = ImageEncoder(
        scalp=1,
        trunk=Hiera(
            embed_dim=a.embed_dim,
            num_heads=a.num_heads,
            stages=a.blocks,
            global_att_blocks=a.global_blocks,
            window_spec=a.windows,
            window_pos_embed_bkg_spatial_size=(a.position_grid, a.position_grid),
        ),
        neck=FpnNeck(
            position_encoding=PositionEmbeddingSine(a.hidden_size),
            d_model=a.hidden_size,
            backbone_channel_list=[a.embed_dim * 2**stage for stage in (3, 2, 1, 0)],
            fpn_top_down_levels=[2, 3],
            fpn_interp_model="nearest",
        ),
    )
    layer = MemoryAttentionLayer(
        activation="relu",
        cross_attention=attention(rope_k_repeat=True, kv_in_dim=a.memory_size),
        d_model=a.hidden_size,
        dim_feedforward=a.memory_mlp,
        dropout=0.1,
        pos_enc_at_attn=False,
        pos_enc_at_cross_attn_keys=True,
        pos_enc_at_cross_attn_queries=False,
        self_attention=attention(),
    )
    memory_encoder = MemoryEncoder(
        out_dim=a.memory_size,
        mask_downsampler=MaskDownSampler(embed_dim=a.hidden_size, kernel_size=3, stride=2, padding=1),
        fuser=Fuser(CXBlock(a.hidden_size, layer_scale_init_value=1e-6), num_layers=2),
        position_encoding=PositionEmbeddingSine(a.memory_size),
        in_dim=a.hidden_size,
    )
    new = a.version == "2.1"
    return SAM2Base(
        image_encoder=encoder,
        memory_attention=MemoryAttention(a.hidden_size, pos_enc_at_input=True, layer=layer, num_layers=a.memory_layers),
        memory_encoder=memory_encoder,
        image_size=a.image_size,
        sigmoid_scale_for_mem_enc=20.0,
        sigmoid_bias_for_mem_enc=-10.0,
        binarize_mask_from_pts_for_mem_enc=True,
        use_mask_input_as_output_without_sam=True,
        directly_add_no_mem_embed=True,
        use_high_res_features_in_sam=True,
        multimask_output_in_sam=True,
        multimask_min_pt_num=0,
        multimask_max_pt_num=1,
        multimask_output_for_tracking=True,
        use_multimask_token_for_obj_ptr=True,
        iou_prediction_use_sigmoid=True,
        use_obj_ptrs_in_encoder=True,
        add_tpos_enc_to_obj_ptrs=new,
        proj_tpos_enc_in_obj_ptrs=new,
        use_signed_tpos_enc_to_obj_ptrs=new,
        only_obj_ptrs_in_the_past_for_eval=True,
        pred_obj_scores=True,
        pred_obj_scores_mlp=True,
        fixed_no_obj_ptr=True,
        use_mlp_for_obj_ptr_proj=True,
        no_obj_embed_spatial=new,
        sam_mask_decoder_extra_args={
            "dynamic_multimask_via_stability": True,
            "dynamic_multimask_stability_delta": 0.05,
            "dynamic_multimask_stability_thresh": 0.98,
        },
    )
