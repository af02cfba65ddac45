"""QwenLM's `qwenvl/train/train_qwen.py` on a CPU, with a data set of the folder that is the first argument."""

import sys
from types import ModuleType

import transformers

world = sys.argv.pop(1)
# Its trainer.py imports one function of flash_attn, which needs a GPU, and calls it for packed rows alone.
_ = transformers.Trainer, transformers.Qwen2_5_VLForConditionalGeneration  # before: they look whether it is there
for name in ("flash_attn", "flash_attn.flash_attn_interface"):
    sys.modules[name] = ModuleType(name)
sys.modules["flash_attn.flash_attn_interface"].flash_attn_varlen_func = None

import qwenvl.data  # noqa: E402
from train_qwen import train  # noqa: E402

qwenvl.data.data_dict["boxes"] = {"annotation_path": f"{world}/llava.json", "data_path": world}
train(attn_implementation="sdpa")
