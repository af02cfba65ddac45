from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from chats import BOX, BOXES, POINT, PROCESSORS, TAKES_VIDEO, Make, clip, labelled, picture, record
from torch.utils.data import DataLoader

from tpo_plugin.data.collate import TPOCollator
from tpo_plugin.data.dataset import Sample
from tpo_plugin.data.records import parse_record
from tpo_plugin.errors import TPOError


@pytest.fixture(params=PROCESSORS)
def host(request: pytest.FixtureRequest, small_tokenizer: Make, make_tpo: Make) -> Any:
    processor = PROCESSORS[request.param](small_tokenizer)
    tpo = make_tpo(processor.tokenizer, processor)
    tpo.name = request.param
    return tpo


def samples_for(tpo: Any) -> list[Sample]:
    texts = ("<image>\nWhere is the red circle?", "It is here: <region>.", "How many in <region>?", "3")
    samples = [
        Sample(record(tpo, *texts, image="a", tasks=[BOXES, BOX]), (picture(60, 40),)),
        Sample(record(tpo, "It is here.", "It is here.")),
        Sample(
            record(tpo, "<image> or <image>?", "red", "and red <image>", "red <point>", image=[*"abc"], tasks=[POINT]),
            (picture(60, 40), picture(40, 60), picture(30, 30)),
        ),
    ]
    if getattr(tpo, "name", None) in TAKES_VIDEO:
        samples.append(Sample(record(tpo, "<video>\nWhere?", "Here <region>", video="v", tasks=[BOX]), (), (clip(),)))
    return samples


def test_labels_stand_on_the_answers_only(host: Any) -> None:
    samples = samples_for(host)
    batch = TPOCollator(host)(samples)
    end, blank = ("<end_of_utterance>", " ") if host.name == "idefics3" else ("<|im_end|>", "")
    expected = [
        ["It is here: <box_begin><box_begin>.", "3"],
        ["It is here."],
        ["red", "red <point_begin>"],
        ["Here <box_begin>"],
    ]
    for row in range(len(samples)):
        assert labelled(host, batch, row) == "".join(blank + answer + end for answer in expected[row])
    places = batch["labels"] != -100
    assert (batch["labels"][places] == batch["input_ids"][places]).all()
    task_ids = [tokens.task_id for tokens in host.tokens.values()]
    assert (batch["labels"][torch.isin(batch["input_ids"], torch.tensor(task_ids))] == -100).all()
    padding = batch["attention_mask"] == 0
    assert (batch["labels"][padding] == -100).all()
    assert padding[:, 0].sum() == 0  # it stands on the right


def test_rows_are_what_the_processor_makes_of_each_conversation(host: Any) -> None:
    samples = samples_for(host)
    batch = TPOCollator(host)(samples)
    for row, sample in enumerate(samples):
        messages = []
        for turn in sample.record.turns:
            pieces = (
                turn.text.replace("\n", "").replace("<image>", "|<image>|").replace("<video>", "|<video>|").split("|")
            )
            content = [
                {"type": piece[1:-1]} if piece in ("<image>", "<video>") else {"type": "text", "text": piece}
                for piece in pieces
                if piece
            ]
            messages.append({"role": turn.role, "content": content})
        text = host.processor.apply_chat_template(messages, tokenize=False)
        media: dict[str, Any] = {}
        if sample.images:
            nested = int(transformers.__version__.split(".")[0]) > 4 or "4.57" in transformers.__version__
            media["images"] = [list(sample.images)] if nested else list(sample.images)
        if sample.videos:
            media["videos"] = [sample.videos[0].frames]
        expected = host.processor(text=[text], return_tensors="pt", **media)["input_ids"][0]
        length = int(batch["attention_mask"][row].sum())
        assert batch["input_ids"][row, :length].tolist() == expected.tolist()


