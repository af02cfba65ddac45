"""`apply_tpo` and `remove_tpo`: check everything, then change, holding the way back for each change."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tpo_plugin import sharding
from tpo_plugin.codec import registered_codec
from tpo_plugin.config import HeadConfig, TPOConfig, check_config
from tpo_plugin.errors import TPOError, did_you_mean
from tpo_plugin.files import external_hash
from tpo_plugin.generation.own import HostGenerate, refuse_continuous_batching
from tpo_plugin.head import TaskHead, bare_codec, build_head
from tpo_plugin.hooks import HostForward
from tpo_plugin.host import Host, device_of
from tpo_plugin.host.plain import check_model
from tpo_plugin.model import TaskPreferenceModel
from tpo_plugin.plugins import HeadSpec, registry
from tpo_plugin.tokens import HeadTokens, TokenRows, Undo, add_tokens, resolve_tokens
from tpo_plugin.vocabulary import Growth, Resize, grow_vocabulary, same_embeddings

logger = logging.getLogger(__name__)


def apply_tpo(
    model: nn.Module,
    tokenizer: Any = None,
    heads: Sequence[str] | None = None,
    config: TPOConfig | None = None,
    *,
    example_inputs: dict[str, Any] | None = None,
) -> nn.Module:
    """Puts task tokens and task heads onto a causal LM or vision-language model, in place, and returns the same object.

    Args:
        model: A Hugging Face model with a language-modelling head, or a `PeftModel` around one.
        tokenizer: Its tokenizer or processor; None loads it from where the model was loaded. Gets the tokens.
        heads: Names of heads; None takes all that are installed, but those that must be named.
        config: Loss weights and head configs.
        example_inputs: Inputs of the host's forward, for the dry run of a host that needs more than text `input_ids`.

    A host without task tokens in its input computes what it computed before. Raises `TPOError` for wrong use, with the
    model, tokenizer and config left as they were.
    """
    host_model = _unwrapped(model)
    if hasattr(host_model, "tpo"):
        raise TPOError(
            f"this {type(host_model).__name__} has TPO already, with heads {list(host_model.tpo.heads)}; "
            "call remove_tpo(model) first, and apply all heads in one call"
        )
    check_model(host_model)
    config = copy.deepcopy(config) if config is not None else TPOConfig()
    if not isinstance(config, TPOConfig):
        raise TPOError(f"config is a {type(config).__name__}; expected TPOConfig(loss_weights=..., heads=...)")
    check_config(config, where="TPOConfig")
    specs = registry().choose(heads)
    configs = {spec.name: head_config(spec, config) for spec in specs}
    _check_weights(config, configs)
    config.heads = dict(configs)
    text_tokenizer, processor = _tokenizer_and_processor(host_model, tokenizer)
    host_class = host_class_of(host_model)
    names = resolve_tokens(specs, configs)
    with sharding.shaped(host_model):
        host = host_class.locate(host_model, example_inputs)
    undo: list[Undo] = []
    try:
        tokens, restore_tokenizer = add_tokens(text_tokenizer, names)
        undo.append(restore_tokenizer)
        growth, shrink = grow_vocabulary(host_model, tokens.values())
        undo.append(shrink)
        if growth is not None:
            host.check_grown(host_model, growth.old_size, example_inputs)
        device = device_of(host.embed)
        vision_size = partial(host.measure_vision, host_model, processor)
        modules = {
            spec.name: _build_head(spec, configs[spec.name], host.hidden_size, vision_size).to(device) for spec in specs
        }
        codecs = {
            spec.name: registered_codec(spec, configs[spec.name])
            or bare_codec(spec, configs[spec.name], modules[spec.name])
            for spec in specs
        }
        rows = _initial_rows(host, tokens, growth)
        tpo = TaskPreferenceModel(host_model, host, modules, rows, tokens, config, text_tokenizer, processor, codecs)
        tpo.trigger_logits.grow(growth)
        tpo.to(device)
        tpo.train(host_model.training)
        _install(host_model, tpo, undo)
        if growth is not None:
            undo.append(same_embeddings(host_model))
    except BaseException:
        for step in reversed(undo):
            step()
        raise
    for name, token in tokens.items():
        logger.info("head %r: %s = %d, %s = %d", name, token.trigger, token.trigger_id, token.task_token, token.task_id)
    if growth is not None:
        logger.info("vocabulary grown from %d to %d rows", growth.old_size, growth.new_size)
    return model


def host_class_of(model: nn.Module) -> type[Host]:
    """The host adapter for a model: that of the first patch that knows its codebase, else the generic one."""
    patch = registry().patch_for(model)
    return Host if patch is None else patch.host_class()


def remove_tpo(model: nn.Module) -> nn.Module:
    """Takes back everything that `apply_tpo` changed, and returns the same object.

    What training changed in the host itself (LoRA, unfrozen weights) stays. Raises `TPOError`, with everything left as
    it is, where that cannot be: LoRA was put on an embedding that `apply_tpo` had grown.
    """
    host_model = _unwrapped(model)
    tpo = getattr(host_model, "tpo", None)
    if tpo is None:
        raise TPOError(f"this {type(host_model).__name__} has no TPO; apply_tpo(model) puts it on")
    for step in reversed(tpo.undo):
        step()
    return model


def _install(model: nn.Module, tpo: TaskPreferenceModel, undo: list[Undo]) -> None:
    model.add_module("tpo", tpo)
    undo.append(partial(delattr, model, "tpo"))
    undo.append(tpo.hooks.detach)  # also of what an attach that fails had attached
    tpo.hooks.attach()
    ignored = set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    replaced: dict[str, Any] = {
        "_keys_to_ignore_on_save": ignored | {f"tpo.{key}" for key in tpo.state_dict()},
        "forward": HostForward(tpo.hooks, model.forward),
    }
    if hasattr(model, "resize_token_embeddings"):
        replaced["resize_token_embeddings"] = Resize(model, tpo.num_ids)
    if hasattr(model, "generate"):
        replaced["generate"] = HostGenerate(tpo.hooks, model.generate)
    if hasattr(model, "init_continuous_batching"):
        replaced["init_continuous_batching"] = refuse_continuous_batching
    for name, value in replaced.items():
        undo.append(partial(_restore_attribute, model, name, model.__dict__.get(name), name in model.__dict__))
        model.__dict__[name] = value
    tpo.undo = undo


def _restore_attribute(owner: Any, name: str, value: Any, own: bool) -> None:
    if own:
        owner.__dict__[name] = value
    else:
        owner.__dict__.pop(name, None)


def _unwrapped(model: nn.Module) -> nn.Module:
    base = getattr(model, "get_base_model", None)
    return base() if callable(base) else model


def head_config(spec: HeadSpec, config: TPOConfig) -> HeadConfig:
    """The head's configuration out of `config`, or its defaults."""
    return spec.make_config(config.heads.get(spec.name, {}))


