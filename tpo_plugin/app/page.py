"""The page: what is asked on the left, the conversation on the right, examples below."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI

from tpo_plugin.app.chat import Chat, Conversation, Exchange, Medium
from tpo_plugin.app.examples import Example, wordings
from tpo_plugin.app.figures import address
from tpo_plugin.app.inputs import Box, box_heads
from tpo_plugin.errors import TPOError
from tpo_plugin.serve.limits import Limits
from tpo_plugin.training.config import DataConfig

MODEL_CHOOSES = "the model chooses"
CACHE_S = (60, 600)
"""How often uploads are looked at, and how old one may be, in seconds; a conversation has a copy of its own."""
_HERE = Path(__file__).parent
_EMPTY = '<div class="tpo-empty">Choose a picture or a video, or one of the examples below; or ask without.</div>'
_HINT = "Draw a box on it with the mouse to ask what is in it."
_FONT = ["system-ui", "sans-serif"]
"""No page of a fonts' server is asked."""


class Page:
    """The page of one run."""

    def __init__(self, chat: Chat, name: str, examples: Sequence[Example], note: str) -> None:
        self.chat, self.name, self.examples, self.note = chat, name, examples, note
        self.folders: dict[str, Path] = {}
        """By session the folder of its files."""
        self.boxes = box_heads(chat.model.tpo)
        self.wordings = wordings(examples, chat.model.tpo)

    def blocks(self) -> gr.Blocks:
        """The page, to be mounted."""
        tpo = self.chat.model.tpo
        with gr.Blocks(
            title=f"{self.name}: tpo app", analytics_enabled=False, fill_width=True, delete_cache=CACHE_S
        ) as page:
            state = gr.State(Conversation())
            gr.Markdown(f"## {self.name}")
            with gr.Row():
                with gr.Column(scale=5):
                    upload = gr.UploadButton("Picture or video", file_types=["image", "video"], elem_id="upload")
                    stage = gr.HTML(_EMPTY, js_on_load=(_HERE / "stage.js").read_text(), elem_id="stage")
                    hint = gr.Markdown("", elem_id="hint")
                    with gr.Row():
                        buttons = {
                            name: gr.Button(head.title, interactive=False, elem_id=f"box-{name}")
                            for name, head in self.boxes.items()
                        }
                with gr.Column(scale=6):
                    talk = gr.Chatbot(
                        elem_id="talk", height=640, render_markdown=False, buttons=[], label="Conversation",
                        allow_file_downloads=False, feedback_options=None, placeholder="Ask about it.",
                    )  # fmt: skip
                    prompt = gr.Textbox(placeholder="Question", show_label=False, elem_id="prompt", submit_btn="Ask")
                    route = gr.Radio(
                        [MODEL_CHOOSES, *tpo.heads], value=MODEL_CHOOSES, label="Which head is called?", elem_id="route"
                    )
            if self.note:
                gr.Markdown(self.note, elem_id="note")
            seen = [stage, hint, *buttons.values()]
            if self.examples:
                gallery = gr.Gallery(
                    [(example.thumbnail, example.text) for example in self.examples], label="Held-out examples",
                    columns=6, height="auto", allow_preview=False, interactive=False, elem_id="examples", buttons=[],
                )  # fmt: skip
                gallery.select(self.choose, [state], [state, prompt, talk, *seen])
            upload.upload(self.upload, [upload, state], [state, talk, *seen])
            stage.select(self.draw, [state], [state, *seen[1:]])
            for name, button in buttons.items():
                button.click(lambda name=name: self.wordings[name], None, prompt)
            asked = [state, prompt, talk]
            prompt.submit(self.ask, [state, prompt, route], asked, concurrency_limit=self.chat.limits.max_requests)
            talk.clear(self.anew, [state], asked)
            page.unload(self.leave)
        page.queue(max_size=self.chat.limits.max_requests)
        return page

    # -- what a user does ----------------------------------------------------------------------------------------------

    def upload(self, given: str, conversation: Conversation, request: gr.Request) -> tuple[Any, ...]:
        """A file of the user's."""
        self._begin(conversation, Path(given), request)
        return conversation, [], *self._seen(conversation)

    def choose(self, conversation: Conversation, event: gr.SelectData, request: gr.Request) -> tuple[Any, ...]:
        """An example: its medium, its box, its question."""
        example = self.examples[event.index]
        self._begin(conversation, example.medium, request)
        conversation.box = example.box
        return conversation, example.text, [], *self._seen(conversation)

    def draw(self, conversation: Conversation, event: gr.EventData) -> tuple[Any, ...]:
        """A box that was drawn."""
        medium = conversation.medium
        if medium is not None:
            time_s = None if medium.duration_s is None else min(round(float(event.time), 2), 0.999 * medium.duration_s)
            left, top, right, bottom = (round(float(value), 4) for value in event.box)
            conversation.box = Box((left, top, right, bottom), time_s)
        return conversation, *self._seen(conversation)[1:]

    def ask(
        self, conversation: Conversation, text: str, route: str, request: gr.Request
    ) -> Iterator[tuple[Any, str, list[Any]]]:
        """The conversation as it grows."""
        if not text.strip():
            yield conversation, text, _messages(conversation)
            return
        head = None if route == MODEL_CHOOSES else route
        for _ in self.chat.ask(conversation, text.strip(), head, self._folder(request)):
            yield conversation, "", _messages(conversation)

    def anew(self, conversation: Conversation) -> tuple[Any, ...]:
        """Forgets what was said; the picture or video stays."""
        conversation.exchanges = []
        return conversation, "", []

    def leave(self, request: gr.Request) -> None:
        """Removes the files of a user who has left."""
        folder = self.folders.pop(str(request.session_hash), None)
        if folder is not None:
            self.chat.forget(folder)

    # -- what a user sees ----------------------------------------------------------------------------------------------

    def _seen(self, conversation: Conversation) -> list[Any]:
        """The stage, the line below it, and whether the buttons of boxes can be used."""
        hint = _HINT if self.boxes and conversation.medium else ""
        if conversation.box is not None:
            time_s = conversation.box.time_s
            hint = "A box is drawn" + ("" if time_s is None else f", at {time_s:.2f} s") + "; the buttons ask about it."
        ready = [gr.Button(interactive=conversation.box is not None) for _ in self.boxes]
        return [_stage(conversation.medium, conversation.box), hint, *ready]

    def _folder(self, request: gr.Request) -> Path:
        session = str(request.session_hash)
        if session not in self.folders:
            self.folders[session] = Path(tempfile.mkdtemp(dir=self.chat.root))
        return self.folders[session]

    def _begin(self, conversation: Conversation, file: Path, request: gr.Request) -> None:
        """A conversation about a copy of a file, in a folder of its own; that of the last one goes."""
        place = Path(tempfile.mkdtemp(dir=self.chat.root))
        try:
            medium = self.chat.open(file, place)
        except TPOError as error:
            self.chat.forget(place)
            raise gr.Error(escape(str(error)), print_exception=False) from error
        except BaseException:
            self.chat.forget(place)
            raise
        self.leave(request)
        self.folders[str(request.session_hash)] = place
        conversation.about(medium)


