"""Both backends compute the same, and the same as the stock packages' own video predictors."""

from __future__ import annotations

import contextlib
import copy
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tpo_head_mask.architecture import architecture_of
from tpo_head_mask.cache import concatenated
from tpo_head_mask.config import MaskConfig
from tpo_head_mask.inputs import to_square

NUM_FRAMES, SIDE = 20, 64
CLOSE = {"rtol": 0.0, "atol": 2e-5}


@pytest.fixture(scope="module")
def video() -> np.ndarray:
    """uint8 [T, H, W, 3]: a bright disc that moves, disappears for a while and returns."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:48, :80]
    frames = rng.integers(0, 80, (NUM_FRAMES, 48, 80, 3))
    for t in range(NUM_FRAMES):
        if not 8 <= t < 12:
            frames[t][(x - 10 - 3 * t) ** 2 + (y - 24) ** 2 < 64] += 150
    return frames.astype(np.uint8)


def steps(backend: Any, video: np.ndarray, boxes: torch.Tensor) -> list[Any]:
    with torch.no_grad():
        tracker = backend.start(backend.embed_boxes(boxes))
        return [tracker.step(backend.encode(to_square(f, SIDE)[None])) for f in video]


BOXES = torch.tensor([[0.0, 0.3, 0.25, 0.7], [0.5, 0.1, 0.9, 0.4], [0.0, 0.0, 1.0, 1.0]])


@pytest.mark.parametrize("version", ["2.0", "2.1"])
def test_the_backends_agree_on_a_whole_video(build, video, version):
    pytest.importorskip("transformers.models.sam2_video")
    pytest.importorskip("sam2")
    architecture = architecture_of(MaskConfig(size="micro", version=version, image_size=SIDE))
    one, other = (build(name, architecture) for name in ("sam2", "transformers"))
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    assert other.load(one.model.state_dict()) == []
    torch.testing.assert_close(one.embed_boxes(BOXES), other.embed_boxes(BOXES), **CLOSE)
    for a, b in zip(steps(one, video, BOXES), steps(other, video, BOXES), strict=True):
        torch.testing.assert_close(a.mask_logits, b.mask_logits, **CLOSE)
        torch.testing.assert_close(a.iou, b.iou, **CLOSE)
        torch.testing.assert_close(a.object_score_logits, b.object_score_logits, **CLOSE)


@pytest.mark.filterwarnings("ignore")
def test_tracking_is_that_of_the_packages_own_predictor(build, video, tmp_path):
    pytest.importorskip("sam2")
    from sam2.sam2_video_predictor import SAM2VideoPredictor

    backend = build("sam2", architecture_of(MaskConfig(size="micro", image_size=SIDE)))
    with torch.no_grad():
        for parameter in backend.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    predictor = backend.model
    for index, frame in enumerate(video):  # its reader takes JPEG alone: what it reads is what we track
        Image.fromarray(frame).save(tmp_path / f"{index}.jpg", quality=95)
    read = np.stack([np.asarray(Image.open(tmp_path / f"{i}.jpg").convert("RGB")) for i in range(NUM_FRAMES)])
    ours = steps(backend, read, BOXES)
    predictor.__class__ = type("Predictor", (SAM2VideoPredictor,), {})
    predictor.fill_hole_area, predictor.non_overlap_masks = 0, False
    predictor.clear_non_cond_mem_around_input = predictor.add_all_frames_to_correct_as_cond = False
    state = predictor.init_state(str(tmp_path))
    for number, box in enumerate(BOXES):  # normalize_coords=False: shares of the frame, not pixels
        predictor.add_new_points_or_box(state, 0, number, box=box, normalize_coords=False)
    for frame, _, logits in predictor.propagate_in_video(state):
        gated = torch.where(ours[frame].object_score_logits[:, None, None, None] > 0, ours[frame].mask_logits, -1024.0)
        resized = torch.nn.functional.interpolate(gated, video.shape[1:3], mode="bilinear", align_corners=False)
        torch.testing.assert_close(logits, resized, rtol=0.0, atol=1e-4)


def session(tracker: Any) -> Any:
    """Of transformers' tracker of one video."""
    (video,) = tracker.videos
    return video.session


def test_a_tracker_keeps_no_more_than_the_memory_bank(micro, video):
    """After many frames as much as after those that the memory reaches back to."""

    def kept(tracker: Any) -> int:
        stores = [tracker.memory] if hasattr(tracker, "memory") else session(tracker).output_dict_per_obj.values()
        tensors = [
            value
            for store in stores
            for part in store.values()
            for output in part.values()
            for value in output.values()
            if isinstance(value, torch.Tensor)
        ]
        return sum(t.numel() for t in tensors)

    with torch.no_grad():
        tracker = micro.start(micro.embed_boxes(BOXES))
        features = micro.encode(to_square(video[0], SIDE)[None])
        sizes = []
        for _ in range(40):
            tracker.step(features)
            sizes.append(kept(tracker))
    assert sizes[-1] == sizes[20] > sizes[5]
    if hasattr(tracker, "videos"):
        assert all(len(frames) <= 17 for frames in session(tracker).frames_tracked_per_obj.values())
        assert session(tracker).processed_frames is None


