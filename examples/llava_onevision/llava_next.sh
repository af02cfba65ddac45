#!/usr/bin/env bash
# Fine-tunes LLaVA-OneVision 7B with LoRA and TPO by LLaVA-NeXT's own train_mem.py. Start it in a checkout of LLaVA-NeXT.
#   llava_next.sh LAUNCHER [-- MORE ARGUMENTS OF train_mem.py]
#
#   llava_next.sh python                                              one GPU
#   llava_next.sh torchrun --nproc_per_node 8 -- --deepspeed zero2.json       eight GPUs
# The batch is gpus x per_device_train_batch_size x gradient_accumulation_steps: name the last one behind `--`.
set -euo pipefail

launcher=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    launcher+=("$1")
    shift
done
[ $# -eq 0 ] || shift

attn=$(python -c "
import torch, transformers
from tpo_plugin.training.attention import attention
print(attention('auto', transformers.Qwen2ForCausalLM, torch.bfloat16) or 'sdpa')")

exec tpo run --heads region,temporal -- "${launcher[@]}" llava/train/train_mem.py \
    --model_name_or_path lmms-lab/llava-onevision-qwen2-7b-ov \
    --version qwen_1_5 \
    --data_path data/train.json \
    --image_folder data/images \
    --video_folder data/videos \
    --vision_tower google/siglip-so400m-patch14-384 \
    --mm_projector_type mlp2x_gelu \
    --mm_vision_select_layer -2 \
    --mm_use_im_start_end False \
    --mm_use_im_patch_token False \
    --mm_patch_merge_type spatial_unpad \
    --image_aspect_ratio anyres_max_9 \
    --image_grid_pinpoints "(1x1),...,(6x6)" \
    --frames_upbound 32 \
    --lora_enable True \
    --lora_r 16 \
    --lora_alpha 32 \
    --attn_implementation "$attn" \
    --bf16 True \
    --gradient_checkpointing True \
    --lazy_preprocess True \
    --group_by_modality_length True \
    --model_max_length 32768 \
    --per_device_train_batch_size 1 \
    --gradient_accumulation_steps 16 \
    --num_train_epochs 1 \
    --learning_rate 2e-5 \
    --warmup_ratio 0.2 \
    --lr_scheduler_type cosine \
    --weight_decay 0.02 \
    --logging_steps 10 \
    --save_strategy steps \
    --save_steps 500 \
    --dataloader_num_workers 4 \
    --output_dir runs/onevision \
    "$@"
