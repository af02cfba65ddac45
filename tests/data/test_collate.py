from __future__ import annotations

import logging
import pickle
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch.utils.data import DataLoader

from tpo_plugin.data.collate import TPOCollator
from tpo_plugin.data.dataset import Sample
from tpo_plugin.data.encode import _media_end, locate
from tpo_plugin.data.media import VideoClip
from tpo_plugin.data.records import parse_record
from tpo_plugin.errors import TPOError
from tpo_plugin.head import TaskHead

Make = Callable[..., Any]
BOX, BOXES = (
    {"head": "region", "boxes": [[0.1, 0.2, 0.3, 0.4]]},
    {"head": "region", "boxes": [[0, 0, 1, 1], [0, 0, 0.5, 1]]},
)
POINT = {"head": "point", "xy": [0.5, 0.25]}

# Each answer starts with a blank that the prompt for generation lacks, as those of Idefics3 and SmolVLM do.
BLANK_TEMPLATE = (
    "<|im_start|>{% for m in messages %}{{ m['role'] | capitalize }}"
    "{% if m['content'][0]['type'] == 'image' %}:{% else %}: {% endif %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}IMAGE{% elif c['type'] == 'video' %}VIDEO{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def llava(make: Make) -> Any:
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    return transformers.LlavaProcessor(
        images,
        make(["<image>"]),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHATML.replace("IMAGE", "<image>"),
    )


def llava_onevision(make: Make) -> Any:
    size = {"height": 28, "width": 28}
    grid = [[28, 28], [28, 56], [56, 28], [56, 56]]
    return transformers.LlavaOnevisionProcessor(
        transformers.LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=grid),
        make(["<image>", "<video>"]),
        transformers.LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        chat_template=CHATML.replace("IMAGE", "<image>").replace("VIDEO", "<video>"),
    )


def qwen2_vl(make: Make) -> Any:
    pixels = {"min_pixels": 28 * 28, "max_pixels": 4 * 28 * 28}
    parts = {}
    if hasattr(transformers, "Qwen2VLVideoProcessor"):
        parts["video_processor"] = transformers.Qwen2VLVideoProcessor(**pixels)
    plain = make(["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"])
    tokenizer = transformers.Qwen2TokenizerFast(
        tokenizer_object=plain._tokenizer, pad_token="<pad>", eos_token="</s>", unk_token=None
    )
    return transformers.Qwen2VLProcessor(
        transformers.Qwen2VLImageProcessor(**pixels),
        tokenizer,
        **parts,
        chat_template=CHATML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>").replace(
            "VIDEO", "<|vision_start|><|video_pad|><|vision_end|>"
        ),
    )


def idefics3(make: Make) -> Any:
    if not hasattr(transformers, "Idefics3Processor"):
        pytest.skip("this transformers has no Idefics3")
    images = transformers.Idefics3ImageProcessor(size={"longest_edge": 56}, max_image_size={"longest_edge": 28})
    tokenizer = make(["<image>", "<fake_token_around_image>", "<global-img>"])
    return transformers.Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=BLANK_TEMPLATE)


PROCESSORS = {"llava": llava, "llava_onevision": llava_onevision, "qwen2_vl": qwen2_vl, "idefics3": idefics3}
TAKES_VIDEO = ("llava_onevision", "qwen2_vl")


@pytest.fixture(params=PROCESSORS)
def host(request: pytest.FixtureRequest, small_tokenizer: Make, make_tpo: Make) -> Any:
    processor = PROCESSORS[request.param](small_tokenizer)
    tpo = make_tpo(processor.tokenizer, processor)
    tpo.name = request.param
    return tpo


def record(tpo: Any, *texts: str, tasks: Any = (), **media: Any) -> Any:
    turns = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]
    return parse_record({"id": "r", "conversations": turns, "tasks": list(tasks), **media}, tpo, file="f.json", line=7)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def clip(num_frames: int = 4) -> VideoClip:
    frames = np.random.default_rng(1).integers(0, 255, (num_frames, 30, 40, 3), dtype=np.uint8)
    return VideoClip(frames, np.arange(num_frames) * 0.5, num_frames * 0.5)


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