def test_tasks_are_collated_by_their_heads_in_order(host: Any) -> None:
    samples = samples_for(host)
    batch = TPOCollator(host)(samples)
    video = host.name in TAKES_VIDEO
    boxes = BOXES["boxes"] + BOX["boxes"] * video
    assert batch["task_targets"]["region"]["boxes_xyxy"].tolist() == pytest.approx(np.array(boxes), abs=1e-7)
    assert batch["task_targets"]["point"]["xy"].tolist() == [[0.5, 0.25]]
    assert batch["task_inputs"].keys() == {"region"}
    assert batch["task_inputs"]["region"]["boxes_xyxy"].tolist() == pytest.approx(np.array(BOX["boxes"]), abs=1e-7)
    positions = batch["task_positions"]
    assert [row for row, _ in positions.task["region"]] == [0, 0] + [3] * video
    assert [row for row, _ in positions.input["region"]] == [0]
    for kind, attribute in (("trigger", "trigger_id"), ("task", "task_id"), ("input", "input_id")):
        for name, places in positions.of(kind).items():
            for row, column in places:
                assert batch["input_ids"][row, column] == getattr(host.tokens[name], attribute)
    assert [place[1] + 1 for place in positions.trigger["region"]] == [p[1] for p in positions.task["region"]]
    ordinary = TPOCollator(host)(samples[1:2])
    assert "task_targets" not in ordinary
    assert "task_inputs" not in ordinary


def test_prompts_end_where_the_assistant_begins(host: Any) -> None:
    samples = samples_for(host)
    batch = TPOCollator(host, for_generation=True)(samples)
    assert not {"labels", "task_targets", "task_positions"} & batch.keys()
    assert batch["attention_mask"][:, -1].all()
    opening = "Assistant:" if host.name == "idefics3" else "<|im_start|>assistant\n"
    whole = TPOCollator(host)(samples)
    for row in range(len(samples)):
        prompt = batch["input_ids"][row][batch["attention_mask"][row] == 1]
        assert host.tokenizer.decode(prompt).endswith(opening)
        assert prompt.tolist() == whole["input_ids"][row, : len(prompt)].tolist()  # training saw the same beginning
        after = whole["labels"][row, len(prompt) :]
        assert after[0] != -100
    assert batch["task_inputs"]["region"]["boxes_xyxy"].shape == (1, 4)


def test_answers_are_found_between_many_images(host: Any) -> None:
    rng = random.Random(0)
    words = ["red", "red", "It is here.", "3", "the blue square", "is it?", "a", "17"]
    end, blank = ("<end_of_utterance>", " ") if host.name == "idefics3" else ("<|im_end|>", "")
    collate = TPOCollator(host)
    for _ in range(40):
        texts, images, expected = [], [], ""
        for _ in range(rng.randint(1, 4)):
            pieces = [rng.choice(words) for _ in range(rng.randint(1, 3))]
            tagged = [piece if rng.random() < 0.6 else "<image>" for piece in pieces]
            images += [picture(rng.choice([30, 60]), rng.choice([30, 60])) for piece in tagged if piece == "<image>"]
            answer = rng.choice(words)
            texts += [" ".join(tagged), answer]
            expected += blank + answer + end
        batch = collate([Sample(record(host, *texts, image=["x"] * len(images)), tuple(images))])
        assert labelled(host, batch, 0) == expected, texts


def test_cutting_refuses_to_lose_a_token_or_a_medium(host: Any) -> None:
    long = " ".join(["the blue square is here"] * 20)
    texts = ("<image>\nWhere?", f"It is here: <region>. {long}")
    sample = Sample(record(host, *texts, image="a", tasks=[BOX]), (picture(60, 40),))
    whole = TPOCollator(host)([sample])
    length = whole["input_ids"].shape[1]
    (task,) = [column for _, column in whole["task_positions"].task["region"]]
    cut = TPOCollator(host, max_length=task + 3)([sample])
    assert cut["input_ids"].tolist() == whole["input_ids"][:, : task + 3].tolist()
    assert cut["labels"].tolist() == whole["labels"][:, : task + 3].tolist()
    assert (TPOCollator(host, max_length=length)([sample])["labels"] == whole["labels"]).all()
    for limit, lost in ((task, "the task token of head 'region'"), (task - 1, "the trigger token of head 'region'")):
        message = (
            rf"f\.json:7: cutting its {length} tokens to max_length={limit} would cut off {lost}; raise max_length"
        )
        with pytest.raises(TPOError, match=message):
            TPOCollator(host, max_length=limit)([sample])
    plain = Sample(record(host, "<image>\nWhere?", long, image="a"), (picture(56, 56),))
    answer = int((TPOCollator(host)([plain])["labels"][0] != -100).nonzero()[0])
    with pytest.raises(TPOError, match=r"max_length=6 would cut off tokens of an image or video"):
        TPOCollator(host, max_length=6)([plain])
    with pytest.raises(TPOError, match=rf"max_length={answer} would leave no token of an answer to learn from"):
        TPOCollator(host, max_length=answer)([plain])
    with pytest.raises(TPOError, match=r"f\.json:7: the prompt has \d+ tokens, more than max_length=6"):
        TPOCollator(host, for_generation=True, max_length=6)([plain])


