"""What a head sees of the host: text and frames of its own sample, the same in training and in all generation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
import zoo
from registered import registered
from torch import Tensor

import tpo_plugin as tpo
from tpo_plugin.positions import text_groups
from tpo_plugin.seen import HostFeatures, Seen

VIDEO_HOSTS = {"qwen2_vl_video": 2, "video_llava": 8, "llava_onevision": 3}
"""Frames that the vision tower of each sees of a row's video."""


NOTHING = torch.zeros(0, 1)


class SeerHead(tpo.TaskHead):
    """Gives back what it sees."""

    def __init__(self, config: tpo.HeadConfig, hidden_size: int) -> None:
        super().__init__()

    def forward(self, e_ND: Tensor, seen: tpo.HostFeatures) -> dict[str, Tensor]:
        text, words = seen.text.sum(1), seen.words.sum(1)
        return {"state": e_ND, "text": text, "words": words, "count": seen.text_mask.sum(1), "frames": seen.vision}

    def loss(self, outputs: dict[str, Tensor], targets: dict[str, Any], num_targets: Tensor | int) -> dict[str, Tensor]:
        return {"loss_seer": sum(outputs[name].sum() for name in ("text", "frames")) / num_targets}


@pytest.fixture
def seer() -> Iterator[str]:
    with registered("seer", SeerHead) as name:
        yield name


def video_host(name: str) -> tuple[zoo.TinyHost, Any, dict[str, Any]]:
    """A host, its model, and a batch of two questions about a video each; row 0 has left padding."""
    host = zoo.host(name)
    if host.missing:
        pytest.skip(f"the installed transformers has no {host.model_class}")
    if name == "llava_onevision":  # a token for each frame of 28 x 28, and one that ends the clip
        ids = (zoo.VIDEO,) * 4
        frames = torch.randn(2, 3, 3, 28, 28, generator=torch.Generator().manual_seed(2))
        host = zoo.TinyHost(name, host.model_class, host.config, lambda n: {"pixel_values_videos": frames[:n]}, ids)
    model = host.build()
    batch = zoo.example(host, model, media=True, padded=True)
    return host, model, batch | {"task_frames": [[8], [8]] if name == "video_llava" else [[VIDEO_HOSTS[name]]] * 2}


def expected_frames(model: Any, batch: dict[str, Any]) -> Tensor:
    """The mean over patches of each frame, computed on its own: [B, F, C]."""
    outputs: list[Any] = []
    tower = model.tpo.host.towers[0]
    # Of packed patches the tower of transformers 4 returns those that are merged already.
    last = tower.blocks[-1] if hasattr(tower, "blocks") else tower
    handle = last.register_forward_hook(lambda module, args, output: outputs.append(output))
    with torch.no_grad():
        model(**{k: v for k, v in batch.items() if not k.startswith(("task", "labels"))})
    handle.remove()
    (states,) = [getattr(output, "last_hidden_state", output) for output in outputs]
    frames = sum(sum(row) for row in batch["task_frames"])
    return torch.stack([part.flatten(0, -2).mean(0) for part in states.chunk(frames)]).unflatten(0, (2, -1))


def ordinary(ids: Tensor) -> Tensor:
    """Words, and the marks around a video, which are no special tokens of the zoo's tokenizer."""
    return ids >= zoo.VISION_START


