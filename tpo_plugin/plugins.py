"""Finding, loading and listing plugins. A plugin that fails disables only itself. No torch in here."""

from __future__ import annotations

import functools
import importlib
import keyword
import logging
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint, entry_points, version
from traceback import format_exc
from typing import Any

import pluggy
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tpo_plugin import hookspecs
from tpo_plugin.config import check_config, config_from_dict
from tpo_plugin.errors import TPOError, did_you_mean

logger = logging.getLogger(__name__)

BLOCK_VARIABLE = "TPO_BLOCK_PLUGINS"
"""Environment variable with comma-separated plugins that are not loaded: `name` or `distribution:name`."""

THIS_PROCESS = "this process"
"""Stands for the distribution of a plugin that was registered by `register_plugin`."""

CORE = "tpo-plugin"
"""The distribution whose versions a plugin's requirements name."""

RESERVED = {
    "the names of the core's losses": ("mllm", "assign", "retain"),
    "the names under which a batch counts, places and logs": (
        *("scale", "measure", "shape", "labels", "trigger", "task", "input", "text", "loss", "tpo"),
    ),
    "words of the records": ("head", "time", "image", "video", "tasks", "conversations", "human", "gpt", "system"),
    "Python's keywords": tuple(keyword.kwlist),
    "attributes of the torch.nn.ModuleDict that holds the heads": (
        *(name for name in dir(dict) if not name.startswith("_")),
        *re.findall(
            r"\w+",
            """add_module apply bfloat16 buffers call_super_init children compile cpu cuda double dump_patches eval
        extra_repr float forward get_buffer get_extra_state get_parameter get_submodule half ipu load_state_dict modules
        mtia named_buffers named_children named_modules named_parameters parameters register_backward_hook
        register_buffer register_forward_hook register_forward_pre_hook register_full_backward_hook
        register_full_backward_pre_hook register_load_state_dict_post_hook register_load_state_dict_pre_hook
        register_module register_parameter register_state_dict_post_hook register_state_dict_pre_hook requires_grad_
        set_extra_state set_submodule share_memory state_dict to to_empty train training type xpu zero_grad""",
        ),
    ),
}
"""Names that no head may have, by what they are. Those of torch are written down, for this module imports none."""


class WrongVersion(TPOError):
    """A plugin is for other versions of the core."""


@dataclass(frozen=True)
class Plugin:
    """An installed plugin, whether it loaded or not."""

    name: str
    distribution: str
    version: str
    error: str | None = None
    """Traceback or reason when the plugin is not in use."""

    @property
    def key(self) -> str:
        """The name that pluggy knows it by; entry points of two distributions may share a name."""
        return f"{self.distribution}:{self.name}"

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}".strip()


@dataclass(frozen=True)
class HeadSpec:
    """What a plugin registered under a head's name."""

    name: str
    head: type | str
    config: type | str
    trigger: str
    task_token: str
    input_token: str | None
    plugin: Plugin
    codec: type | str | None = None
    """What reads its records, where that is apart from the head."""
    default: bool = True
    """Whether it is applied where no heads are named."""

    def head_class(self) -> Any:
        """The head's class, imported now; raises `TPOError` with the plugin if that fails."""
        return resolve(self.head, f"head {self.name!r}", self.plugin)

    def config_class(self) -> Any:
        """The class of its configuration, imported now; raises `TPOError` with the plugin if that fails."""
        return resolve(self.config, f"config of head {self.name!r}", self.plugin)

    def codec_class(self) -> Any:
        """The class of its codec, imported now, or None; raises `TPOError` with the plugin if that fails."""
        return None if self.codec is None else resolve(self.codec, f"codec of head {self.name!r}", self.plugin)

    def make_config(self, given: Any) -> Any:
        """The head's configuration out of `given`: one of its class, or a dict of its fields."""
        config_class = self.config_class()
        where = f"config of head {self.name!r}"
        if isinstance(given, config_class):
            check_config(given, where=where)
            return given
        if isinstance(given, dict):
            return config_from_dict(config_class, given, where=where)
        raise TPOError(f"{where} is a {type(given).__name__}; expected {config_class.__name__} or a dict of its fields")


