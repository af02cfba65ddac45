"""Labels of a host stand where the host scores them: the shift is found by value, whatever the tensors hold."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from survey.build import build
from survey.check import Case, tokenizer
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutput

from tpo_plugin import Host, TPOConfig, apply_tpo
from tpo_plugin.data.collate import TPOCollator
from tpo_plugin.data.dataset import Sample
from tpo_plugin.data.records import parse_record
from tpo_plugin.host import probe
from tpo_plugin.tiny import tiny_host

pytestmark = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5"),
    reason="the survey is of the newest transformers",
)

UNSHIFTED = ["BartForCausalLM", "XLNetLMHeadModel", "TrOCRForCausalLM", "XLMWithLMHeadModel", "WhisperForCausalLM"]
SHIFTED = ["LlamaForCausalLM", "GPT2LMHeadModel", "Qwen2VLForConditionalGeneration"]
TEMPLATE = (
    "{% for m in messages %}{{ m['content'] }} {% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)


def slow_losses(logits: Tensor, labels: Tensor, trigger: int, shift: int) -> tuple[float, float]:
    """Mean cross entropy of the triggers and of the other labels, a label at a time."""
    found: dict[bool, list[float]] = {True: [], False: []}
    for row in range(len(labels)):
        for column in range(shift, labels.shape[1]):
            label = int(labels[row, column])
            if label != -100:
                found[label == trigger].append(-float(logits[row, column - shift].float().log_softmax(-1)[label]))
    return sum(found[True]) / len(found[True]), sum(found[False]) / len(found[False])


@pytest.mark.parametrize("size", ["run as it is", "run on fake tensors"])
@pytest.mark.parametrize("name", [*UNSHIFTED, *SHIFTED])
def test_losses_are_a_slow_computation(name: str, size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if size == "run on fake tensors":
        monkeypatch.setattr(probe, "SMALL", 0)
    case = Case(name)
    config = TPOConfig(supervised_logits=False)
    model: Any = apply_tpo(case.model, tokenizer(), ["region"], config=config)
    batch = case.with_tasks(model, case.prompt())
    with torch.no_grad():
        out = model(**batch)
    shift = int(name in SHIFTED)
    assert model.tpo.host.label_shift == shift
    assign, ordinary = slow_losses(out.logits, batch["labels"], model.tpo.token_ids["region"][0], shift)
    assert float(out.tpo.losses["assign"]) == pytest.approx(assign, rel=1e-5)
    assert float(out.tpo.losses["mllm"]) == pytest.approx(ordinary, rel=1e-5)


def test_a_decoder_that_does_not_shift_learns_to_answer() -> None:
    """What the collator makes for it teaches each token at the position before it."""
    torch.manual_seed(0)
    tokenizer = tiny_host()[1]
    tokenizer.chat_template = TEMPLATE
    model: Any = apply_tpo(build("BartForCausalLM"), tokenizer, ["region"])
    turns = [{"from": "human", "value": "where is the circle"}, {"from": "gpt", "value": "it stands here <region>"}]
    task = {"head": "region", "boxes": [[0.1, 0.2, 0.5, 0.6]]}
    record = parse_record({"id": "a", "conversations": turns, "tasks": [task]}, model.tpo, file="a.jsonl")
    samples = [Sample(record, [], [])]
    batch = TPOCollator(model.tpo)(samples)
    (row, column), trigger = batch["task_positions"].labels[0], model.tpo.token_ids["region"][0]
    assert batch["labels"][row, column] == batch["input_ids"][row, column + 1] == trigger
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        model.train()(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    prompt = TPOCollator(model.tpo, for_generation=True)(samples)
    answer = model.eval().tpo.generate(**prompt, max_new_tokens=8, do_sample=False)
    assert [(p.head, p.text.split()) for p in answer.predictions[0]] == [("region", ["it", "stands", "here"])]


class Skips(nn.Module):
    """A model that scores the label of the column after next."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(50, 8), nn.Linear(8, 50)

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Any:
        logits, loss = self.head(self.embed(input_ids)), None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits[:, :-2].flatten(0, 1), labels[:, 2:].flatten())
        return CausalLMOutput(loss=loss, logits=logits)


def test_another_shift_is_said(caplog: pytest.LogCaptureFixture) -> None:
    assert Host.locate(Skips()).label_shift == 1
    assert [m for m in caplog.messages if "Skips scores at its first position the label of column 2" in m]
