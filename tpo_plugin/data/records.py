"""Reading and checking records: JSON Lines of this project, and LLaVA's own JSON as it is. No torch in here.

A record is a conversation about images or videos. A placeholder `<head>` stands for that head's next task of the
record: in a gpt turn it is what the model shall predict, in a human turn what the user gives.

    {"id": "42", "video": "clips/rabbit.mp4",
     "conversations": [{"from": "human", "value": "<image>\\nWhere is the rabbit?"},
                       {"from": "gpt",   "value": "Here: <region>."}],
     "tasks": [{"head": "region", "boxes": [[0.25, 0.40, 0.60, 0.80]], "time": 9.8}]}
"""

from __future__ import annotations

import json
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tpo_plugin.errors import RecordError, did_you_mean

CHECK_LIMIT = 100_000
"""A source of at most this many records is checked when it is opened; of a larger one, each record on first use."""

MEDIA_TAG = re.compile(r"<(image|video)>")
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
    images: tuple[Path, ...] = ()
    """In the order of the `<image>` tags."""
    videos: tuple[Path, ...] = ()
    """In the order of the `<video>` tags."""

    def prompt(self) -> Record:
        """The record up to its last answer, which is left out."""
        if self.turns[-1].role != "assistant":
            return self
        return Record(self.id, self.place, self.turns[:-1], self.images, self.videos)


