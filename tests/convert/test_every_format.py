"""Every format: its small download is converted, checked with its media, and trained on for a step."""

from __future__ import annotations

import gc
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from downloads import Download, converted, downloads, format_of, unpack
from transformers import Trainer, TrainingArguments

from tpo_plugin import TPOConfig, VideoOptions, apply_tpo, registry, wrap_trainer
from tpo_plugin.convert import formats
from tpo_plugin.data import RecordDataset, RecordFormat, Records, TPOCollator
from tpo_plugin.data.check import check_files

HEADS: dict[str, dict[str, Any]] = {
    "region": {},
    "temporal": {"hidden": 16, "num_heads": 2, "feed_forward": 16, "encoder_layers": 1, "num_dummies": 2},
    "mask": {"size": "micro", "image_size": 32, "losses": ["pixel", "prompt"]},
}
"""Tiny, and able to learn from all that its formats give."""
INSTALLED = [head for head in HEADS if head in registry().heads]
ROOT = Path(__file__).parents[2]
VIDEO = VideoOptions(num_frames=4)

DOWNLOADS = [
    pytest.param(head, each, id=f"{format_of(each)}-{number}")
    for head in INSTALLED
    for number, each in enumerate(downloads(head))
]


@pytest.fixture(scope="module")
def models() -> Iterator[dict[str, Any]]:
    """For each head a tiny LLaVA-OneVision with it."""
    from tpo_shapes.host import build_model, build_processor

    made = {}
    for head in INSTALLED:
        processor = build_processor()
        host = build_model(processor.tokenizer, width=16, num_layers=1)
        made[head] = apply_tpo(host, processor, heads=[head], config=TPOConfig(heads={head: HEADS[head]}))
    gc.freeze()  # every training collects garbage, which takes far longer than its step where it looks at all of torch
    yield made
    gc.unfreeze()


@pytest.mark.parametrize(("head", "download"), DOWNLOADS)
def test_a_download_is_converted_checked_and_trained_on(
    head: str, download: Download, models: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    unpack(download)
    said, records = converted(download)
    assert records, said
    format = RecordFormat.of_heads([head], TPOConfig(heads={head: HEADS[head]}))
    report = check_files([("records.jsonl", None)], format, video=VIDEO)
    assert not report.errors, report.errors
    assert (report.records, report.files[str(Path("records.jsonl"))].without_media) == (len(records), 0)
    has_tasks = any("tasks" in record for record in records)
    assert set(report.heads) == ({head} if has_tasks else set())

    model = models[head]
    data = RecordDataset([Records("records.jsonl", model.tpo)], video=VIDEO)
    before = {name: value.detach().clone() for name, value in model.tpo.named_parameters()}
    trainer = wrap_trainer(Trainer)(
        model=model,
        args=TrainingArguments(
            "out",
            max_steps=1,
            per_device_train_batch_size=len(records),
            learning_rate=1e-3,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            remove_unused_columns=False,
        ),
        train_dataset=data,
        data_collator=TPOCollator(model.tpo),
    )
    trainer.train()
    assert not data.skipped, data.report()
    log = trainer.state.log_history[0]
    answers = "".join(turn["value"] for record in records for turn in record["conversations"][1::2])
    expected = {"loss_mllm"} | ({f"loss_{head}", "loss_assign"} if f"<{head}>" in answers else set())
    assert all(math.isfinite(log[name]) and log[name] > 0 for name in expected), log
    moved = [name for name, value in model.tpo.named_parameters() if not torch.equal(value, before[name])]
    assert bool([name for name in moved if name.startswith("heads.")]) == has_tasks, moved


PAGES = {"region": "docs/formats.md", "temporal": "heads/temporal/README.md", "mask": "heads/mask/DATA.md"}


@pytest.mark.parametrize("head", INSTALLED)
def test_every_format_has_a_download_and_says_in_its_page_how_it_is_known(head: str) -> None:
    own = {name for name, spec in formats().items() if spec.plugin.name == head}
    assert {format_of(each) for each in downloads(head)} == own
    lines = (ROOT / PAGES[head]).read_text(encoding="utf-8").replace("\\|", "/").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    start = next(number for number, row in enumerate(rows) if row[0].lower() == "format")
    column = rows[start].index("known from")
    known = {name: row[column] for row in rows[start:] for name in re.findall(r"`([\w.-]+)`", row[0])}
    assert all(known.get(name) for name in own), known
