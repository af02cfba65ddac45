"""A head's misspelt parameters, methods and fields are refused with the nearest name."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from good_head import GoodHead

import tpo_plugin as tpo
from tpo_plugin.testing import tiny_host


@pytest.fixture
def plugin() -> Iterator[Any]:
    """A plugin of this process, whose head and codec a test sets."""
    chosen = SimpleNamespace(head=GoodHead, codec=None)

    class Plugin:
        @tpo.hookimpl
        def register_heads(self, register):
            register("declared", head=chosen.head, codec=chosen.codec, trigger="<d_begin>", task_token="<d>")

    yield SimpleNamespace(chosen=chosen, register=lambda: tpo.register_plugin(Plugin(), "declared"))
    tpo.unregister_plugin("declared")


def apply(plugin: Any, head: type, codec: type | None = None) -> Any:
    plugin.chosen.head, plugin.chosen.codec = head, codec
    plugin.register()
    return tpo.apply_tpo(*tiny_host(), heads=["declared"])


def bad(**names: Any) -> type:
    return type("Bad", (GoodHead,), names)


class Plain(tpo.TaskHead):
    def __init__(self, config, hidden_size):
        super().__init__()
        self.proj = tpo.Linear(hidden_size, 2)

    def forward(self, e_ND, temperature=1.0):
        return {"points_xy": self.proj(e_ND) / temperature}

    def loss(self, outputs, targets, num_targets):
        return {"loss_a": outputs["points_xy"].sum() / num_targets}


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (bad(forward=lambda self, e_ND, input=None: {}), "forward: parameter 'input' .* did you mean 'inputs'"),
        (bad(forward=lambda self, e_ND, batchrows=None: {}), "parameter 'batchrows' .* did you mean 'batch_rows'"),
        (bad(forward=lambda self, e_ND, see=None: {}), "forward: parameter 'see' .* did you mean 'seen'"),
        (
            bad(forward=lambda self, e_ND, *, frames: {}),
            "forward: parameter 'frames' is never given.*valid: 'batch_row",
        ),
        (
            bad(__init__=lambda self, config, size, visionsize=None: None),
            "__init__: parameter 'visionsize' .*vision_size",
        ),
        (
            bad(__init__=lambda self, hidden_size, config: None),
            "'hidden_size' is number 1; expected config, hidden_size",
        ),
        (
            bad(collate_inputs=lambda self, tasks, given, sample=(): None),
            "parameter 'sample' .* did you mean 'samples'",
        ),
        (
            bad(collate_inputs=lambda self, tasks, given, batch: None),
            "collate_inputs: parameter 'batch' is never given",
        ),
        (
            bad(collate_target=lambda self, tasks: {}),
            "Bad.collate_target is never used; did you mean 'collate_targets'",
        ),
        (bad(postproces=lambda self, outputs: []), "Bad.postproces is never used; did you mean 'postprocess'"),
        (bad(check_tasks=lambda self, task: None), "Bad.check_tasks is never used; did you mean 'check_task'"),
        (bad(field=("boxes",)), "Bad.field is never used; did you mean 'fields'"),
        (bad(fields=("boxes")), "fields is 'boxes'; expected a tuple or mapping of names"),
    ],
)
def test_what_the_core_would_ignore(plugin, head, message):
    with pytest.raises(tpo.TPOError, match=f"head 'declared' .*{message}"):
        apply(plugin, head)


@pytest.mark.parametrize(
    "own",
    [
        {"from_boxes": lambda self, boxes: None, "losses": None, "decode": None, "_collate_target": None},
        {"__init__": lambda self, c, d, *, depth=2: Plain.__init__(self, c, d)},
        {"forward": lambda self, e, *rest, **options: Plain.forward(self, e)},
    ],
    ids=["helpers", "a parameter of its own", "any parameters"],
)
def test_what_is_the_heads_own(plugin, own):
    model = apply(plugin, type("Own", (Plain,), own))
    assert list(model.tpo.codecs) == ["declared"]


class PointCodec(tpo.TaskCodec):
    fields = ("points_xy",)


@pytest.mark.parametrize(
    ("codec", "message"),
    [
        (type("Bad", (PointCodec,), {"num_token": None}), "codec of head .*num_token is never used; .*'num_tokens'"),
        (type("Bad", (PointCodec,), {"__init__": lambda self, config, size: None}), "__init__: parameter 'size'"),
        (dict, "expected a subclass of tpo_plugin.TaskCodec"),
    ],
)
def test_a_codec_that_does_not_fit(plugin, codec, message):
    with pytest.raises(tpo.TPOError, match=message):
        apply(plugin, Plain, codec)


def test_a_registered_codec_is_made_of_the_configuration(plugin):
    class PointHead(PointCodec, Plain):
        pass

    model = apply(plugin, PointHead, PointCodec)
    codec = model.tpo.codecs["declared"]
    assert type(codec) is PointCodec
    assert codec.config is model.tpo.config.heads["declared"]
    assert torch.equal(model.tpo.heads["declared"].collate_targets([{"x": 1}])["x"], torch.ones(1))
