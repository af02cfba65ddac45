"""Flash attention is taken where it can run, and refused by name where it cannot."""

import sys
from types import ModuleType

import pytest
import torch
from transformers import LlamaForCausalLM

from tpo_plugin import TPOError
from tpo_plugin.tiny import tiny_host
from tpo_plugin.training.attention import FLASH, attention
from tpo_plugin.training.hosts import load_host


class WithoutFlash:
    _supports_flash_attn = False


@pytest.fixture
def gpu(monkeypatch):
    """A machine on which flash attention can run, as far as can be asked."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))


def test_it_is_taken_where_it_can_run(gpu):
    assert attention("auto", LlamaForCausalLM, torch.bfloat16) == FLASH
    assert attention("auto", LlamaForCausalLM, torch.float16) == FLASH
    assert attention(FLASH, LlamaForCausalLM, torch.bfloat16) == FLASH


def refused(message, model_class=LlamaForCausalLM, dtype=torch.bfloat16):
    assert attention("auto", model_class, dtype) is None
    assert attention("sdpa", model_class, dtype) == "sdpa"
    with pytest.raises(TPOError, match=rf"flash_attention_2 cannot run here: {message}.*expected 'auto'"):
        attention(FLASH, model_class, dtype)


def test_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused("there is no CUDA GPU")


def test_an_old_gpu(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    refused(r"the GPU has compute capability 7.5, it needs 8.0")


def test_full_precision(gpu):
    refused("the host is torch.float32, it needs dtype: bfloat16 or float16", dtype=torch.float32)


def test_a_host_without_it(gpu):
    refused("WithoutFlash does not have it", model_class=WithoutFlash)


def test_a_package_that_cannot_be_imported(gpu, monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    refused("the package flash-attn cannot be imported")


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_a_named_one_is_what_the_host_gets(tmp_path, name):
    tiny_host()[0].save_pretrained(tmp_path)
    assert load_host(str(tmp_path), attn=name).config._attn_implementation == name


def test_an_unknown_name(tmp_path):
    tiny_host()[0].save_pretrained(tmp_path)
    with pytest.raises(TPOError, match=r"cannot be loaded with attn: fast \(.*expected 'auto' or 'sdpa'"):
        load_host(str(tmp_path), attn="fast")
