"""The model: questions of lmms-eval's tasks to a run, its predictions in the words that their scorers read."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from PIL import Image

from tpo_lmms_eval.words import in_words
from tpo_plugin import TPOError
from tpo_plugin.asking import ask, load
from tpo_plugin.data import Sample, prompt_record, read_video


class TPO(lmms):
    """A run of `tpo train`, greedily.

    Boxes are answered in pixels, as JSON with `bbox_2d`, all of an answer in one list; masks of a picture as JSON, as
    the model `sam3` of lmms-eval writes them; a span as "a - b seconds", the first head's best alone; any other answer
    as its text.
    """

    is_simple = False

    def __init__(
        self,
        run: str,
        host: str | None = None,
        route: str | None = None,
        batch_size: int | str = 1,
        device: str | None = None,
        **unknown: Any,
    ) -> None:
        """What `--model_args` gives.

        Args:
            run: A run's folder or name on the hub, or a checkpoint of it.
            host: Where its host lies now, if it has moved.
            route: A head that every answer must call; without it the model itself decides.
            batch_size, device: Those of lmms-eval's command line.

        Raises `TPOError` for other arguments, for several processes, and as `load_run` does.
        """
        super().__init__()
        if unknown.pop("max_batch_size", None) is not None or unknown:
            raise TPOError(f"--model_args has {sorted(unknown)}; expected run, host and route")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise TPOError("the model tpo runs in one process; start lmms-eval without accelerate or torchrun")
        self.tpo_model, self.reading = load(run, host)
        if device is not None:
            self.tpo_model = self.tpo_model.to(device)
        self.route, self.batch_size = route, int(batch_size)

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """The answers to requests, in their order; those that follow each other with the same options in batches."""
        results = []
        for _, group in groupby(requests, key=lambda request: json.dumps(request.args[2], sort_keys=True, default=str)):
            alike = list(group)
            for start in range(0, len(alike), self.batch_size):
                results += self._answer(alike[start : start + self.batch_size])
        return results

    def _answer(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        options = requests[0].args[2]
        if (options.get("num_beams") or 1) != 1 or (options.get("do_sample") and options.get("temperature")):
            raise TPOError(
                f"a task asks for {options}; the model tpo answers greedily: set do_sample: false, num_beams: 1"
            )
        samples = [self._sample(request) for request in requests]
        answers = ask(
            self.tpo_model, samples, route=self.route, max_new_tokens=int(options.get("max_new_tokens") or 256)
        )
        until = options.get("until") or []
        results = []
        for request, sample, answer in zip(requests, samples, answers, strict=True):
            text = in_words(answer, sample)
            for stop in [until] if isinstance(until, str) else until:
                text = text.split(stop)[0] if stop else text
            self.cache_hook.add_partial("generate_until", (request.args[0], options), text)
            results.append(GenerationResult(text))
        return results

    def _sample(self, request: Instance) -> Sample:
        """A request's question with its media, which are read as the run reads them."""
        _, doc_to_messages, _, doc_id, task, split = request.args
        images: list[Image.Image] = []
        videos: list[str] = []
        texts: list[str] = []
        for message in doc_to_messages(self.task_dict[task][split][doc_id]):
            if message["role"] == "assistant":
                raise TPOError(f"{task}: its prompts hold answers (few-shot), which the model tpo does not take")
            for part in message["content"]:
                if part["type"] == "text":
                    texts.append(part["text"])
                elif part["type"] == "image":
                    images.append(part["url"].convert("RGB"))
                elif part["type"] == "video":
                    videos.append(str(part["url"]))
                else:
                    raise TPOError(f"{task}: its prompts hold {part['type']}; the model tpo takes images and videos")
        names = [f"{task}-{doc_id}-{index}" for index in range(len(images))]
        record = prompt_record(self.tpo_model.tpo, "\n".join(texts), images=names, videos=videos)
        clips = tuple(read_video(path, self.reading.video) for path in record.videos)
        return Sample(record, tuple(images), clips)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Not offered: raises `TPOError`."""
        raise TPOError("the model tpo answers in words; take a task whose output_type is generate_until")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not offered: raises `TPOError`."""
        raise TPOError("the model tpo answers one question at a time; take a task whose output_type is generate_until")
