"""What the trainers are given: a tiny language model, a tiny Qwen2.5-VL, and records with boxes.

`python -m tests.trainers.world FOLDER`, in the environment of a trainer, since files differ from release to release.
"""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.trainers.world_data import ANSWERS, QUESTION, TASKS

SPECIAL = tuple(
    f"<|{name}|>"
    for name in (
        "endoftext", "im_start", "im_end", "object_ref_start", "object_ref_end", "box_start", "box_end", "quad_start",
        "quad_end", "vision_start", "vision_end", "vision_pad", "image_pad", "video_pad",
    )
)  # fmt: skip
FIRST_SPECIAL = 151643
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ROWS = 151936
"""Of the vocabulary: with spare ones for the tokens of a head."""
ASSISTANT = 77091
"""Id of "assistant" in Qwen's vocabulary, by which QwenLM's own code finds what is answered."""


def main(folder: Path) -> None:
    """Writes all of it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    make_text(folder / "tiny-Qwen2", tokenizer)
    if find_spec("torchvision") is not None:  # an environment for text may lack it
        make_vision(folder / "tiny-Qwen2.5-VL", tokenizer)
    for index in range(len(ANSWERS)):
        Image.new("RGB", (56, 56), (60 * index, 90, 200)).save(folder / f"{index}.png")
    plain = [[{"role": "user", "content": QUESTION}, {"role": "assistant", "content": text}] for text, _ in ANSWERS]
    tagged = [[{**turns[0], "content": f"<image>{QUESTION}"}, turns[1]] for turns in plain]
    images = [[str(folder / f"{index}.png")] for index in range(len(ANSWERS))]
    (folder / "text").mkdir(exist_ok=True)
    write(
        folder / "text" / "train.jsonl",
        [{"messages": turns, "tasks": tasks} for turns, tasks in zip(plain, TASKS, strict=True)],
    )
    write(
        folder / "vision.jsonl",
        [
            {"messages": turns, "tasks": tasks, "images": paths}
            for turns, tasks, paths in zip(tagged, TASKS, images, strict=True)
        ],
    )
    write_parquet(folder / "pictures", plain, images)
    llava = []
    for index, (turns, tasks) in enumerate(zip(tagged, TASKS, strict=True)):
        said = [{"from": who, "value": turn["content"]} for who, turn in zip(("human", "gpt"), turns, strict=True)]
        llava.append({"id": str(index), "image": f"{index}.png", "conversations": said, "tasks": tasks})
    (folder / "llava.json").write_text(json.dumps(llava))
    lines = [
        {"id": str(i), "text": f"{QUESTION} {text}", "tasks": tasks}
        for i, ((text, _), tasks) in enumerate(zip(ANSWERS, TASKS, strict=True))
    ]
    write(folder / "lines.json", lines)


def write_parquet(folder: Path, conversations: list[Any], images: list[list[str]]) -> None:
    """A data set of pictures, as those of the hub are: with a list of content in a turn that shows one."""
    from datasets import Dataset, Image, Sequence

    rows = []
    for (asked, told), tasks, paths in zip(conversations, TASKS, images, strict=True):
        turns = [
            {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": asked["content"]}]},
            {"role": "assistant", "content": [{"type": "text", "text": told["content"]}]},
        ]
        rows.append({"messages": turns, "images": paths, "tasks": tasks})
    folder.mkdir(exist_ok=True)
    Dataset.from_list(rows).cast_column("images", Sequence(Image())).to_parquet(folder / "train.parquet")


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """As JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, some merges, and the tokens of Qwen at their ids that some trainers have as numbers."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator([QUESTION, *(text for text, _ in ANSWERS)], trainer)
    learned = json.loads(backend.to_str())["model"]
    vocabulary = learned["vocab"] | {f"unused{i}": i for i in range(len(learned["vocab"]), FIRST_SPECIAL)}
    vocabulary |= {token: FIRST_SPECIAL + i for i, token in enumerate(SPECIAL)}
    word = "assistant"
    grown = [(word[:i], word[i]) for i in range(1, len(word))]
    vocabulary |= {"".join(merge): ASSISTANT - len(grown) + i for i, merge in enumerate(grown, 1)}
    backend.model = models.BPE(named(vocabulary), [*grown, *(tuple(merge) for merge in learned["merges"])])
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL[1:]),
        chat_template=TEMPLATE,
        model_max_length=2048,
    )


def named(vocabulary: dict[str, int]) -> dict[str, int]:
    """Without the unused names of ids that have another."""
    taken = {i for token, i in vocabulary.items() if not token.startswith("unused")}
    return {token: i for token, i in vocabulary.items() if i not in taken or not token.startswith("unused")}


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """With the files of a Qwen2 tokenizer, slow and fast."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "Qwen2Tokenizer", "chat_template": TEMPLATE})
    )
    tokenizer.backend_tokenizer.model.save(str(folder))


def ids(tokenizer: PreTrainedTokenizerFast, *names: str) -> list[int]:
    """Of special tokens."""
    return [tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in names]


def make_text(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A Qwen2 of two layers."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    pad, eos = ids(tokenizer, "endoftext", "im_end")
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=ROWS, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, pad_token_id=pad, bos_token_id=None, eos_token_id=eos,
        tie_word_embeddings=False,
    )  # fmt: skip
    save(Qwen2ForCausalLM(config), folder)
    save_tokenizer(tokenizer, folder)


def make_vision(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A Qwen2.5-VL of two layers, and its processor."""
    import transformers

    pad, eos, start, end, image, video = ids(
        tokenizer, "endoftext", "im_end", "vision_start", "vision_end", "image_pad", "video_pad"
    )
    torch.manual_seed(0)
    text = {
        "vocab_size": ROWS, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 2048, "pad_token_id": pad, "bos_token_id": None,
        "eos_token_id": eos, "rope_scaling": {"type": "mrope", "rope_type": "default", "mrope_section": [1, 1, 2]},
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "patch_size": 14,
        "window_size": 112, "fullatt_block_indexes": [1], "in_chans": 3, "in_channels": 3,
    }  # fmt: skip
    config = transformers.Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, image_token_id=image, video_token_id=video, vision_start_token_id=start,
        vision_end_token_id=end, tie_word_embeddings=False,
    )  # fmt: skip
    save(transformers.Qwen2_5_VLForConditionalGeneration(config), folder)
    sizes = {"min_pixels": 56 * 56, "max_pixels": 112 * 112}
    save_tokenizer(tokenizer, folder)  # and again behind the processor: older releases want a tokenizer of Qwen's class
    own = transformers.AutoTokenizer.from_pretrained(folder)
    parts = {"image_processor": transformers.Qwen2VLImageProcessor(**sizes), "tokenizer": own}
    if hasattr(transformers, "Qwen2VLVideoProcessor"):
        parts["video_processor"] = transformers.Qwen2VLVideoProcessor(**sizes)
    transformers.Qwen2_5_VLProcessor(**parts, chat_template=TEMPLATE).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)


def save(model: Any, folder: Path) -> None:
    """With answers that are not drawn at random."""
    model.generation_config.do_sample = False
    model.save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
