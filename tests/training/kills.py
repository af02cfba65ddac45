"""Kills tiny runs at random, lets them go on, and compares them to a run that was never stopped.

    python -m tests.training.kills --count 100 --engine one
    python -m tests.training.kills --count 100 --engine ddp      # two ranks
    python -m tests.training.kills --count 100 --engine zero2    # two ranks, needs deepspeed
    python -m tests.training.kills --count 100 --engine fsdp     # two ranks

Every run is forked from this process, which has imported everything. Every second kill is at a file operation inside a
checkpoint's writing, often with half of the file that was written last; the others come at a random time. Every fifth
run is first killed between the last checkpoint of a stage and the stage's end.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from tests.ranks import free_port, in_a_child, use_deepspeed, use_fsdp
from tests.training import tiny_run
from tpo_plugin.training.run import read_run, train
from tpo_plugin.training.whole import MANIFEST, UNFINISHED

ENGINES = {"one": 1, "ddp": 2, "zero2": 2, "zero3": 2, "fsdp": 2}
"""The ranks of each."""
NEVER_THE_SAME = {"training_args.bin", "trainer_state.json", "README.md"}
"""What names a folder or a time of day. The log stands in run.json too, where it is compared."""


class Operations:
    """Counts the operations on files below a folder, and kills this process before one of them.

    Python's own opening, renaming and deleting; os.fsync; and the writers of torch and safetensors, which are native.
    """

    def __init__(self, below: str, kill_at: int | None = None, halve: bool = False) -> None:
        self.below, self.kill_at, self.halve = below, kill_at, halve
        self.number, self.written, self.names = 0, "", Counter[str]()

    def watch(self) -> None:
        """From now on, in this process."""
        sys.addaudithook(self._audit)
        fsync, save, serialize = os.fsync, torch.save, safetensors.torch.serialize_file

        def watched_fsync(descriptor: int) -> None:
            self.happens("fsync", os.readlink(f"/proc/self/fd/{descriptor}"))
            fsync(descriptor)

        def watched_save(value: Any, file: Any, *args: Any, **kwargs: Any) -> None:
            self.happens("write", file)
            save(value, file, *args, **kwargs)

        def watched_serialize(tensors: Any, file: Any, *args: Any, **kwargs: Any) -> None:
            self.happens("write", file)
            serialize(tensors, file, *args, **kwargs)

        os.fsync, torch.save, safetensors.torch.serialize_file = watched_fsync, watched_save, watched_serialize

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(args[1], str) and not set(args[1]).isdisjoint("wxa+"):
            self.happens("write", args[0])
        elif event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir"):
            self.happens(event.removeprefix("os."), args[0])

    def happens(self, name: str, path: Any) -> None:
        """An operation is about to happen."""
        if not isinstance(path, (str, os.PathLike)) or self.below not in str(path):
            return
        self.number += 1
        self.names[name] += 1
        if self.number == self.kill_at:
            if self.halve and os.path.isfile(self.written):
                os.truncate(self.written, os.path.getsize(self.written) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        if name == "write":
            self.written = str(path)


def write_world(folder: Path, engine: str) -> Path:
    """Two stages: LoRA with dropout, evaluation after each epoch, log lines that end between two checkpoints."""
    path = tiny_run.write_world(folder, stages=["stage2", "stage3"])
    values = json.loads(path.read_text())
    trainer = {"use_cpu": True, "disable_tqdm": True, "report_to": [], "log_level": "error"}
    if engine.startswith("zero"):
        zero: dict[str, Any] = {"stage": int(engine[-1])}
        if engine == "zero3":
            zero |= {"stage3_param_persistence_threshold": 0, "stage3_gather_16bit_weights_on_model_save": True}
        sizes = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
        settings = {"zero_optimization": zero, "gradient_clipping": "auto", **dict.fromkeys(sizes, "auto")}
        trainer |= {"use_cpu": False, "deepspeed": settings | {"zero_force_ds_cpu_optimizer": False}}
    if engine == "fsdp":
        trainer |= {"use_cpu": False, "dataloader_pin_memory": False, "fsdp": True, "fsdp_config": {"version": 2}}
    source = values["stages"]["stage2"]["data"][0]
    common = {"data": [source], "save_steps": 2, "logging_steps": 3, "trainer": trainer}
    values["stages"]["stage2"] |= common
    values["stages"]["stage3"] |= common | {"steps": 3}
    path.write_text(json.dumps(values))
    return path


def run(config: Path, engine: str, log: Path, kill: dict[str, Any] | None = None, rank: int = 0) -> list[int]:
    """Trains on all ranks of an engine, one of which is killed; returns their exit statuses, -9 for killed."""
    ranks, port = ENGINES[engine], free_port()

    def work(own: int) -> None:
        if ranks > 1:
            os.environ |= {
                "WORLD_SIZE": str(ranks), "RANK": str(own), "LOCAL_RANK": str(own),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            }  # fmt: skip
        operations = Operations(**{"below": UNFINISHED} | ((kill or {}).get("operation", {}) if own == rank else {}))
        operations.watch()
        if kill and own == rank and "after_s" in kill:
            timer = threading.Timer(kill["after_s"], os.kill, (os.getpid(), signal.SIGKILL))
            timer.daemon = True
            timer.start()
        train(config)
        (log.parent / f"operations_{own}.json").write_text(json.dumps(operations.names))

    children = [in_a_child(lambda own=own: work(own), log) for own in range(ranks)]
    statuses: dict[int, int] = {}
    ended_at: float | None = None
    while len(statuses) < ranks:
        for child in [child for child in children if child not in statuses]:
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                statuses[child] = os.waitstatus_to_exitcode(status)
                ended_at = ended_at or time.monotonic()
        if ended_at and time.monotonic() - ended_at > 60:
            for child in [child for child in children if child not in statuses]:
                os.kill(child, signal.SIGKILL)  # as a launcher does
        time.sleep(0.02)
    return [statuses[child] for child in children]


def same(run_folder: Path, straight: Path) -> list[str]:
    """What differs in weights, optimizer, random states and log of two finished runs."""
    weights = ("adapter_model.safetensors", "tpo_model.safetensors", "tpo_host_weights.safetensors")
    found = [name for name in weights if (run_folder / name).read_bytes() != (straight / name).read_bytes()]
    for stage in ("stage2", "stage3"):
        names = [sorted(path.name for path in (folder / stage).iterdir()) for folder in (run_folder, straight)]
        if names[0] != names[1]:
            found.append(f"{stage} has {names[0]}, not {names[1]}")
        last = max((name for name in names[1] if name.startswith("checkpoint-")), key=lambda name: int(name[11:]))
        for place in (f"{stage}/final", f"{stage}/{last}"):
            ours, theirs = (manifest(folder / place) for folder in (run_folder, straight))
            changed = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
            files = [(run_folder / place / name, straight / place / name) for name in changed]
            found += [f"{place}/{name}" for name, both in zip(changed, files, strict=True) if not hold_the_same(*both)]
        ours, theirs = (logged(folder, stage) for folder in (run_folder, straight))
        found += [f"{stage} log: {a} != {b}" for a, b in zip_longest(ours, theirs) if a != b]
    return found


def manifest(folder: Path) -> dict[str, Any]:
    """Size and hash of each file that is to be the same."""
    files = json.loads((folder / MANIFEST).read_text())["files"]
    return {name: about for name, about in files.items() if name not in NEVER_THE_SAME}


def hold_the_same(one: Path, other: Path) -> bool:
    """Whether two files of torch hold the same values bit for bit; ZeRO-3's and FSDP's are not written alike."""
    if one.suffix not in (".pt", ".bin") or not (one.is_file() and other.is_file()):
        return False
    ours, theirs = (list(leaves(torch.load(path, map_location="cpu", weights_only=False))) for path in (one, other))
    return len(ours) == len(theirs) and all(same_leaf(a, b) for a, b in zip(ours, theirs, strict=True))


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every value in dictionaries, lists and objects, with where it stands."""
    if type(value).__module__.startswith("deepspeed"):
        value = vars(value)
    if isinstance(value, (dict, list, tuple)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, (*path, key))
    else:
        yield path, value


