"""An evaluation: questions shared by the ranks, answers kept, scores when all are there.

OUTPUT/settings.json        what is evaluated, on what, and how
OUTPUT/answers/             until all questions are answered: a file for each batch
OUTPUT/predictions.jsonl    every question with its answer
OUTPUT/results.json         the scores; written last
OUTPUT/report.html          the best and the worst answers, drawn
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpo_plugin.asking import load
from tpo_plugin.atomic import replace_file
from tpo_plugin.config import TPOConfig, config_from_dict
from tpo_plugin.data.format import RecordFormat
from tpo_plugin.data.records import Records
from tpo_plugin.errors import TPOError, did_you_mean
from tpo_plugin.evaluate.answering import Answers, Asking, ask_batch
from tpo_plugin.evaluate.page import Shown, write_page
from tpo_plugin.evaluate.questions import Question, batches_of, list_questions
from tpo_plugin.evaluate.scoring import CONVENTIONS, Scorer, Split, scored
from tpo_plugin.files import CONFIG_FILE, read_config
from tpo_plugin.hub import RUN_FILE, local_folder
from tpo_plugin.json_file import read_json
from tpo_plugin.training.config import DataConfig
from tpo_plugin.training.fingerprint import fingerprint
from tpo_plugin.training.folder import LOCK_FILE, held_by_main
from tpo_plugin.training.ranks import ending_together, joined_ranks, on_main
from tpo_plugin.training.run import read_run_config

logger = logging.getLogger(__name__)

SETTINGS_FILE, ANSWERS, PREDICTIONS_FILE = "settings.json", "answers", "predictions.jsonl"
RESULTS_FILE, REPORT_FILE = "results.json", "report.html"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is evaluated, on what, and how."""

    run: Path
    """A finished run, its name on the hub, or a checkpoint of one."""
    data: tuple[str, ...]
    """Files of records, as `Records` takes them; each is a split with scores of its own."""
    output: Path | None = None
    """Folder of the results; None is `eval/NAMES` in the run's folder, or in one of its name where it is on the hub."""
    host: Path | None = None
    """Where the run's host lies now, if it has moved."""
    media: Path | None = None
    """Folder of the media; None is each file's own."""
    confine: bool = False
    """As that of `Records`."""
    route: str | None = None
    """Head that is called in every answer: only the questions that want it are asked, and emission is not measured."""
    benchmark: str | None = None
    """A published scorer of one of the run's heads (`TaskHead.benchmarks`), beside the head's own metrics."""
    alone: bool = False
    """Whether each question is asked without the turns before it."""
    batch_size: int = 8
    """Questions that are answered together."""
    max_new_tokens: int = 64
    """Longest answer."""
    limit: int | None = None
    """The first so many questions only."""

    def folder(self) -> Path:
        """Of the results."""
        if self.output is not None:
            return self.output
        here = self.run if self.run.is_dir() else Path(self.run.name)
        inside = (
            here.absolute().parts[-2:] if (here / CONFIG_FILE).is_file() and not (here / RUN_FILE).is_file() else ()
        )
        run = here.absolute().parents[1] if inside else here
        return run / "eval" / "-".join([*inside, *(Path(name).name.partition(".")[0] for name in self.data)])


