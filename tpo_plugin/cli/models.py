"""What `tpo predict` and `tpo doctor` share: a model by its folder or name, and one answer of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tpo_plugin.data import TPOCollator
from tpo_plugin.data.dataset import Sample
from tpo_plugin.generation.answers import Prediction
from tpo_plugin.training.config import DataConfig, TrainConfig
from tpo_plugin.training.run import RUN_FILE, load_host, load_run, read_run


def load(source: str | Path) -> tuple[Any, DataConfig]:
    """The model of a finished run, on a GPU where there is one, and how the run reads media."""
    import torch

    model = load_run(source)
    config = TrainConfig.from_dict(read_run(source)["config"], where=f"{source}: config")
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), config.data


def load_run_or_host(source: str | Path) -> tuple[Any, DataConfig]:
    """As `load`; a host (folder or hub name) gets all installed heads, in memory."""
    from tpo_plugin.apply import apply_tpo

    if (Path(source) / RUN_FILE).is_file():
        return load(source)
    return apply_tpo(load_host(str(source)).eval()), DataConfig()


def answer(
    model: Any, sample: Sample, *, route: str | None = None, max_new_tokens: int
) -> tuple[str, list[Prediction]]:
    """The text of the greedy answer to one prompt, without the heads' tokens, and its predictions."""
    from accelerate.utils import send_to_device

    batch = send_to_device(TPOCollator(model.tpo, for_generation=True)([sample]), model.device)
    generated = model.tpo.generate(**batch, route=route, max_new_tokens=max_new_tokens, do_sample=False)
    new = generated.sequences[0, batch["input_ids"].shape[1] :]
    return model.tpo.tokenizer.decode(new, skip_special_tokens=True).strip(), generated.predictions[0]
