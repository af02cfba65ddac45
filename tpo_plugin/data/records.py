"""Reading and checking records: JSON Lines of this project, and LLaVA's own JSON as it is. No torch in here.

A record is a conversation about images or videos. A placeholder `<head>` stands for that head's next task of the
record: in a gpt turn it is what the model shall predict, in a human turn what the user gives.

    {"id": "42", "video": "clips/rabbit.mp4",
     "conversations": [{"from": "human", "value": "<image>\\nWhere is the rabbit?"},
                       {"from": "gpt",   "value": "Here: <region>."}],
     "tasks": [{"head": "region", "boxes": [[0.25, 0.40, 0.60, 0.80]], "time": 9.8}]}
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tpo_plugin.checks import check_inside, check_seconds
from tpo_plugin.codec import Codec, check_files, check_task_fields
from tpo_plugin.data.format import RecordFormat
from tpo_plugin.data.opening import RecordSource, as_source, open_source
from tpo_plugin.data.packed import Medium, Packed
from tpo_plugin.data.storage import is_url, local_path, media_folder
from tpo_plugin.errors import RecordError, did_you_mean, shown

logger = logging.getLogger(__name__)

CHECK_LIMIT = 100_000
"""A source of at most this many records is checked when it is opened; of a larger one, each record on first use."""

MEDIA_TAG = re.compile(r"<(image|video)>")
_UNREAD = {"images": "'image'", "videos": "'video'"} | dict.fromkeys(("audio", "audios"), "pictures and videos alone")
"""Names under which other formats have media, and what is expected in their place."""
_ROLES = {"system": "system", "human": "user", "gpt": "assistant"}
_FIELD = re.compile(r"([A-Za-z_]\w*(?:\[\d+\])*)(?::\s*| (?=is |has ))(.*)", re.DOTALL)
"""A head's message that starts with a field: "boxes[1]: ..." or "boxes[1] is ..."."""


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation."""

    role: str
    """"system", "user" or "assistant"."""
    text: str
    """Its text: placeholders are replaced by the heads' tokens, a tag `<image>` or `<video>` stands for each medium."""
    tasks: tuple[dict[str, Any], ...] = ()
    """Tasks of its placeholders, in their order: to predict in an assistant's turn, given in a user's."""


@dataclass(frozen=True)
class Record:
    """One checked training or evaluation sample. Its media are not opened yet."""

    id: str
    place: str
    """File and line (of a JSON list: file and index) that it comes from, for messages."""
    turns: tuple[Turn, ...]
    images: tuple[Medium, ...] = ()
    """In the order of the `<image>` tags; `Packed` where they lie inside of a shard."""
    videos: tuple[Medium, ...] = ()
    """In the order of the `<video>` tags; those of a `Sample` are files."""
    confined_to: Path | None = None
    """Folder that its media may not lead out of; None, where they may lie anywhere."""

    def prompt(self) -> Record:
        """The record up to its last answer, which is left out."""
        if self.turns[-1].role != "assistant":
            return self
        return replace(self, turns=self.turns[:-1])


class Records(Sequence[Record]):
    """The records of a file, a table or shards (`open_source`), of a `datasets.Dataset`, or of any sequence of dicts.

    `tpo` is `model.tpo`, or a `RecordFormat`: its codecs check the tasks. Relative media paths start at `media_root`,
    which may be a tar, by default the file's folder. `open_ended` allows conversations that end with a question:
    prompts. A file's records are read when they are asked for, in the process that asks; a large file costs 16 bytes a
    record. Raises `RecordError` with file, line (of a list: the index) and field.

    With `confine`, for records that others wrote, a record that names a file outside of the media folder is refused:
    by "..", by a whole path, by a link, or by a list of frames or a playlist that names others.
    """

    def __init__(
        self,
        source: str | Path | Sequence[dict[str, Any]],
        tpo: Any,
        *,
        media_root: str | Path | None = None,
        open_ended: bool = False,
        confine: bool = False,
    ) -> None:
        self.format, self.open_ended, self.confine = RecordFormat.of(tpo), open_ended, confine
        if isinstance(source, (str, Path)):
            self.path: Path | None = Path(source)
            self.name = str(source)
            self.media_root = local_path(media_root) if media_root is not None else media_folder(source)
            self._data: RecordSource | Sequence[dict[str, Any]] = open_source(source)
        else:
            self.path, self.name, self._data = None, "records", as_source(source)
            self.media_root = Path(media_root or ".")
        if not len(self):
            raise RecordError("holds no record", file=self.name)
        if len(self) > CHECK_LIMIT:
            logger.warning(
                "%s: %d records, more than %d, so each is checked when it is first used; `tpo check` checks all",
                *(self.name, len(self), CHECK_LIMIT),
            )
            return
        for index in range(len(self)):
            self[index]

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Record:  # type: ignore[override]
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        options = {"open_ended": self.open_ended, "confine": self.confine}
        return read_record(self._data, index % len(self), self.format, self.media_root, self.name, **options)

    def place(self, index: int) -> str:
        """File and line (of a list: file and index) of a record, for messages."""
        return _place(*_line(self._data, index, self.name))

    @property
    def files(self) -> list[Path]:
        """The files that hold them, on this disk; none for a sequence."""
        return getattr(self._data, "files", [])

    def checked(self, sample: Any) -> Any:
        """The sample, if its media can serve its tasks. Raises `MediaError`."""
        check_sample(self.format, sample)
        return sample