@ending_together()
def evaluate(
    evaluation: Evaluation,
    *,
    progress: Callable[[int, int], Any] | None = None,
    say: Callable[[str], Any] = logger.info,
) -> dict[str, Any]:
    """Asks all questions, on all ranks that torchrun started; the first returns what stands in `results.json`.

    The same call goes on where it was stopped, on any number of ranks, to the same answers, and asks again what has
    failed; an evaluation without failures is finished: it is read, which `say` is told. `progress` is called with how
    many batches this rank has answered, of how many. Raises `TPOError` for a folder with answers to something else.
    """
    read_run_config(evaluation.run)  # which says what is wrong with a folder that is no run
    state, folder = joined_ranks(), evaluation.folder()
    evaluation = dataclasses.replace(evaluation, run=local_folder(evaluation.run))
    with held_by_main(folder):
        # Before anything is written, and the model is loaded: a mistake in a file is found in a moment.
        sources = _sources(evaluation)
        questions = list_questions(sources, alone=evaluation.alone, route=evaluation.route, limit=evaluation.limit)
        if not questions:
            names = ", ".join(evaluation.data)
            raise TPOError(
                f"{names}: no question wants the head {evaluation.route!r}; give records that have tasks of it"
            )
        settings = _settings(evaluation, sources)
        on_main(lambda: _open(folder, settings))
        finished = _finished(folder)
        if finished is not None:
            if state.is_main_process:
                say(f"results are read from {folder}, where all was answered already")
            return finished
        start = time.monotonic()
        model, reading = load(evaluation.run, evaluation.host, device=state.device)
        scorer = None if evaluation.benchmark is None else Scorer.of(model.tpo, evaluation.benchmark)
        load_s = time.monotonic() - start
        answers, batches = Answers(folder / ANSWERS), batches_of(questions, evaluation.batch_size)
        mine = range(state.process_index, len(batches), state.num_processes)
        asking = Asking(evaluation.route, evaluation.alone, evaluation.max_new_tokens)
        for done, number in enumerate(mine):
            if progress is not None:
                progress(done, len(mine))
            kept, seconds = answers.good(number)
            there = {asked.number for asked in kept}
            left = [question for question in batches[number] if question.number not in there]
            if left:
                asked, took = ask_batch(model, sources, left, reading, asking)
                answers.save(number, [*kept, *asked], {name: took[name] + seconds.get(name, 0.0) for name in took})
        state.wait_for_everyone()
        if not state.is_main_process:  # which may score for longer than ranks wait for each other
            return {}
        _finish(evaluation, folder, settings, model, scorer, reading, sources, questions, batches, load_s)
    return read_json(folder / RESULTS_FILE, "what tpo eval writes")


def _finish(
    evaluation: Evaluation,
    folder: Path,
    settings: dict[str, Any],
    model: Any,
    scorer: Scorer | None,
    reading: DataConfig,
    sources: Sequence[Records],
    questions: Sequence[Question],
    batches: Sequence[Sequence[Question]],
    load_s: float,
) -> None:
    """Scores all answers, and writes the files."""
    start, seconds = time.monotonic(), {"load": load_s, "read": 0.0, "ask": 0.0}
    splits = [Split(model.tpo, scorer) for _ in sources]
    whole = Split(model.tpo, scorer)
    lines: dict[int, dict[str, Any]] = {}
    shown = Shown()
    answers = Answers(folder / ANSWERS)
    for number in range(len(batches)):
        batch, took = answers.load(number)
        seconds |= {name: seconds[name] + value for name, value in took.items()}
        for asked in batch:
            question = questions[asked.number]
            given = model.tpo, sources[question.source], question, asked
            found = scored(*given, alone=evaluation.alone)
            answer = None if scorer is None or found is None else scorer.answer(*given, alone=evaluation.alone)
            for split in (splits[question.source], whole):
                split.add(asked.line, found, answer)
            lines[asked.number] = dataclasses.asdict(asked.line)
            shown.add(question, asked)
    routed = evaluation.route is not None
    named = {name: split.compute(routed=routed) for name, split in zip(evaluation.data, splits, strict=True)}
    seconds["score"] = time.monotonic() - start
    conventions = {} if scorer is None else {str(evaluation.benchmark): scorer.benchmark.convention}
    ordered = [lines[number] for number in sorted(lines)]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in ordered)
    _write(folder / PREDICTIONS_FILE, text)
    results = {
        **settings,
        "splits": named,
        **({"all": whole.compute(routed=routed)} if len(named) > 1 else {}),
        "seconds": seconds,
        "conventions": CONVENTIONS | conventions,
        "failures": [
            {"record": line["record"], "turn": line["turn"], "reason": line["failure"]}
            for line in ordered
            if line["failure"]
        ],
    }
    write_page(folder / REPORT_FILE, results, shown, model, sources, reading, alone=evaluation.alone)
    _write(folder / RESULTS_FILE, json.dumps(results, indent=2) + "\n")
    if not results["failures"]:
        shutil.rmtree(folder / ANSWERS)