def test_several_objects_are_tracked_as_each_alone(micro, video):
    together = steps(micro, video[:6], BOXES)
    for number, box in enumerate(BOXES):
        for a, b in zip(together, steps(micro, video[:6], box[None]), strict=True):
            torch.testing.assert_close(a.mask_logits[number], b.mask_logits[0], **CLOSE)


def test_objects_of_different_videos_are_tracked_as_each_alone(micro, video):
    clips = [video[:4], video[4:8, :, ::-1].copy()]
    with torch.no_grad():
        features = [micro.encode(torch.stack([to_square(frame, SIDE) for frame in clip])) for clip in clips]
        tracker = micro.start(micro.embed_boxes(BOXES[:2]))
        frames = concatenated(features)
        together = [tracker.step(frames[[t, 4 + t]]) for t in range(4)]
    for number, clip in enumerate(clips):
        for a, b in zip(together, steps(micro, clip, BOXES[number : number + 1]), strict=True):
            torch.testing.assert_close(a.mask_logits[number], b.mask_logits[0], **CLOSE)
            torch.testing.assert_close(a.iou[number], b.iou[0], **CLOSE)


def test_gradients_flow_from_a_later_frame_to_the_prompt(micro, video):
    prompts = micro.embed_boxes(BOXES).detach().requires_grad_()
    with torch.no_grad():
        features = micro.encode(torch.stack([to_square(f, SIDE) for f in video[:3]]))
    tracker = micro.start(prompts)
    outputs = [tracker.step(features[t : t + 1]) for t in range(3)]
    (gradient,) = torch.autograd.grad(outputs[2].mask_logits.sum(), prompts)
    assert gradient.isfinite().all()
    # SAM 2 cuts the memory off from an object that it does not see on the prompted frame.
    seen = outputs[0].object_score_logits > 0
    assert seen.any()
    assert (gradient[seen].flatten(1).abs().sum(1) > 0).all()


def test_hooks_are_taken_off_again(micro, video):
    steps(micro, video[:2], BOXES)
    assert not micro.prompt_encoder._forward_hooks
    assert not micro.mask_decoder._forward_hooks


def in_threads(work: Callable[[int], Any], num: int) -> list[Any]:
    """What `work(number)` gives, each in a thread of its own, all at once."""
    with ThreadPoolExecutor(num) as pool:
        return list(pool.map(work, range(num)))


def test_threads_do_not_get_each_others_prompts(micro):
    """While one thread has its prompts in the place of a box, another embeds boxes of its own."""
    with torch.no_grad():
        alone = micro.embed_boxes(BOXES)
        mine = torch.randn_like(alone[:1])
        given = mine if micro.name == "sam2" else mine[:, None]
        with ThreadPoolExecutor(1) as pool:
            with micro.hooked([given]):
                other = pool.submit(torch.no_grad()(micro.embed_boxes), BOXES)
                with contextlib.suppress(TimeoutError):
                    other.result(timeout=0.5)  # it waits for its turn
                own = micro.embed_boxes(BOXES[:1])
            torch.testing.assert_close(other.result(), alone)
    torch.testing.assert_close(own, mine)


def test_videos_in_several_threads_at_once(micro, video):
    def tracked(number: int) -> list[torch.Tensor]:
        boxes = BOXES[number % 3 :][:1]
        return [decoded.mask_logits for decoded in steps(micro, video[:6], boxes)]

    alone = [tracked(number) for number in range(6)]
    for found, wanted in zip(in_threads(tracked, 6), alone, strict=True):
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, **CLOSE)


def test_the_switch_of_one_thread_is_not_seen_by_another(micro):
    entered, done = threading.Event(), threading.Event()

    def switched() -> bool:
        with micro.dynamic_multimask(True):
            entered.set()
            done.wait(timeout=60)
            return micro.mask_decoder.dynamic_multimask_via_stability

    with ThreadPoolExecutor(1) as pool:
        with micro.dynamic_multimask(False):
            other = pool.submit(switched)
            entered.wait(timeout=0.5)  # it waits for its turn
            seen = micro.mask_decoder.dynamic_multimask_via_stability
            done.set()
        assert other.result()
    assert not seen


def test_a_copy_takes_turns_of_its_own(micro):
    with micro.turn:
        for same in (copy.deepcopy(micro), pickle.loads(pickle.dumps(micro))):
            with ThreadPoolExecutor(1) as pool, torch.no_grad():
                found = pool.submit(torch.no_grad()(same.embed_boxes), BOXES).result(timeout=60)
            torch.testing.assert_close(found, micro.embed_boxes(BOXES))
