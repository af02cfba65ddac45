"""A conversation about one picture or video, and its questions to the model."""

from __future__ import annotations

import logging
import queue
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from tpo_plugin.app.figures import figures, marked
from tpo_plugin.app.inputs import Box, shown_time, tasks_of
from tpo_plugin.app.playing import playable
from tpo_plugin.asking import Answer
from tpo_plugin.data import read_image, read_video
from tpo_plugin.data.confine import check_video
from tpo_plugin.errors import MediaError, TPOError
from tpo_plugin.serve.batching import Batcher, Question
from tpo_plugin.serve.errors import without_paths
from tpo_plugin.serve.limits import Limits
from tpo_plugin.serve.media import PICTURES, MediaReader
from tpo_plugin.serve.request import ChatRequest, Message, Part, Url
from tpo_plugin.training.config import DataConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Medium:
    """What a conversation is about."""

    file: Path
    """As it was given."""
    shown: Path
    """As a browser shows it."""
    width: int
    height: int
    duration_s: float | None = None
    """Of a video."""


@dataclass
class Exchange:
    """A question with what was said to it so far."""

    text: str
    tasks: list[dict[str, Any]] = field(default_factory=list)
    answer: str = ""
    marked: str = ""
    """The answer with the numbers of what was found, once it has ended."""
    figures: list[str] = field(default_factory=list)
    """HTML of what was found, and sentences."""
    error: str = ""
    """Why there is no answer."""


@dataclass
class Conversation:
    """What one user sees."""

    medium: Medium | None = None
    box: Box | None = None
    exchanges: list[Exchange] = field(default_factory=list)

    def about(self, medium: Medium | None) -> None:
        """Begins anew."""
        self.medium, self.box, self.exchanges = medium, None, []

    def request(self) -> ChatRequest:
        """All that was said, as the server of OpenAI's clients gets it."""
        told = [exchange for exchange in self.exchanges if not exchange.error]
        messages = []
        for number, exchange in enumerate(told):
            content = [Part(type="text", text=exchange.text)]
            if number == 0 and self.medium is not None:
                url = Url(url=self.medium.file.name)
                if self.medium.duration_s is None:
                    content.insert(0, Part(type="image_url", image_url=url))
                else:
                    content.insert(0, Part(type="video_url", video_url=url))
            messages.append(Message(role="user", content=content))
            if exchange is not told[-1]:
                messages.append(Message(role="assistant", content=[Part(type="text", text=exchange.answer)]))
        return ChatRequest(model="", messages=messages, tasks=[task for exchange in told for task in exchange.tasks])


class Chat:
    """One model that answers any number of conversations at once, from enter to exit; their files lie below `root`."""

    def __init__(self, model: Any, reading: DataConfig, limits: Limits, root: Path) -> None:
        self.model, self.reading, self.limits, self.root = model, reading, limits.for_host(model), root

    def __enter__(self) -> Chat:
        self.batcher = Batcher(self.model, self.limits)
        return self

    def __exit__(self, *raised: object) -> None:
        """Waits until what was asked is answered."""
        self.batcher.close()

    def open(self, given: Path, folder: Path) -> Medium:
        """What a file shows, copied to `folder`. Raises `TPOError` for one that is neither picture nor video, and for
        one that cannot be read."""
        file = Path(shutil.copyfile(given, folder / "given"))  # without its suffix, so that no browser runs it
        try:
            Image.open(file, formats=PICTURES).close()
            picture = read_image(file, self.reading.image)
        except UnidentifiedImageError:
            return self._open_video(file, given.name)
        except MediaError as error:
            raise TPOError(str(error).replace(str(file), given.name)) from error
        except Exception as error:
            raise TPOError(f"{given.name}: cannot be read as an image: {error}") from error
        shown = folder / "shown.png"
        picture.convert("RGB").save(shown)
        return Medium(file, shown, picture.width, picture.height)

    def _open_video(self, file: Path, name: str) -> Medium:
        try:
            check_video(file, file.parent)
            clip = read_video(file, self.reading.video)
            shown = playable(file, clip.duration_s)
        except MediaError as error:
            known = ", ".join(PICTURES)
            raise TPOError(f"{name} is neither a video that can be read nor a picture ({known})") from error
        return Medium(file, shown, clip.width, clip.height, clip.duration_s)

    def ask(self, conversation: Conversation, text: str, route: str | None, folder: Path) -> Iterator[None]:
        """Adds an exchange, and yields each time that more of it is there."""
        exchange = Exchange(text)
        conversation.exchanges.append(exchange)
        try:
            exchange.tasks = tasks_of(self.model.tpo, text, conversation.box)
            yield
            yield from self._answer(conversation, exchange, route, folder)
        except TPOError as error:
            message = without_paths(str(error), self.root, None)
            exchange.error = message.removeprefix("messages[0].content[0].image_url: ")
        except Exception as error:
            logger.error("a question failed", exc_info=error)
            exchange.error = f"the model failed on this question ({type(error).__name__}); the app's log says more"
        yield

    def _answer(
        self, conversation: Conversation, exchange: Exchange, route: str | None, folder: Path
    ) -> Iterator[None]:
        deadline = time.monotonic() + self.limits.timeout_s
        reader = MediaReader(self.model.tpo, self.reading, self.limits, folder)
        sample = reader(conversation.request(), folder)
        pieces: queue.Queue[str | None] = queue.Queue()
        question = Question(sample, route, self.limits.max_new_tokens, pieces.put)
        question.result.add_done_callback(lambda _: pieces.put(None))
        self.batcher.submit(question)
        try:
            while (piece := _within(pieces, deadline)) is not None:
                exchange.answer += piece
                yield
        finally:
            question.abandoned = True
        answer: Answer = question.result.result(timeout=0)
        exchange.answer = answer.text
        yield
        medium = conversation.medium
        place = folder / f"answer{len(list(folder.glob('answer*')))}"
        place.mkdir()
        time_s = None
        if medium is not None and medium.duration_s is not None:
            time_s = shown_time(exchange.text, conversation.box, medium.duration_s)
        shown = None if medium is None else medium.shown
        exchange.figures = figures(self.model.tpo.heads, sample, answer, time_s, shown, place)
        exchange.marked = marked(self.model.tpo.tokenizer, answer) or "(no words)"

    def forget(self, folder: Path) -> None:
        """Removes the files of a conversation."""
        shutil.rmtree(folder, ignore_errors=True)


def _within(pieces: queue.Queue[str | None], deadline: float) -> str | None:
    try:
        return pieces.get(timeout=max(0.0, deadline - time.monotonic()))
    except queue.Empty as error:
        raise TPOError("the answer did not end within the time limit; ask less, or try again later") from error
