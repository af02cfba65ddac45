"""A package of an extra that is missing is named with the line that installs it, and is no fault of a file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import tpo_plugin
from tpo_plugin import MediaError, TPOError
from tpo_plugin.data import read_video
from tpo_plugin.extras import EXTRAS, MissingPackage, needed

WITHOUT = "import sys; sys.modules[{package!r}] = None; "


@pytest.mark.parametrize(("package", "extra"), EXTRAS.items())
def test_each_is_named(package: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackage) as error, needed():
        __import__(f"{package}.inner")
    assert str(error.value) == f"the package {package} is not installed; pip install 'tpo-plugin[{extra}]'"
    assert isinstance(error.value, TPOError)
    assert isinstance(error.value, ImportError)


def test_another_missing_package_stays_what_it_is() -> None:
    with pytest.raises(ModuleNotFoundError, match="not_there_at_all"), needed():
        __import__("not_there_at_all")


def test_a_clip_without_its_reader_is_no_bad_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"no video")
    with pytest.raises(MediaError):
        read_video(tmp_path / "clip.mp4")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(TPOError, match="'pyav' cannot be imported .*: pip install av") as error:
        read_video(tmp_path / "clip.mp4")
    assert not isinstance(error.value, MediaError)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "code", "printed"),
    [
        (
            "typer",
            "from tpo_plugin.__main__ import tpo; tpo()",
            "Error: the package typer is not installed; pip",
        ),
        (
            "PIL",
            "sys.argv[1:] = ['check', 'records.jsonl']; from tpo_plugin.__main__ import tpo; tpo()",
            "Error: the package PIL is not installed; pip install 'tpo-plugin[cli]'",
        ),
        ("PIL", "import tpo_plugin; tpo_plugin.read_video", "the package PIL is not installed; pip install"),
        ("PIL", "from tpo_plugin.data import RecordDataset", "the package PIL is not installed; pip install"),
    ],
)
def test_where_the_core_is_alone(package: str, code: str, printed: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT.format(package=package) + code]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert printed in done.stderr
    assert not printed.startswith("Error") or "Traceback" not in done.stderr


def test_the_core_lists_without_the_command_line() -> None:
    code = "import runpy; runpy.run_module('tpo_plugin', run_name='__main__')"
    command = [sys.executable, "-c", WITHOUT.format(package="typer") + WITHOUT.format(package="rich") + code]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(("head", "No head is installed"))
    assert set(tpo_plugin.registry().heads) <= set(done.stdout.split())


@pytest.mark.slow
def test_the_core_alone_trains_saves_and_generates() -> None:
    """Without any package that an extra brings (`.ci/packages` installs it so)."""
    of_others = {"yaml", "filelock", "fsspec", "typer", "rich", "aiohttp", "pyarrow"}  # transformers imports them here
    blocked = "".join(WITHOUT.format(package=package) for package in EXTRAS if package not in of_others)
    path = Path(__file__).parent / "packaging" / "bare.py"
    code = f"{blocked}import runpy; runpy.run_path({str(path)!r})"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("works")