def _settings(evaluation: Evaluation, sources: Sequence[Records]) -> dict[str, Any]:
    """What makes two evaluations the same: weights and data by what they hold, where media lie, and how is asked."""
    weights = {path.name: path for path in sorted(evaluation.run.glob("*.safetensors"))}
    asked = {
        name: getattr(evaluation, name)
        for name in ("confine", "route", "benchmark", "alone", "batch_size", "max_new_tokens", "limit")
    }
    media = None if evaluation.media is None else _resolved(sources[0].media_root)
    host = None if evaluation.host is None else _resolved(evaluation.host)
    return {
        "run": str(evaluation.run),
        "weights": {name: fingerprint(path).sha256 for name, path in weights.items()},
        "data": {name: _hash(records.files) for name, records in zip(evaluation.data, sources, strict=True)},
        "media": media,
        "host": host,
        **asked,
    }


def _resolved(path: Path) -> str:
    """Of a folder; a name on the hub stays one."""
    return str(path.resolve() if path.exists() else path)


def _hash(files: Sequence[Path]) -> str:
    """Of one file its own; of several one of all."""
    hashes = [fingerprint(file).sha256 for file in files]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256(" ".join(hashes).encode()).hexdigest()


def _open(folder: Path, settings: dict[str, Any]) -> None:
    """Writes the settings down. Raises `TPOError` where there are answers to others."""
    path, answers = folder / SETTINGS_FILE, Answers(folder / ANSWERS)
    if path.is_file():
        there = read_json(path, "what tpo eval writes")
        # Where run and data lie may change, what they hold may not.
        same = [_content(there), _content(settings)]
        finished = _finished(folder) is not None
        if not finished:  # answers do not depend on how they will be scored
            for content in same:
                content.pop("benchmark", None)
        differs = [name for name in same[1] if same[0].get(name) != same[1][name]]
        if differs and (finished or answers.any()):
            said = ", ".join(f"{name} was {there.get(name)!r}, is {settings[name]!r}" for name in differs)
            raise TPOError(
                f"{folder} has an evaluation of something else ({said}); give another --output, or remove it"
            )
        if differs:
            (folder / RESULTS_FILE).unlink(missing_ok=True)
            shutil.rmtree(answers.folder, ignore_errors=True)
        if finished:
            return
    else:
        others = [found.name for found in folder.iterdir() if found.name != LOCK_FILE]
        if others:
            raise TPOError(f"{folder} holds {others[0]!r}, and no evaluation; give an --output that is empty or new")
    _write(path, json.dumps(settings, indent=2) + "\n")
    answers.folder.mkdir(exist_ok=True)


def _finished(folder: Path) -> dict[str, Any] | None:
    """The results of an evaluation in which nothing has failed."""
    path = folder / RESULTS_FILE
    results = read_json(path, "what tpo eval writes") if path.is_file() else None
    return results if results is not None and not results["failures"] else None


def _content(settings: dict[str, Any]) -> dict[str, Any]:
    data = settings.get("data")
    return {k: v for k, v in settings.items() if k != "run"} | {"data": list(data.values()) if data else None}


def _sources(evaluation: Evaluation) -> list[Records]:
    twice = [name for name, times in Counter(map(Path, evaluation.data)).items() if times > 1]
    if twice:
        raise TPOError(f"data is {twice[0]} twice; expected each once, for each is a split of its own")
    saved = read_config(evaluation.run)
    config = config_from_dict(TPOConfig, saved.config, where=str(evaluation.run))
    if evaluation.route is not None and evaluation.route not in saved.heads:
        raise TPOError(
            f"route is {evaluation.route!r}, no head of {evaluation.run}{did_you_mean(evaluation.route, saved.heads)}"
        )
    format = RecordFormat.of_heads(saved.heads, config)
    return [Records(name, format, media_root=evaluation.media, confine=evaluation.confine) for name in evaluation.data]


def _write(path: Path, text: str) -> None:
    replace_file(path, lambda name: Path(name).write_text(text, encoding="utf-8"))