def _check_weights(config: TPOConfig, configs: dict[str, HeadConfig]) -> None:
    for kind, given, valid in (
        ("loss_weights", config.loss_weights, {"mllm", "assign", "retain", *configs}),
        ("heads", config.heads, set(configs)),
    ):
        for name in given:
            if name not in valid:
                raise TPOError(f"TPOConfig.{kind} has {name!r}, which is not applied{did_you_mean(name, valid)}")


def _tokenizer_and_processor(model: nn.Module, given: Any) -> tuple[Any, Any]:
    if given is None:
        source = getattr(model, "name_or_path", "") or getattr(model.config, "_name_or_path", "")
        if not source:
            raise TPOError(
                "the model does not say where it was loaded from; give its tokenizer or processor: "
                "apply_tpo(model, processor)"
            )
        from transformers import AutoProcessor

        try:
            given = AutoProcessor.from_pretrained(
                source, trust_remote_code=False
            )  # the tokenizer itself for a text-only model
        except (OSError, ValueError) as error:
            raise TPOError(
                f"no tokenizer or processor could be loaded from {source!r} ({error}); "
                "give it: apply_tpo(model, processor)"
            ) from error
    if hasattr(given, "get_vocab"):
        return given, None
    if hasattr(given, "tokenizer"):
        return given.tokenizer, given
    raise TPOError(f"tokenizer is a {type(given).__name__}; expected a tokenizer or a processor that has one")


def _build_head(
    spec: HeadSpec, config: HeadConfig, hidden_size: int, vision_size: Callable[[], int | None]
) -> TaskHead:
    head = build_head(spec, config, hidden_size, vision_size).float()
    if head.external:
        external_hash(head)
    return head


@torch.no_grad()
def _initial_rows(host: Host, tokens: dict[str, HeadTokens], growth: Growth | None) -> dict[str, TokenRows]:
    """Input rows near the mean of the host's embeddings, with their spread; output rows that change nothing.

    A trigger in a freshly grown row has the mean of the old output rows, an unremarkable logit, until a trainer gives
    it a start (`training.start`).
    """
    device = device_of(host.embed)
    num_rows = sharding.shape(host.embed.weight)[0] if growth is None else growth.old_size
    sample_ids = torch.arange(min(1024, num_rows), device=device)
    with sharding.gathered(host.embed.parameters()):
        sample = host.embed(sample_ids[None])[0].float()
    mean, std = sample.mean(0), sample.std(0)

    def output_row(trigger_id: int) -> Tensor:
        if growth is None or trigger_id < growth.old_size:
            return torch.zeros(host.hidden_size, device=device)
        return host.head.weight[: growth.old_size].mean(0, dtype=torch.float32)

    return {
        name: TokenRows(mean + std * torch.randn(2, len(mean), device=device), output_row(token.trigger_id))
        for name, token in tokens.items()
    }
