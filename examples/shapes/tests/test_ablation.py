"""The ablation: what its cells change, and its whole path on a tiny size."""

import json
import shutil
from pathlib import Path

import pytest
from tpo_shapes.ablation import RESULT, main, recipe_of, run_grid
from tpo_shapes.cells import ALL, CELLS, COMPARISONS, FULL_CELL, PICTURES_PER_CLIP, QUICK_CELL, configuration
from tpo_shapes.effect import MEASURES
from tpo_shapes.moment_mlp import registered
from tpo_shapes.recipe import TPO, train_config
from tpo_shapes.splits import make_splits

from tpo_plugin.errors import TPOError

TRAINED = {name: cell for name, cell in CELLS.items() if cell.trains}


def config_of(name, world=Path("world"), size=FULL_CELL):
    return configuration(CELLS[name], world, world / name, size, 0)


def records_in_a_step(stage):
    """By kind of records, in expectation; pictures are so many times as many as clips."""
    shares = {}
    for source in stage.data:
        kind = Path(source.file).stem.partition("_first")[0]
        kind = next(k for k in ("clip_chat", "clip_tasks", "chat", "tasks") if kind.startswith(k))
        number = source.weight / (PICTURES_PER_CLIP if kind.startswith("clip") else 1)
        shares[kind] = shares.get(kind, 0) + number
    return {kind: stage.batch_size * share / sum(shares.values()) for kind, share in shares.items()}


def test_the_base_is_the_recipe_without_retain():
    ours, recipe = (
        config_of("all-chat"),
        train_config(Path(config_of("all-chat").model), Path("world"), FULL_CELL, 0, TPO),
    )
    assert recipe.tpo.loss_weights.pop("retain") > 0
    recipe.output_dir = ours.output_dir
    for name, stage in recipe.stages.items():
        stage.save_steps = ours.stages[name].save_steps
    assert ours.to_dict() == recipe.to_dict()
    for size in (FULL_CELL, QUICK_CELL):
        assert size.num_scenes == PICTURES_PER_CLIP * size.num_clips


@pytest.mark.parametrize("name", TRAINED)
def test_a_cell_trains_as_long_and_sees_as_many_of_each_kind(name):
    config, base = config_of(name), config_of("all-chat")
    with registered(name == "moment-mlp"):
        config.check_heads(where=name)
    assert sum(stage.steps for stage in config.stages.values()) == sum(FULL_CELL.steps)
    assert name == "all-chat" or config.to_dict() | {"output_dir": ""} != base.to_dict() | {"output_dir": ""}
    for stage_name, stage in config.stages.items():
        assert stage.micro_batch_size == stage.batch_size
        whole = records_in_a_step(base.stages["stage3" if name == "one-stage" else stage_name])
        for kind, number in records_in_a_step(stage).items():
            assert number == pytest.approx(whole[kind], abs=0.5), f"{stage_name}: {kind}"


def test_cells_are_what_they_are_named_for():
    for name in ("region", "temporal", "mask"):
        config = config_of(name)
        assert config.heads == [name]
        assert {Path(s.file).stem for stage in config.stages.values() for s in stage.data} == (
            {"clip_tasks_temporal"} if name == "temporal" else {f"tasks_{name}", f"clip_tasks_{name}"}
        )
    chat = config_of("chat")
    assert {Path(s.file).stem for stage in chat.stages.values() for s in stage.data} == {"chat", "clip_chat"}
    assert all(stage.losses == ["mllm"] and set(stage.learning_rates) == {"lora"} for stage in chat.stages.values())
    assert list(config_of("no-stage-2").stages) == ["stage1", "boxes", "stage3"]
    assert config_of("region").stages["boxes"].losses == ["region"]
    assert "boxes" not in chat.stages, "it has no conversation"
    assert "boxes" not in config_of("temporal").stages
    assert config_of("frozen").lora is None
    assert not any("lora" in stage.learning_rates for stage in config_of("frozen").stages.values())
    assert all("tokens" not in stage.learning_rates for stage in config_of("fixed-tokens").stages.values())
    shards = {Path(s.file).parent.name for stage in config_of("data-x2").stages.values() for s in stage.data}
    assert shards == {"train-0"}


def test_comparisons_are_of_cells_that_measure_it():
    needs = {"boxes": "region", "given": "region", "moments": "temporal", "masks": "mask", "ms": "region"}
    for comparison in COMPARISONS:
        for measure in comparison.measures:
            assert measure in MEASURES
            for name in (comparison.cell, comparison.other):
                assert needs.get(measure) in (None, *CELLS[name].asks), f"{name}: {measure}"
    compared = {name for comparison in COMPARISONS for name in (comparison.cell, comparison.other)}
    assert compared == set(CELLS)
    assert all(set(cell.asks) <= set(ALL) for cell in CELLS.values())


