"""An exported checkpoint: a process without tpo-plugin runs it, and the heads make the same of its states."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import plain_checkpoint
import pytest
import torch
import transformers
import zoo
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file
from tpo_shapes.host import build_model, build_processor
from transformers import AutoModelForCausalLM, AutoTokenizer

import tpo_plugin as tpo
from tpo_plugin.data import Sample, TPOCollator, VideoClip, parse_record
from tpo_plugin.export import export
from tpo_plugin.testing import tiny_host

pytestmark = pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning")
OF_4_57 = transformers.__version__.startswith("4.57")


def lively(model: Any) -> Any:
    """Answers that are full of triggers, of task tokens with rows of their own."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for rows in model.tpo.embeddings.values():
            rows.output.copy_(torch.randn(rows.output.shape, generator=generator))
    return model.eval()


def called_at_once(model: Any, inputs: dict[str, Any]) -> None:
    """Has the trigger of the region head be what follows a prompt."""
    states: list[torch.Tensor] = []
    handle = model.tpo.host.head.register_forward_pre_hook(lambda module, args: states.append(args[0][0, -1].detach()))
    with torch.no_grad():
        model(**inputs)
        handle.remove()
        model.tpo.embeddings["region"].output.copy_(40 * states[0] / states[0].norm() ** 2)


SERVE_PAGE = Path(__file__).parents[2] / "docs" / "serve.md"


