"""Finding, loading, blocking and listing plugins; each broken one disables only itself."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

import tpo_plugin
from tpo_plugin import TPOError, hookimpl
from tpo_plugin.plugins import BLOCK_VARIABLE, Registry, register_plugin, registry, unregister_plugin

GOOD = """
import tpo_plugin

@tpo_plugin.hookimpl
def register_heads(register):
    register({name!r}, head="{name}_module:Head", trigger="<{name}_begin>", task_token="<{name}>")

class Head: ...
"""

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a distribution with one plugin onto the path, as pip would leave it."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(
        name: str, code: str, *, dist: str | None = None, plugin: str | None = None, requires: str | None = None
    ) -> None:
        dist, plugin = dist or f"acme-{name}", plugin or name
        (tmp_path / f"{name}_module.py").write_text(code)
        info = tmp_path / f"{dist.replace('-', '_')}-1.2.dist-info"
        info.mkdir()
        required = f"Requires-Dist: {requires}\n" if requires else ""
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: 1.2\n{required}")
        (info / "entry_points.txt").write_text(f"[tpo_plugin]\n{plugin} = {name}_module\n")
        monkeypatch.delitem(sys.modules, f"{name}_module", raising=False)

    return install


def fresh() -> Registry:
    """A registry that looks anew, beside the one of this process."""
    return registry.__wrapped__()


def errors(found: Registry) -> dict[str, str | None]:
    return {plugin.key: plugin.error for plugin in found.plugins if plugin.distribution.startswith("acme")}


def test_an_installed_plugin_is_found(install: Install) -> None:
    install("good", GOOD.format(name="good"))
    spec = fresh().head("good")
    assert (spec.trigger, spec.task_token, spec.input_token) == ("<good_begin>", "<good>", None)
    assert str(spec.plugin) == "acme-good 1.2"
    assert spec.head_class().__name__ == "Head"
    assert spec.config_class() is tpo_plugin.HeadConfig


@pytest.mark.parametrize(
    "requires", ["tpo-plugin>=77,<78", "tpo_plugin<0.1", "TPO-plugin[cli]==77.*; python_version > '3'"]
)
def test_a_plugin_for_another_core_is_not_loaded(install: Install, requires: str) -> None:
    install("other", "1/0  # never run", requires=requires)
    (reason,) = errors(fresh()).values()
    assert reason is not None
    assert reason.startswith("it is for tpo-plugin ")
    assert f", and {tpo_plugin.__version__} is installed; pip install --upgrade tpo-plugin acme-other" in reason
    with pytest.raises(TPOError, match="it is for tpo-plugin"):
        fresh().head("other")


@pytest.mark.parametrize(
    "requires", ["tpo-plugin", "tpo-plugin>=0.1,<0.2", "tpo-plugin>=77; python_version < '3'", "x>=77"]
)
def test_a_plugin_for_this_core_is_loaded(install: Install, requires: str) -> None:
    install("good", GOOD.format(name="good"), requires=requires)
    assert fresh().head("good").trigger == "<good_begin>"


def test_listing_imports_no_torch() -> None:
    code = "import sys, tpo_plugin; tpo_plugin.registry(); sys.exit(bool({'torch', 'transformers'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    wrong = "import torch;" + code
    assert subprocess.run([sys.executable, "-c", wrong]).returncode == 1, "this test could not fail"


BROKEN = {
    "import": ("import a_package_that_is_not_there", "ModuleNotFoundError"),
    "exit": ("raise SystemExit('needs a GPU')", "needs a GPU"),
    "raises": (GOOD.format(name="x").replace("register('x'", "1/0; register('x'"), "ZeroDivisionError"),
    "no_hook": ("def register_heads(register): ...", "no hook found; expected 'register_heads'"),
    "typo": (GOOD.format(name="x").replace("register_heads", "register_head"), "did you mean 'register_heads'"),
    "argument": (GOOD.format(name="x").replace("register_heads(register)", "register_heads(add)"), "add"),
    "keyword": (GOOD.format(name="x").replace("trigger=", "triger="), "triger"),
    "name": (GOOD.format(name="x").replace("'x'", "'X-1'"), "expected a lower-case identifier"),
    "taken": (GOOD.format(name="x").replace("'x'", "'assign'"), "other than 'mllm' or 'assign' or 'retain'"),
    "tokens": (GOOD.format(name="x").replace("<x_begin>", "<x>"), "expected different ones"),
    "twice": (
        GOOD.format(name="x").replace("    register(", "    for _ in range(2): register("),
        "registered twice by the same plugin",
    ),
}


WORDS = [
    *("scale", "measure", "shape", "labels", "trigger", "task", "input", "text", "loss", "tpo"),
    *("head", "time", "image", "video", "class", "import"),
]


@pytest.mark.parametrize("name", [*WORDS, *(name for name in dir(torch.nn.ModuleDict()) if not name.startswith("_"))])
def test_a_name_of_the_core_or_of_torch_is_refused(name: str) -> None:
    with pytest.raises(TPOError, match="expected a lower-case identifier"):
        register_plugin(plugin_for(name), name)


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_plugin_disables_only_itself(broken: str, install: Install, caplog: pytest.LogCaptureFixture) -> None:
    code, reason = BROKEN[broken]
    install("broken", code)
    install("good", GOOD.format(name="good"))
    with caplog.at_level(logging.WARNING):
        found = fresh()
    assert found.head("good").name == "good"
    assert "x" not in found.heads
    assert reason in (errors(found)["acme-broken:broken"] or "")
    reports = [record for record in caplog.records if "'broken' (acme-broken 1.2)" in record.getMessage()]
    assert len(reports) == 1
    assert reason in reports[0].getMessage()
    assert errors(found)["acme-good:good"] is None
    with pytest.raises(TPOError, match=r"head 'broken': its plugin \(acme-broken 1\.2\) is not in use") as error:
        found.head("broken")
    assert reason in str(error.value)


def test_a_head_that_nobody_has(install: Install) -> None:
    install("good", GOOD.format(name="good"))
    install("bad", "1/0")
    with pytest.raises(TPOError) as error:
        fresh().head("god_one")
    message = str(error.value)
    assert message.startswith("head 'god_one' is not installed; did you mean 'good'?")
    assert "pip install tpo-head-god-one" in message
    assert "it belongs to a plugin that is not in use: 'bad' (acme-bad 1.2)" in message


@pytest.mark.parametrize("blocked", ["good", "acme-good:good", " good , other"])
def test_blocking_by_name(blocked: str, install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("good", GOOD.format(name="good") + "\nraise RuntimeError('imported although blocked')")
    install("other", GOOD.format(name="other"))
    monkeypatch.setenv(BLOCK_VARIABLE, blocked)
    found = fresh()
    assert errors(found)["acme-good:good"] == "blocked by TPO_BLOCK_PLUGINS"
    with pytest.raises(TPOError, match="blocked by TPO_BLOCK_PLUGINS"):
        found.head("good")
    assert ("other" in found.heads) == ("other" not in blocked)


def test_blocking_what_is_not_there_is_said(
    install: Install, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install("good", GOOD.format(name="good"))
    monkeypatch.setenv(BLOCK_VARIABLE, "goood")
    with caplog.at_level(logging.WARNING):
        fresh()
    assert "no plugin 'goood' is installed; did you mean 'good'?" in caplog.text


def test_two_plugins_with_one_head_clash_until_one_is_blocked(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("one", GOOD.format(name="seg"), plugin="seg")
    install("two", GOOD.format(name="seg"), plugin="seg")
    found = fresh()
    assert "seg" in found.heads, "asking for all heads must meet the clash, not pass over it"
    with pytest.raises(TPOError) as error:
        found.head("seg")
    message = str(error.value)
    assert "plugin 'seg' (acme-one 1.2)" in message
    assert "plugin 'seg' (acme-two 1.2)" in message
    remedy = message.partition("block it: '")[2].rstrip("'")
    name, _, value = remedy.partition("=")
    monkeypatch.setenv(name, value)
    assert str(fresh().head("seg").plugin) in ("acme-one 1.2", "acme-two 1.2")


def test_a_class_string_that_does_not_import_names_its_plugin(install: Install) -> None:
    install("good", GOOD.format(name="good").replace("good_module:Head", "good_module:Haed"))
    spec = fresh().head("good")
    with pytest.raises(TPOError, match=r"head 'good' \(acme-good 1.2\): 'good_module:Haed' failed to import: Attrib"):
        spec.head_class()
    install("bare", GOOD.format(name="bare").replace("bare_module:Head", "bare_module"))
    with pytest.raises(TPOError, match="'bare_module' names no class; expected 'module:Class'"):
        fresh().head("bare").head_class()


# -- plugins of this process -------------------------------------------------------------------------------------------


def module_with(**hooks: Callable[..., None]) -> ModuleType:
    """A plugin module with these hooks."""
    module = ModuleType("made_here")
    vars(module).update({name: hookimpl(hook) for name, hook in hooks.items()})
    return module


def plugin_for(name: str, **tokens: str) -> ModuleType:
    """A plugin that registers one head."""
    given = {"trigger": f"<{name}_begin>", "task_token": f"<{name}>", **tokens}

    def register_heads(register: Callable[..., None]) -> None:
        register(name, head=object, **given)

    return module_with(register_heads=register_heads)


def test_a_plugin_of_this_process_comes_and_goes() -> None:
    register_plugin(plugin_for("here"), "here")
    try:
        assert str(registry().head("here").plugin) == "this process"
        with pytest.raises(TPOError, match="plugin 'here' failed to register"):
            register_plugin(plugin_for("elsewhere"), "here")
        assert registry().head("here").head is object, "the failed second one must not take the first with it"
    finally:
        unregister_plugin("here")
    assert "here" not in registry().heads
    assert all(plugin.name != "here" for plugin in registry().plugins)
    register_plugin(plugin_for("here"), "here")
    unregister_plugin("here")


def test_a_head_that_must_be_named_is_not_applied_by_default() -> None:
    def register_heads(register: Callable[..., None]) -> None:
        register("spare", head=object, trigger="<spare_begin>", task_token="<spare>", default=False)

    register_plugin(plugin_for("here"), "here")
    register_plugin(module_with(register_heads=register_heads), "spare")
    try:
        chosen = [spec.name for spec in registry().choose(None)]
        assert "here" in chosen
        assert "spare" not in chosen
        assert registry().choose(["spare"]) == [registry().heads["spare"]], "listed, and applied by its name"
    finally:
        unregister_plugin("here")
        unregister_plugin("spare")


def test_a_plugin_that_fails_to_register_leaves_nothing() -> None:
    before = list(registry().plugins)
    with pytest.raises(TPOError, match="plugin 'bad' failed to register: head 'bad': its tokens are"):
        register_plugin(plugin_for("bad", trigger=""), "bad")
    assert registry().plugins == before
    register_plugin(plugin_for("bad"), "bad")
    unregister_plugin("bad")


def test_unregistering_leaves_an_installed_plugin_of_the_same_name(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("good", GOOD.format(name="good"))
    found = fresh()
    monkeypatch.setattr("tpo_plugin.plugins.registry", lambda: found)
    register_plugin(plugin_for("good"), "good")
    with pytest.raises(TPOError, match="head 'good' is claimed by"):
        found.head("good")
    unregister_plugin("good")
    assert str(found.head("good").plugin) == "acme-good 1.2"
    with pytest.raises(TPOError, match="plugin 'good' was not registered in this process"):
        unregister_plugin("good")


def test_patches_are_kept_by_name_and_a_second_one_is_refused() -> None:
    def patch(name: str) -> ModuleType:
        def register_patches(register: Callable[..., None]) -> None:
            register(name, host=object, matches=lambda model: False)

        return module_with(register_patches=register_patches)

    register_plugin(patch("codebase"), "first")
    try:
        assert registry().patches["codebase"].host_class() is object
        with pytest.raises(TPOError, match="patch 'codebase' is already registered by this process"):
            register_plugin(patch("codebase"), "second")
    finally:
        unregister_plugin("first")
    assert "codebase" not in registry().patches


def test_the_first_patch_that_matches_is_taken_and_a_broken_one_left_out(caplog: pytest.LogCaptureFixture) -> None:
    def register_patches(register: Callable[..., None]) -> None:
        register("broken", host=object, matches=lambda model: model.no_such_attribute)
        register("texts", host=str, matches=lambda model: isinstance(model, str))
        register("all", host=int, matches=lambda model: True)

    register_plugin(module_with(register_patches=register_patches), "patches")
    try:
        with caplog.at_level(logging.WARNING):
            taken = [registry().patch_for(model) for model in ("text", 1.0)]
    finally:
        unregister_plugin("patches")
    assert [spec.name for spec in taken if spec] == ["texts", "all"]
    assert "patch 'broken' (this process) is left out" in caplog.text
    assert "no_such_attribute" in caplog.text
    assert registry().patch_for(1.0) is None
