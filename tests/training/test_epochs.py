"""The epoch that a dataset serves, in a trainer, after a stop, and in whatever order its samples are read."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_run
import transformers
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import ConcatDataset, Subset, random_split

from tpo_plugin import TPOError, wrap_trainer
from tpo_plugin.data import RecordDataset, Records, TPOCollator
from tpo_plugin.training.epochs import Epochs, without_set_epoch

NUM_RECORDS, OF_AN_EPOCH, BATCH = 16, 8, 2


class Noting(RecordDataset):
    """Notes what it serves: (epoch, id)."""

    def __getitem__(self, index: int) -> Any:
        sample = super().__getitem__(index)
        self.__dict__.setdefault("served", []).append((int(self._epoch), sample.record.id))
        return sample


def record(number: int) -> dict[str, Any]:
    turns = [
        {"from": "human", "value": "where " * (1 + 7 * number % 5)},
        {"from": "gpt", "value": "it stands here <point>"},
    ]
    return {"id": str(number), "conversations": turns, "tasks": [{"head": "point", "points_xy": [0.25, 0.5]}]}


def served(folder: Any, *, mixed: bool, stop: int | None = None, go_on: bool = False, **changes: Any) -> list[Any]:
    """What a training of three epochs reads."""
    model, tokenizer = tiny_run.host_with_tpo()
    tokenizer.chat_template = tiny_run.CHAT_TEMPLATE
    records = Records([record(i) for i in range(NUM_RECORDS if mixed else OF_AN_EPOCH)], model.tpo)
    dataset = Noting([records], weights=[1], num_samples=OF_AN_EPOCH) if mixed else Noting([records])
    steps = 3 * OF_AN_EPOCH // BATCH
    args = tiny_run.arguments(
        folder, per_device_train_batch_size=BATCH, max_steps=steps, save_strategy="steps", save_steps=2, **changes
    )
    trainer = wrap_trainer(transformers.Trainer)(
        model=model, args=args, train_dataset=dataset, data_collator=TPOCollator(model.tpo)
    )
    dataset.__dict__["served"] = []

    class Stop(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = control.should_training_stop or state.global_step == stop

    trainer.add_callback(Stop())
    trainer.train(resume_from_checkpoint=True if go_on else None)
    return dataset.served  # type: ignore[attr-defined]


@pytest.mark.parametrize(("mixed", "changes"), [(True, {}), (False, tiny_run.BY_LENGTH), (True, tiny_run.BY_LENGTH)])
def test_a_training_that_goes_on_reads_what_it_would_have_read(mixed, changes, tmp_path):
    straight = served(tmp_path / "straight", mixed=mixed, **changes)
    assert [epoch for epoch, _ in straight] == [number // OF_AN_EPOCH for number in range(3 * OF_AN_EPOCH)]
    if mixed:
        assert len({name for _, name in straight[: 2 * OF_AN_EPOCH]}) == NUM_RECORDS, "two epochs are all records"
    stop = OF_AN_EPOCH // BATCH + 2  # in the middle of the second epoch
    served(tmp_path / "cut", mixed=mixed, stop=stop, **changes)
    after = served(tmp_path / "cut", mixed=mixed, go_on=True, **changes)
    assert after == straight[BATCH * stop :]


def test_several_ranks_and_several_trainings(tmp_path):
    """Accelerate tells the epoch to its sampler, on several ranks to nothing else."""
    model = tiny_run.host_with_tpo()[0]
    dataset = RecordDataset([Records([record(i) for i in range(4)], model.tpo)], weights=[1], num_samples=2)
    dataset.set_epoch(5)
    hidden = without_set_epoch(dataset)
    assert (len(hidden), list(hidden.lengths), hidden[0]) == (2, list(dataset.lengths), dataset[0])
    loader = prepare_data_loader(
        transformers.trainer.DataLoader(hidden, batch_size=1, collate_fn=list), num_processes=2, process_index=0
    )
    loader.set_epoch(1)
    list(loader)
    assert int(dataset._epoch) == 5, "the trainer's callback alone tells it"
    assert without_set_epoch([1]) == [1]


def test_a_source_of_less_than_a_sample_an_epoch_is_seen_in_some(tmp_path):
    model = tiny_run.host_with_tpo()[0]
    few, many = (Records([record(i) for i in range(n)], model.tpo) for n in (4, 100))
    dataset = RecordDataset([many, few], weights=[100, 0.4], num_samples=100)
    counts = []
    for epoch in range(10):
        places = dataset._mix.places(epoch)  # type: ignore[union-attr]
        assert len(places) == 100
        counts.append(int((places >= 100).sum()))
    assert sum(counts) == 4
    assert max(counts) == 1
    many_sources = RecordDataset([few] * 5, weights=[1, 1, 1, 1, 1.5], num_samples=3)
    served = np.array([np.bincount(many_sources._mix.places(e) // 4, minlength=5) for e in range(110)])
    assert (served.sum(1) == 3).all()
    assert served.mean(0) == pytest.approx(np.array([1, 1, 1, 1, 1.5]) / 5.5 * 3, abs=0.02)


@pytest.mark.parametrize("wrap", [lambda whole: ConcatDataset([whole]), lambda whole: Subset(whole, range(len(whole)))])
def test_a_dataset_within_another_is_told(wrap: Any, tmp_path: Any) -> None:
    dataset = Noting([Records([record(i) for i in range(4)], tiny_run.host_with_tpo()[0].tpo)])
    callback = Epochs()
    callback.dataset = ConcatDataset([wrap(dataset)])
    callback.on_epoch_begin(None, SimpleNamespace(epoch=3), None)
    assert int(dataset._epoch) == 3


def test_a_part_of_a_mix_is_refused(tmp_path: Any) -> None:
    """The parts of `random_split` would overlap from the second epoch on."""
    model, tokenizer = tiny_run.host_with_tpo()
    tokenizer.chat_template = tiny_run.CHAT_TEMPLATE
    dataset = Noting([Records([record(i) for i in range(NUM_RECORDS)], model.tpo)], weights=[1])
    trainer = wrap_trainer(transformers.Trainer)(
        model=model, args=tiny_run.arguments(tmp_path), data_collator=TPOCollator(model.tpo),
        train_dataset=random_split(dataset, [8, 8])[0],
    )  # fmt: skip
    with pytest.raises(TPOError, match="split each source, and give RecordDataset the"):
        trainer.train()
