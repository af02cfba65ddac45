"""What the conformance kit asks of a head's plugin and of its configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from good_head import GoodConfig, GoodHead, Kit

import tpo_plugin as tpo
from tpo_plugin import plugins
from tpo_plugin.testing import heads as testing

# -- entry point -------------------------------------------------------------------------------------------------------


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """An installed distribution `acme-dot` whose plugin module has the given first lines."""

    def install(lines: str) -> None:
        (tmp_path / "acme_dot.py").write_text(
            f"{lines}\nimport tpo_plugin as tpo\n\n\n@tpo.hookimpl\ndef register_heads(register):\n"
            "    register('dot', head='acme_dot_head:Head', trigger='<dot_begin>', task_token='<dot>')\n"
        )
        info = tmp_path / "acme_dot-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-dot\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[tpo_plugin]\nacme = acme_dot\n")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")

    spec = plugins.HeadSpec(
        "dot", GoodHead, GoodConfig, "<dot_begin>", "<dot>", None, plugins.Plugin("acme", "acme-dot", "1.0")
    )
    monkeypatch.setattr(DotKit, "_spec", lambda self: spec)
    return install


class DotKit(Kit):
    head = "dot"
    heavy = ("wave",)


def test_entry_point_found(distribution):
    distribution("import json")
    DotKit().test_found_by_entry_point()


def test_heavy_import_fails(distribution):
    distribution("import wave")
    with pytest.raises(AssertionError, match=r"importing plugin 'acme' imports \['wave'\].*heavy list"):
        DotKit().test_found_by_entry_point()


def test_broken_plugin_fails_with_its_reason(distribution):
    distribution("raise RuntimeError('out of dots')")
    with pytest.raises(AssertionError, match=r"(?s)a clean process finds no head 'dot'.*out of dots"):
        DotKit().test_found_by_entry_point()


def test_no_entry_point_fails(kit):
    with pytest.raises(
        AssertionError, match=r"(?s)in this process only.*\[project.entry-points.tpo_plugin\] under_test"
    ):
        kit().test_found_by_entry_point()


# -- configuration -----------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class TupleConfig(tpo.HeadConfig):
    sizes: tuple[int, ...] = (1, 2)


@dataclass(kw_only=True)
class TypeConfig(tpo.HeadConfig):
    dtype: Any = torch.float32


@dataclass(kw_only=True)
class DriftingConfig(tpo.HeadConfig):
    rate: float = 1.0

    def __post_init__(self) -> None:
        self.rate /= 2


class UndecoratedConfig(tpo.HeadConfig):
    rate: float = 1.0


class ForeignConfig:
    pass


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TupleConfig, r"TupleConfig.sizes is \(1, 2\), and \[1, 2\] after JSON"),
        (TypeConfig, "TypeConfig.dtype is torch.float32, which JSON cannot hold"),
        (DriftingConfig, "DriftingConfig differs after JSON"),
        (UndecoratedConfig, r"needs @dataclass\(kw_only=True\): \['rate'\]"),
        (ForeignConfig, "ForeignConfig must derive from tpo_plugin.HeadConfig"),
    ],
)
def test_config_fails(kit, config, message):
    with pytest.raises(AssertionError, match=message):
        kit(config=config).test_config_survives_json()


def test_unknown_key_must_be_refused(kit, monkeypatch):
    monkeypatch.setattr(testing, "config_from_dict", lambda cls, values, where: cls())
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        kit().test_config_survives_json()


def test_a_kit_config_with_a_typo_is_refused(kit):
    class Typo(Kit):
        config = {"scael": 2.0}  # noqa: RUF012

    with pytest.raises(tpo.TPOError, match="config of Typo: unknown key 'scael'; did you mean 'scale'"):
        kit(kit_class=Typo).test_losses()
