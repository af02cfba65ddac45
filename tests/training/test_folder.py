"""The folder of a run: one call at a time trains in it, and what cannot be written is said in a sentence."""

import errno
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_run
import torch
from ranks import in_a_child
from safetensors.torch import load_file

from tpo_plugin import TPOError
from tpo_plugin.training.config import TrainConfig
from tpo_plugin.training.folder import LOCK_FILE, held, writing
from tpo_plugin.training.run import train

TAKE = "import filelock, os, sys, time; lock = filelock.SoftFileLock(sys.argv[1]); lock.acquire(); print(flush=True); "


def holder(path, then):
    """A process that takes the lock, and `then`."""
    process = subprocess.Popen([sys.executable, "-c", TAKE + then, str(path)], stdout=subprocess.PIPE)
    process.stdout.readline()
    return process


def test_one_at_a_time(tmp_path):
    folder = tmp_path / "runs" / "one"
    with held(folder):
        assert (folder / LOCK_FILE).read_text().split()[0] == str(os.getpid())
        message = f"{folder}: process {os.getpid()} on {socket.gethostname()} trains in it; wait for its end"
        with pytest.raises(TPOError, match=re.escape(message)), held(folder):
            pass
        assert (folder / LOCK_FILE).is_file(), "the refused call took nothing away"
    assert not (folder / LOCK_FILE).exists()
    with held(folder):
        pass


def test_an_error_gives_the_folder_back(tmp_path):
    with pytest.raises(KeyError), held(tmp_path):
        raise KeyError
    assert not (tmp_path / LOCK_FILE).exists()


def test_a_process_that_lives_keeps_it(tmp_path):
    process = holder(tmp_path / LOCK_FILE, "time.sleep(600)")
    try:
        with pytest.raises(TPOError, match=f"process {process.pid} on .* trains in it"), held(tmp_path):
            pass
    finally:
        process.kill()
        process.communicate()


def test_what_a_killed_process_left_is_taken_over(tmp_path, caplog):
    process = holder(tmp_path / LOCK_FILE, "os.kill(os.getpid(), 9)")
    assert process.wait() == -signal.SIGKILL
    process.communicate()
    assert (tmp_path / LOCK_FILE).is_file()
    with caplog.at_level(logging.WARNING), held(tmp_path):
        assert (tmp_path / LOCK_FILE).read_text().split()[0] == str(os.getpid())
    assert caplog.messages == [
        f"{tmp_path}: taken over from process {process.pid} on {socket.gethostname()}, which is gone"
    ]


def test_another_host_cannot_be_asked(tmp_path):
    (tmp_path / LOCK_FILE).write_text("1234\nnode17\n")
    with (
        pytest.raises(TPOError, match=f"process 1234 on node17 trains in it.*remove {tmp_path / LOCK_FILE}"),
        held(tmp_path),
    ):
        pass
    (tmp_path / LOCK_FILE).unlink()
    with held(tmp_path):
        pass


def test_temporary_files_of_a_killed_call_go(tmp_path):
    left = [tmp_path / ".run.json.0123abcd.tmp", tmp_path / "stage1" / "final" / ".a.safetensors.ffffffff.tmp"]
    kept = [tmp_path / ".mine.tmp", tmp_path / "stage1" / "notes.tmp", tmp_path / "run.json"]
    (tmp_path / "stage1" / "final").mkdir(parents=True)
    for path in left + kept:
        path.touch()
    with held(tmp_path):
        assert [path.exists() for path in left] == [False, False]
        assert all(path.exists() for path in kept)


@pytest.fixture
def config(tmp_path):
    tiny_run.install_head()
    return TrainConfig.from_yaml(tiny_run.write_world(tmp_path, stages=["stage1"]))


def test_an_output_dir_that_is_a_file(tmp_path, config):
    (tmp_path / "file").write_text("mine")
    for output_dir in (tmp_path / "file", tmp_path / "file" / "run"):
        config.output_dir = str(output_dir)
        with pytest.raises(TPOError, match=f"^{output_dir}: cannot be written .*: it is a file.*; give another folder"):
            train(config)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.name == "nt", reason="rights of POSIX")
@pytest.mark.parametrize("there", [True, False])
def test_a_folder_without_the_right_to_write(tmp_path, config, there):
    closed = tmp_path / "closed"
    folder = closed / "run" if there else closed
    folder.mkdir(parents=True)
    closed.chmod(0o555)
    folder.chmod(0o555)
    config.output_dir = str(closed / "run")
    root = os.geteuid() == 0  # who may write everywhere
    try:
        if root:
            for parent in (tmp_path, *tmp_path.parents[:2]):
                parent.chmod(0o755)
            os.seteuid(65534)
        with pytest.raises(TPOError, match=f"^{closed / 'run'}: cannot be written .*: it may not be written to"):
            train(config)
    finally:
        if root:
            os.seteuid(0)
        closed.chmod(0o755)
        folder.chmod(0o755)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk(tmp_path):
    message = f"^{tmp_path}: cannot be written .No space left on device.: its disk is full"
    with pytest.raises(TPOError, match=message) as found, writing(tmp_path), open("/dev/full", "w") as file:
        file.write("x")
    assert found.value.__cause__.errno == errno.ENOSPC


def test_errors_of_other_folders_pass(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError), writing(tmp_path / "run"), (tmp_path / "file" / "data.jsonl").open():
        pass
    with pytest.raises(ValueError, match="mine"), writing(tmp_path):
        raise ValueError("mine")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs SIGSTOP")
def test_two_tpo_train_in_one_folder(tmp_path):
    """The second is refused while the first one trains, halted for that; the first ends as if it were alone."""
    tiny_run.install_head()
    worlds = [tmp_path / "alone", tmp_path / "both"]
    for world in worlds:
        world.mkdir()
        tiny_run.write_world(world, stages=["stage1"])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}

    def call(world):
        command = [sys.executable, tiny_run.__file__, "cli", "train", str(world / "config.yaml")]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    first, run = call(worlds[1]), worlds[1] / "run"
    try:
        while not (run / LOCK_FILE).exists():
            assert first.poll() is None, first.communicate()
            time.sleep(0.02)
        first.send_signal(signal.SIGSTOP)
        second = call(worlds[1])
        _, error = second.communicate()
        assert second.returncode == 1
        assert f"Error: {run}: process {first.pid} on " in error
        assert "Traceback" not in error
        first.send_signal(signal.SIGCONT)
        output, error = first.communicate()
        assert first.returncode == 0, error
    finally:
        first.kill()
    assert f"run: {run}" in output
    assert not (run / LOCK_FILE).exists()
    train(worlds[0] / "config.yaml")
    one, two = (load_file(world / "run" / "adapter_model.safetensors") for world in worlds)
    assert all((two[name] == value).all() for name, value in one.items())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files")
@pytest.mark.parametrize("limit", [1_500, 8_000, 20_000])
def test_a_disk_that_is_full_is_said_and_the_same_call_goes_on(tmp_path, limit):
    """Files end at the limit, as on a full disk: of Python's own, of safetensors' and of torch's writers."""
    import resource

    torch.set_num_threads(1)
    tiny_run.install_head()
    config = tiny_run.write_world(tmp_path, stages=["stage2"])
    said = tmp_path / "said"

    def limited():
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
        try:
            train(config)
        except TPOError as error:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
            said.write_text(str(error))

    os.waitpid(in_a_child(limited, Path(os.devnull)), 0)
    text = said.read_text()
    assert text.startswith(f"{tmp_path / 'run'}: cannot be written (")
    assert "the same call goes on" in text
    run = train(config)
    assert (run / "run.json").is_file()