def read_record(
    data: RecordSource | Sequence[Any],
    index: int,
    format: RecordFormat,
    media_root: Path,
    name: str,
    *,
    open_ended: bool = False,
    confine: bool = False,
) -> Record:
    """The record at `index`, checked. `name` stands for the source in messages. Raises `RecordError`."""
    file, line, prefix = _line(data, index, name)
    options: dict[str, Any] = {"media_root": media_root, "open_ended": open_ended, "confine": confine}
    return parse_record(data[index], format, file=file, line=line, prefix=prefix, **options)


def check_sample(format: RecordFormat, sample: Any) -> None:
    """Raises `MediaError` where the media of a sample cannot serve its tasks."""
    tasks = [task for turn in sample.record.turns for task in turn.tasks]
    for name in dict.fromkeys(task["head"] for task in tasks):
        format.codecs[name].check_sample([task for task in tasks if task["head"] == name], sample)


def parse_record(
    data: Any,
    tpo: Any,
    *,
    media_root: str | Path = ".",
    confine: bool = False,
    file: str | None = None,
    line: int | None = None,
    prefix: str = "",
    open_ended: bool = False,
) -> Record:
    """Checks one record and gives it in the form that the collator takes.

    `tpo` is `model.tpo` or a `RecordFormat`. `open_ended` allows a conversation that ends with a human turn: a prompt.
    `confine` is that of `Records`. `prefix` stands before every field in a message. Raises `RecordError`.
    """

    def wrong(field: str, message: str) -> RecordError:
        return RecordError(message, file=file, line=line, field=".".join(p for p in (prefix, field) if p))

    if not isinstance(data, Mapping):
        raise wrong("", f"is {_kind(data)}, expected an object with 'conversations'")
    place, record_id = _place(file or "record", line, prefix), data.get("id")
    if record_id is not None and (isinstance(record_id, bool) or not isinstance(record_id, (str, int, float))):
        raise wrong("id", f"is {shown(record_id)}, expected text or a number")
    texts = _conversation(data, wrong, open_ended)
    texts, images, videos = _media(data, texts, wrong)
    root = Path(media_root)
    format = RecordFormat.of(tpo)
    for kind, names in (("image", images), ("video", videos)) if confine else ():
        for name in names:
            if isinstance(name, str):
                _confine(kind, root / name, root, wrong)
    tasks = check_tasks(data, format, root, wrong, confine=confine)
    turns = expand_turns(texts, tasks, format, wrong)
    return Record(
        id=place if record_id is None else str(record_id),
        place=place,
        turns=tuple(turns),
        images=tuple(name if isinstance(name, Packed) else root / name for name in images),
        videos=tuple(name if isinstance(name, Packed) else root / name for name in videos),
        confined_to=root if confine else None,
    )


def prompt_record(
    tpo: Any,
    text: str,
    *,
    images: Iterable[str | Path] = (),
    videos: Iterable[str | Path] = (),
    tasks: Iterable[dict[str, Any]] = (),
) -> Record:
    """A record of one question. Media without a tag in the text come first; `tasks` serve the text's placeholders."""
    media = {"image": [str(Path(p).absolute()) for p in images], "video": [str(Path(p).absolute()) for p in videos]}
    if not MEDIA_TAG.search(text):
        text = "".join(f"<{kind}>\n" for kind, paths in media.items() for _ in paths) + text
    data = {"id": "prompt", "conversations": [{"from": "human", "value": text}], "tasks": list(tasks), **media}
    return parse_record(data, tpo, file="prompt", open_ended=True)


