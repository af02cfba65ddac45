"""SAM 2 of transformers: `Sam2VideoModel`, which has all parts of `Sam2Model`, driven through its session."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    Sam2HieraDetConfig,
    Sam2VideoConfig,
    Sam2VideoInferenceSession,
    Sam2VideoMaskDecoderConfig,
    Sam2VideoModel,
    Sam2VideoPromptEncoderConfig,
    Sam2VisionConfig,
)

from tpo_head_mask.architecture import Architecture
from tpo_head_mask.backends.base import UNKNOWN_LENGTH, Backend, Decoded, Features, Tracker, mismatches, normalised
from tpo_head_mask.backends.names import to_transformers

_POSITIONS = ("prompt_encoder.shared_embedding", "shared_image_embedding")


class TransformersBackend(Backend):
    name = "transformers"

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.model: Any = Sam2VideoModel(_config(architecture))
        with torch.no_grad():  # as in the sam2 package; zero here would cut the memory off from the objects
            for name in ("memory_temporal_positional_encoding", "no_object_pointer"):
                nn.init.trunc_normal_(getattr(self.model, name), std=0.02)
            self.model.shared_image_embedding.load_state_dict(self.prompt_encoder.shared_embedding.state_dict())
        self.eval()

    @property
    def prompt_encoder(self) -> nn.Module:
        return self.model.prompt_encoder

    @property
    def mask_decoder(self) -> nn.Module:
        return self.model.mask_decoder

    def embed_boxes(self, boxes_xyxy: Tensor) -> Tensor:
        if not len(boxes_xyxy):
            return boxes_xyxy.new_zeros(0, 3, self.architecture.hidden_size)
        boxes = boxes_xyxy[:, None] * self.architecture.image_size
        with self.turn:
            found = self.prompt_encoder(input_points=None, input_labels=None, input_boxes=boxes, input_masks=None)
        return found[0][:, 0]

    def encode(self, pixels: Tensor) -> Features:
        out = self.model.vision_encoder(normalised(pixels, self.model.no_memory_embedding))
        fine, middle, coarse = out.fpn_hidden_states
        return Features(self.mask_decoder.conv_s0(fine), self.mask_decoder.conv_s1(middle), coarse)

    def decode(
        self, features: Features, prompts_N3C: Tensor, *, multimask: bool = False, dynamic: bool = True
    ) -> Decoded:
        num = len(prompts_N3C)
        fine, middle, coarse = (m.expand(num, -1, -1, -1) for m in features.maps)
        coarse = coarse + self.model.no_memory_embedding.reshape(1, -1, 1, 1)
        with self.dynamic_multimask(dynamic):
            out = self.mask_decoder(
                image_embeddings=coarse,
                image_positional_embeddings=self.model.get_image_wide_positional_embeddings().expand_as(coarse),
                sparse_prompt_embeddings=prompts_N3C[:, None],
                dense_prompt_embeddings=self.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand_as(coarse),
                multimask_output=multimask,
                high_resolution_features=[fine, middle],
            )
        return _decoded([out])

    def start(self, prompts_N3C: Tensor) -> Tracker:
        return _Tracker(self, prompts_N3C)

    def load(self, state: dict[str, Tensor]) -> list[str]:
        renamed = to_transformers(state) if any(key.startswith("sam_") for key in state) else dict(state)
        first, second = (f"{owner}.positional_embedding" for owner in _POSITIONS)
        for one, other in ((first, second), (second, first)):  # saved once where a version ties them
            if one in renamed:
                renamed.setdefault(other, renamed[one])
        wrong = mismatches(self.model, renamed)
        if not wrong:
            self.model.load_state_dict(renamed)
        return wrong


class _Session(Sam2VideoInferenceSession):
    """A session that keeps no frames: their features are put into its cache."""

    @property
    def num_frames(self) -> int:
        return UNKNOWN_LENGTH


class _Tracker(Tracker):
    def __init__(self, backend: TransformersBackend, prompts_N3C: Tensor) -> None:
        self.backend, self.prompts = backend, prompts_N3C
        self.videos: list[_Video] = []

    def step(self, features: Features) -> Decoded:
        if not self.videos:
            groups = self.prompts.split(len(self.prompts) if len(features) == 1 else 1)
            self.videos = [_Video(self.backend, group) for group in groups]
        frames = [features[number : number + 1] for number in range(len(features))]
        outputs = [video.step(frame) for video, frame in zip(self.videos, frames, strict=True)]
        return _decoded([each for output in outputs for each in output]).best()


class _Video:
    """Objects of one video."""

    def __init__(self, backend: TransformersBackend, prompts_N3C: Tensor) -> None:
        self.backend, self.prompts = backend, prompts_N3C
        side, device = backend.architecture.image_size, prompts_N3C.device
        self.session = _Session(
            video_height=side,
            video_width=side,
            inference_device=device,
            inference_state_device=device,
            dtype=prompts_N3C.dtype,
        )
        labels = torch.tensor([[[2, 3]]], dtype=torch.int32)
        for number in range(len(prompts_N3C)):  # a box without an extent, whose embedding is replaced
            index = self.session.obj_id_to_idx(number)
            self.session.add_point_inputs(index, 0, {"point_coords": torch.zeros(1, 1, 2, 2), "point_labels": labels})
        self.session.obj_with_new_inputs = list(range(len(prompts_N3C)))
        config = backend.model.config
        self.reach = max(config.num_maskmem, config.max_object_pointers_in_encoder)
        self.index = 0

    def step(self, features: Features) -> list[tuple[Tensor, ...]]:
        """What the decoder says of each object."""
        model, index, session = self.backend.model, self.index, self.session
        position = model.vision_encoder.neck.position_encoding(
            features.coarse.shape, features.coarse.device, features.coarse.dtype
        ).to(features.coarse)
        flat = [m.flatten(2).permute(2, 0, 1) for m in features.maps]
        session.cache.cache_vision_features(
            index, {"vision_feats": flat, "vision_pos_embeds": [position.flatten(2).permute(2, 0, 1)]}
        )
        with self.backend.hooked([p[None, None] for p in self.prompts] if index == 0 else None) as collected:
            # Under the model's inference_mode decorator, which would keep gradients out of training.
            type(model).forward.__wrapped__(model, session, frame_idx=index)
        for number in range(len(self.prompts)):
            outputs = session.output_dict_per_obj[number]
            outputs["non_cond_frame_outputs"].pop(index - self.reach, None)
            session.frames_tracked_per_obj[number].pop(index - self.reach, None)
            newest = outputs["cond_frame_outputs" if index == 0 else "non_cond_frame_outputs"][index]
            for large in ("high_res_masks", "pred_masks"):
                newest.pop(large, None)
        self.index += 1
        return collected


def _decoded(outputs: list[tuple[Tensor, ...]]) -> Decoded:
    """From the decoder's outputs, each [n, 1, M, ...]."""
    masks, iou, tokens, scores = (torch.cat(parts)[:, 0] for parts in zip(*(o[:4] for o in outputs), strict=True))
    return Decoded(masks, iou, scores[:, 0], tokens)