@dataclass(frozen=True)
class PatchSpec:
    """What a plugin registered for a host codebase."""

    name: str
    host: type | str
    matches: Callable[[Any], bool]
    plugin: Plugin

    def host_class(self) -> Any:
        """The host adapter, imported now; raises `TPOError` with the plugin if that fails."""
        return resolve(self.host, f"patch {self.name!r}", self.plugin)


@dataclass
class Registry:
    """All plugins of this process and what they registered."""

    manager: pluggy.PluginManager
    plugins: list[Plugin] = field(default_factory=list)
    claims: dict[str, list[HeadSpec]] = field(default_factory=dict)
    """Every registration of a head by its name; more than one is a clash, reported when the head is asked for."""
    patches: dict[str, PatchSpec] = field(default_factory=dict)

    @property
    def heads(self) -> dict[str, HeadSpec]:
        """The installed heads by name; of a name that two plugins claim the first claim, which `head` refuses."""
        return {name: specs[0] for name, specs in self.claims.items()}

    @property
    def default_heads(self) -> list[str]:
        """Names of those that are applied where none are named."""
        return [name for name, spec in self.heads.items() if spec.default]

    def head(self, name: str) -> HeadSpec:
        """The head of that name.

        Raises `TPOError` if it is not installed (with the pip line that would install it), if its plugin failed (with
        the reason), or if two plugins claim the name.
        """
        claims = self.claims.get(name, [])
        if len(claims) == 1:
            return claims[0]
        if claims:
            who = " and ".join(f"plugin {spec.plugin.name!r} ({spec.plugin})" for spec in claims)
            remedy = f"{BLOCK_VARIABLE}={claims[-1].plugin.key}"
            raise TPOError(f"head {name!r} is claimed by {who}; uninstall one or block it: {remedy!r}")
        failed = [plugin for plugin in self.plugins if plugin.error is not None]
        for plugin in failed:
            if plugin.name == name:
                raise TPOError(f"head {name!r}: its plugin ({plugin}) is not in use:\n{plugin.error}")
        others = ", ".join(f"{plugin.name!r} ({plugin})" for plugin in failed)
        raise TPOError(
            f"head {name!r} is not installed{did_you_mean(name, self.heads)}; "
            f"if it is published: pip install tpo-head-{name.replace('_', '-')}"
            + (f"; or it belongs to a plugin that is not in use: {others} (see `tpo heads`)" if others else "")
        )

    def choose(self, names: Sequence[str] | None) -> list[HeadSpec]:
        """The heads of those names, or the default ones; raises `TPOError` where none is left or one is twice."""
        if isinstance(names, str):
            raise TPOError(f"heads={names!r} is a string; expected a list of names: heads=[{names!r}]")
        names = self.default_heads if names is None else list(names)
        if not names:
            raise TPOError(
                "no head to apply: none is installed, or heads=[] was given; for example: pip install tpo-head-region"
            )
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise TPOError(f"heads={names} names {repeated} more than once")
        return [self.head(name) for name in names]

    def patch_for(self, model: Any) -> PatchSpec | None:
        """The first patch whose codebase the model belongs to; one that fails to say so is reported and left out."""
        for spec in self.patches.values():
            try:
                if spec.matches(model):
                    return spec
            except Exception:
                logger.warning(
                    "patch %r (%s) is left out, it failed to match:\n%s", spec.name, spec.plugin, format_exc()
                )
        return None

    def add(self, plugin_object: Any, plugin: Plugin) -> None:
        """Registers a loaded plugin with all that it brings; on an error nothing of it stays."""
        staged = Registry(self.manager)
        self.manager.register(plugin_object, name=plugin.key)
        try:
            callers = self.manager.get_hookcallers(plugin_object) or []
            if not callers:
                raise TPOError(f"no hook found; expected {_or_list(_hook_names())}, marked @tpo_plugin.hookimpl")
            for caller in callers:
                if not caller.has_spec():
                    raise TPOError(f"unknown hook {caller.name!r}{did_you_mean(caller.name, _hook_names())}")
            self.call(plugin, "register_heads", register=functools.partial(staged._register_head, plugin))
            self.call(plugin, "register_patches", register=functools.partial(staged._register_patch, plugin))
            for name in staged.patches:
                if name in self.patches:
                    raise TPOError(f"patch {name!r} is already registered by {self.patches[name].plugin}")
        except BaseException:
            self.manager.unregister(name=plugin.key)
            raise
        self.plugins.append(plugin)
        self.patches.update(staged.patches)
        for name, specs in staged.claims.items():
            self.claims.setdefault(name, []).extend(specs)

    def remove(self, plugin: Plugin) -> None:
        """Takes back what `add` did."""
        self.manager.unregister(name=plugin.key)
        self.plugins.remove(plugin)
        self.patches = {name: spec for name, spec in self.patches.items() if spec.plugin != plugin}
        kept = {name: [spec for spec in specs if spec.plugin != plugin] for name, specs in self.claims.items()}
        self.claims = {name: specs for name, specs in kept.items() if specs}

    def call(self, plugin: Plugin, hook: str, **arguments: Any) -> None:
        """Calls a hook of one plugin, if it has it."""
        others = [other for name, other in self.manager.list_name_plugin() if name != plugin.key]
        self.manager.subset_hook_caller(hook, others)(**arguments)

    def disable(self, plugin: Plugin, reason: str) -> None:
        """Lists an installed plugin that is not in use, with the reason."""
        self.plugins.append(replace(plugin, error=reason))

    def _register_head(
        self,
        plugin: Plugin,
        name: str,
        *,
        head: type | str,
        config: type | str = "tpo_plugin.config:HeadConfig",
        trigger: str,
        task_token: str,
        input_token: str | None = None,
        codec: type | str | None = None,
        default: bool = True,
    ) -> None:
        check_head_name(name)
        if name in self.claims:
            raise TPOError(f"head {name!r} is registered twice by the same plugin")
        tokens = [token for token in (trigger, task_token, input_token) if token is not None]
        if not all(tokens) or len(set(tokens)) < len(tokens):
            raise TPOError(f"head {name!r}: its tokens are {tokens}; expected different ones, none of them empty")
        self.claims[name] = [HeadSpec(name, head, config, trigger, task_token, input_token, plugin, codec, default)]

    def _register_patch(self, plugin: Plugin, name: str, *, host: type | str, matches: Callable[[Any], bool]) -> None:
        if name in self.patches:
            raise TPOError(f"patch {name!r} is registered twice by the same plugin")
        self.patches[name] = PatchSpec(name, host, matches, plugin)


