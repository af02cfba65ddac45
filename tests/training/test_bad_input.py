"""Two ranks, as on two machines with disks of their own, one of which holds bad input: both end with its sentence."""

import functools
import json
import os
from pathlib import Path

import pytest
import tiny_run
import torch
from ranks import free_port, in_a_child

from tpo_plugin import TPOError
from tpo_plugin.data import records as records_module
from tpo_plugin.training.run import train

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning"),
]


def missing(file: Path) -> None:
    file.unlink()


def broken_picture(file: Path) -> None:
    """In every record, so that both in the batch and in its place there is one."""
    (file.parent / "a.png").write_bytes(b"no picture")
    turns = [{"from": "human", "value": "<image>where is red"}, {"from": "gpt", "value": "it is the circle"}]
    file.write_text((json.dumps({"conversations": turns, "image": "a.png"}) + "\n") * 16)


def wrong_record(file: Path) -> None:
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:5], lines[5].replace("gpt", "bot"), *lines[6:]]))


def zeros(file: Path) -> None:
    """No records, but zeros, as of a copy that failed."""
    file.write_bytes(b"\0" * 100)


# Of each: what is done to a rank's records, whether they are checked on first use only, and what is said.
CASES = {
    "a missing file": (missing, False, "stages.stage2.data[0]: tasks.jsonl: cannot be read: No such file or directory"),
    "a wrong record": (wrong_record, False, "stages.stage2.data[0]: tasks.jsonl:6: conversations[1].from: is 'bot'"),
    "no JSON": (zeros, False, "stages.stage2.data[0]: tasks.jsonl:1: is not valid JSON: "),
    "broken pictures": (broken_picture, False, "a.png: cannot be read as an image: cannot identify image file"),
    "a wrong record of a large file": (
        wrong_record,
        True,
        "conversations[1].from: is 'bot'",
    ),
}


@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.parametrize("case", CASES)
def test_bad_input_on_one_rank_ends_both_with_its_sentence(case, failing, tmp_path, monkeypatch):
    spoil, late, sentence = CASES[case]
    tiny_run.install_head()
    machines = [tmp_path / f"machine{rank}" for rank in range(2)]
    data = {"max_bad_share": 0.0, "num_workers": 2 * (case == "broken pictures")}
    for machine in machines:
        machine.mkdir()
        path = tiny_run.write_world(machine, stages=["stage2"], data=data, output_dir=str(tmp_path / "run"))
    config = json.loads(path.read_text())
    for source in config["stages"]["stage2"]["data"]:
        source["file"] = Path(source["file"]).name
    del config["stages"]["stage2"]["eval_data"]
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    spoil(machines[failing] / "tasks.jsonl")
    if late:
        monkeypatch.setattr(records_module, "CHECK_LIMIT", 0)

    def of_rank(rank: int) -> None:
        os.chdir(machines[rank])
        os.environ |= variables | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        try:
            train(tmp_path / "config.yaml")
        except TPOError as error:
            logs[rank].write_text(str(error))
            raise

    variables = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    torch.set_num_threads(1)
    logs = [tmp_path / f"rank{rank}.log" for rank in range(2)]
    output = tmp_path / "output.log"
    children = [in_a_child(functools.partial(of_rank, rank), output) for rank in range(2)]
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    said = [log.read_text() for log in logs]
    assert statuses == [1, 1], said
    assert sentence in said[failing]
    assert said[1 - failing].startswith(f"rank {failing} failed first: ")
    assert sentence in said[1 - failing]
    assert "Traceback" not in said[1 - failing]
    assert not (tmp_path / "run" / "run.json").exists()