def _config(a: Architecture) -> Sam2VideoConfig:
    widths = [a.embed_dim * 2**stage for stage in range(4)]
    vision = Sam2VisionConfig(
        backbone_config=Sam2HieraDetConfig(
            hidden_size=a.embed_dim,
            num_attention_heads=a.num_heads,
            image_size=[a.image_size, a.image_size],
            blocks_per_stage=list(a.blocks),
            embed_dim_per_stage=widths,
            num_attention_heads_per_stage=[a.num_heads * 2**stage for stage in range(4)],
            window_size_per_stage=list(a.windows),
            window_positional_embedding_background_size=[a.position_grid, a.position_grid],
            global_attention_blocks=list(a.global_blocks),
        ),
        backbone_channel_list=widths[::-1],
        backbone_feature_sizes=[[a.grid * scale, a.grid * scale] for scale in (4, 2, 1)],
        fpn_hidden_size=a.hidden_size,
    )
    new = a.version == "2.1"
    return Sam2VideoConfig(
        vision_config=vision,
        prompt_encoder_config=Sam2VideoPromptEncoderConfig(hidden_size=a.hidden_size, image_size=a.image_size),
        mask_decoder_config=Sam2VideoMaskDecoderConfig(hidden_size=a.hidden_size),
        image_size=a.image_size,
        enable_occlusion_spatial_embedding=new,
        enable_temporal_pos_encoding_for_object_pointers=new,
        memory_attention_hidden_size=a.hidden_size,
        memory_attention_num_layers=a.memory_layers,
        memory_attention_feed_forward_hidden_size=a.memory_mlp,
        memory_attention_rope_feat_sizes=[a.grid, a.grid],
        memory_encoder_hidden_size=a.hidden_size,
        memory_encoder_output_channels=a.memory_size,
        mask_downsampler_embed_dim=a.hidden_size,
        memory_fuser_embed_dim=a.hidden_size,
        memory_fuser_intermediate_dim=4 * a.hidden_size,
    )
