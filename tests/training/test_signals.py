"""What a signal does to a training; that it goes on to the same weights is in test_run.py."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import tiny_run

from tpo_plugin.training.signals import SIGNALS, StopAtStepEnd


class Control:
    should_save = False


class State:
    global_step, is_world_process_zero = 7, True


class Args:
    output_dir, device = "run/stage1", "cpu"


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGUSR1", 138)])
def test_a_signal_saves_and_exits_after_the_step(name, status, caplog):
    stop, control, before = StopAtStepEnd(), Control(), [signal.getsignal(number) for number in SIGNALS]

    def step():
        stop.on_step_end(Args(), State(), control)
        stop.on_save(Args(), State(), control)

    def train():
        step()
        assert not control.should_save, "nothing came yet"
        os.kill(os.getpid(), getattr(signal, name))
        assert all(signal.getsignal(number) == signal.SIG_DFL for number in SIGNALS), "the next one ends the process"
        step()

    with pytest.raises(SystemExit) as stopped, stop.listening():
        train()
    assert control.should_save
    assert stopped.value.code == status
    assert caplog.messages == [
        f"{name}: stopped after step 7, with a checkpoint in run/stage1/checkpoint-7; the same command goes on from it"
    ]
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_signal_during_an_evaluation_saves_after_it():
    stop, control = StopAtStepEnd(), Control()
    stop.received = int(signal.SIGTERM)
    stop.on_evaluate(Args(), State(), control)
    assert control.should_save
    with pytest.raises(SystemExit):
        stop.on_save(Args(), State(), control)


def test_a_launcher_may_pass_on_the_same_signal(monkeypatch):
    """A terminal signals torchrun and its ranks, and torchrun the ranks again."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    stop = StopAtStepEnd()

    def twice():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == signal.SIGTERM
        stop.on_step_end(Args(), State(), Control())
        stop.on_save(Args(), State(), Control())

    with pytest.raises(SystemExit), stop.listening():
        twice()


def test_outside_the_main_thread_no_signal_is_caught():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def listen():
        with StopAtStepEnd().listening():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert seen == [before]


@pytest.mark.slow
def test_a_signal_to_the_whole_group_reaches_workers_too_and_a_checkpoint_is_written(tmp_path):
    config = tiny_run.write_world(tmp_path, stages=["stage2"], data={"num_workers": 1})
    done = subprocess.run(
        [sys.executable, tiny_run.__file__, "run", str(config)], capture_output=True, text=True, start_new_session=True,
        env=os.environ | {"AT": "5", "GROUP_AT": "15", "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert done.returncode == 143, done.stderr
    assert "SIGTERM: stopped after step 3, with a checkpoint" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("inside", "status"), [("kill(); kill()", -15), ("kill()", -15)])
def test_a_second_signal_and_one_after_the_last_step_end_the_process(inside, status):
    script = (
        "import os, signal\nfrom tpo_plugin.training.signals import StopAtStepEnd\n"
        "kill = lambda: os.kill(os.getpid(), signal.SIGTERM)\n"
        f"with StopAtStepEnd().listening(): {inside}\nprint('never')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (status, "")