# -- the parts of a record ---------------------------------------------------------------------------------------------

_Wrong = Callable[[str, str], RecordError]


def _line(data: RecordSource | Sequence[Any], index: int, name: str) -> tuple[str, int | None, str]:
    """File, line, and what stands before the fields of a record."""
    return (name, None, f"[{index}]") if isinstance(data, Sequence) else (data.file_of(index), *data.place(index))


def _place(name: str, line: int | None, prefix: str) -> str:
    return (name if line is None else f"{name}:{line}") + prefix


def _confine(field: str, path: Path, root: Path, wrong: _Wrong) -> None:
    try:
        check_inside("", path, root)
    except ValueError as error:
        raise wrong(field, str(error).strip()) from error


def _conversation(data: Mapping[str, Any], wrong: _Wrong, open_ended: bool) -> list[tuple[str, str]]:
    """(role, text) of each turn, roles in order."""
    turns = data.get("conversations")
    if not isinstance(turns, Sequence) or isinstance(turns, str) or not turns:
        near = did_you_mean("conversations", map(str, data)) if turns is None else ""
        raise wrong("conversations", f"is {_kind(turns)}, expected a list of turns{near}")
    texts = []
    for i, turn in enumerate(turns):
        if not isinstance(turn, Mapping) or not isinstance(turn.get("value"), str):
            raise wrong(f"conversations[{i}]", "expected an object with 'from' and a text 'value'")
        role = turn.get("from")
        if not isinstance(role, str) or role not in _ROLES:
            raise wrong(f"conversations[{i}].from", f"is {shown(role)}{did_you_mean(str(role)[:80], _ROLES)}")
        position = i - (turns[0].get("from") == "system")
        expected = "system" if position < 0 else ("human", "gpt")[position % 2]
        if role != expected:
            raise wrong(
                f"conversations[{i}].from", f"is {role!r}, expected {expected!r}: turns go human, gpt, human, …"
            )
        texts.append((_ROLES[role], turn["value"]))
    if texts[-1][0] != "assistant" and not (open_ended and texts[-1][0] == "user"):
        raise wrong("conversations", f"ends with a {turns[-1]['from']!r} turn, expected a 'gpt' turn to learn from")
    return texts


def _media(
    data: Mapping[str, Any], texts: list[tuple[str, str]], wrong: _Wrong
) -> tuple[list[tuple[str, str]], list[str | Packed], list[str | Packed]]:
    """The turns with each tag naming its kind of medium, and the paths. LLaVA writes `<image>` for a video too."""
    paths: dict[str, list[str | Packed]] = {}
    for name in filter(data.get, _UNREAD):
        raise wrong(name, f"is not read; expected {_UNREAD[name]}")
    for kind in ("image", "video"):
        value = data.get(kind)
        files = [value] if isinstance(value, (str, Packed)) else [] if value is None else value
        if not isinstance(files, Sequence) or not all(isinstance(path, (str, Packed)) and path for path in files):
            raise wrong(kind, f"is {shown(value)}, expected a path or a list of paths")
        for path in (path for path in files if isinstance(path, str) and is_url(path)):
            raise wrong(
                kind, f"is {path!r}, a URL; expected a file: fetch the media first (records may lie behind a URL)"
            )
        paths[kind] = list(files)
    only_video = bool(paths["video"]) and not paths["image"]
    found: Counter[str] = Counter()
    named = []
    for i, (role, text) in enumerate(texts):
        tags = MEDIA_TAG.findall(text)
        if tags and role != "user":
            raise wrong(f"conversations[{i}].value", f"holds the tag <{tags[0]}>, which only a human turn may hold")
        if only_video:
            text = text.replace("<image>", "<video>")
        found.update(MEDIA_TAG.findall(text))
        named.append((role, text))
    for kind, given in paths.items():
        if found[kind] != len(given):
            tag = "<image> or <video>" if kind == "video" and only_video else f"<{kind}>"
            has = f"has {len(given)} file(s), the conversation {found[kind]} tag(s) {tag}"
            raise wrong(kind, f"{has}; expected as many")
    return named, paths["image"], paths["video"]