def labelled(tpo: Any, batch: dict[str, Any], row: int) -> str:
    return tpo.tokenizer.decode(batch["labels"][row][batch["labels"][row] != -100])


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
    assert [row for row, _ in positions["task"]["region"]] == [0, 0] + [3] * video
    assert [row for row, _ in positions["input"]["region"]] == [0]
    for kind, attribute in (("trigger", "trigger_id"), ("task", "task_id"), ("input", "input_id")):
        for name, places in positions[kind].items():
            for row, column in places:
                assert batch["input_ids"][row, column] == getattr(host.tokens[name], attribute)
    assert [place[1] + 1 for place in positions["trigger"]["region"]] == [p[1] for p in positions["task"]["region"]]
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
    (task,) = [column for _, column in whole["task_positions"]["task"]["region"]]
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


def test_beginning_of_sequence_is_not_doubled(small_tokenizer: Make, make_tpo: Make) -> None:
    from tokenizers.processors import TemplateProcessing

    def with_bos(*args: Any, **kwargs: Any) -> Any:
        tokenizer = small_tokenizer(*args, **kwargs)
        tokenizer.bos_token = "<|im_start|>"
        tokenizer._tokenizer.post_processor = TemplateProcessing(
            single="<|im_start|> $A", special_tokens=[("<|im_start|>", tokenizer.bos_token_id)]
        )
        return tokenizer

    processor = llava(with_bos)
    processor.chat_template = (
        "<|im_start|>{% for m in messages %}{{ m['role'] }}: {% for c in m['content'] %}"
        "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}</s>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    tpo = make_tpo(processor.tokenizer, processor)
    sample = Sample(record(tpo, "<image>a", "red", image="a"), (picture(28, 28),))
    batch = TPOCollator(tpo)([sample])
    assert (batch["input_ids"] == tpo.tokenizer.bos_token_id).sum() == 1
    assert labelled(tpo, batch, 0) == " red</s>"  # the blank and the word are one token


def test_template_without_an_end_warns(tpo: Any, caplog: pytest.LogCaptureFixture) -> None:
    tpo.tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    with caplog.at_level(logging.WARNING):
        batch = TPOCollator(tpo)([Sample(record(tpo, "Hi", "red", "And?", "blue"))])
    assert "no special token behind an answer" in caplog.text
    assert labelled(tpo, batch, 0) == " red blue"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}{{ m['content'] | upper }}{% endfor %}", "changes the assistant's text"),
        ("{{ messages[0]['content'] }}", "leaves out the answer"),
    ],
)
def test_template_that_spoils_answers(tpo: Any, template: str, message: str) -> None:
    tpo.tokenizer.chat_template = template
    with pytest.raises(TPOError, match=message):
        TPOCollator(tpo)([Sample(record(tpo, "Hi", "red"))])


def test_missing_template_and_slow_tokenizer(small_tokenizer: Make, make_tpo: Make) -> None:
    tpo = make_tpo(small_tokenizer(template=None))
    with pytest.raises(
        TPOError, match=r"tokenizer \(.*\) has no chat template; set tokenizer.chat_template to the Jinja"
    ):
        TPOCollator(tpo)
    processor = llava(small_tokenizer)
    processor.chat_template = None
    with pytest.raises(
        TPOError, match=r"processor \(LlavaProcessor\) has no chat template; set processor.chat_template"
    ):
        TPOCollator(make_tpo(processor.tokenizer, processor))
    slow = SimpleNamespace(is_fast=False, chat_template="x")
    host = SimpleNamespace(ids="input_ids")
    tpo = SimpleNamespace(tokenizer=slow, processor=None, special_ids=None, tokens={}, heads={}, host=host)
    with pytest.raises(TPOError, match="slow tokenizer"):
        TPOCollator(tpo)


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


def test_locate() -> None:
    assert locate(range(1, 3), [1, 2, 3], [1, 2, 3]) == 1
    assert locate(range(2, 4), [1, 9, 3, 4], [1, 9, 9, 9, 3, 4]) == 4
    # the second of two equal answers, between two media
    assert locate(range(3, 4), [5, 9, 5, 5, 9, 5], [5, 9, 9, 9, 5, 5, 9, 9, 9, 5]) == 5
    # 7 stands in what was put in, but not with 3 before it; 9 is merged with its neighbour
    assert locate(range(3, 4), [1, 9, 3, 7], [1, 8, 7, 7, 3, 7]) == 5
    # 3 before it is changed
    assert locate(range(3, 4), [1, 9, 3, 7], [1, 8, 8, 7]) == 3
    assert locate(range(2, 3), [1, 9, 7], [1, 7, 7, 7]) is None


