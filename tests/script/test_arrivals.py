"""Under `tpo run` nothing is lost in silence: what does not arrive stops the run."""

from __future__ import annotations

from inspect import signature
from typing import Any

import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset
from transformers import Trainer, TrainingArguments

import tpo_plugin as tpo
from tpo_plugin.script import maps
from tpo_plugin.script.rows import TaskCollator
from tpo_plugin.script.samples import SAMPLE, num_with_tasks, with_tasks
from tpo_plugin.script.settings import ScriptSettings
from tpo_plugin.script.trainer import trainer_class
from tpo_plugin.testing import tiny_host

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning"),
]

BOX = {"head": "region", "boxes": [[0.1, 0.2, 0.3, 0.4]]}
TASK = {"text": "it stands <region> here", "tasks": [BOX]}
CHAT = {"text": "it stands here"}


class Plain(Dataset):
    """A dataset of which nobody knows what it is made of."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = tuple(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


def trainer(
    tmp_path: Any, dataset: Any, base: type = Trainer, collate: Any = None, reseed: bool = True, **changes: Any
) -> Any:
    if reseed:
        torch.manual_seed(0)
    model, tokenizer = tiny_host()

    def collate_texts(rows: list[Any]) -> Any:
        batch = tokenizer([row["text"] for row in rows], return_tensors="pt", padding=True)
        batch.pop("token_type_ids", None)
        batch["labels"] = batch["input_ids"].clone()
        return batch

    options = {"max_steps": 2, "per_device_train_batch_size": 2, "logging_steps": 1, "save_strategy": "no", **changes}
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[], remove_unused_columns=False, **options)
    given = {"model": model, "args": args, "train_dataset": dataset, "data_collator": collate or collate_texts}
    given["processing_class" if "processing_class" in signature(Trainer.__init__).parameters else "tokenizer"] = (
        tokenizer
    )
    made = trainer_class(base, ScriptSettings(heads=["region"]), (), given)
    return made(**given)


@pytest.fixture
def met() -> Any:
    maps.met["tokenise"] = 7
    yield
    maps.met.clear()


def test_tasks_arrive(tmp_path, caplog):
    run = trainer(tmp_path, [TASK, CHAT], num_train_epochs=2, max_steps=-1)
    run.train()
    assert run.state.log_history[0]["loss_region"] > 0
    assert (run._arrivals.expected, run._arrivals.rows) == (1, 2)
    assert not [record for record in caplog.records if "came in" in record.getMessage()]


def test_what_is_new_comes_of_the_trainers_seed(tmp_path):
    made = []
    for before, seed in ((1, 7), (2, 7), (2, 8)):
        torch.manual_seed(before)
        tpo_of = trainer(tmp_path, [TASK, CHAT], seed=seed, reseed=False).tpo
        made.append({name: value.clone() for name, value in tpo_of.state_dict().items()})
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
    assert any(not torch.equal(made[0][name], made[2][name]) for name in made[0])


def test_no_row_has_tasks(tmp_path):
    run = trainer(tmp_path, [CHAT, CHAT])
    with pytest.raises(tpo.TPOError, match=r"none of the 2 rows that the trainer got has tasks; give them in the rows"):
        run.train()
    assert run.state.global_step == 0


@pytest.mark.parametrize("rows", [[], Plain([])])
def test_a_dataset_without_a_record(tmp_path, rows):
    run = trainer(tmp_path, rows)
    with pytest.raises(tpo.TPOError, match=r"the dataset that the trainer got has no record: are its file and its"):
        run.train()


def test_tasks_that_were_met_before_are_missed(tmp_path, met):
    reason = r"has tasks \(7 rows with tasks went into tokenise, by Dataset.map\); give them"
    with pytest.raises(tpo.TPOError, match="none of the 2 rows that the trainer got " + reason):
        trainer(tmp_path, [CHAT, CHAT]).train()
    run = trainer(tmp_path, Plain([CHAT] * 40))
    with pytest.raises(tpo.TPOError, match="none of 32 rows that the trainer got " + reason):
        run.train()
    assert run.state.global_step == 0


def test_a_dataset_that_nobody_knows(tmp_path):
    trainer(tmp_path, Plain([CHAT, TASK])).train()
    with pytest.raises(tpo.TPOError, match=r"no task came in 2 step\(s\) of training; give them"):
        trainer(tmp_path, Plain([CHAT])).train()
    run = trainer(tmp_path, Plain([CHAT]), max_steps=30)
    with pytest.raises(tpo.TPOError, match=r"no task came in 20 step\(s\) of training"):
        run.train()


class Choosy(Dataset):
    """Holds its records; takes another one where one is too long."""

    def __init__(self, records: list[dict[str, Any]], longest: int) -> None:
        self.anything, self.longest = records, longest

    def __len__(self) -> int:
        return len(self.anything)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.anything[index]
        text = " ".join(turn["value"] for turn in record["conversations"])
        return {"text": text} if len(text) <= self.longest else self[index + 1]


def record(answer: str, *tasks: Any) -> dict[str, Any]:
    said = [{"from": "human", "value": "where"}, {"from": "gpt", "value": answer}]
    return {"conversations": said, "tasks": list(tasks)}


def test_a_dataset_that_leaves_records_out(tmp_path, caplog):
    records = [record("it stands here " * 9 + "<region>", BOX), record("here")]
    run = trainer(tmp_path, Choosy(records, 60), num_train_epochs=1, max_steps=-1)
    with pytest.raises(tpo.TPOError, match=r"no task came in 1 step\(s\) of training, though 1 of its rows have tasks"):
        run.train()
    assert "could not use record 0, and took record 1 in its place" in caplog.text
    caplog.clear()
    records.append(record("<region>", BOX))
    trainer(tmp_path, Choosy(records, 60), num_train_epochs=1, max_steps=-1).train()
    assert "of 2 rows with tasks 1 came in 1 epoch(s)" in caplog.text


def test_records_are_found_wherever_they_are():
    model = tpo.apply_tpo(*tiny_host(), heads=["region"])
    parts = [Choosy([record("<region>", BOX)], 99), Choosy([record("here")], 99)]
    found = with_tasks(ConcatDataset(parts), model.tpo, {})
    assert found[0][SAMPLE].record.turns[1].tasks == (BOX,)
    assert "<box_begin><boxes>" in found[0]["text"]
    assert SAMPLE not in found[1]
    wrapper = Plain([])
    wrapper.inner = Choosy([record("<region>", BOX)], 99)
    assert SAMPLE in with_tasks(wrapper, model.tpo, {}).inner[0]
    assert num_with_tasks(found.datasets[0], {}) == 1
    assert num_with_tasks(parts[1], {}) is None


def test_a_table_inside_of_a_dataset(tmp_path):
    datasets = pytest.importorskip("datasets")
    model = tpo.apply_tpo(*tiny_host(), heads=["region"])
    inner = Plain([])
    inner.table = datasets.Dataset.from_list([TASK, {**CHAT, "tasks": []}])
    inner.__class__ = type("Lazy", (Plain,), {"__getitem__": lambda self, i: {"text": self.table[i]["text"]}})
    found = with_tasks(inner, model.tpo, {})
    assert found[0]["text"] == "it stands <box_begin><boxes> here"
    assert (found[0][SAMPLE].record.turns[0].tasks, found[1][SAMPLE].record.turns) == ((BOX,), ())
    assert num_with_tasks(found, {}) == 1


def test_the_text_of_a_placeholder_is_never_fed(tmp_path):
    run = trainer(tmp_path, [TASK, {"text": CHAT["text"], "id": "b"}])
    tokenizer = run.tpo.tokenizer
    letters = run.data_collator.literal
    assert letters.openings.numel() >= 0
    known = tokenizer.get_vocab()

    class Letters:
        """The tiny host's tokenizer has words only; one of letters says what its ids are."""

        added_tokens_decoder, all_special_ids = tokenizer.added_tokens_decoder, tokenizer.all_special_ids

        def get_vocab(self) -> dict[str, int]:
            return {**known, " <": 20, "region": 21, ">.": 22}

        def decode(self, ids: list[int]) -> str:
            names = {20: " <", 21: "region", 22: ">."}
            return "".join(names.get(i, "?") for i in ids)

    letters = type(letters)(Letters(), run.data_collator.format, run.tpo.tokens)
    letters.check(torch.tensor([[9, 20, 9, 22], [21, 22, 9, 9]]), ["a", "b"])
    with pytest.raises(tpo.TPOError, match=r"b: .* the text of the placeholder <region> \(in '\? <reg"):
        letters.check(torch.tensor([[9, 9, 9, 9, 9], [9, 20, 21, 22, 9]]), ["a", "b"])


