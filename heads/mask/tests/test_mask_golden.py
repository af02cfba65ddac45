"""Equality with SAM 2's own prompt encoder, mask decoder and gradients: `golden/sam2_prompt`, for both backends.

The folder `golden` is that of the environment variable TPO_GOLDEN, by default the one in shared/.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from tpo_head_mask.architecture import architecture_of
from tpo_head_mask.backends.base import Features
from tpo_head_mask.backends.names import to_transformers
from tpo_head_mask.config import MaskConfig

SHARED = Path(__file__).resolve().parents[4] / "shared"
FOLDER = Path(os.environ.get("TPO_GOLDEN", SHARED / "golden")) / "sam2_prompt"
LOGITS = {"rtol": 0.0, "atol": 1e-4}
CLOSE = {"rtol": 0.0, "atol": 1e-5}
WAYS = {
    "single": {"multimask": False, "dynamic": False},
    "single_dynamic": {"multimask": False, "dynamic": True},
    "multi": {"multimask": True},
}

if not (FOLDER / "golden.safetensors").is_file():
    pytest.skip(f"needs shared/ (golden data): no golden.safetensors in {FOLDER}", allow_module_level=True)


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(FOLDER / "golden.safetensors")


@pytest.fixture(scope="module")
def sam(backend_name: str, build: Any, golden: dict[str, Tensor]) -> Any:
    """Hiera tiny of SAM 2.0 at the golden size, with the golden weights where the file has them."""
    side = 16 * golden["image_embeddings"].shape[-1]
    backend = build(backend_name, architecture_of(MaskConfig(size="tiny", version="2.0", image_size=side)))
    weights = {key: value.float() for key, value in load_file(FOLDER / "weights_fp16.safetensors").items()}
    if backend_name == "transformers":
        weights = to_transformers(weights)
    result = backend.model.load_state_dict(weights, strict=False)
    assert not result.unexpected_keys
    parts = ("sam_prompt_encoder.", "sam_mask_decoder.", "prompt_encoder.", "mask_decoder.", "obj", "no_obj")
    assert not [key for key in result.missing_keys if key.startswith(parts) and "tpos" not in key]
    return backend.requires_grad_(False)


@pytest.fixture(scope="module")
def features(sam: Any, golden: dict[str, Tensor]) -> Features:
    """The golden image's, without the no-memory embedding that the golden embeddings hold."""
    no_memory = getattr(sam.model, "no_mem_embed", getattr(sam.model, "no_memory_embedding", None))
    coarse = golden["image_embeddings"] - no_memory.reshape(1, -1, 1, 1)
    return Features(golden["high_res_feats_0"], golden["high_res_feats_1"], coarse)


def test_prompt_embeddings_of_boxes(sam, golden):
    torch.testing.assert_close(sam.embed_boxes(golden["boxes_norm_xyxy"]), golden["sparse_embeddings"], **CLOSE)


def test_the_padding_point_is_the_same_for_every_box(sam, golden):
    padding = sam.embed_boxes(golden["boxes_norm_xyxy"])[:, 2]
    assert (padding == padding[0]).all()


@pytest.mark.parametrize("way", WAYS)
def test_masks_and_scores_of_boxes(sam, features, golden, way):
    out = sam.decode(features, golden["sparse_embeddings"], **WAYS[way])
    torch.testing.assert_close(out.mask_logits, golden[f"{way}.low_res_masks"], **LOGITS)
    torch.testing.assert_close(out.iou, golden[f"{way}.iou_predictions"], **CLOSE)
    torch.testing.assert_close(out.object_score_logits[:, None], golden[f"{way}.object_score_logits"], **CLOSE)
    torch.testing.assert_close(out.tokens, golden[f"{way}.sam_tokens"], **CLOSE)


def test_embeddings_in_place_of_a_box(sam, features, golden):
    """Through SAM 2's own tracking step, with the prompt encoder's sparse output replaced."""
    tracker = sam.start(golden["tpo.sparse_replaced"])
    with torch.no_grad():
        out = tracker.step(features)
    seen = out.object_score_logits[:, None, None, None] > 0
    assert 0 < seen.sum() < len(seen) or len(seen) < 4, "the golden set is to have seen and unseen objects"
    gated = torch.where(seen, out.mask_logits, -1024.0)
    torch.testing.assert_close(gated, golden["tpo.low_res_masks"], **LOGITS)
    torch.testing.assert_close(out.iou, golden["tpo.ious"], **CLOSE)
    torch.testing.assert_close(out.object_score_logits[:, None], golden["tpo.object_score_logits"], **CLOSE)
    torch.testing.assert_close(pointers(tracker, len(seen)), golden["tpo.obj_ptr"], **CLOSE)


def pointers(tracker: Any, num: int) -> Tensor:
    if hasattr(tracker, "memory"):
        return tracker.memory["cond_frame_outputs"][0]["obj_ptr"]
    stores = [store for video in tracker.videos for store in video.session.output_dict_per_obj.values()]
    outputs = [store["cond_frame_outputs"][0] for store in stores]
    return torch.cat([out["object_pointer"] for out in outputs]).reshape(num, -1)


@pytest.mark.parametrize("through_tracking", [False, True], ids=["decoder", "tracking"])
def test_gradients_reach_the_embeddings(sam, features, golden, through_tracking):
    prompts = golden["tpo.sparse_replaced"].clone().requires_grad_()
    if through_tracking:
        with sam.dynamic_multimask(False):
            masks = sam.start(prompts).step(features).mask_logits
    else:
        masks = sam.decode(features, prompts, dynamic=False).mask_logits
    (masks * golden["tpo.grad_cotangent"]).sum().backward()
    torch.testing.assert_close(prompts.grad, golden["tpo.grad_sparse"], **LOGITS)
