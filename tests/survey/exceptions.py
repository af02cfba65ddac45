"""What an architecture needs beside the shrinking of its fields: by class name, by dotted path of the field."""

from __future__ import annotations

from typing import Any

MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_chunk_size": 16}
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
ROPES = {k: {"rope_type": "default", "rope_theta": 10000.0} for k in ("full_attention", "sliding_attention")}
VISION_LAYERS = [-1, -2]
PINPOINTS = [[28, 28], [28, 56], [56, 28]]
IMAGE_IDS = {"image_token_index": 5}
SAM = {"initializer_range": 0.02}
ROUND_START = {"vision_start_token_id": 6, "vision_end_token_id": 7}
INDEXER = {
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 64,
    "indexer_compress_ratio": 1,
}
NO_LAYER_INPUT = {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0, "num_kv_shared_layers": 0}

EXCEPTIONS: dict[str, dict[str, Any]] = {
    "BailingHybridForCausalLM": {"layer_group_size": 2},
    "BambaForCausalLM": MAMBA | {"attn_layer_indices": [1]},
    "CohereCompassForCausalLM": {"rope_parameters": ROPES},
    "CohereCompassForConditionalGeneration": {"text_config.rope_parameters": ROPES},
    "CTRLLMHeadModel": {"dff": 64},
    "ChameleonForConditionalGeneration": {
        "vocabulary_map": {
            "<image>": 5,
            **{
                f"IMGIMG{c}Z": 10 + i
                for i, c in enumerate(
                    ["A", "B", "C", "D", "E", "F", "G", "H", "I", "J", "BA", "BB", "BC", "BD", "BE", "BF"]
                )
            },
        },
        "vq_config.num_embeddings": 16,
        "vq_config.embed_dim": 8,
        "vq_config.resolution": 28,
        "vq_config.base_channels": 32,
        "vq_config.channel_multiplier": [1, 1],
        "vq_config.latent_channels": 8,
    },
    "Emu3ForConditionalGeneration": {
        "vocabulary_map": {
            "<image>": 5,
            "<|extra_200|>": 9,
            **{f"<|visual token {i:06d}|>": 10 + i for i in range(16)},
        },
        "vq_config.codebook_size": 16,
        "vq_config.embed_dim": 4,
        "vq_config.base_channels": 32,
        "vq_config.channel_multiplier": [1, 1, 1, 1],
    },
    "DiffusionGemmaForBlockDiffusion": {
        "text_config.num_experts": 4,
        "text_config.top_k_experts": 2,
        "text_config.moe_intermediate_size": 32,
    },
    "Dots3NoteForConditionalGeneration": {
        "vision_config.adapter_in_dim": 32,
        "vision_config.adapter_out_dim": 32,
        "audio_config.adapter_input_size": 32,
        "audio_config.adapter_out_dim": 32,
    },
    "DbrxForCausalLM": {"attn_config.rope_theta": 10000.0, "attn_config.clip_qkv": 8.0, "ffn_config.hidden_size": 32},
    "DeepseekV2ForCausalLM": {"num_experts_per_tok": 2},
    "DeepseekOcr2ForConditionalGeneration": {
        "vision_config.sam_config.downsample_channels": [32, 32],
        "vision_config.sam_config.image_size": 224,
        "vision_config.sam_config.initializer_range": 0.02,
        "text_config.num_experts_per_tok": 2,
        "text_config.mlp_layer_types": ["dense", "sparse"],
    },
    "Dots1ForCausalLM": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "Ernie4_5_VLMoeForConditionalGeneration": {"text_config.rope_parameters": MROPE | {"mrope_section": [1, 1, 2]}},
    "Gemma3nForCausalLM": {"num_kv_shared_layers": 0},
    "Gemma3nForConditionalGeneration": {"vision_config.hidden_size": 2048, "text_config.num_kv_shared_layers": 0},
    "Gemma4AssistantForCausalLM": {"text_config.class": "Gemma4TextConfig"}
    | {f"text_config.{k}": v for k, v in NO_LAYER_INPUT.items()},
    "Gemma4UnifiedAssistantForCausalLM": {
        "text_config.class": "Gemma4UnifiedTextConfig",
        "text_config.num_kv_shared_layers": 2,
    },
    "Granite4VisionForConditionalGeneration": {
        "vision_config.hidden_size": 64,
        "downsample_rate": "1/2",
        "deepstack_layer_map": [[-1, 0]],
        "spatial_target_layers": [1, 1, 1, 1],
        "image_grid_pinpoints": [[28, 28], [28, 56], [56, 28]],
    },
    "Glm46VForConditionalGeneration": {"text_config.rope_parameters": MROPE},
    "Glm4vForConditionalGeneration": {"text_config.rope_parameters": MROPE},
    "Glm4vMoeForConditionalGeneration": {"text_config.rope_parameters": MROPE | {"partial_rotary_factor": 1.0}},
    "GlmOcrForConditionalGeneration": {"text_config.rope_parameters": MROPE},
    "GPTNeoForCausalLM": {"attention_types": [[["global", "local"], 1]]},
    "GraniteMoeHybridForCausalLM": MAMBA | {"layer_types": ["mamba", "attention"]},
    "HrmTextForCausalLM": {"num_layers_per_stack": 2, "num_hidden_layers": 16},
    "HunYuanVLForConditionalGeneration": {"text_config.rope_parameters": MROPE},
    "JambaForCausalLM": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "Lfm2MoeForCausalLM": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "LongcatFlashForCausalLM": {"head_dim": 8, "qk_head_dim": 16},
    "Mamba2ForCausalLM": {"num_heads": 8, "head_dim": 8},
    "Molmo2ForConditionalGeneration": {
        "vision_config.image_size": [28, 28],
        "vision_config.num_position_embeddings": 4,
        "adapter_config.vision_feature_layer": VISION_LAYERS,
        "adapter_config.text_hidden_size": 32,
    },
    "MuseSparkForConditionalGeneration": {"audio_config.num_hidden_layers": 4, "out_hidden_size": 128},
    "NemotronForCausalLM": {"head_dim": 8},
    "NemotronH_Omni_Reasoning_V3": {"vision_config.video_temporal_patch_size": 2, "image_token_id": 5},
    "PaddleOCRVLForConditionalGeneration": {"text_config.rope_parameters": MROPE},
    "Qwen2_5OmniThinkerForConditionalGeneration": {**ROUND_START, "text_config.rope_parameters": MROPE},
    "Qwen2_5_VLForConditionalGeneration": {"text_config.rope_parameters": MROPE},
    "Qwen4ExpForCausalLM": INDEXER,
    "Qwen4ExpForConditionalGeneration": {f"text_config.{k}": v for k, v in INDEXER.items()},
    "Qwen2VLForConditionalGeneration": {"text_config.rope_parameters": MROPE},
    "ReformerModelWithLMHead": {
        "is_decoder": True,
        "axial_pos_embds": False,
        "local_attn_chunk_length": 5,
        "lsh_attn_chunk_length": 5,
        "attn_layers": ["local", "local"],
        "hash_seed": 0,
    },
    "RecurrentGemmaForCausalLM": {"num_hidden_layers": 3},
    "Step3p7ForConditionalGeneration": {"text_config.sliding_window": 64},
    "UdopForConditionalGeneration": {"decoder_start_token_id": 0},
    "VisionEncoderDecoderModel": {
        "decoder.add_cross_attention": True,
        "decoder.is_decoder": True,
        "decoder_start_token_id": 1,
        "pad_token_id": 0,
    },
    "xLSTMForCausalLM": {"hidden_size": 64, "embedding_dim": 64, "qk_dim_factor": 1.0},
    "ZambaForCausalLM": {
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
    },
    "XmodForCausalLM": {"default_language": "en_XX"},
    "AriaForConditionalGeneration": {"projector_patch_to_query_dict": {"4": 2}},
    "Blip2ForConditionalGeneration": IMAGE_IDS,
    "InstructBlipForConditionalGeneration": IMAGE_IDS,
    "InstructBlipVideoForConditionalGeneration": {"video_token_index": 5},
    "Gemma3ForConditionalGeneration": {"mm_tokens_per_image": 4},
    "T5Gemma2ForConditionalGeneration": {"encoder.mm_tokens_per_image": 4},
    "Gemma4ForConditionalGeneration": {"vision_config.class": "Gemma4VisionConfig"},
    "Gemma4UnifiedForConditionalGeneration": {
        "vision_config.class": "Gemma4UnifiedVisionConfig",
        "vision_config.output_proj_dims": 32,
    },
    "GotOcr2ForConditionalGeneration": {"vision_config.initializer_range": 0.02},
    "DeepseekVLHybridForConditionalGeneration": {
        "high_res_vision_config.initializer_range": 0.02,
        "high_res_vision_config.global_attn_indexes": [0],
    },
    "Pix2StructForConditionalGeneration": {"vision_config.patch_embed_hidden_size": 588},
    "Kosmos2_5ForConditionalGeneration": {"vision_config.patch_embed_hidden_size": 588},
    "Qwen3OmniMoeThinkerForConditionalGeneration": {**ROUND_START},
    "MllamaForConditionalGeneration": {
        "text_config.cross_attention_layers": [1],
        "vision_config.vision_output_dim": 96,
        "vision_config.intermediate_layers_indices": [0, 1],
        "vision_config.max_num_tiles": 2,
        "vision_config.supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
    },
    "LlavaNextForConditionalGeneration": {"image_grid_pinpoints": PINPOINTS},
    "LlavaNextVideoForConditionalGeneration": {"image_grid_pinpoints": PINPOINTS},
    "LlavaOnevisionForConditionalGeneration": {"image_grid_pinpoints": PINPOINTS},
    "FalconH1ForCausalLM": {"mamba_chunk_size": 16, "mamba_n_heads": 8, "mamba_d_ssm": 64, "mamba_d_head": 8},
    "Florence2ForConditionalGeneration": {"vision_config.patch_size": [7, 3, 3, 3], "vision_config.image_size": 64},
    "VipLlavaForConditionalGeneration": {"vision_feature_layers": [-1, -2]},
    "BltForCausalLM": {
        "num_hidden_layers": 2,
        "encoder_config.hidden_size_global": 32,
        "decoder_config.hidden_size_global": 32,
    },
    "Llama4ForConditionalGeneration": {
        "vision_config.vision_output_dim": 32,
        "vision_config.projector_input_dim": 32,
        "vision_config.projector_output_dim": 32,
        "vision_config.intermediate_size": 128,
    },
    "PPFormulaNetForConditionalGeneration": {"vision_config.initializer_range": 0.02},
    "GraniteDoclingForConditionalGeneration": {
        "vision_config.scale_factor": 2,
    },
    "Kimi_K25ForConditionalGeneration": {
        "vision_config.pos_emb_width": 64,
    },
    "MiniCPMOcrForConditionalGeneration": {
        "image_token_id": 5,
        "video_token_id": 6,
    },
    "MiniCPMV4_6ForConditionalGeneration": {
        "image_token_id": 5,
        "video_token_id": 6,
    },
    "MiniCPMV4_7ForConditionalGeneration": {
        "image_token_id": 5,
        "video_token_id": 6,
    },
    "MuseGlimmerForConditionalGeneration": {
        "out_hidden_size": 128,
    },
    "UnlimitedOcrForConditionalGeneration": {
        "vision_config.sam_config.downsample_channels": [32, 32],
        "vision_config.sam_config.initializer_range": 0.02,
    },
    "FastVlmForConditionalGeneration": {
        "vision_config": {"model_type": "timm_wrapper", "architecture": "test_resnet", "hidden_size": 96},
    },
    "PerceptionLMForConditionalGeneration": {
        "vision_config": {
            "model_type": "timm_wrapper",
            "architecture": "test_vit",
            "model_args": {"embed_dim": 64, "img_size": 28, "patch_size": 14},
        },
    },
}