def test_joined_rows_are_refused(tmp_path):
    def collate(rows: Any) -> Any:
        raise AssertionError

    collate.padding_free = True
    with pytest.raises(tpo.TPOError, match=r"padding_free=True of function joins rows \(packing\)"):
        trainer(tmp_path, [TASK], collate=collate)


def test_cut_labels_are_refused(tmp_path):
    class Cutting(Trainer):
        def _prepare_inputs(self, inputs: Any) -> Any:
            inputs = super()._prepare_inputs(inputs)
            return {**inputs, "labels": inputs["labels"][:, 1:]}

    run = trainer(tmp_path, [TASK], base=Cutting)
    with pytest.raises(tpo.TPOError, match=r"TPOCutting feeds input_ids \(1, 5\) with labels \(1, 4\)"):
        run.train()


def test_a_hook_that_drops_what_it_does_not_know(tmp_path):
    """As that of ms-swift: it embeds the ids itself, and passes a fixed list of arguments on."""

    class Hooking(Trainer):
        def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
            def known_only(model: Any, args: Any, kwargs: dict[str, Any]) -> Any:
                embeds = model.get_input_embeddings()(kwargs["input_ids"])
                return args, {"inputs_embeds": embeds, **{k: kwargs[k] for k in ("attention_mask", "labels")}}

            self.model.register_forward_pre_hook(known_only, with_kwargs=True)
            return super().create_optimizer(*args, **kwargs)

    plain, hooked = trainer(tmp_path / "a", [TASK, CHAT]), trainer(tmp_path / "b", [TASK, CHAT], base=Hooking)
    plain.train()
    hooked.train()
    for name in ("loss", "loss_mllm", "loss_assign", "loss_region", "grad_norm"):
        values = [run.state.log_history[1][name] for run in (plain, hooked)]
        assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_two_trainers_one_after_the_other(tmp_path):
    first = trainer(tmp_path / "a", [TASK])
    first.train()
    given = {
        "model": first.model,
        "args": first.args,
        "train_dataset": [TASK],
        "data_collator": first.data_collator.collator,
    }
    second = trainer_class(Trainer, ScriptSettings(heads=["region"]), (), given)(**given)
    second.train()
    assert second.model.tpo is first.model.tpo
    assert isinstance(second.data_collator, TaskCollator)
    assert second.state.log_history[0]["loss_region"] < first.state.log_history[0]["loss_region"]


def test_two_trainers_with_a_model_each(tmp_path):
    runs = [trainer(tmp_path / name, [TASK]) for name in "ab"]
    for run in runs:
        run.train()
    assert runs[0].model.tpo is not runs[1].model.tpo
    assert runs[0].state.log_history[0]["loss_region"] == runs[1].state.log_history[0]["loss_region"] > 0


def test_tpo_run_that_ended_before(tmp_path):
    with pytest.raises(tpo.TPOError, match="tpo run has ended: its command went into the background"):
        ScriptSettings(heads=["region"], marker=str(tmp_path / "gone" / "trainers")).mark("Trainer")
