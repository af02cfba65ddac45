"""Where ZeRO-3 or FSDP2 split the parameters, and where memory or precision is saved, all is as on one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import engines
from peft import LoraConfig, get_peft_model
from ranks import forked

from tpo_plugin import TPOConfig
from tpo_plugin.data import RecordDataset, Records, TPOCollator

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")]

SPLIT = [name for name in engines.engines() if name in ("ZeRO-3", "FSDP2")]
TIMED = ("_runtime", "_per_second", "preparation_time")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("world")
    engines.make_world(folder)
    return folder


def talkative(model: Any) -> Any:
    """Triggers come every few words."""
    model.tpo.embeddings["region"].output.data.normal_(std=1.0, generator=torch.Generator().manual_seed(3))
    return model


def without_unused(model: Any) -> Any:
    """Nothing trains that no forward uses, for which transformers does not have DDP look under checkpointing."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("post_layernorm" not in name)
    return model


def with_lora(model: Any) -> Any:
    settings = LoraConfig(r=2, target_modules=r".*language_model.*(q|v)_proj", init_lora_weights=False)
    torch.manual_seed(1)
    model = get_peft_model(model, settings)
    model.tpo.requires_grad_(True)
    return model


def evaluate_and_generate(engine: str, world: Path) -> None:
    """Trains two steps, evaluates, asks freely, and answers four prompts, one process all of them."""
    trainer = engines.make_trainer(
        engine, 2, "pictures", world, 2, talkative, per_device_eval_batch_size=1, eval_generations=4
    )
    tpo, rank, ranks = trainer.tpo, trainer.args.process_index, trainer.args.world_size
    sources = [Records(world / f"{name}.jsonl", tpo) for name in ("pictures", "chat", "boxes")]
    evaluation = RecordDataset(sources)
    order = [i for pair in zip(range(0, 8), range(8, 16), strict=True) for i in pair] + [16]
    trainer.train()
    mixed = [evaluation[i] for i in order]  # pictures beside chat, and an odd number
    metrics = trainer.evaluate(mixed)
    # Prompts that end after a different number of words, of which some call the head.
    collate = TPOCollator(tpo, for_generation=True)
    answers = []
    trainer.model.eval()
    for first in range(0, 4, ranks):
        batch = trainer._prepare_inputs(collate([evaluation[16 + first + rank]]))
        found = tpo.generate(**batch, do_sample=False, max_new_tokens=3 + 4 * ((first + rank) % 2))
        answers.append((found.sequences.tolist(), [[p.head for p in row] for row in found.predictions]))
    torch.save({"metrics": metrics, "answers": answers}, world / f"{engine}-{rank}.pt")


@pytest.mark.parametrize("engine", SPLIT)
def test_evaluation_and_generation(engine: str, world: Path, tmp_path: Path) -> None:
    forked(lambda: evaluate_and_generate("one process", world), tmp_path, 1)
    forked(lambda: evaluate_and_generate(engine, world), tmp_path, 2)
    one, *ranks = (torch.load(world / f"{name}.pt") for name in ("one process-0", f"{engine}-0", f"{engine}-1"))
    assert one["metrics"]["eval_free_questions"] == 4
    for name, value in one["metrics"].items():
        if not name.endswith(TIMED):
            for found in ranks:
                assert found["metrics"][name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    assert [ranks[0]["answers"][0], ranks[1]["answers"][0], ranks[0]["answers"][1], ranks[1]["answers"][1]] == (
        one["answers"]
    )
    assert any(heads for _, rows in one["answers"] for heads in rows)


@pytest.mark.parametrize("engine", SPLIT)
def test_retain(engine: str, world: Path) -> None:
    """One rank has conversation to retain, and the other none."""
    config = TPOConfig(loss_weights={"retain": 0.5})
    one = engines.run("one process", 2, "tasks", world, 3, prepare=with_lora, tpo=config)
    losses, parameters = engines.apart(engines.run(engine, 2, "tasks", world, 3, prepare=with_lora, tpo=config), one)
    assert losses < 1e-6
    assert parameters < 1e-6
    without = engines.run("one process", 2, "tasks", world, 3, prepare=with_lora)
    assert abs(without["losses"][0] - one["losses"][0]) > 1e-4


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")  # what is lost would differ
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
@pytest.mark.parametrize("engine", [name for name in engines.engines() if name in ("DDP", "ZeRO-2", *SPLIT)])
def test_gradient_checkpointing(engine: str, reentrant: bool, world: Path) -> None:
    options = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    one = engines.run("one process", 2, "pictures", world, 2, prepare=without_unused)
    found = engines.run(engine, 2, "pictures", world, 2, prepare=without_unused, **options)
    losses, parameters = engines.apart(found, one)
    assert losses < 1e-6
    assert parameters < 1e-6


def test_bfloat16(world: Path) -> None:
    """Near float32. For DeepSpeed and FSDP2 transformers refuses it without a GPU."""
    one = engines.run("one process", 2, "pictures", world, 2)
    losses, parameters = engines.apart(engines.run("DDP", 2, "pictures", world, 2, bf16=True), one)
    assert losses < 0.02
    assert parameters < 0.02
