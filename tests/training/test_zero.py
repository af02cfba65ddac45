"""DeepSpeed's ZeRO on two ranks of the CPU trains what one process trains, and saves it whole."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import tiny_run
import torch
import transformers
from ranks import on_two_ranks

from tpo_plugin import load_tpo

pytestmark = [
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs deepspeed, which .ci/run installs for this"),
]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """The same training without DeepSpeed; in a process of its own, since accelerate imports DeepSpeed, which warns."""
    folder = tmp_path_factory.mktemp("one")
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"RANK": "0", "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    command = [sys.executable, tiny_run.__file__, json.dumps(vars(tiny_run.Run())), str(folder)]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return torch.load(folder / "result.pt", weights_only=True)


@pytest.mark.parametrize("stage", [2, 3])
def test_two_ranks(one_process, stage, tmp_path):
    host, tokenizer = tiny_run.tiny_host()
    host.save_pretrained(tmp_path / "host")
    tokenizer.save_pretrained(tmp_path / "host")
    on_two_ranks(Path(__file__).with_name("zero_run.py"), stage, tmp_path)
    result = torch.load(tmp_path / "result.pt", weights_only=True)
    assert result["engine"] == "DeepSpeedEngine"
    tiny_run.assert_same(result, one_process)
    for name, value in one_process["odd evaluation"].items():
        if name.startswith(("eval_loss", "eval_point", "eval_assign", "eval_false")):
            assert result["odd evaluation"][name] == pytest.approx(value, rel=1e-5), name
    first = slice(None), slice(result["logits of the first"].shape[1])
    torch.testing.assert_close(result["logits of the first"], result["logits"][:1][first], rtol=1e-5, atol=1e-5)

    assert result["resumed logs"] == result["logs"]
    for name, parameter in result["parameters"].items():
        assert torch.equal(result["resumed parameters"][name], parameter), name

    tiny_run.install_head()
    for folder in ("out", "out/checkpoint-10"):
        loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path / folder)
        loaded = load_tpo(loaded, tmp_path / folder).eval()
        with torch.no_grad():
            out = loaded(**tiny_run.collate(list(tiny_run.Samples(loaded.tpo.tokenizer, 16))))
        assert torch.equal(out.logits, result["logits"])
        assert torch.equal(out.tpo.predictions["point"], result["predictions"])
