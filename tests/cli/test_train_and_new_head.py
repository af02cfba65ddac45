"""`tpo train` and `tpo new-head` hand over to the library and say what came of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

import tpo_plugin.cli
from tpo_plugin import TPOError


def run(*arguments: object) -> str:
    result = CliRunner().invoke(tpo_plugin.cli.app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_train_goes_on_with_a_run_and_says_where_it_is(world: Path) -> None:
    assert run("train", world / "config.yaml") == f"run: {world / 'run'}\n"


def test_a_run_may_go_on_with_another_attention(world: Path) -> None:
    assert run("train", world / "config.yaml", "--attn", "eager") == f"run: {world / 'run'}\n"


def test_train_without_resuming_refuses_the_folder_of_a_run(world: Path) -> None:
    with pytest.raises(TPOError, match=r"run has a run already"):
        run("train", world / "config.yaml", "--no-resume")


def test_train_names_the_nearest_key_of_a_typo(world: Path, tmp_path: Path) -> None:
    text = (world / "config.yaml").read_text().replace('"output_dir"', '"ouput_dir"')
    (tmp_path / "typo.yaml").write_text(text)
    with pytest.raises(TPOError, match=r"'ouput_dir'; did you mean 'output_dir'"):
        run("train", tmp_path / "typo.yaml")


def test_new_head_says_where_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "tpo-head-point"
    assert run("new-head", "point", "--directory", tmp_path) == f"{folder}\n"
    assert (folder / "pyproject.toml").is_file()
    with pytest.raises(TPOError, match="is there already"):
        run("new-head", "point", "--directory", tmp_path)
    with pytest.raises(TPOError, match="expected a lower-case identifier"):
        run("new-head", "Point")