class Records(Sequence[Record]):
    """The records of a JSON Lines file, of a JSON list, or of any sequence of dicts (an Arrow dataset too).

    `tpo` is `model.tpo`: its heads check their tasks. Relative media paths start at `media_root`, by default the file's
    folder. Lines of a JSON Lines file are read when they are asked for, in the process that asks; a large file costs 16
    bytes a record. Raises `RecordError` with file, line (of a list: the index) and field.
    """

    def __init__(
        self, source: str | Path | Sequence[dict[str, Any]], tpo: Any, *, media_root: str | Path | None = None
    ) -> None:
        # Not model.tpo itself, which holds the host: a worker process may get a copy of this.
        self._tpo = SimpleNamespace(heads=dict(tpo.heads.items()), tokens=tpo.tokens)
        self._list: Sequence[dict[str, Any]] | None = None
        self._offsets, self._lines = array("q"), array("q")
        if isinstance(source, (str, Path)):
            self.path: Path | None = Path(source)
            self.name = str(source)
            self.media_root = Path(media_root) if media_root is not None else self.path.parent
            self._open(self.path)
        else:
            self.path, self.name, self._list = None, "records", source
            self.media_root = Path(media_root or ".")
        if not len(self):
            raise RecordError("holds no record", file=self.name)
        if len(self) <= CHECK_LIMIT:
            for index in range(len(self)):
                self[index]

    def _open(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
                file.seek(0)
                if start.startswith(b"["):
                    self._list = _loads(file.read(), lambda message: RecordError(message, file=self.name))
                    return
                offset = 0
                for number, line in enumerate(file, start=1):
                    if line.strip(b" \t\r\n\xef\xbb\xbf"):
                        self._offsets.append(offset)
                        self._lines.append(number)
                    offset += len(line)
        except OSError as error:
            raise RecordError(f"cannot be read: {error.strerror or error}", file=self.name) from error

    def __len__(self) -> int:
        return len(self._list) if self._list is not None else len(self._offsets)

    def __getitem__(self, index: int) -> Record:  # type: ignore[override]
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        index %= len(self)
        if self._list is not None:
            data, line, prefix = self._list[index], None, f"[{index}]"
        else:
            data, line, prefix = self._read(index), self._lines[index], ""
        return parse_record(data, self._tpo, media_root=self.media_root, file=self.name, line=line, prefix=prefix)

    def checked(self, sample: Any) -> Any:
        """The sample, if its media can serve its tasks. Raises `MediaError`."""
        tasks = [task for turn in sample.record.turns for task in turn.tasks]
        for name in dict.fromkeys(task["head"] for task in tasks):
            self._tpo.heads[name].check_sample([task for task in tasks if task["head"] == name], sample)
        return sample

    def _read(self, index: int) -> Any:
        assert self.path is not None
        line = self._lines[index]
        with self.path.open("rb") as file:  # opened here, so that no handle is shared with a worker process
            file.seek(self._offsets[index])
            return _loads(file.readline(), lambda message: RecordError(message, file=self.name, line=line))


def parse_record(
    data: Any,
    tpo: Any,
    *,
    media_root: str | Path = ".",
    file: str | None = None,
    line: int | None = None,
    prefix: str = "",
    open_ended: bool = False,
) -> Record:
    """Checks one record and gives it in the form that the collator takes.

    `open_ended` allows a conversation that ends with a human turn: a prompt. `prefix` stands before every field in a
    message. Raises `RecordError`.
    """

    def wrong(field: str, message: str) -> RecordError:
        return RecordError(message, file=file, line=line, field=".".join(p for p in (prefix, field) if p))

    if not isinstance(data, Mapping):
        raise wrong("", f"is {_kind(data)}, expected an object with 'conversations'")
    place = ":".join(str(part) for part in (file or "record", line) if part is not None) + prefix
    texts = _conversation(data, wrong, open_ended)
    texts, images, videos = _media(data, texts, wrong)
    root = Path(media_root)
    tasks = check_tasks(data, tpo, root, wrong)
    turns = expand_turns(texts, tasks, tpo, wrong)
    return Record(
        id=str(data.get("id", place)),
        place=place,
        turns=tuple(turns),
        images=tuple(root / name for name in images),
        videos=tuple(root / name for name in videos),
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
        if role not in _ROLES:
            raise wrong(f"conversations[{i}].from", f"is {role!r}{did_you_mean(str(role), _ROLES)}")
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
) -> tuple[list[tuple[str, str]], list[str], list[str]]:
    """The turns with each tag naming its kind of medium, and the paths. LLaVA writes `<image>` for a video too."""
    paths: dict[str, list[str]] = {}
    for kind in ("image", "video"):
        value = data.get(kind)
        files = [value] if isinstance(value, str) else value or []
        if not isinstance(files, Sequence) or not all(isinstance(path, str) and path for path in files):
            raise wrong(kind, f"is {value!r}, expected a path or a list of paths")
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
            raise wrong(
                kind, f"has {len(given)} file(s), the conversation {found[kind]} tag(s) {tag}; expected as many"
            )
    return named, paths["image"], paths["video"]


def check_tasks(data: Mapping[str, Any], tpo: Any, root: Path, wrong: _Wrong) -> list[dict[str, Any]]:
    """The tasks of a record, each checked by its head, paths in it made absolute."""
    tasks = data.get("tasks") or []
    if not isinstance(tasks, Sequence) or isinstance(tasks, str):
        raise wrong("tasks", f"is {_kind(tasks)}, expected a list")
    checked = []
    for i, task in enumerate(tasks):
        if not isinstance(task, Mapping) or not isinstance(task.get("head"), str):
            raise wrong(f"tasks[{i}]", "expected an object with 'head' and that head's fields")
        name = task["head"]
        if name not in tpo.heads:
            hint = did_you_mean(name, tpo.heads)
            raise wrong(f"tasks[{i}].head", f"is {name!r}, which is not among the applied heads{hint}")
        task = {key: value for key, value in task.items() if value is not None}  # Arrow fills absent fields with None
        time = task.get("time", 0)
        if isinstance(time, bool) or not isinstance(time, (int, float)) or time < 0:
            raise wrong(f"tasks[{i}].time", f"is {time!r}, expected seconds of at least 0")
        try:
            tpo.heads[name].check_task(task)
            if tpo.heads[name].num_tokens(task) < 1:
                raise ValueError(f"head {name!r} has nothing to predict in it")
        except (ValueError, TypeError, KeyError) as error:
            missing = isinstance(error, KeyError)
            message = f"head {name!r} misses field {error}" if missing else str(error)
            match = _FIELD.fullmatch(message)
            field, message = (f".{match[1]}", match[2]) if match else ("", message)
            raise wrong(f"tasks[{i}]{field}", message) from error
        checked.append(tpo.heads[name].resolve(task, root))
    return checked


def expand_turns(texts: list[tuple[str, str]], tasks: list[dict[str, Any]], tpo: Any, wrong: _Wrong) -> list[Turn]:
    """The turns with each placeholder replaced by its tokens, once for each token that its task takes."""
    names = list(tpo.heads)
    # A token may be spelled like its head's placeholder, as <point> of a head "point" may; then it is a placeholder.
    literal = {
        token: name
        for name, tokens in tpo.tokens.items()
        for token in (tokens.trigger, tokens.task_token, tokens.input_token)
        if token and token[1:-1] not in names
    }
    placeholder = re.compile("|".join(f"<({re.escape(name)})>" for name in names) or r"(?!)")
    waiting = {name: [task for task in tasks if task["head"] == name] for name in names}
    num_placeholders = Counter(match.group()[1:-1] for _, text in texts for match in placeholder.finditer(text))
    for i, (_, text) in enumerate(texts):
        for token, name in literal.items():
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
            name = match.group()[1:-1]
            tokens, task = tpo.tokens[name], waiting[name].pop(0)
            taken.append(task)
            if role == "assistant":
                return (tokens.trigger + tokens.task_token) * tpo.heads[name].num_tokens(task)
            if role == "system" or tokens.input_token is None:
                reason = f"head {name!r} takes no input" if role == "user" else "a system turn gives no input"
                raise wrong(f"conversations[{i}].value", f"holds the placeholder <{name}>, but {reason}")
            return tokens.input_token * tpo.heads[name].num_tokens(task)

        expanded = placeholder.sub(tokens_of, text)
        # An answer's outer blanks belong to the chat template.
        turns.append(Turn(role, expanded.strip() if role == "assistant" else expanded, tuple(taken)))
    return turns


def _loads(line: bytes, error: Callable[[str], RecordError]) -> Any:
    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(line.decode("utf-8-sig"), parse_constant=refuse)
    except ValueError as cause:  # also a wrong encoding
        raise error(f"is not valid JSON: {cause}") from cause


def _kind(value: Any) -> str:
    return "missing" if value is None else repr(value) if isinstance(value, (str, int, float)) else type(value).__name__
