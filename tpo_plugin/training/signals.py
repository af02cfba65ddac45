"""A training that is told to stop writes a checkpoint at the end of its step, and ends."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import PartialState
from transformers import TrainerCallback

logger = logging.getLogger(__name__)

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)]
"""Of a scheduler that needs the machine, of a keyboard, and of a scheduler that warns of a job's time limit."""

PASSED_ON_S = 5.0
"""torchrun passes on a signal that its ranks may have got already, as from a terminal: so long it is the same one."""


def outlive_signals(init: Callable[[int], None] | None, worker_id: int) -> None:
    """Initialises a loader's worker, after `init`, so that it serves on until the process that it reads for ends it.

    A signal to a whole group of processes reaches workers too, and the step that is to be ended needs their data.
    """
    if init is not None:
        init(worker_id)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    while True:
        told = signal.sigwaitinfo(SIGNALS)
        if told.si_pid == os.getppid():
            os._exit(0)


class StopAtStepEnd(TrainerCallback):
    """Where a rank got a signal while training, all write a checkpoint after the step, or evaluation, and exit.

    The exit status is 128 + the signal's number: 143, 130 or 138. A second signal ends the process at once.
    """

    def __init__(self) -> None:
        self.received = 0
        self._since = 0.0
        self._stopping = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, the signals are caught; only the main thread can do that."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self.received:  # after the last step, whose checkpoint is written
            os.kill(os.getpid(), self.received)

    def _receive(self, number: int, frame: Any) -> None:
        launched = "TORCHELASTIC_RUN_ID" in os.environ
        if not self.received:
            self.received, self._since = number, time.monotonic()
            if PartialState().is_main_process:  # not through a stream, which may be in the middle of a line
                again = "" if launched else "; a second signal ends it at once, without one"
                os.write(2, f"{signal.Signals(number).name}: a checkpoint follows this step{again}\n".encode())
            if not launched:
                self._let_the_next_end()
        elif time.monotonic() - self._since > PASSED_ON_S:
            self._let_the_next_end()
            os.kill(os.getpid(), number)

    def _let_the_next_end(self) -> None:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)

    def _agree(self, args: Any, control: Any) -> None:
        state = PartialState()
        if state.num_processes > 1:
            received = torch.tensor(self.received, device=args.device)
            torch.distributed.all_reduce(received, torch.distributed.ReduceOp.MAX)
            self.received = int(received)
        self._stopping = self.received > 0
        control.should_save = control.should_save or self._stopping

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """All ranks are here."""
        self._agree(args, control)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """As after a step: the base saves after it has evaluated."""
        self._agree(args, control)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ends the process."""
        if self._stopping:
            if state.is_world_process_zero:
                name = signal.Signals(self.received).name
                logger.warning(
                    "%s: stopped after step %d, with a checkpoint in %s; the same command goes on from it",
                    name, state.global_step, os.path.join(args.output_dir, f"checkpoint-{state.global_step}"),
                )  # fmt: skip
            raise SystemExit(128 + self.received)