def text_model(*, tied: bool, num_rows: int, lora: bool, dtype: torch.dtype) -> Any:
    model, tokenizer = tiny_host()
    for parameter in model.parameters():  # as from_pretrained casts: no buffers
        parameter.data = parameter.to(dtype)
    setattr(model.config, "dtype" if hasattr(model.config, "dtype") else "torch_dtype", dtype)
    model.resize_token_embeddings(num_rows)
    if tied:
        model.config.tie_word_embeddings = True
        model.tie_weights()
    if lora:
        settings = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
        model = get_peft_model(model, settings)
    return lively(tpo.apply_tpo(model, tokenizer, heads=["region"]))


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("num_rows", [64, 12], ids=["frozen vocabulary", "grown vocabulary"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_text_and_the_same_boxes_bit_for_bit(tmp_path, tied, num_rows, dtype):
    model = text_model(tied=tied, num_rows=num_rows, lora=False, dtype=dtype)
    inputs = {"input_ids": model.tpo.tokenizer("<s> where is the red circle", return_tensors="pt").input_ids}
    expected = model.tpo.generate(**inputs, max_new_tokens=24, do_sample=False)
    assert len(expected.predictions[0]) > 2
    assert export(model, tmp_path / "out") is tied
    found = plain_checkpoint.ask(tmp_path / "out", inputs)
    assert found["sequences"].tolist() == expected.sequences.tolist()
    heads = tpo.load_heads(tmp_path / "out")
    # Decoding feeds all tokens but the last.
    columns = found["states"].shape[1]
    fed = found["sequences"][:, :columns]
    made = heads.predict(fed, found["states"], prompt_length=6, logprobs_BT=found["logprobs"])[0]
    whole = [p for p in expected.predictions[0] if not p.cut_off and p.position < columns]
    assert len(whole) > 2
    for mine, theirs in zip(made, whole, strict=False):
        assert torch.equal(mine.value, theirs.value)
        assert (mine.position, mine.text, mine.head_score) == (theirs.position, theirs.text, theirs.head_score)
        assert mine.score == pytest.approx(theirs.score, rel=1e-4 if dtype is torch.float32 else 0.1)


def test_states_in_the_shape_that_sglang_gives_them(tmp_path):
    """Its `hidden_states`: a list for the prompt's tokens, and a state for each token that was fed (docs/serve.md)."""
    model = text_model(tied=False, num_rows=64, lora=False, dtype=torch.float32)
    inputs = {"input_ids": model.tpo.tokenizer("<s> where is the red circle", return_tensors="pt").input_ids}
    export(model, tmp_path / "out")
    found = plain_checkpoint.ask(tmp_path / "out", inputs)
    sequences, states = found["sequences"], found["states"][0]
    length = inputs["input_ids"].shape[1]
    meta_info = {"hidden_states": [states[:length].tolist(), *states[length:].tolist()]}
    heads = tpo.load_heads(tmp_path / "out")
    code = next(
        block for block in SERVE_PAGE.read_text().split("\n\n") if "meta_info" in block and "load_heads" in block
    )
    names = {"sequences": sequences, "meta_info": meta_info, "torch": torch, "tpo_plugin": tpo}
    lines = [line.strip() for line in code.splitlines()]
    assert [line.partition(" ")[0] for line in lines] == ["heads", "states", "heads.predict(sequences[:,"]
    exec(lines[0].replace("exported", str(tmp_path / "out")) + "\n" + lines[1], names)
    assert torch.equal(names["states"], found["states"])
    made = eval(lines[2].replace("...", str(length)), names)
    expected = heads.predict(sequences[:, : len(states)], found["states"], prompt_length=length)
    assert [p.to_json() for p in made[0]] == [p.to_json() for p in expected[0]]
    assert len([p for p in made[0] if not p.cut_off]) > 2


@pytest.mark.slow
def test_a_process_without_tpo_plugin(tmp_path):
    model = text_model(tied=True, num_rows=12, lora=True, dtype=torch.float32)
    inputs = {"input_ids": model.tpo.tokenizer("<s> where is the red circle", return_tensors="pt").input_ids}
    expected = model.tpo.generate(**inputs, max_new_tokens=24, do_sample=False)
    export(model, tmp_path / "out")
    torch.save(inputs, tmp_path / "given.pt")
    files = [tmp_path / name for name in ("out", "given.pt", "out.pt")]
    subprocess.run([sys.executable, plain_checkpoint.__file__, *map(str, files)], check=True)
    assert torch.load(tmp_path / "out.pt")["sequences"].tolist() == expected.sequences.tolist()


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_lora_is_merged(tmp_path, tied):
    model = text_model(tied=tied, num_rows=64, lora=True, dtype=torch.float32)
    inputs = {"input_ids": model.tpo.tokenizer("<s> where is the red circle", return_tensors="pt").input_ids}
    expected = model.tpo.generate(**inputs, max_new_tokens=24, do_sample=False)
    export(model, tmp_path / "out")
    assert not any("lora" in name for name in load_file(tmp_path / "out" / "model.safetensors"))
    found = plain_checkpoint.ask(tmp_path / "out", inputs)
    assert found["sequences"].tolist() == expected.sequences.tolist()
    columns = found["states"].shape[1]
    made = tpo.load_heads(tmp_path / "out").predict(found["sequences"][:, :columns], found["states"], prompt_length=6)
    whole = [p for p in expected.predictions[0] if not p.cut_off and p.position < columns]
    assert len(whole) > 2
    for mine, theirs in zip(made[0], whole, strict=False):
        torch.testing.assert_close(mine.value, theirs.value, rtol=0, atol=1e-6)


def test_merged_alone_the_rest_is_loaded_as_ever(tmp_path):
    model = text_model(tied=True, num_rows=12, lora=True, dtype=torch.float32)
    inputs = {"input_ids": model.tpo.tokenizer("<s> where is the red circle", return_tensors="pt").input_ids}
    expected = model.tpo.generate(**inputs, max_new_tokens=24, do_sample=False)
    assert export(model, tmp_path / "out", merge=True) is False
    assert not (tmp_path / "out" / "tpo_heads.json").exists()
    again = tpo.load_tpo(AutoModelForCausalLM.from_pretrained(tmp_path / "out"), tmp_path / "out").eval()
    assert again.lm_head.weight is again.model.embed_tokens.weight
    found = again.tpo.generate(**inputs, max_new_tokens=24, do_sample=False)
    assert found.sequences.tolist() == expected.sequences.tolist()
    for mine, theirs in zip(found.predictions[0], expected.predictions[0], strict=True):
        if theirs.value is not None:
            torch.testing.assert_close(mine.value, theirs.value, rtol=0, atol=1e-6)


# -- hosts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [host for host in zoo.HOSTS if not host.missing], ids=lambda host: host.name)
@pytest.mark.parametrize("grown", [False, True], ids=["frozen", "grown"])
def test_hosts(tmp_path, kind, grown):
    if kind.name == "qwen3_vl" and OF_4_57:
        pytest.skip("transformers 4.57 gives out its states before the last norm")
    model = kind.build()
    if grown:
        model.resize_token_embeddings(zoo.NUM_WORDS)
    model = lively(tpo.apply_tpo(model, zoo.tokenizer(), heads=["region"]))
    inputs = zoo.example(kind, model, num_rows=1, media=kind.media is not None)
    called_at_once(model, inputs)
    asked = {"max_new_tokens": 12, "do_sample": False, "suppress_tokens": zoo.MEDIA}
    expected = model.tpo.generate(**inputs, **asked)
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    # transformers gives mllama 8 input rows more, and does not when it is resized; 4.57 has no auto class for the other
    if (kind.name == "mllama" and grown) or (kind.name == "video_llava" and OF_4_57):
        with pytest.raises(tpo.HostError, match="transformers does not load again what it saved"):
            export(model, tmp_path / "out")
        assert not list(tmp_path.iterdir())
        return
    assert export(model, tmp_path / "out") is tied
    found = plain_checkpoint.ask(tmp_path / "out", inputs, **asked)
    assert found["sequences"].tolist() == expected.sequences.tolist()
    columns, length = found["states"].shape[1], inputs["input_ids"].shape[1]
    fed = found["sequences"][:, :columns]
    made = tpo.load_heads(tmp_path / "out").predict(fed, found["states"], prompt_length=length)
    whole = [p for p in expected.predictions[0] if not p.cut_off and p.position < columns]
    assert whole
    for mine, theirs in zip(made[0], whole, strict=False):
        torch.testing.assert_close(mine.value, theirs.value, rtol=0, atol=1e-5)


# -- media -------------------------------------------------------------------------------------------------------------

SMALL = {
    "temporal": {
        "hidden": 32, "num_heads": 4, "feed_forward": 64, "encoder_layers": 1, "decoder_layers": 2,
        "cross_layers": 1, "dummy_layers": 1, "num_dummies": 4, "num_queries": 4, "text": "words",
    },
    "mask": {"size": "micro", "image_size": 32},
}  # fmt: skip


def clip_sample(model: Any, folder: Path) -> Sample:
    """A question about a clip of four frames, which lie in a folder."""
    times = [0.25, 0.75, 1.25, 1.75]
    frames = np.random.default_rng(0).integers(0, 255, (4, 48, 48, 3), np.uint8)
    lines = ["ffconcat version 1.0"]
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{index}.png")
        lines += [f"file '{index}.png'", "duration 0.5"]
    (folder / "clip.ffconcat").write_text("\n".join(lines))
    turns = [{"from": "human", "value": "<video>\nWhen and where is the red circle?"}]
    record = {"id": "1", "video": "clip.ffconcat", "conversations": turns}
    parsed = parse_record(record, model.tpo, open_ended=True, media_root=folder)
    return Sample(parsed, (), (VideoClip(frames, np.array(times), 2.0),))


def begin_with(model: Any, head: str, batch: dict[str, Any]) -> None:
    """Has the answer to this prompt begin with the trigger of a head: its output row is what it is multiplied by."""
    states: list[torch.Tensor] = []
    embedding = model.get_output_embeddings()
    handle = embedding.register_forward_pre_hook(lambda _, args: states.append(args[0][0, -1].detach()))
    model.tpo.generate(**batch, max_new_tokens=1, do_sample=False)
    handle.remove()
    with torch.no_grad():
        model.tpo.embeddings[head].output.copy_(states[0])


@pytest.mark.skipif("mask" not in tpo.registry().heads, reason="tpo-head-mask is not installed")
@pytest.mark.skipif(OF_4_57, reason="its random host calls other heads there")
@pytest.mark.parametrize("head", ["region", "temporal", "mask"])
@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
def test_boxes_spans_and_masks_of_a_clip(tmp_path, lora, head):
    processor = build_processor()
    model: Any = build_model(processor.tokenizer, width=32, num_layers=2)
    if lora:
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    names = ["region", "temporal", "mask"]
    model = lively(tpo.apply_tpo(model, processor, heads=names, config=tpo.TPOConfig(heads=SMALL)))
    sample = clip_sample(model, tmp_path)
    batch = TPOCollator(model.tpo, for_generation=True)([sample])
    begin_with(model, head, batch)
    last: list[torch.Tensor] = []
    handle = model.get_output_embeddings().register_forward_pre_hook(lambda _, args: last.append(args[0][0, -1]))
    expected = model.tpo.generate(**batch, max_new_tokens=40, do_sample=False)
    handle.remove()
    export(model, tmp_path / "out")
    heads = tpo.load_heads(tmp_path / "out")
    again = TPOCollator(heads, for_generation=True)([sample])
    inputs = {name: value for name, value in again.items() if not name.startswith("task_")}
    assert {name: value.tolist() for name, value in inputs.items()} == {n: batch[n].tolist() for n in inputs}
    found = plain_checkpoint.ask(tmp_path / "out", inputs, max_new_tokens=40)
    assert found["sequences"].tolist() == expected.sequences.tolist()
    columns = found["states"].shape[1]
    if not lora:  # the triggers' scores run the output embedding once more, at the end
        answered = found["states"][0, inputs["input_ids"].shape[1] - 1 :]
        assert torch.equal(torch.stack(last[: len(answered)]), answered)
    made = heads.predict(
        found["sequences"][:, :columns],
        found["states"],
        prompt_length=inputs["input_ids"].shape[1],
        words_BTE=found["words"],
        vision=found["vision"],
        **{name: value for name, value in again.items() if name.startswith("task_")},
    )[0]
    called = [p for p in expected.predictions[0] if not p.cut_off and p.position < columns]
    # A head's float32 rounds otherwise in a batch that lacks the call that was cut off.
    limits = {"rtol": 1e-4, "atol": 1e-5} if lora else {"rtol": 1e-6, "atol": 1e-6}
    compared = set()
    for mine, theirs in zip(made, called, strict=False):
        assert (mine.head, mine.position, mine.text) == (theirs.head, theirs.position, theirs.text)
        assert mine.head_score == pytest.approx(theirs.head_score, rel=1e-3 if lora else 0)
        if mine.head == "mask" and not lora:
            own, other = (dict(p.to_json()["value"]) for p in (mine, theirs))
            assert own.pop("scores") == pytest.approx(other.pop("scores"), rel=1e-5)  # of other shapes of batches
            assert own == other
        elif mine.head == "temporal":
            for name, value in theirs.value.items():
                torch.testing.assert_close(mine.value[name], value, **limits)
        elif mine.head == "region":
            torch.testing.assert_close(mine.value, theirs.value, **limits)
        compared.add(mine.head)
    assert head in compared


def test_what_a_user_gives_is_put_into_the_prompt(tmp_path):
    model = text_model(tied=False, num_rows=64, lora=False, dtype=torch.float32)
    ids = model.tpo.tokenizer("<s> where is <region_box> here", return_tensors="pt").input_ids
    given = {"region": {"boxes_xyxy": torch.tensor([[0.1, 0.2, 0.5, 0.6]])}}
    with torch.no_grad():
        expected = model(input_ids=ids, task_inputs=given).logits
    export(model, tmp_path / "out")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    embeds = tpo.load_heads(tmp_path / "out").with_given(ids, plain.get_input_embeddings()(ids), given)
    with torch.no_grad():
        found = plain(inputs_embeds=embeds).logits
    trigger = json.loads((tmp_path / "out" / "tpo_heads.json").read_text())["heads"]["region"]["trigger_id"]
    others = [i for i in range(64) if i != trigger]
    assert torch.equal(found[..., others], expected[..., others])
    torch.testing.assert_close(found[..., trigger], expected[..., trigger])


# -- what is written, and what is refused ------------------------------------------------------------------------------


def test_the_description_and_the_card(tmp_path):
    model = text_model(tied=True, num_rows=12, lora=False, dtype=torch.float32)
    export(model, tmp_path / "out", metrics={"region_acc@0.5": 0.875})
    described = json.loads((tmp_path / "out" / "tpo_heads.json").read_text())
    assert described["state"] == {
        "at": "task_token", "size": 32, "module": "model.norm", "module_class": "LlamaRMSNorm", "after_last_norm": True,
    }  # fmt: skip
    head = described["heads"]["region"]
    assert (head["trigger"], head["trigger_id"], head["task_token"], head["task_id"]) == (
        "<box_begin>", 12, "<boxes>", 13,
    )  # fmt: skip
    assert head["config"]["loss"] == "l1_giou"
    assert described["never_emitted"] == list(range(13, 64))
    assert described["untied"] is True
    assert AutoTokenizer.from_pretrained(tmp_path / "out").convert_tokens_to_ids("<boxes>") == 13
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| region_acc@0.5 | 0.875 |" in card
    assert "were one matrix. Here they are two" in card


def test_a_folder_that_is_not_empty_is_refused_before_anything_is_changed(tmp_path):
    model = text_model(tied=True, num_rows=64, lora=False, dtype=torch.float32)
    (tmp_path / "file").write_text("precious")
    with pytest.raises(tpo.TPOError, match="is there already and not empty; give a new folder"):
        export(model, tmp_path)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_states_that_end_too_early_are_refused(tmp_path):
    model = text_model(tied=False, num_rows=64, lora=False, dtype=torch.float32)
    trigger, task = model.tpo.token_ids["region"]
    export(model, tmp_path / "out")
    heads = tpo.load_heads(tmp_path / "out")
    sequences = torch.tensor([[1, 4, 5, trigger, task]])
    with pytest.raises(tpo.TPOError, match="head 'region' in column 4, and the states end before column 4"):
        heads.predict(sequences, torch.zeros(1, 4, 32), prompt_length=3)
    with pytest.raises(tpo.TPOError, match=r"shape \[1, 5, 8\]; expected \[1 answers, columns, 32\]"):
        heads.predict(sequences, torch.zeros(1, 5, 8), prompt_length=3)
    (prediction,) = heads.predict(sequences[:, :4], torch.zeros(1, 4, 32), prompt_length=3)[0]
    assert prediction.cut_off


def test_no_export(tmp_path):
    with pytest.raises(tpo.TPOError, match=r"has no tpo_heads.json; expected a folder that tpo export wrote"):
        tpo.load_heads(tmp_path)
