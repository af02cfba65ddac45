"""`--confine` of the commands that open records, and files that no command can use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from tpo_plugin.cli import app, main


@pytest.fixture
def records(tmp_path: Path) -> Path:
    (tmp_path / "media").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    turns = [{"from": "human", "value": "<image>\nwhere"}, {"from": "gpt", "value": "here"}]
    path = tmp_path / "media" / "a.jsonl"
    path.write_text(json.dumps({"image": "../a.png", "conversations": turns}))
    return path


def test_check(records: Path) -> None:
    assert CliRunner().invoke(app, ["check", str(records), "--heads", "region"]).exit_code == 0
    refused = CliRunner().invoke(app, ["check", str(records), "--heads", "region", "--confine"])
    assert refused.exit_code == 1
    assert "a.jsonl:1: image: is" in refused.output
    assert "lies outside of" in refused.output


@pytest.mark.parametrize("command", ["check", "train", "retention", "doctor"])
def test_every_command_that_opens_records_has_it(command: str) -> None:
    from typer.main import get_command

    options = [option for parameter in get_command(app).commands[command].params for option in parameter.opts]  # type: ignore[attr-defined]
    assert "--confine" in options


def test_a_file_that_cannot_be_used_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def fails() -> None:
        (tmp_path / "none" / "a.png").write_text("")

    monkeypatch.setattr("tpo_plugin.cli.app", fails)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith(
        f"Error: {tmp_path / 'none' / 'a.png'}: No such file or directory; expected"
    )