@functools.cache
def registry() -> Registry:
    """The plugins of this process, loaded on first use."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    found = Registry(manager)
    blocked = {name.strip() for name in os.environ.get(BLOCK_VARIABLE, "").split(",")} - {""}
    installed: dict[str, tuple[Plugin, EntryPoint]] = {}
    for entry_point in sorted(entry_points(group=hookspecs.PROJECT), key=lambda e: e.name):
        plugin = _describe(entry_point)
        installed.setdefault(plugin.key, (plugin, entry_point))  # an editable install can be listed twice
    for plugin, entry_point in installed.values():
        if blocked & {plugin.name, plugin.key}:
            found.disable(plugin, f"blocked by {BLOCK_VARIABLE}")
            continue
        try:
            _check_version(entry_point)
            found.add(entry_point.load(), plugin)
        except WrongVersion as error:
            logger.warning("plugin %r (%s) is disabled: %s", plugin.name, plugin, error)
            found.disable(plugin, str(error))
        except (Exception, SystemExit):
            reason = format_exc()
            logger.warning("plugin %r (%s) is disabled, because it failed to load:\n%s", plugin.name, plugin, reason)
            found.disable(plugin, reason)
    known = {name for plugin, _ in installed.values() for name in (plugin.name, plugin.key)}
    for name in sorted(blocked - known):
        logger.warning("%s: no plugin %r is installed%s", BLOCK_VARIABLE, name, did_you_mean(name, known))
    return found


def register_plugin(plugin_object: Any, name: str) -> None:
    """Registers a plugin of this process only, for notebooks and tests; packages use an entry point.

    Raises `TPOError` if it breaks the contract or the name is taken by another plugin of this process.
    """
    try:
        registry().add(plugin_object, Plugin(name, THIS_PROCESS, ""))
    except Exception as error:
        raise TPOError(f"plugin {name!r} failed to register: {error}") from error


def unregister_plugin(name: str) -> None:
    """Takes back `register_plugin(…, name)`; raises `TPOError` if there is no such plugin."""
    found = registry()
    plugin = Plugin(name, THIS_PROCESS, "")
    if plugin not in found.plugins:
        here = [p.name for p in found.plugins if p.distribution == THIS_PROCESS]
        raise TPOError(f"plugin {name!r} was not registered in this process{did_you_mean(name, here)}")
    found.remove(plugin)


def check_head_name(name: str) -> None:
    """Raises `TPOError` for a name that no head can have: it is a key of checkpoints, batches and logs."""
    if not name.isidentifier() or name != name.lower() or name.startswith("_"):
        raise TPOError(f"head name {name!r}: expected a lower-case identifier that does not begin with '_'")
    for what, names in RESERVED.items():
        if name in names:
            others = f"{_or_list(names)}, {what}" if len(names) < 4 else f"{what}, to which {name!r} belongs"
            raise TPOError(f"head name {name!r}: expected a lower-case identifier other than {others}")


def _describe(entry_point: EntryPoint) -> Plugin:
    dist = entry_point.dist
    return Plugin(entry_point.name, dist.name if dist else "unknown", dist.version if dist else "")


def compatible_range() -> str:
    """The versions of the core that a plugin written for this one names: ">=0.1,<0.2"."""
    major, minor = Version(version(CORE)).release[:2]
    return f">={major}.{minor},<{major}.{minor + 1}"


def _check_version(entry_point: EntryPoint) -> None:
    """Raises `WrongVersion` for a plugin whose distribution requires other versions of the core than this one."""
    dist = entry_point.dist
    for requirement in map(Requirement, (dist.requires if dist else None) or ()):
        if canonicalize_name(requirement.name) != CORE or (requirement.marker and not requirement.marker.evaluate()):
            continue
        if not requirement.specifier.contains(version(CORE), prereleases=True):
            raise WrongVersion(
                f"it is for {CORE} {requirement.specifier}, and {version(CORE)} is installed; pip install "
                f"--upgrade {CORE} {dist.name if dist else entry_point.name}"
            )


def _hook_names() -> list[str]:
    return [name for name in vars(hookspecs) if name.startswith("register_")]


def _or_list(names: Iterable[str]) -> str:
    return " or ".join(map(repr, names))


def resolve(target: type | str, what: str, plugin: Plugin) -> type:
    """What a plugin registered, a class or `"module:Class"`, as a class; raises `TPOError` with the plugin."""
    if isinstance(target, type):
        return target
    module, _, attribute = target.partition(":")
    if not attribute:
        raise TPOError(f"{what} ({plugin}): {target!r} names no class; expected 'module:Class'")
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:
        raise TPOError(f"{what} ({plugin}): {target!r} failed to import: {type(error).__name__}: {error}") from error
