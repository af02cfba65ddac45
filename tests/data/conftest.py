"""Media files, a stand-in for `model.tpo`, and real processors with small tokenizers; nothing is downloaded."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tpo_plugin.config import TPOConfig
from tpo_plugin.head import TaskHead
from tpo_plugin.tokens import HeadTokens

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class BoxHead(TaskHead):
    """One token for each box; boxes can be given too."""

    def check_task(self, task: dict[str, Any]) -> None:
        for i, box in enumerate(task["boxes"]):
            if not (len(box) == 4 and 0 <= box[0] <= box[2] <= 1 and 0 <= box[1] <= box[3] <= 1):
                raise ValueError(f"boxes[{i}] is {box}; expected x1, y1, x2, y2 inside [0, 1]")

    def num_tokens(self, task: dict[str, Any]) -> int:
        return len(task["boxes"])

    def collate_targets(self, tasks: list[dict[str, Any]]) -> dict[str, Any]:
        return {"boxes_xyxy": torch.tensor([box for task in tasks for box in task["boxes"]])}

    def collate_inputs(self, tasks: list[dict[str, Any]], given: list[dict[str, Any]]) -> dict[str, Any] | None:
        return self.collate_targets(given) if given else None


class PointHead(TaskHead):
    """The defaults of every head: one token a task, every field a tensor, nothing given."""


@pytest.fixture(scope="session")
def small_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    """Makes a byte-level BPE tokenizer that splits digits; `special` tokens get ids of their own."""
    corpus = ["Where is the red circle? It is here. The blue square is there, user assistant system"] * 9
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=400, initial_alphabet=alphabet, special_tokens=["<pad>", "</s>"], show_progress=False
        ),
    )
    serialized = bpe.to_str()

    def make(special: Iterable[str] = (), template: str | None = CHATML, heads: bool = True) -> PreTrainedTokenizerFast:
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(serialized), pad_token="<pad>", eos_token="</s>"
        )
        tokens = ["<|im_start|>", "<|im_end|>", "<end_of_utterance>", *special]
        if heads:
            tokens += ["<box_begin>", "<boxes>", "<region_box>", "<point_begin>", "<point>"]
        tokenizer.add_tokens([AddedToken(t, special=True, normalized=False) for t in tokens], special_tokens=True)
        tokenizer.chat_template = template
        tokenizer.model_input_names = ["input_ids", "attention_mask"]  # as the tokenizers of such hosts have it
        return tokenizer

    return make


def stand_in(tokenizer: Any, processor: Any = None) -> Any:
    """What the data layer needs of `model.tpo`."""

    def tokens(trigger: str, task: str, given: str | None) -> HeadTokens:
        ids = [None if t is None else tokenizer.convert_tokens_to_ids(t) for t in (trigger, task, given)]
        return HeadTokens(trigger, task, given, *ids)

    return SimpleNamespace(
        tokenizer=tokenizer,
        processor=processor,
        special_ids=None,
        config=TPOConfig(),
        host=SimpleNamespace(decodes=False, label_shift=1),
        codecs={"region": BoxHead(), "point": PointHead()},
        tokens={
            "region": tokens("<box_begin>", "<boxes>", "<region_box>"),
            "point": tokens("<point_begin>", "<point>", None),
        },
    )


@pytest.fixture(scope="session")
def make_tpo() -> Callable[..., Any]:
    return stand_in


@pytest.fixture
def tpo(small_tokenizer: Callable[..., Any]) -> Any:
    """The stand-in of a host that takes text only."""
    return stand_in(small_tokenizer())


@pytest.fixture
def write_records(tmp_path: Path) -> Callable[..., Path]:
    """Writes dicts as JSON Lines (or, for a name in .json, as one list) and gives the path."""

    def write(records: list[Any], name: str = "records.jsonl") -> Path:
        path = tmp_path / name
        lines = [json.dumps(record) for record in records]
        path.write_text(json.dumps(records) if name.endswith(".json") else "\n".join(lines), encoding="utf-8")
        return path

    return write


def write_video(
    path: Path, starts_ms: list[int], *, size: tuple[int, int] = (64, 48), gop: int = 10, **options: str
) -> Path:
    """An H.264 MP4 with B-frames whose i-th frame is grey of value 4 i, first shown at `starts_ms[i]`."""
    import av

    milliseconds = Fraction(1, 1000)
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = stream.time_base = milliseconds
        stream.options = {"g": str(gop), "crf": "1"}
        for i, start in enumerate(starts_ms):
            frame = av.VideoFrame.from_ndarray(np.full((size[1], size[0], 3), 4 * i, np.uint8), format="rgb24")
            frame.pts, frame.time_base = start, milliseconds
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="session")
def video_maker() -> Callable[..., Path]:
    return write_video


@pytest.fixture(scope="session")
def steady_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifty frames, 25 a second."""
    return write_video(tmp_path_factory.mktemp("media") / "steady.mp4", [40 * i for i in range(50)])


@pytest.fixture(scope="session")
def uneven_starts_s() -> np.ndarray:
    """Twenty steps of 40 ms, 28 of 120 ms, and one of 40 ms, which is also how long the last frame is shown."""
    return np.cumsum([0] + [0.04] * 20 + [0.12] * 28 + [0.04])


@pytest.fixture(scope="session")
def uneven_video(tmp_path_factory: pytest.TempPathFactory, uneven_starts_s: np.ndarray) -> Path:
    starts_ms = np.rint(uneven_starts_s * 1000).astype(int).tolist()
    return write_video(tmp_path_factory.mktemp("media") / "uneven.mp4", starts_ms)
