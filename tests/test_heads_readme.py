"""heads/README.md: its code runs, and it names every hook, method and conformance test."""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import tpo_plugin as tpo
from tpo_plugin import hookspecs
from tpo_plugin.convert import convert
from tpo_plugin.testing import TaskHeadTests
from tpo_plugin.tiny import HIDDEN_SIZE, VISION_SIZE, tiny_features

ROOT = Path(__file__).parents[1]
README = (ROOT / "heads" / "README.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"```python (\w+)\n(.*?)```", README, flags=re.DOTALL))
STANDARD_TESTS = [name for name in vars(TaskHeadTests) if name.startswith("test_")]


def module_of(block: str) -> Any:
    module = types.ModuleType(f"readme_{block}")
    sys.modules[module.__name__] = module  # where a dataclass looks itself up
    exec(compile(BLOCKS[block], f"heads/README.md, block {block}", "exec"), vars(module))
    return module


@pytest.fixture
def point() -> Iterator[None]:
    tpo.register_plugin(module_of("head"), "readme_point")
    yield
    tpo.unregister_plugin("readme_point")


def run_kit(kit: TaskHeadTests, tmp_path: Path) -> None:
    for name in STANDARD_TESTS:
        test = getattr(kit, name)
        if name != "test_found_by_entry_point":  # in this process there is none
            test(tmp_path) if "tmp_path" in inspect.signature(test).parameters else test()


def test_every_block_is_run_here():
    assert set(BLOCKS) == {"head", "test", "use", "inputs", "seen", "format"}
    assert len(BLOCKS) == README.count("```python")


@pytest.mark.skipif("point" in tpo.registry().heads, reason="the example's head is installed, and has the same name")
def test_tutorial(point, tmp_path, capsys):
    run_kit(module_of("test").TestPoint(), tmp_path)
    module_of("use")
    assert capsys.readouterr().out.splitlines() == re.findall(r"^print.*  # (.*)$", BLOCKS["use"], flags=re.MULTILINE)


def test_tutorial_is_the_example():
    source = (ROOT / "examples/third_party_head/src/acme_tpo_point/__init__.py").read_text(encoding="utf-8")
    assert BLOCKS["head"] == source
    code = [line for line in source.splitlines() if line and not line.startswith(("import", "from", '"""'))]
    assert len(code) <= 21, "the tutorial promises about twenty lines"
    (entry_point,) = re.findall(r"```toml\n(.*?)```", README, flags=re.DOTALL)
    assert entry_point in (ROOT / "examples/third_party_head/pyproject.toml").read_text(encoding="utf-8")
    tests = (ROOT / "examples/third_party_head/tests/test_point.py").read_text(encoding="utf-8")
    (kit,) = [node for node in ast.parse(BLOCKS["test"]).body if isinstance(node, ast.ClassDef)]
    assert ast.unparse(kit) in ast.unparse(ast.parse(tests))


def test_head_with_inputs(tmp_path):
    head = module_of("inputs").SpeedHead

    class Plugin:
        @tpo.hookimpl
        def register_heads(self, register):
            register("speed", head=head, trigger="<speed_begin>", task_token="<speed>")

    class Kit(TaskHeadTests):
        head = "speed"

        def make_targets(self, num):
            return {"speeds": torch.rand(num, 1)}

        def make_task(self):
            return {"speed": 1.5, "rate": 8.0}

        def make_inputs(self, num):
            return {"rates": torch.rand(num, 1)}

    tpo.register_plugin(Plugin(), "readme_speed")
    try:
        run_kit(Kit(), tmp_path)
    finally:
        tpo.unregister_plugin("readme_speed")
    collated = head(tpo.HeadConfig(), 4).collate_inputs([{"rate": 8.0, "speed": 1.0}], [])
    torch.testing.assert_close(collated["rates"], torch.tensor([[8.0]]))


def test_head_that_sees_frames():
    head = module_of("seen").MomentHead(tpo.HeadConfig(), HIDDEN_SIZE, vision_size=VISION_SIZE)
    for num in (0, 3):
        rows = torch.arange(num) % 2
        outputs = head(torch.randn(num, HIDDEN_SIZE), seen=tiny_features(rows))
        assert outputs["fit"].shape == (num, 4 if num else 0)
        head.loss(outputs, {"fit": torch.zeros_like(outputs["fit"])}, 1)["loss_moment"].backward()
    assert head.proj.weight.grad.abs().sum() > 0


def test_a_format(point, tmp_path):
    dots = module_of("format").Dots
    lines = [{"id": 1, "picture": "a.png", "colour": "red", "xy": [0.2, 0.3]}, {"id": 2}]
    lines.append(lines[0] | {"id": 3, "xy": [20, 30]})
    (tmp_path / "dots.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = convert(dots(source=tmp_path / "dots.jsonl", pictures=tmp_path), tmp_path / "records.jsonl")
    (record,) = map(json.loads, (tmp_path / "records.jsonl").read_text().splitlines())
    assert (record["id"], record["image"], record["tasks"][0]["points_xy"]) == ("dots:1", "a.png", [0.2, 0.3])
    assert "red" in record["conversations"][0]["value"]
    assert report.written == 1
    assert "dots.jsonl:2: picture: is missing; expected an object with it, beside 'id'" in str(report)
    assert "dots.jsonl:3: xy: is [20.0, 30.0]; expected x and y in 0 to 1 of the picture" in str(report)


def test_every_hook_has_a_heading_with_its_arguments():
    headings = re.findall(r"^### `(register_\w+\(.*\))`$", README, flags=re.MULTILINE)
    hooks = {name: function for name, function in vars(hookspecs).items() if name.startswith("register_")}
    assert headings == [f"{name}({', '.join(inspect.signature(hook).parameters)})" for name, hook in hooks.items()]


@pytest.mark.parametrize(
    ("heading", "expected"),
    [
        (
            "Methods",
            [name for kind in (tpo.TaskHead, tpo.TaskCodec) for name in vars(kind) if not name.startswith("_")],
        ),
        ("Checklist", STANDARD_TESTS),
    ],
)
def test_every_name_has_its_row(heading, expected):
    section = README.split(f"## {heading}\n")[1].split("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE) == expected