def same_leaf(one: tuple[tuple[Any, ...], Any], other: tuple[tuple[Any, ...], Any]) -> bool:
    (path, ours), (there, theirs) = one, other
    if path != there or type(ours) is not type(theirs):
        return False
    return torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else bool(ours == theirs)


def logged(run_folder: Path, stage: str) -> list[dict[str, Any]]:
    """Every line of a stage's log, without times."""
    timing = ("runtime", "per_second", "preparation_time")
    return [
        {key: value for key, value in entry.items() if not key.endswith(timing)}
        for entry in read_run(run_folder)["stages"][stage]["log"]
    ]


class Straight:
    """A run that is never stopped, and what others are measured by."""

    def __init__(self, folder: Path, engine: str) -> None:
        self.engine, self.config = engine, write_world(folder, engine)
        gc.freeze()
        self.folder = folder / "run"
        began = time.monotonic()
        statuses = run(self.config, engine, folder / "log")
        assert not any(statuses), (folder / "log").read_text()[-3000:]
        self.seconds = time.monotonic() - began
        paths = [folder / f"operations_{rank}.json" for rank in range(ENGINES[engine])]
        self.names = [json.loads(path.read_text()) for path in paths]

    def killed(self, folder: Path, kills: list[dict[str, Any]]) -> tuple[int, list[str]]:
        """Kills that struck, and what is different after the run has gone on to its end."""
        config, log = folder / "config.yaml", folder / "log"
        values = json.loads(self.config.read_text()) | {"output_dir": str(folder / "run")}
        config.write_text(json.dumps(values))
        struck = 0
        for kill in [*kills, None]:
            statuses = run(config, self.engine, log, kill, rank=(kill or {}).get("rank", 0))
            if not any(statuses):
                break
            if kill is None or -signal.SIGKILL not in statuses:
                return struck, [f"ended with {statuses}: {log.read_text()[-9000:]}"]
            struck += 1
        return struck, same(folder / "run", self.folder)


