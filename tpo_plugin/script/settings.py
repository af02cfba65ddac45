"""What `tpo run` tells the processes of a script, by an environment variable. No torch in here."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tpo_plugin.config import TPOConfig, config_from_dict
from tpo_plugin.errors import TPOError
from tpo_plugin.yaml_file import read_yaml

VARIABLE = "TPO_SCRIPT"
STARTUP = Path(__file__).parent / "startup"
"""Folder of the `sitecustomize` that calls `tpo_plugin.script.imports.install`."""


@dataclass(kw_only=True)
class ScriptSettings:
    """What the processes of a script must know to put TPO onto its model."""

    heads: list[str]
    config: dict[str, Any] = field(default_factory=dict)
    """`loss_weights` and `heads`, the fields of `TPOConfig`."""
    data: str = ""
    """File of records whose tasks go to the script's rows with the same `id`."""
    marker: str = ""
    """File that gets a line for every trainer that trains TPO."""

    @classmethod
    def from_environment(cls) -> ScriptSettings | None:
        """The settings of the script that this process belongs to, or None."""
        text = os.environ.get(VARIABLE)
        return None if text is None else config_from_dict(cls, json.loads(text), where=VARIABLE)

    def environment(self) -> dict[str, str]:
        """Variables for the script, over those of this process."""
        paths = [str(STARTUP), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {VARIABLE: json.dumps(dataclasses.asdict(self)), "PYTHONPATH": os.pathsep.join(paths)}

    def tpo_config(self) -> TPOConfig:
        """The config for `apply_tpo`; raises `TPOError` for a field that there is not."""
        return config_from_dict(TPOConfig, dict(self.config), where="the configuration of tpo run")

    def mark(self, text: str) -> None:
        """Notes that something trains TPO. Raises `TPOError` where `tpo run` has ended before."""
        if not self.marker:
            return
        try:
            with open(self.marker, "a", encoding="utf-8") as file:
                file.write(f"{text}\n")
        except FileNotFoundError as error:
            raise TPOError(
                "tpo run has ended: its command went into the background; start the training in the foreground"
            ) from error


def read_config(path: Path) -> dict[str, Any]:
    """The YAML file of `tpo run --config`; raises `TPOError`."""
    values = read_yaml(path)
    config_from_dict(TPOConfig, values, where=str(path))
    return values