def test_clips_of_different_lengths(small_tokenizer: Make, make_tpo: Make) -> None:
    for name in TAKES_VIDEO:
        processor = PROCESSORS[name](small_tokenizer)
        tpo = make_tpo(processor.tokenizer, processor)
        samples = [Sample(record(tpo, "<video>?", "red", video="v"), (), (clip(n),)) for n in (2, 4)]
        if name == "qwen2_vl":
            assert TPOCollator(tpo)(samples)["video_grid_thw"][:, 0].tolist() == [1, 2]
        else:
            with pytest.raises(TPOError, match=r"clips of a batch have different shapes .* read as many frames"):
                TPOCollator(tpo)(samples)


def test_what_the_processor_refuses_names_the_record(host: Any) -> None:
    no_image: Any = object()
    wrong = Sample(record(host, "<image>?", "red", image="a"), (no_image,))
    with pytest.raises(TPOError, match=r"f\.json:7: cannot be encoded: "):
        TPOCollator(host)([wrong])


def test_text_only_host(tpo: Any) -> None:
    samples = [
        Sample(record(tpo, "Where is the red circle?", "Here: <point>", "And in <region>?", "3", tasks=[POINT, BOX])),
        Sample(record(tpo, "Hi", "")),
    ]
    batch = TPOCollator(tpo)(samples)
    assert labelled(tpo, batch, 0) == "Here: <point_begin><|im_end|>3<|im_end|>"
    assert labelled(tpo, batch, 1) == "<|im_end|>"  # an empty answer teaches to stop
    text = tpo.tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    prompt = TPOCollator(tpo, for_generation=True)(samples[1:])["input_ids"][0]
    assert tpo.tokenizer.decode(prompt) == text + "<|im_start|>assistant\n"
    with pytest.raises(TPOError, match=r"f\.json:7: cannot be encoded: .*has no processor, so it takes text only"):
        TPOCollator(tpo)([Sample(record(tpo, "<image>?", "red", image="a"), (picture(9, 9),))])


def test_rows_that_cannot_be_mixed(tpo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from tpo_plugin.data import encode as encode_module

    run = encode_module._run

    def run_with_extra(chat: Any, text: str, sample: Sample) -> Any:
        encoded = run(chat, text, sample)
        if "red" in text:
            encoded["cross_attention_mask"] = torch.ones(1, encoded["input_ids"].shape[1], 1, 4, dtype=torch.int64)
        return encoded

    monkeypatch.setattr(encode_module, "_run", run_with_extra)
    red, blue = (Sample(record(tpo, "Hi", answer)) for answer in ("red it is", "blue"))
    batch = TPOCollator(tpo)([red, red])
    assert batch["cross_attention_mask"].shape == (*batch["input_ids"].shape, 1, 4)
    with pytest.raises(TPOError, match=r"gives no 'cross_attention_mask' .* cannot mix records with and without media"):
        TPOCollator(tpo)([red, blue])


def test_works_in_workers(host: Any) -> None:
    samples = samples_for(host)[:3]
    loader = DataLoader(samples, batch_size=3, num_workers=1, collate_fn=TPOCollator(host), timeout=600)  # type: ignore[arg-type]
    (batch,) = loader
    expected = TPOCollator(host)(samples)
    assert batch.keys() == expected.keys()
    assert (batch["labels"] == expected["labels"]).all()


def test_the_last_question_of_a_prompt(tpo: Any) -> None:
    """Heads that look at the text see the same of a conversation in training and in generation."""
    texts = ["Where is it?", "It is here.", "Where is the blue square?", "There <region>"]
    turns = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]
    record = parse_record({"id": "1", "conversations": turns, "tasks": [BOX]}, tpo, file="a.jsonl")
    tpo.special_ids = sorted(tpo.tokenizer.added_tokens_decoder)
    sample = Sample(record, [], [])
    training = TPOCollator(tpo)([sample])
    prompt = TPOCollator(tpo, for_generation=True)([sample])
    asked = [
        tpo.tokenizer.decode(batch["input_ids"][row, columns])
        for batch in (training, prompt)
        for row, columns in batch["task_positions"].text[1:2]
    ]
    assert "blue square" in asked[0]
    assert "It is" not in asked[0]
    assert asked[0] == asked[1]
    assert "labels" not in prompt
