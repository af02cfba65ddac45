"""What a run says of its training: lines for a reader on standard output, and all numbers in its `log.jsonl`.

RUN/log.jsonl               a JSON object for each time that a stage logged: "stage", "step", losses, rates, metrics
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from transformers import TrainerCallback

from tpo_plugin.atomic import replace_file
from tpo_plugin.training.throughput import Clocks, Throughput

logger = logging.getLogger(__name__)

LOG_FILE = "log.jsonl"
REDRAWN_S = 0.1
"""A bar is drawn again after so many seconds at the earliest."""


class StageLog(TrainerCallback):
    """Of one stage. Has to be the first callback of its trainer: what it adds to a log, those after it write too."""

    def __init__(
        self,
        run: Path,
        stage: str,
        stages: Sequence[str],
        heads: Sequence[str],
        clocks: Clocks,
        console: Console,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path, self.stage, self.heads = run / LOG_FILE, stage, heads
        self.title = f"stage {stages.index(stage) + 1} of {len(stages)} ({stage})"
        self.clocks, self.console, self.clock = clocks, console, clock
        self._columns: list[str] = []
        self._emission: float | None = None
        """Of the last evaluation's free answers, of the head that was called least."""
        self._bar: Progress | None = None
        self._drawn = 0.0
        self._began, self._first_step = 0.0, 0

    def say(self, text: str) -> None:
        """Prints a line, above a bar."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Inside, a terminal shows a bar below the lines, unless `disable_tqdm` is set."""
        trainer = self.clocks.trainer
        if not (self.console.is_terminal and trainer.is_world_process_zero() and not trainer.args.disable_tqdm):
            yield
            return
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}")
        # Without a thread of its own, which a loader's processes would be forked beside.
        with Progress(*columns, console=self.console, transient=True, auto_refresh=False) as self._bar:
            self._bar.add_task(self.title, total=None, left="")
            yield
        self._bar = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Says what begins, or goes on."""
        self._began, self._first_step = self.clock(), state.global_step
        if not state.is_world_process_zero:
            return
        from_where = f", from step {state.global_step}" if state.global_step else ""
        self.say(f"{self.title}: {state.max_steps} steps{from_where}")
        self.cut(len(state.log_history))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Moves the bar."""
        if self._bar is not None and self.clock() - self._drawn >= REDRAWN_S:
            self._drawn = self.clock()
            left = f"{self._left(state)} left"
            self._bar.update(self._bar.task_ids[0], completed=state.global_step, total=state.max_steps, left=left)
            self._bar.refresh()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Writes and prints what was logged. Collective where steps were."""
        logs = {} if logs is None else logs
        found: Throughput | None = None
        if "learning_rate" in logs:
            found = self.clocks.recent()
            logs |= found.to_json()
        if not state.is_world_process_zero:
            return
        self.write({"step": state.global_step, **logs})
        if found is not None:
            self.say_row(logs, state, found)
            self.clocks.warn_of_the_loader(self.stage, found)
        elif any(name.startswith("eval_") for name in logs):
            for line in self.evaluated(logs, state.global_step):
                self.say(line)

    def end(self, found: Throughput) -> None:
        """The stage is trained."""
        if self.clocks.trainer.is_world_process_zero():
            self.say(f"{self.title}: {found}")

    # -- for a reader --------------------------------------------------------------------------------------------------

    def say_row(self, logs: Mapping[str, Any], state: Any, found: Throughput) -> None:
        """A line of the table; its names above it where they are others than before."""
        cells = {"step": str(state.global_step), "loss": _number(logs.get("loss"))}
        cells |= {name[5:]: _number(value) for name, value in logs.items() if name.startswith("loss_")}
        cells |= {"triggers": _percent(logs["assign_accuracy"])} if "assign_accuracy" in logs else {}
        cells |= {"emission": _percent(self._emission)} if self._emission is not None else {}
        cells |= {"samples/s": f"{found.samples_per_s:.4g}", "left": self._left(state)}
        if list(cells) != self._columns:
            self._columns = list(cells)
            self.say("  ".join(name.rjust(_width(name)) for name in cells))
        self.say("  ".join(cell.rjust(_width(name)) for name, cell in cells.items()))

    def evaluated(self, logs: Mapping[str, Any], step: int) -> Iterator[str]:
        """The lines of an evaluation: its losses, and for each head its metrics and its free answers."""
        values = {
            name.removeprefix("eval_"): value
            for name, value in logs.items()
            if name.startswith("eval_") and not name.endswith(("_runtime", "_per_second", "_preparation_time"))
        }
        by_head: dict[str, list[str]] = {head: [] for head in self.heads}
        free: dict[str, list[str]] = {head: [] for head in self.heads}
        rest = []
        emissions = [values[f"free_{head}_emission"] for head in self.heads if f"free_{head}_emission" in values]
        self._emission = min(emissions, default=None)
        for name, value in values.items():
            kind, said = name.removeprefix("free_"), f"{_number(value)}"
            owner = max((head for head in self.heads if kind.startswith(f"{head}_")), key=len, default=None)
            groups = free if name.startswith("free_") else by_head
            if owner is None:
                rest.append(f"{name.removeprefix('loss_')} {said}")
            else:
                groups[owner].append(f"{kind.removeprefix(owner + '_')} {said}")
        yield f"evaluated after step {step}: {', '.join(rest)}"
        for head in self.heads:
            if by_head[head]:
                yield f"  {head}: {', '.join(by_head[head])}"
            if free[head]:
                yield f"  {head}, in free answers: {', '.join(free[head])}"

    def _left(self, state: Any) -> str:
        """The time that the stage still takes, as its steps in this process took."""
        done = state.global_step - self._first_step
        seconds = round((self.clock() - self._began) / max(done, 1) * (state.max_steps - state.global_step))
        return _duration(seconds) if done else "-"

    # -- the file ------------------------------------------------------------------------------------------------------

    def cut(self, number: int) -> None:
        """Leaves the first lines of this stage: what stands behind them will be done again."""
        if not self.path.is_file():
            return
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = []
        for line in lines:
            stage = _stage_of(line)
            number -= stage == self.stage
            if stage is not None and (stage != self.stage or number >= 0):
                kept.append(line)
        if kept != lines:
            replace_file(self.path, lambda name: Path(name).write_text("".join(kept), encoding="utf-8"))

    def write(self, values: Mapping[str, Any]) -> None:
        """Adds a line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"stage": self.stage, **values}) + "\n")


def _stage_of(line: str) -> str | None:
    """None of half a line, as a process leaves it that is killed."""
    try:
        return str(json.loads(line)["stage"])
    except (ValueError, LookupError, TypeError):
        return None


def _width(name: str) -> int:
    return max(len(name), 7)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) else "-"


def _percent(share: float) -> str:
    return f"{share:.0%}"


def _duration(seconds: int) -> str:
    hours, minutes = divmod(seconds // 60, 60)
    return f"{hours}:{minutes:02}:{seconds % 60:02}" if hours else f"{minutes}:{seconds % 60:02}"
