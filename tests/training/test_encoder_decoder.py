"""A host with an encoder, trained by `wrap_trainer` from what `TPOCollator` makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_run import install_head

from tpo_plugin import apply_tpo, wrap_trainer
from tpo_plugin.data.collate import TPOCollator
from tpo_plugin.data.dataset import Sample
from tpo_plugin.data.records import parse_record
from tpo_plugin.positions import Counts, count_targets
from tpo_plugin.tiny import tiny_host

TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
SIZES = {"vocab_size": 64, "d_model": 32, "pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0}
HOSTS: dict[str, Any] = {
    "T5": SIZES | {"d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0},
    "Bart": SIZES
    | {f"{side}_{part}": n for side in ("encoder", "decoder") for part, n in (("layers", 2), ("attention_heads", 4))}
    | {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64, "dropout": 0.0},
}


@pytest.mark.parametrize("name", HOSTS)
def test_two_steps_and_an_answer(name: str, tmp_path: Path) -> None:
    install_head()
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**HOSTS[name])
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config)
    tokenizer = tiny_host()[1]
    tokenizer.chat_template = TEMPLATE
    apply_tpo(model, tokenizer, ["point"])
    samples = []
    for k, answer in enumerate(["it stands here <point>", "<point> <point>", "it is red", "here <point>"]):
        turns = [{"from": "human", "value": "where is the circle"}, {"from": "gpt", "value": answer}]
        tasks = [{"head": "point", "points_xy": [0.1 * k, 0.5]}] * answer.count("<point>")
        record = parse_record({"id": str(k), "conversations": turns, "tasks": tasks}, model.tpo, file="a.jsonl")
        samples.append(Sample(record, [], []))
    collate = TPOCollator(model.tpo)
    batch = collate(samples)
    ids = model.tpo.host.ids_of(model, dict(batch), model.tpo.tokens)
    counted = count_targets(ids, batch["labels"], model.tpo.tokens, None, model.tpo.host.label_shift)
    assert counted == Counts(3 + 1 + 1 + 3 + 1 + 1 + 1, 4, {"point": 4}, retain=3 + 1)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        remove_unused_columns=False,
    )
    trainer = wrap_trainer(transformers.Trainer)(
        model=model, args=arguments, train_dataset=samples, data_collator=collate
    )
    before = model.tpo.embeddings["point"].output.clone()
    trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == 2
    assert all(torch.isfinite(torch.tensor(logged)))
    assert not torch.equal(model.tpo.embeddings["point"].output, before)
    prompts = TPOCollator(model.tpo, for_generation=True)(samples)
    out = model.eval().tpo.generate(**prompts, max_new_tokens=8, do_sample=False, route="point")
    assert [[p.head for p in row if not p.cut_off][:1] for row in out.predictions] == [["point"]] * 4