@pytest.mark.parametrize(
    ("plain", "full", "end"),
    [
        ([1, 2, 3], [1, 2, 3], 0),
        ([1, 9, 3], [1, 9, 9, 9, 3], 4),
        ([1, 9, 2, 9, 3], [1, 9, 9, 2, 9, 9, 3], 6),
        ([1, 9, 3], [1, 8, 9, 9, 8, 3], 5),
    ],
)
def test_media_end(plain: list[int], full: list[int], end: int) -> None:
    assert _media_end(plain, full) == end


def test_works_in_workers(host: Any) -> None:
    samples = samples_for(host)[:3]
    loader = DataLoader(samples, batch_size=3, num_workers=1, collate_fn=TPOCollator(host), timeout=60)  # type: ignore[arg-type]
    (batch,) = loader
    expected = TPOCollator(host)(samples)
    assert batch.keys() == expected.keys()
    assert (batch["labels"] == expected["labels"]).all()


def test_a_real_host_takes_the_batch(small_tokenizer: Make) -> None:
    """A tiny LLaVA-OneVision with the plugin: text, an image, several images and a clip in a batch; then generation."""
    from tpo_plugin import apply_tpo, register_plugin, unregister_plugin
    from tpo_plugin.hookspecs import hookimpl

    class Plugin:
        @hookimpl
        def register_heads(self, register: Callable[..., None]) -> None:
            register("point", head=TinyPointHead, trigger="<point_begin>", task_token="<point>")

    processor = llava_onevision(lambda special: small_tokenizer(special, heads=False))
    tokenizer = processor.tokenizer
    vision = transformers.SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    text = transformers.Qwen2Config(
        vocab_size=384,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = transformers.LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=[[28, 28], [28, 56], [56, 28], [56, 56]],
        vision_feature_layer=-1,
    )
    torch.manual_seed(0)
    model = transformers.LlavaOnevisionForConditionalGeneration(config).eval()
    register_plugin(Plugin(), "tiny-point")
    try:
        model = apply_tpo(model, processor, heads=["point"])
        several = Sample(
            record(model.tpo, "<image> or <image>?", "At <point>.", image=["a", "b"], tasks=[POINT]),
            (picture(60, 40), picture(40, 60)),
        )
        single = Sample(record(model.tpo, "<image>?", "red <point>", image="a", tasks=[POINT]), (picture(60, 40),))
        chat = Sample(record(model.tpo, "Hi", "Hello"))
        film = Sample(record(model.tpo, "<video>?", "<point>", video="v", tasks=[POINT]), (), (clip(),))
        samples = [several, single, chat, film]
        collate = pickle.loads(pickle.dumps(TPOCollator(model.tpo)))  # as a worker that is not forked gets it
        batch = collate(samples)
        out = model(**batch)
        assert torch.isfinite(out.loss)
        assert out.tpo.predictions["point"].shape == (3, 2)
        generated = model.tpo.generate(
            **TPOCollator(model.tpo, for_generation=True)(samples), max_new_tokens=4, do_sample=False
        )
        assert len(generated.predictions) == 4
        for row, sample in enumerate(samples):  # alone it says the same: other rows' media do not get into it
            alone = collate([sample])
            length = alone["input_ids"].shape[1]
            assert torch.allclose(model(**alone).logits[0], out.logits[row, :length], atol=1e-4)
    finally:
        unregister_plugin("tiny-point")


class TinyPointHead(TaskHead):
    def __init__(self, config: Any, hidden_size: int) -> None:
        super().__init__()
        self.proj = torch.nn.Linear(hidden_size, 2)

    def forward(self, e_ND: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"xy": self.proj(e_ND).sigmoid()}

    def loss(self, outputs: Any, targets: Any, num_targets: Any) -> dict[str, torch.Tensor]:
        return {"loss_l1": (outputs["xy"] - targets["xy"]).abs().sum() / num_targets}


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
        for row, columns in batch["task_positions"]["text"][1:2]
    ]
    assert "blue square" in asked[0]
    assert "It is" not in asked[0]
    assert asked[0] == asked[1]
    assert "labels" not in prompt


def test_an_encoder_decoder(tpo: Any) -> None:
    tpo.host = SimpleNamespace(ids="decoder_input_ids")
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
