"""The order of samples under DeepSpeed, and what a rank is told where another has other media in its forward."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_run
import torch
import transformers
from PIL import Image

from tpo_plugin import TPOError, wrap_trainer
from tpo_plugin.data import RecordDataset, Records
from tpo_plugin.training.idle import share_media
from tpo_plugin.training.same_media import SameMedia

KINDS = np.array([0] * 5 + [1] * 9 + [2] * 3, dtype=np.uint8)


class Dataset:
    num_media_kinds = 3

    def __len__(self):
        return len(KINDS)

    def media_kinds(self):
        return KINDS


@pytest.mark.parametrize("block", [1, 2, 4, 32])
def test_each_block_has_one_kind_and_nothing_is_left_out(block):
    epoch = 0
    sampler = SameMedia(Dataset(), block, seed=3, epoch=lambda: epoch)
    order = list(sampler)
    assert len(order) == len(sampler) <= len(KINDS) + 3 * block
    assert all(len({KINDS[i] for i in order[at : at + block]}) == 1 for at in range(0, len(order), block))
    assert set(order) == set(range(len(KINDS)))
    assert list(sampler) == order
    epoch = 1
    assert list(sampler) != order


def test_other_ranks_go_on_in_the_order_that_was_drawn():
    four, two = (SameMedia(Dataset(), block, seed=3, epoch=lambda: 0) for block in (4, 2))
    assert list(two) != list(four)
    two.go_on(4)
    assert list(two) == list(four)
    assert len(two) == len(four)
    with pytest.raises(TPOError, match="in blocks of 4, which all ranks ran together, and here they run 8 together"):
        SameMedia(Dataset(), 8, seed=3, epoch=lambda: 0).go_on(4)


def test_kinds_of_records(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    model = tiny_run.host_with_tpo()[0]

    def records(name, question, number, **media):
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "yes"}]
        lines = [json.dumps({"conversations": turns, **media}) + "\n"] * number
        (tmp_path / name).write_text("".join(lines))
        return Records(tmp_path / name, model.tpo)

    sources = [
        records("text.jsonl", "is it", 3),
        records("image.jsonl", "<image> is it", 2, image="a.png"),
        records("video.jsonl", "<video> is it", 1, video="a.mp4"),
    ]
    dataset = RecordDataset(sources)
    assert dataset.media_kinds().tolist() == [0, 0, 0, 1, 1, 2]
    assert dataset.num_media_kinds == 3
    mixed = RecordDataset(sources, weights=[0, 1, 0], num_samples=4)
    assert mixed.media_kinds().tolist() == [1, 1, 1, 1]


def trainer_beside(other, tmp_path):
    """A trainer whose only other rank has these media in two forwards."""
    model, tokenizer = tiny_run.host_with_tpo()
    trainer = wrap_trainer(transformers.Trainer)(
        model=model, args=tiny_run.arguments(tmp_path), train_dataset=tiny_run.Samples(tokenizer)
    )
    trainer.accelerator = SimpleNamespace(
        num_processes=2, device=torch.device("cpu"), reduce=lambda present, kind: present + torch.tensor(other)
    )
    return trainer


def test_a_rank_is_told_what_others_have(tmp_path, monkeypatch):
    trainer = trainer_beside([[1, 0, 0], [1, 0, 0]], tmp_path)
    image, text = {"pixel_values": torch.zeros(1)}, {"input_ids": torch.zeros(1)}
    share_media(trainer, [image, dict(image)])
    assert "task_idle_media" not in image
    monkeypatch.setattr(trainer.tpo.hooks.idle, "check", lambda kinds: None)
    share_media(trainer, [image, text])
    assert (image["task_idle_media"], text["task_idle_media"]) == ((), ("pixel_values",))


def test_other_media_are_an_error_where_no_tower_can_run_idle(tmp_path):
    trainer = trainer_beside([[1, 0, 0], [1, 0, 0]], tmp_path)
    image, text = {"pixel_values": torch.zeros(1)}, {"input_ids": torch.zeros(1)}
    share_media(trainer, [image, text])  # DDP does without
    assert "task_idle_media" not in text
    trainer.is_deepspeed_enabled = True
    with pytest.raises(TPOError, match=r"some ranks have \['pixel_values'\] and others have none.* has no method"):
        share_media(trainer, [image, text])
