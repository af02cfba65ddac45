from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from chats import BOX

from tpo_plugin.data.collate import TPOCollator
from tpo_plugin.data.dataset import Sample
from tpo_plugin.data.records import parse_record
from tpo_plugin.errors import TPOError


def test_an_encoder_decoder(tpo: Any) -> None:
    tpo.host = SimpleNamespace(decodes=True, label_shift=0)
    turns = [[("human", "Where is it?"), ("gpt", "Here <region>")], [("human", "Hello"), ("gpt", "It is here.")]]
    samples = [
        Sample(
            parse_record(
                {"id": "1", "conversations": [{"from": w, "value": t} for w, t in turn], "tasks": tasks},
                tpo,
                file="a.jsonl",
            ),
            [],
            [],
        )
        for turn, tasks in zip(turns, ([BOX], []), strict=True)
    ]
    batch = TPOCollator(tpo)(samples)
    decode = tpo.tokenizer.decode
    assert decode(batch["input_ids"][0]) == "<|im_start|>user\nWhere is it?<|im_end|>\n<|im_start|>assistant\n"
    assert batch["attention_mask"][1, -1] == 0  # padded on the right
    labels = batch["labels"][0]
    trigger, eos = tpo.tokens["region"].trigger_id, tpo.tokenizer.eos_token_id
    assert labels[labels >= 0].tolist()[-2:] == [trigger, eos]
    assert labels[(labels == trigger).nonzero().item() + 1] == -100
    assert decode([i for i in batch["labels"][1].tolist() if i >= 0]) == "It is here.</s>"
    assert "task_positions" not in batch
    assert torch.equal(TPOCollator(tpo, for_generation=True)(samples)["input_ids"], batch["input_ids"])
    with pytest.raises(TPOError, match="more than max_length=3"):
        TPOCollator(tpo, max_length=3)(samples)
    several = {"id": "1", "conversations": [{"from": w, "value": t} for w, t in turns[0] + turns[1]], "tasks": [BOX]}
    with pytest.raises(TPOError, match="an answer before the last has tasks"):
        TPOCollator(tpo)([Sample(parse_record(several, tpo, file="a.jsonl"), [], [])])