@pytest.mark.parametrize("name", VIDEO_HOSTS)
def test_a_head_sees_the_text_and_frames_of_its_sample(seer: str, name: str) -> None:
    host, model, batch = video_host(name)
    tpo.apply_tpo(model, zoo.tokenizer(), heads=[seer])
    both = zoo.with_tasks(host, model, batch, seer)
    out = model(**both, task_targets={seer: {"x": torch.zeros(4, 1)}}, output_hidden_states=True)
    seen = out.tpo.outputs[seer]
    ids, hidden = both["input_ids"], out.hidden_states[-1]
    embedded = model.get_input_embeddings().weight
    words = ordinary(ids) & (both["labels"] == -100) & (ids != model.tpo.token_ids[seer][1])
    for k, row in enumerate((0, 0, 1, 1)):
        assert seen["count"][k] == words[row].sum() > 7
        torch.testing.assert_close(seen["text"][k], hidden[row, words[row]].sum(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(seen["words"][k], embedded[ids[row, words[row]]].sum(0), rtol=1e-4, atol=1e-5)
    frames = expected_frames(model, batch)
    assert frames.shape[1] == VIDEO_HOSTS[name]
    assert name != "qwen2_vl_video" or frames.shape[2] == model.config.vision_config.embed_dim
    torch.testing.assert_close(seen["frames"], frames[[0, 0, 1, 1]], rtol=1e-4, atol=1e-5)
    assert frames[0].sub(frames[1]).abs().max() > 1e-2
    out.tpo.losses[seer].backward()
    assert sum(p.grad.abs().sum() for p in model.tpo.host.towers[0].parameters() if p.grad is not None) > 0


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"num_beams": 2, "num_return_sequences": 2}], ids=str)
@pytest.mark.parametrize("name", VIDEO_HOSTS)
def test_generation_shows_what_training_shows(seer: str, name: str, options: dict[str, Any]) -> None:
    if name == "qwen2_vl_video" and transformers.__version__ < "4.46":
        pytest.skip("its plain forward, which this test compares with, needs position_ids that generate makes")
    _, model, batch = video_host(name)
    tpo.apply_tpo(model, zoo.tokenizer(), heads=[seer])
    zoo.talkative(model)
    with torch.no_grad():
        frames = expected_frames(model, batch)
        truth = model(**batch, output_hidden_states=True).hidden_states[-1]
    words = ordinary(batch["input_ids"])
    options = {"max_new_tokens": 12, "do_sample": False, "suppress_tokens": zoo.MEDIA, "route": seer, **options}
    out = model.tpo.generate(**batch, **options)
    copies = options.get("num_return_sequences", 1)
    found = [(row // copies, p.value) for row, ps in enumerate(out.predictions) for p in ps if not p.cut_off]
    assert {row for row, _ in found} == {0, 1}
    for row, value in found:
        torch.testing.assert_close(value["text"], truth[row, words[row]].sum(0), rtol=1e-3, atol=1e-4)
        embedded = model.get_input_embeddings().weight[batch["input_ids"][row, words[row]]].sum(0)
        torch.testing.assert_close(value["words"], embedded, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(value["frames"], frames[row], rtol=1e-3, atol=1e-4)


def test_questions_of_a_conversation() -> None:
    ids = torch.tensor([[1, 8, 9, 30, 31, 10, 11, 30, 2], [0, 0, 8, 9, 30, 31, 30, 12, 2]])
    labels = torch.where((ids == 30) | (ids == 2), ids, -100)
    groups = text_groups(ids, labels, special=[0, 1, 2, 31])
    assert groups == [(0, [1, 2]), (0, [5, 6]), (1, [2, 3]), (1, [7])]
    assert text_groups(ids, None, special=[0, 1, 2, 30, 31]) == [(0, [1, 2, 5, 6]), (1, [2, 3, 7])]
    kept = Seen(groups, None)
    kept.keep_text(torch.arange(18.0).view(2, 9, 1))
    for shape in ((2, 7, 1), (1, 18, 1)):  # what has not all of the text, as a decoding step; all rows in one
        kept.keep_words(torch.zeros(shape))
    kept.keep_words(torch.arange(18.0, 36.0).view(2, 9, 1))
    kept.keep_words(torch.zeros(2, 9, 1))  # another table's
    seen = HostFeatures([(0, 4), (0, 7), (1, 5)], kept, NOTHING)
    assert seen.text[..., 0].tolist() == [[1, 2], [5, 6], [11, 12]]
    assert seen.words[..., 0].tolist() == [[19, 20], [23, 24], [29, 30]]
    none = HostFeatures([], kept, NOTHING)
    assert none.text.shape == none.words.shape == (0, 0, 1)


def test_frames_that_cannot_be_told_apart(seer: str) -> None:
    kept = Seen([], frames=[[4], [4]])
    kept.keep_tower(torch.zeros(5, 2, 3))
    with pytest.raises(tpo.HostError, match=r"\(5, 2, 3\).*\[4, 4\] frames"):
        _ = HostFeatures([(0, 1)], kept, NOTHING).vision
    with pytest.raises(tpo.TPOError, match="task_frames"):
        _ = HostFeatures([(0, 1)], Seen([], None), NOTHING).vision
    with pytest.raises(tpo.HostError, match="the prompt's text"):
        _ = HostFeatures([(0, 1)], Seen([], None), NOTHING).text
    with pytest.raises(tpo.HostError, match="input embeddings of the prompt's text"):
        _ = HostFeatures([(0, 1)], Seen([], None), NOTHING).words


def test_several_videos_and_merged_frames() -> None:
    kept = Seen([], frames=[[2, 4], [], [2]])
    kept.keep_tower(torch.arange(4.0)[:, None, None].expand(4, 3, 1))
    seen = HostFeatures([(0, 0), (2, 0)], kept, NOTHING)
    assert seen.vision[..., 0].tolist() == [[0, 1, 2], [3, 0, 0]]
    assert seen.vision_mask.tolist() == [[True, True, True], [True, False, False]]


def test_a_head_runs_where_nothing_is_to_be_seen(seer: str) -> None:
    """In a training step without its tasks and without a video, as on another rank of a distributed run."""
    host = zoo.host("llava_onevision")
    model = host.build()
    tpo.apply_tpo(model, zoo.tokenizer(), heads=[seer])
    model.tpo.host.vision_size = 32
    batch = zoo.example(host, model)
    out = model.train()(**batch, labels=batch["input_ids"])
    assert out.tpo.outputs[seer]["frames"].shape == (0, 0, 32)
    assert out.tpo.losses[seer] == 0
    out.loss.backward()