def test_files_of_every_cell_are_there(tmp_path):
    make_splits(tmp_path / "data", QUICK_CELL, 0)
    for name in TRAINED:
        for stage in config_of(name, tmp_path, QUICK_CELL).stages.values():
            assert stage.data
            assert all(Path(source.file).read_text() for source in stage.data)


GRID = ("host", "region", "text")


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """Three cells of one seed, run by the command."""
    directory = tmp_path_factory.mktemp("ablation")
    arguments = [str(directory), "--seed", "0", "--jobs", "1", "--quick", "--cells", *GRID]
    return directory, arguments, main(arguments)


@pytest.mark.slow
def test_three_cells_from_end_to_end(grid, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")  # so that no title is broken
    directory, arguments, status = grid
    assert status == 0
    results = {result["cell"]: result for result in json.loads((directory / "ablation.json").read_text())}
    assert tuple(results) == GRID
    for name, found in results.items():
        assert found["seconds"] > 0
        measures = found["measures"]
        assert set(measures) == set(MEASURES)
        asked = {key for key in ("boxes", "moments", "masks") if measures[key] is not None}
        assert asked == {"host": set(), "region": {"boxes"}, "text": {"boxes", "moments"}}[name]
        assert all(0 <= measures[key] <= 1 for key in (*asked, "chat"))
    assert results["host"]["measures"]["chat"] > 0.8, "the host knows its conversations"
    assert results["host"]["measures"]["words"] < 0.1
    assert results["text"]["measures"]["ms"] > 0
    written = {name: (directory / "seed-0" / name / RESULT).stat().st_mtime_ns for name in GRID}
    assert main(arguments) == 0
    assert written == {name: (directory / "seed-0" / name / RESULT).stat().st_mtime_ns for name in GRID}, "run again"
    said = capsys.readouterr().out
    assert CELLS["text"].about in said
    assert "--quick shows the path" in said


@pytest.mark.slow
def test_a_cell_that_was_killed_goes_on_and_one_that_fails_stops_no_other(grid, tmp_path):
    """Killed: what a run leaves that ended behind the first checkpoint of stage 2. Fails: its folder is a file's."""
    directory, *_ = grid
    shutil.copytree(directory / "seed-0" / "data", tmp_path / "seed-0" / "data")
    killed = tmp_path / "seed-0" / "region"
    shutil.copytree(directory / "seed-0" / "region", killed)
    for left in (killed / RESULT, killed / "run.json", killed / "stage2" / "stage.json"):
        left.unlink()
    for left in (killed / "stage3", killed / "stage2" / "final", killed / "stage2" / "checkpoint-4"):
        shutil.rmtree(left)
    (tmp_path / "seed-0" / "mask").mkdir()
    (tmp_path / "seed-0" / "mask" / "log.jsonl").mkdir()
    results, failed = run_grid(tmp_path, ["mask", "region"], [0], jobs=1, size=QUICK_CELL)
    assert [line.partition(":")[0] for line in failed] == ["mask, seed 0"]
    assert "Error" in Path(failed[0].rpartition(": ")[2]).read_text()
    (again,) = results
    straight = json.loads((directory / "seed-0" / "region" / RESULT).read_text())
    assert again["calls"] == 2
    for key in ("scores", "masks", "recipe", "splits"):
        assert again[key] == straight[key]
    assert again["measures"] | {"ms": 0} == straight["measures"] | {"ms": 0}


@pytest.mark.slow
def test_results_of_another_recipe_are_not_mixed_in(grid):
    directory, *_ = grid
    with pytest.raises(TPOError, match="another recipe, of host with seed 0; remove it there and from ablation.json"):
        run_grid(directory, ["host"], [0], jobs=1, size=FULL_CELL)


def test_results_of_another_machine_are_gone_on_from(tmp_path):
    """They stand in ablation.json alone, without the runs."""
    known = [{"cell": name, "seed": 0, "recipe": recipe_of(name, QUICK_CELL, 0, "test")} for name in ("region", "host")]
    (tmp_path / "ablation.json").write_text(json.dumps(known))
    results, failed = run_grid(tmp_path, ["host", "region"], [0], jobs=1, size=QUICK_CELL)
    assert results == known[::-1]
    assert not failed
    assert not (tmp_path / "seed-0").exists(), "no data was made"


def test_a_recipe_is_told_from_others():
    known = recipe_of("all", QUICK_CELL, 0, "test")
    assert known == recipe_of("all", QUICK_CELL, 0, "test")
    others = [("all", QUICK_CELL, 1, "test"), ("all", FULL_CELL, 0, "test"), ("mask", QUICK_CELL, 0, "test")]
    others.append(("all", QUICK_CELL, 0, "validation"))
    assert known not in {recipe_of(*other) for other in others}