def check_tasks(
    data: Mapping[str, Any], format: RecordFormat, root: Path, wrong: _Wrong, *, confine: bool = False
) -> list[dict[str, Any]]:
    """The tasks of a record, each checked by its head, paths in it made absolute."""
    tasks = [] if data.get("tasks") is None else data["tasks"]
    if not isinstance(tasks, Sequence) or isinstance(tasks, str):
        raise wrong("tasks", f"is {_kind(tasks)}, expected a list")
    checked = []
    for i, task in enumerate(tasks):
        if not isinstance(task, Mapping) or not isinstance(task.get("head"), str):
            raise wrong(f"tasks[{i}]", "expected an object with 'head' and that head's fields")
        name = task["head"]
        if name not in format.codecs:
            hint = did_you_mean(name[:80], format.codecs)
            raise wrong(f"tasks[{i}].head", f"is {shown(name)}, which is not among the applied heads{hint}")
        # Arrow fills absent fields with None
        task = {key: value for key, value in task.items() if value is not None}
        try:
            checked.append(_checked_task(format.codecs[name], name, task, root, confine))
        except (ValueError, TypeError, LookupError, ArithmeticError) as error:  # of values that it does not expect
            match = _FIELD.fullmatch(_said(error, name))
            field, message = (f".{match[1]}", match[2]) if match else ("", _said(error, name))
            raise wrong(f"tasks[{i}]{field}", message) from error
    return checked


def _checked_task(codec: Codec, name: str, task: dict[str, Any], root: Path, confine: bool) -> dict[str, Any]:
    if "time" in task:
        check_seconds("time", task["time"])
    check_task_fields(codec, name, task)
    codec.check_task(task)
    if codec.num_tokens(task) < 1:
        raise ValueError(f"head {name!r} has nothing to predict in it")
    task = codec.resolve(task, root)
    if confine:
        check_files(codec, name, task, root)
    return task


def _said(error: Exception, name: str) -> str:
    """What a head says of a task, also where it failed on it."""
    if isinstance(error, KeyError):
        return f"head {name!r} misses field {error}"
    return f"head {name!r}: {error}" if isinstance(error, (LookupError, ArithmeticError)) else str(error)


def expand_turns(
    texts: list[tuple[str, str]], tasks: list[dict[str, Any]], format: RecordFormat, wrong: _Wrong
) -> list[Turn]:
    """The turns with each placeholder replaced by its tokens, once for each token that its task takes."""
    names = list(format.codecs)
    waiting = {name: [task for task in tasks if task["head"] == name] for name in names}
    num_placeholders = Counter(match[1] for _, text in texts for match in format.placeholder.finditer(text))
    for i, (_, text) in enumerate(texts):
        for token, name in format.reserved.items():
            if token in text:
                raise wrong(
                    f"conversations[{i}].value",
                    f"holds {token!r}, a token of head {name!r}; write the placeholder <{name}> and give its task",
                )
    for name in names:
        if num_placeholders[name] != len(waiting[name]):
            raise wrong(
                "tasks",
                f"has {len(waiting[name])} task(s) of head {name!r}, the conversation has {num_placeholders[name]} "
                f"placeholder(s) <{name}>; expected as many",
            )
    turns = []
    for i, (role, text) in enumerate(texts):
        taken: list[dict[str, Any]] = []

        def tokens_of(match: re.Match[str], role: str = role, i: int = i, taken: list[dict[str, Any]] = taken) -> str:
            name = match[1]
            tokens, task = format.tokens[name], waiting[name].pop(0)
            num = format.codecs[name].num_tokens(task)
            taken.append(task)
            if role == "assistant":
                return (tokens.trigger + tokens.task_token) * num
            if role == "system" or tokens.input_token is None:
                reason = f"head {name!r} takes no input" if role == "user" else "a system turn gives no input"
                raise wrong(f"conversations[{i}].value", f"holds the placeholder <{name}>, but {reason}")
            return tokens.input_token * num

        expanded = format.placeholder.sub(tokens_of, text)
        # An answer's outer blanks belong to the chat template.
        turns.append(Turn(role, expanded.strip() if role == "assistant" else expanded, tuple(taken)))
    return turns


def _kind(value: Any) -> str:
    return (
        "missing" if value is None else shown(value) if isinstance(value, (str, int, float)) else type(value).__name__
    )
