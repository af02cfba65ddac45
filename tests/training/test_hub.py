"""Runs and exports on a hub, of which a stand-in serves here: pushed, and loaded by name and revision."""

import json
import os
import subprocess
import sys
from pathlib import Path

import hub
import pytest

from tpo_plugin import TPOError, push_to_hub
from tpo_plugin.hub import hub_name, local_folder


@pytest.mark.slow
def test_a_run_is_pushed_and_loaded_by_name(tmp_path):
    (tmp_path / "world").mkdir()
    with hub.serving() as (address, repositories):
        environment = {
            **os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0",
            "HF_HUB_CACHE": str(tmp_path / "home" / "hub"), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1",
        }  # fmt: skip
        script = Path(__file__).with_name("hub_run.py")
        subprocess.run([sys.executable, script, tmp_path / "world"], env=environment, check=True)
    result = json.loads((tmp_path / "world" / "result.json").read_text())
    assert result["same"]
    files = repositories.files("org/run", "main")
    assert result["pushed"].endswith(f"/org/run/commit/{repositories.resolve('org/run', 'main')}")
    wanted = {
        "run.json",
        "config.yaml",
        "adapter_model.safetensors",
        "tpo_model.safetensors",
        "tokenizer.json",
        "README.md",
    }
    assert wanted <= files.keys()
    assert not [
        name for name in files if name.startswith(("stage", ".unfinished")) or name in ("run.lock", "inputs.json")
    ]
    run = json.loads(files["run.json"])
    assert (run["host"], run["host_name"], run["host_revision"]) == ("org/host", "org/host", result["first"])
    card = files["README.md"].decode()
    assert "base_model: org/host\n" in card
    assert f"Its host is org/host, revision {result['first']}." in card
    evaluation = run["stages"]["stage2"]["evaluation"]
    assert f"| loss_point | {evaluation['eval_loss_point']:.4g} |" in card
    assert "model.safetensors" in repositories.files("org/exported", "v1")
    assert repositories.files("org/exported", "main").keys() == {".gitattributes"}
    revision, missing, empty = result["refused"]
    assert "no repository of that name at revision 'v9' can be had from the hub (RevisionNotFound" in revision
    assert "org/none is no folder here, and no repository of that name can be had from the hub (Repo" in missing
    assert "has no tpo_heads.json" in empty


def test_a_folder_is_never_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out" / "run").mkdir(parents=True)
    assert local_folder("out/run") == Path("out/run")
    assert local_folder("out/run/stage1") == Path("out/run/stage1")
    with pytest.raises(TPOError, match=r"revision='v1' was given with out/run, which is no repository's name"):
        local_folder("out/run", "v1")
    with pytest.raises(TPOError, match="out/run has neither run.json nor tpo_config.json; expected a finished run"):
        push_to_hub("out/run", "org/run")


def test_a_folder_of_the_cache_says_its_name_and_revision(tmp_path):
    commit = "0123456789abcdef" * 2 + "01234567"
    assert hub_name(tmp_path / "models--org--a-host" / "snapshots" / commit) == ("org/a-host", commit)
    assert hub_name(tmp_path / "host") is None