def _stage(medium: Medium | None, box: Box | None) -> str:
    if medium is None:
        return _EMPTY
    ratio = medium.width / medium.height
    source = address(medium.shown)
    shown = (
        f'<img src="{source}" alt="the picture" draggable="false">'
        if medium.duration_s is None
        else f'<video src="{source}" controls muted playsinline preload="auto"></video>'
    )
    drawn = ""
    if box is not None:
        left, top, right, bottom = (100 * share for share in box.xyxy)
        size = f"left:{left}%;top:{top}%;width:{right - left}%;height:{bottom - top}%"
        drawn = f'<div class="tpo-drawn" style="{size}"></div>'
    style = f"width:min(100%, calc(44vh * {ratio:.4f})); aspect-ratio:{ratio:.4f}"
    return f'<div class="tpo-stage" style="{style}">{shown}{drawn}</div>'


def _messages(conversation: Conversation) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for exchange in conversation.exchanges:
        messages.append({"role": "user", "content": escape(exchange.text, quote=False)})
        messages += [{"role": "assistant", "content": part} for part in _said(exchange)]
    return messages


def _said(exchange: Exchange) -> list[Any]:
    text = exchange.marked or exchange.answer
    parts: list[Any] = [escape(text, quote=False)] if text else []
    if exchange.error:
        parts.append(f"Not answered: {escape(exchange.error, quote=False)}")
    return parts + ([gr.HTML("".join(exchange.figures))] if exchange.figures else [])


def application(
    model: Any, reading: DataConfig, name: str, limits: Limits, examples: Sequence[Example] = (), note: str = ""
) -> FastAPI:
    """The page as an application. When it ends, what was uploaded and drawn is removed.

    It is where it is served, and nowhere else: Gradio's own server, which could share it, is not started.
    """
    folder = tempfile.TemporaryDirectory(prefix="tpo-app-")
    root = Path(folder.name).resolve()
    os.environ["GRADIO_TEMP_DIR"] = str(root)  # where uploads go; Gradio knows no other way to say it
    chat = Chat(model, reading, limits, root)

    @contextlib.asynccontextmanager
    async def alive(app: FastAPI) -> AsyncIterator[None]:
        with folder, chat:
            yield

    app = FastAPI(lifespan=alive, openapi_url=None)
    return gr.mount_gradio_app(
        app, Page(chat, name, examples, note).blocks(), path="/", footer_links=[], run_history=False,
        allowed_paths=[str(root)], max_file_size=limits.max_body_mb * 2**20, ssr_mode=False, pwa=False,
        enable_monitoring=False, show_error=True, theme=gr.themes.Default(font=_FONT, font_mono=["monospace"]),
        css=(_HERE / "page.css").read_text(), js=(_HERE / "page.js").read_text(),
    )  # fmt: skip
