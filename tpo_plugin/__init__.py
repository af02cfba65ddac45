"""Give any Hugging Face or LLaVA multimodal LM task tokens and task heads, as plugins (TPO, arXiv 2412.19326)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tpo_plugin.config import HeadConfig, TPOConfig
from tpo_plugin.errors import HostError, MediaError, RecordError, TPOError
from tpo_plugin.extras import needed
from tpo_plugin.hookspecs import hookimpl
from tpo_plugin.plugins import register_plugin, registry, unregister_plugin

if TYPE_CHECKING:
    from tpo_plugin.apply import apply_tpo, remove_tpo
    from tpo_plugin.checkpoint import load_tpo
    from tpo_plugin.codec import TaskCodec
    from tpo_plugin.data.dataset import Sample
    from tpo_plugin.data.media import VideoClip, VideoOptions, read_frames, read_video, stream_video, write_video
    from tpo_plugin.exported import HeadsOnStates, load_heads
    from tpo_plugin.generation.answers import Prediction
    from tpo_plugin.head import Benchmark, HeadAnswer, HeadMetrics, Linear, TaskHead
    from tpo_plugin.host import Host
    from tpo_plugin.host.plain import PlainModel
    from tpo_plugin.host.splice import SplicingHost
    from tpo_plugin.hub import push_to_hub
    from tpo_plugin.model import TaskPreferenceModel
    from tpo_plugin.seen import HostFeatures
    from tpo_plugin.training.rewards import HeadReward
    from tpo_plugin.training.trainer import wrap_trainer

__version__ = "0.1.0"

# Names that need torch are imported on first use, so that plugins and the command line start without it.
_LAZY = {
    "apply_tpo": "apply",
    "remove_tpo": "apply",
    "load_tpo": "checkpoint",
    "HeadsOnStates": "exported",
    "load_heads": "exported",
    "TaskCodec": "codec",
    "Prediction": "generation.answers",
    "push_to_hub": "hub",
    "HostFeatures": "seen",
    "Benchmark": "head",
    "HeadAnswer": "head",
    "HeadMetrics": "head",
    "Linear": "head",
    "TaskHead": "head",
    "Host": "host",
    "PlainModel": "host.plain",
    "TaskPreferenceModel": "model",
    "Sample": "data.dataset",
    "VideoClip": "data.media",
    "VideoOptions": "data.media",
    "read_frames": "data.media",
    "read_video": "data.media",
    "stream_video": "data.media",
    "write_video": "data.media",
    "SplicingHost": "host.splice",
    "HeadReward": "training.rewards",
    "wrap_trainer": "training.trainer",
}

__all__ = [
    "Benchmark",
    "HeadAnswer",
    "HeadConfig",
    "HeadMetrics",
    "HeadReward",
    "HeadsOnStates",
    "Host",
    "HostError",
    "HostFeatures",
    "Linear",
    "MediaError",
    "PlainModel",
    "Prediction",
    "RecordError",
    "Sample",
    "SplicingHost",
    "TPOConfig",
    "TPOError",
    "TaskCodec",
    "TaskHead",
    "TaskPreferenceModel",
    "VideoClip",
    "VideoOptions",
    "apply_tpo",
    "hookimpl",
    "load_heads",
    "load_tpo",
    "push_to_hub",
    "read_frames",
    "read_video",
    "register_plugin",
    "registry",
    "remove_tpo",
    "stream_video",
    "unregister_plugin",
    "wrap_trainer",
    "write_video",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        with needed():
            return getattr(importlib.import_module(f"tpo_plugin.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'tpo_plugin' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
