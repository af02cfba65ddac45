"""`tpo export` of a tiny run, as docs/export.md shows it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import tpo_plugin.cli
from tpo_plugin import TPOError, load_tpo
from tpo_plugin.asking import ask, load
from tpo_plugin.data import prompt_record, read_sample

PAGE = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
QUESTION = "where is the red circle?"


def command(name: str) -> list[str]:
    match = re.search(rf"<!-- command: {name} -->\n    tpo (.+)\n", PAGE)
    assert match
    return shlex.split(match[1])


def code(name: str) -> str:
    match = re.search(rf"<!-- code: {name} -->\n```python\n(.*?)```", PAGE, re.DOTALL)
    assert match
    return match[1]


def tpo(*arguments: object) -> str:
    result = CliRunner().invoke(tpo_plugin.cli.app, [*map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def folder(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the run that emits a trigger at once, and with a picture, in which commands start."""
    model, _ = load(world / "run")
    with torch.no_grad():
        model.tpo.embeddings["region"].output.copy_(_last_state(model, world / "picture.png"))
    for name in ("run.json", "config.yaml", "adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / name).write_bytes((world / "run" / name).read_bytes())
    model.tpo.save_pretrained(tmp_path / "run")
    with Image.open(world / "picture.png") as picture:
        picture.save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _last_state(model: Any, picture: Path) -> torch.Tensor:
    kept: list[torch.Tensor] = []
    handle = model.tpo.host.head.register_forward_pre_hook(lambda module, args: kept.append(args[0][0, -1].detach()))
    ask(model, [_sample(model, picture)], max_new_tokens=1)
    handle.remove()
    return kept[0]


def _sample(model: Any, picture: Path) -> Any:
    return read_sample(prompt_record(model.tpo, QUESTION, images=[picture]))


def test_the_page(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, _ = load("run")
    expected = ask(model, [_sample(model, folder / "a.png")], max_new_tokens=16)[0]
    assert expected.predictions
    assert tpo(*command("export")) == "exported: exported\n"
    names: dict[str, Any] = {}
    exec(code("plain") + code("heads"), names)
    printed = capsys.readouterr().out
    assert "<box_begin><boxes>" in printed.replace("> <", "><")
    found = names["processor"].batch_decode(
        names["answer"].sequences[:, names["inputs"]["input_ids"].shape[1] :], skip_special_tokens=True
    )
    assert found[0].strip() == expected.text
    made = names["heads"].predict(names["fed"], names["states"], prompt_length=names["inputs"]["input_ids"].shape[1])[0]
    torch.testing.assert_close(made[0].value, expected.predictions[0].value, rtol=0, atol=1e-5)
    assert f"region {made[0].value}" in printed
    with pytest.raises(TPOError, match="exported is there already and not empty; give a new folder"):
        tpo(*command("export"))
    tpo(*command("merge"))
    merged = load_tpo(type(names["model"]).from_pretrained("merged"), "merged").eval()
    again = ask(merged, [_sample(merged, folder / "a.png")], max_new_tokens=16)[0]
    assert again.text == expected.text
    torch.testing.assert_close(again.predictions[0].value, expected.predictions[0].value, rtol=0, atol=1e-5)
