"""From a request to a sample: its media as files, confined, and read within the limits.

A medium is a `data:` URL, or names a file below the server's media folder. Nothing is asked over the network.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

from PIL import Image, UnidentifiedImageError

from tpo_plugin.checks import check_inside
from tpo_plugin.codec import check_files
from tpo_plugin.data import Record, Sample, parse_record, read_image, read_video
from tpo_plugin.data.confine import check_video
from tpo_plugin.data.format import RecordFormat
from tpo_plugin.data.records import check_sample
from tpo_plugin.errors import MediaError, RecordError, TPOError
from tpo_plugin.serve.errors import Refused
from tpo_plugin.serve.limits import Limits
from tpo_plugin.serve.request import ChatRequest
from tpo_plugin.training.config import DataConfig

Kind = Literal["image", "video"]

PICTURES = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow's names of formats that a picture may have: none of them is a program, as EPS is."""
MOST_CHARACTERS = 16
"""Of a prompt's text for each of its tokens: a longer text is not even split into tokens."""

_DATA = re.compile(r"data:(?:([\w.+-]+)/[\w.+-]+)?((?:;[\w.+=-]+)*?)(;base64)?,", re.IGNORECASE)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")


@dataclass(frozen=True)
class _Medium:
    """A medium of a request."""

    place: str
    """Where in the request it stands."""
    kind: Kind
    path: Path
    folder: Path
    """It may not lead out of it."""
    shown: str
    """What stands for its path in messages."""


@dataclass(frozen=True)
class MediaReader:
    """Makes samples of requests."""

    tpo: Any
    reading: DataConfig
    limits: Limits
    media_root: Path | None = None
    """Folder whose files a request may name."""

    def __call__(self, request: ChatRequest, folder: Path) -> Sample:
        """The request's sample; what it brings along is written to `folder`. Raises `Refused`."""
        turns, named = request.conversation()
        most = MOST_CHARACTERS * self.limits.max_prompt_tokens
        length = sum(len(turn["value"]) for turn in turns)
        if length > most:
            raise Refused(400, f"the messages have {length} characters, more than {most}; expected a shorter text")
        if len(named) > self.limits.max_media:
            raise Refused(400, f"the messages have {len(named)} media; expected at most {self.limits.max_media}")
        media = [self._medium(*medium, folder / str(number)) for number, medium in enumerate(named)]
        paths = {kind: [str(medium.path) for medium in media if medium.kind == kind] for kind in ("image", "video")}
        data, root = {"conversations": turns, "tasks": request.tasks, **paths}, self.media_root or folder
        try:
            record = parse_record(data, self.tpo, open_ended=True, media_root=root)
        except RecordError as error:
            raise Refused(400, _of_messages(str(error))) from error
        self._check_tasks(record, root)
        if record.turns[-1].role != "user":
            raise Refused(400, "messages: ends with an assistant message; expected a question of the user")
        images, videos = [], []
        left = self.limits.max_pixels
        for medium in media:
            try:
                if medium.kind == "image":
                    images.append(self._image(medium, left))
                    left -= images[-1].width * images[-1].height
                else:
                    videos.append(self._video(medium, left))
                    left -= videos[-1].frames.size // 3
            except MediaError as error:
                text = str(error).replace(str(medium.path), medium.shown).replace(f"{medium.folder}/", "")
                raise Refused(400, f"{medium.place}: {text}") from error
        sample = Sample(replace(record, place="request"), tuple(images), tuple(videos))
        try:
            check_sample(RecordFormat.of(self.tpo), sample)
        except TPOError as error:
            raise Refused(400, str(error)) from error
        return sample

    def _check_tasks(self, record: Record, root: Path) -> None:
        codecs = RecordFormat.of(self.tpo).codecs
        for task in (task for turn in record.turns for task in turn.tasks):
            try:
                check_files(codecs[task["head"]], task["head"], task, root)
            except ValueError as error:
                raise Refused(
                    400, f"tasks: one of head {task['head']!r} names a file outside of the media folder"
                ) from error

    def _image(self, medium: _Medium, left: int) -> Image.Image:
        _check_inside(medium)
        try:
            Image.open(medium.path, formats=PICTURES).close()
        except FileNotFoundError as error:
            raise MediaError(f"{medium.path}: no such file") from error
        except UnidentifiedImageError as error:
            raise MediaError(f"{medium.path}: is no picture; expected one of {', '.join(PICTURES)}") from error
        except Exception as error:
            raise MediaError(f"{medium.path}: cannot be read as an image: {error}") from error
        options = self.reading.image
        return read_image(medium.path, replace(options, max_pixels=max(1, min(options.max_pixels, left))))

    def _video(self, medium: _Medium, left: int) -> Any:
        _check_inside(medium)
        try:
            check_video(medium.path, medium.folder)
        except MediaError as error:
            if medium.path.suffix != ".ffconcat":
                raise
            raise MediaError(f"{medium.path}: is no list of frames in the server's media folder") from error
        options = self.reading.video
        return read_video(medium.path, replace(options, max_pixels=max(1, min(options.max_pixels, left))))

    def _medium(self, place: str, kind: Kind, url: str, file: Path) -> _Medium:
        data = _DATA.match(url)
        if data:
            if data[1] and data[1].lower() not in (kind, "application"):
                raise Refused(400, f"{place}: is data of {data[1]!r}; expected {kind!r}")
            if not data[3]:
                raise Refused(400, f"{place}: is data without base64; expected data:{kind}/...;base64,...")
            try:
                content = base64.b64decode(url[data.end() :], validate=True)
            except (binascii.Error, ValueError) as error:
                raise Refused(400, f"{place}: is no base64 ({error})") from error
            file.write_bytes(content)
            return _Medium(place, kind, file, file.parent, "data")
        scheme = _SCHEME.match(url)
        if scheme and scheme[1].lower() != "file":
            raise Refused(
                400,
                f"{place}: is a URL of {scheme[1][:20]!r}, which this server does not fetch; send the {kind}, as "
                f"data:{kind}/...;base64,..., or name a file of the server's media folder",
            )
        if self.media_root is None:
            raise Refused(
                400, f"{place}: names a file, and this server has no media folder (--media); send the {kind} itself"
            )
        name = unquote(re.sub(r"^file:(//(localhost)?(?=/))?", "", url, flags=re.IGNORECASE)) if scheme else url
        if not name or "\0" in name:
            raise Refused(400, f"{place}: names no file")
        return _Medium(place, kind, self.media_root / name, self.media_root, name[:80])


def _check_inside(medium: _Medium) -> None:
    try:
        check_inside("", medium.path, medium.folder)
    except ValueError as error:
        raise MediaError(f"{medium.path}: lies outside of the server's media folder") from error


def _of_messages(text: str) -> str:
    """A message about a record in the words of a request."""
    text = re.sub(r"^conversations(\[\d+\])\.value", r"messages\1.content", text)
    text = re.sub(r"^conversations(\[\d+\])\.from: .*", r"messages\1.role: expected user and assistant in turn, behind "
                  "at most one system message", text, flags=re.DOTALL)  # fmt: skip
    return re.sub(r"^conversations", "messages", text)
