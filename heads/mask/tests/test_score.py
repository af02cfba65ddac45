from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from tpo_head_mask.commands import add_commands
from tpo_head_mask.jf import RULE, JFScores
from tpo_head_mask.score import score_folders
from typer.testing import CliRunner

import tpo_plugin as tpo

FRAMES = ["00000.png", "00004.png", "00008.png", "00012.png"]


def write(path: Path, masks: np.ndarray) -> None:
    path.mkdir(parents=True)
    for name, mask in zip(FRAMES, masks, strict=False):
        Image.fromarray(mask.astype(np.uint8)).save(path / name)


def shapes(seed: int) -> np.ndarray:
    """Masks [object, frame, H, W]."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((2, 4, 40, 50), bool)
    for k in range(2):
        for t in range(4):
            y, x = rng.integers(2, 25, 2)
            masks[k, t, y : y + 12, x : x + 15] = True
    return masks


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Sequence "objects" has a folder for each object, "labels" maps of ids."""
    for name, seed in (("truth", 0), ("predicted", 1)):
        masks = shapes(seed)
        for k in range(2):
            write(tmp_path / name / "objects" / f"{k:03d}", 255 * masks[k])
        write(tmp_path / name / "labels", masks[0] + 2 * (masks[1] & ~masks[0]))
    return tmp_path / "truth", tmp_path / "predicted"


def test_both_layouts(folders: tuple[Path, Path]) -> None:
    scores = score_folders(*folders)
    expected = JFScores()
    truth, predicted = shapes(0), shapes(1)
    expected.add_labels("labels", *(masks[0] + 2 * (masks[1] & ~masks[0]) for masks in (truth, predicted)))
    names = ("000", "001")
    expected.add_objects("objects", *(dict(zip(names, masks, strict=True)) for masks in (truth, predicted)))
    assert set(scores.objects) == {("labels", "1"), ("labels", "2"), ("objects", "000"), ("objects", "001")}
    assert scores.mean() == pytest.approx(expected.mean())
    assert len(scores.objects["objects", "000"].j_frames) == 2
    assert len(score_folders(*folders, skip_ends=False).objects["objects", "000"].j_frames) == 4


def test_frames_go_by_name(folders: tuple[Path, Path]) -> None:
    truth, predicted = folders
    before = score_folders(truth, predicted).mean()
    Image.fromarray(np.zeros((40, 50), np.uint8)).save(predicted / "objects/000/00002.png")
    assert score_folders(truth, predicted).mean() == before
    (predicted / "objects/000/00004.png").unlink()
    with pytest.raises(tpo.MediaError, match=r"objects/000/00004\.png: no such file"):
        score_folders(truth, predicted)


def test_what_is_missing_is_named(folders: tuple[Path, Path], tmp_path: Path) -> None:
    truth, predicted = folders
    (predicted / "objects").rename(predicted / "other")
    with pytest.raises(tpo.TPOError, match="predicted/objects: no such folder; expected the predictions of sequence"):
        score_folders(truth, predicted)
    with pytest.raises(tpo.TPOError, match="nowhere: no such folder"):
        score_folders(tmp_path / "nowhere", predicted)
    (tmp_path / "bare").mkdir()
    with pytest.raises(tpo.TPOError, match="bare: holds no sequence"):
        score_folders(tmp_path / "bare", predicted)
    (tmp_path / "bare/a").mkdir()
    (tmp_path / "bare2/a").mkdir(parents=True)
    with pytest.raises(tpo.TPOError, match="bare/a: holds no PNG"):
        score_folders(tmp_path / "bare", tmp_path / "bare2")


def run(*arguments: object) -> str:
    app = typer.Typer()
    app.callback()(lambda: None)  # else a lone command would lose its name
    add_commands(app)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_score_command(folders: tuple[Path, Path]) -> None:
    truth, predicted = folders
    write(truth / "objects/002", np.zeros((4, 40, 50)))
    write(predicted / "objects/002", np.ones((4, 40, 50)))
    expected = score_folders(truth, predicted)
    text = run("score-masks", truth, predicted)
    rows = [line.split() for line in text.splitlines()]
    assert rows[0] == ["sequence", "object", "J&F", "J", "F"]
    assert rows[1][:2] == ["labels", "1"]
    assert rows[5] == ["mean", "4", "objects", *(f"{expected.mean()[name]:.2f}" for name in ("J&F", "J", "F"))]
    assert text.splitlines()[6] == "skipped: objects, object 002: the truth has no mask of it in the scored frames"
    assert text.splitlines()[7:] == [RULE]
    data = json.loads(run("score-masks", truth, predicted, "--json", "--all-frames"))
    assert data["mean"] == pytest.approx(score_folders(truth, predicted, skip_ends=False).mean())
    assert len(data["objects"]) == 4
    assert data["skipped"][0]["object"] == "002"


def test_frames_before_an_object_appears_do_not_count_in_either_layout(tmp_path: Path) -> None:
    late, half = np.zeros((2, 4, 40, 50), bool)
    late[2:, 5:25, 5:25] = half[2:, 5:25, 5:15] = True
    for layout in ("labels", "objects/000"):
        write(tmp_path / "truth" / layout, late)
        write(tmp_path / "predicted" / layout, half)
    rows = run("score-masks", tmp_path / "truth", tmp_path / "predicted").splitlines()
    assert [row.split()[3] for row in rows[1:3]] == ["50.00", "50.00"]  # with the empty frame it were 75
    assert rows[-1] == "SA-V's rule: frames before an object appears do not count; davis2017-evaluation counts them."