def random_kills(rng: random.Random, straight: Straight, number: int, *, at_stage_end: bool) -> list[dict[str, Any]]:
    """Kills of one run after another."""
    kills: list[dict[str, Any]] = []
    if at_stage_end:
        kills.append({"rank": 0, "operation": {"below": f"{UNFINISHED}/final", "kill_at": 1}})
    for index in range(len(kills), number):
        rank = rng.randrange(ENGINES[straight.engine])
        if index % 2 == 0:
            # A run does most of its operations after it has gone on: early ones are drawn more often.
            at = 1 + int(rng.random() ** 2 * sum(straight.names[rank].values()))
            kills.append({"rank": rank, "operation": {"kill_at": at, "halve": rng.random() < 0.5}})
        else:
            kills.append({"rank": rank, "after_s": rng.uniform(0.1, 0.8) * straight.seconds})
    return kills


def main() -> None:
    """As the module says; exits with 1 where a run is different or cannot go on."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=20, help="kills in all, at least")
    parser.add_argument("--engine", choices=ENGINES, default="one")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.engine.startswith("zero"):
        use_deepspeed()
    if given.engine == "fsdp":
        use_fsdp()
    tiny_run.install_head()
    rng, outcome = random.Random(given.seed), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder, "straight")
        first.mkdir()
        straight = Straight(first, given.engine)
        print(f"a straight run: {straight.seconds:.1f} s; operations of each rank: {straight.names}", flush=True)
        case = 0
        while outcome["kills"] < given.count:
            place = Path(folder, f"case{case}")
            place.mkdir()
            kills = random_kills(rng, straight, 4, at_stage_end=case % 5 == 0)
            struck, different = straight.killed(place, kills)
            outcome["kills"] += struck
            outcome["runs"] += 1
            outcome["different"] += bool(different)
            print(f"{case}: {struck} kills, {'DIFFERENT' if different else 'the same'}", flush=True)
            for line in different:
                print(f"   {line}\n   {kills}")
            shutil.rmtree(place)
            case += 1
    print(f"{given.engine}, seed {given.seed}: {dict(outcome)}")
    sys.exit(bool(outcome["different"]))


if __name__ == "__main__":
    main()
