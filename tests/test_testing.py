"""The conformance kit: a good head passes it, and for each check there is a head that is built to fail it."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import ImageDraw
from torch import nn
from torch.nn import functional as F

import tpo_plugin as tpo
from tpo_plugin import plugins, testing
from tpo_plugin.testing import TaskHeadTests

STANDARD_TESTS = [name for name in vars(TaskHeadTests) if name.startswith("test_")]


@dataclass(kw_only=True)
class GoodConfig(tpo.HeadConfig):
    scale: float = 1.0
    """Factor of the output."""


class GoodHead(tpo.TaskHead):
    def __init__(self, config: GoodConfig, hidden_size: int) -> None:
        super().__init__()
        self.scale = config.scale
        self.proj = tpo.Linear(hidden_size, 2)

    def forward(self, e_ND):
        return {"points_xy": self.scale * self.proj(e_ND).sigmoid()}

    def loss(self, outputs, targets, num_targets):
        diff = F.l1_loss(outputs["points_xy"], targets["points_xy"], reduction="sum")
        return {"loss_point_l1": diff / num_targets}


class Kit(TaskHeadTests):
    head = "under_test"

    def make_targets(self, num: int) -> dict[str, Any]:
        return {"points_xy": torch.rand(num, 2)}


@pytest.fixture
def kit() -> Iterator[Callable[..., Kit]]:
    """Registers a head in this process and gives the kit for it."""

    class Plugin:
        head, config = GoodHead, GoodConfig

        @tpo.hookimpl
        def register_heads(self, register):
            register("under_test", head=self.head, config=self.config, trigger="<test_begin>", task_token="<test>")

    def install(head: type = GoodHead, config: type = GoodConfig, kit_class: type[Kit] = Kit) -> Kit:
        Plugin.head, Plugin.config = head, config
        tpo.register_plugin(Plugin(), "under_test")
        return kit_class()

    yield install
    tpo.unregister_plugin("under_test")


def run(kit: Kit, name: str, tmp_path: Path) -> None:
    test = getattr(kit, name)
    test(tmp_path) if "tmp_path" in inspect.signature(test).parameters else test()


@pytest.mark.parametrize("name", [name for name in STANDARD_TESTS if name != "test_found_by_entry_point"])
def test_a_good_head_passes(kit, name, tmp_path):
    run(kit(), name, tmp_path)


def test_a_head_without_parameters_passes(kit, tmp_path):
    class Mean(GoodHead):
        def __init__(self, config, hidden_size):
            tpo.TaskHead.__init__(self)

        def forward(self, e_ND):
            return {"points_xy": e_ND.unflatten(-1, (2, -1)).mean(-1)}

    under_test = kit(Mean)
    for name in STANDARD_TESTS:
        if name != "test_found_by_entry_point":
            run(under_test, name, tmp_path)


def test_make_targets_is_asked_for(kit):
    class Nothing(TaskHeadTests):
        head = "under_test"

    kit()
    with pytest.raises(NotImplementedError, match="Nothing must define make_targets"):
        Nothing().test_losses()


# -- 1: entry point ----------------------------------------------------------------------------------------------------


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """An installed distribution `acme-dot` whose plugin module has the given first lines."""

    def install(lines: str) -> None:
        (tmp_path / "acme_dot.py").write_text(
            f"{lines}\nimport tpo_plugin as tpo\n\n\n@tpo.hookimpl\ndef register_heads(register):\n"
            "    register('dot', head='acme_dot_head:Head', trigger='<dot_begin>', task_token='<dot>')\n"
        )
        info = tmp_path / "acme_dot-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-dot\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[tpo_plugin]\nacme = acme_dot\n")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")

    spec = plugins.HeadSpec(
        "dot", GoodHead, GoodConfig, "<dot_begin>", "<dot>", None, plugins.Plugin("acme", "acme-dot", "1.0")
    )
    monkeypatch.setattr(DotKit, "_spec", lambda self: spec)
    return install


class DotKit(Kit):
    head = "dot"
    heavy = ("wave",)


def test_entry_point_found(distribution):
    distribution("import json")
    DotKit().test_found_by_entry_point()


def test_heavy_import_fails(distribution):
    distribution("import wave")
    with pytest.raises(AssertionError, match=r"importing plugin 'acme' imports \['wave'\].*heavy list"):
        DotKit().test_found_by_entry_point()


def test_broken_plugin_fails_with_its_reason(distribution):
    distribution("raise RuntimeError('out of dots')")
    with pytest.raises(AssertionError, match=r"(?s)a clean process finds no head 'dot'.*out of dots"):
        DotKit().test_found_by_entry_point()


def test_no_entry_point_fails(kit):
    with pytest.raises(
        AssertionError, match=r"(?s)in this process only.*\[project.entry-points.tpo_plugin\] under_test"
    ):
        kit().test_found_by_entry_point()


# -- 2: configuration --------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class TupleConfig(tpo.HeadConfig):
    sizes: tuple[int, ...] = (1, 2)


@dataclass(kw_only=True)
class TypeConfig(tpo.HeadConfig):
    dtype: Any = torch.float32


@dataclass(kw_only=True)
class DriftingConfig(tpo.HeadConfig):
    rate: float = 1.0

    def __post_init__(self) -> None:
        self.rate /= 2


class UndecoratedConfig(tpo.HeadConfig):
    rate: float = 1.0


class ForeignConfig:
    pass


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TupleConfig, r"TupleConfig.sizes is \(1, 2\), and \[1, 2\] after JSON"),
        (TypeConfig, "TypeConfig.dtype is torch.float32, which JSON cannot hold"),
        (DriftingConfig, "DriftingConfig differs after JSON"),
        (UndecoratedConfig, r"needs @dataclass\(kw_only=True\): \['rate'\]"),
        (ForeignConfig, "ForeignConfig must derive from tpo_plugin.HeadConfig"),
    ],
)
def test_config_fails(kit, config, message):
    with pytest.raises(AssertionError, match=message):
        kit(config=config).test_config_survives_json()


def test_unknown_key_must_be_refused(kit, monkeypatch):
    monkeypatch.setattr(testing, "config_from_dict", lambda cls, values, where: cls())
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        kit().test_config_survives_json()


def test_a_kit_config_with_a_typo_is_refused(kit):
    class Typo(Kit):
        config = {"scael": 2.0}  # noqa: RUF012

    with pytest.raises(tpo.TPOError, match="config of Typo: unknown key 'scael'; did you mean 'scale'"):
        kit(kit_class=Typo).test_losses()


# -- 3 to 8: heads that are built to fail ------------------------------------------------------------------------------


def head(**methods: Any) -> type:
    """A good head with other methods."""
    return type("Bad", (GoodHead,), methods)


def points(make: Callable[[torch.Tensor, torch.Tensor], Any]) -> type:
    """A head whose forward gives `make(points [N, 2], e_ND)`."""
    return head(forward=lambda self, e_ND: make(GoodHead.forward(self, e_ND)["points_xy"], e_ND))


def loss(make: Callable[..., Any]) -> type:
    """A head whose loss is `make(predicted, true, num_targets)`."""
    return head(loss=lambda self, out, targets, num: make(out["points_xy"], targets["points_xy"], num))


def summed(predicted: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    return (predicted - true).abs().sum()


def unused_parameter(self: Any, config: GoodConfig, hidden_size: int) -> None:
    GoodHead.__init__(self, config, hidden_size)
    self.unused = tpo.Linear(hidden_size, 2)


def thawing(self: Any, e_ND: torch.Tensor) -> dict[str, torch.Tensor]:
    self.encoder.requires_grad_(True)
    return {"points_xy": self.proj(e_ND) + self.encoder(e_ND)}


def with_frozen_encoder(self: Any, config: GoodConfig, hidden_size: int) -> None:
    GoodHead.__init__(self, config, hidden_size)
    self.encoder = tpo.Linear(hidden_size, 2).requires_grad_(False)


def with_hidden_state(self: Any, config: GoodConfig, hidden_size: int) -> None:
    GoodHead.__init__(self, config, hidden_size)
    self.offset = float(torch.rand(()))


def counting(self: Any, config: GoodConfig, hidden_size: int) -> None:
    GoodHead.__init__(self, config, hidden_size)
    type(self).built = getattr(type(self), "built", 0) + 1


def draw_in_place(self: Any, image: Any, value: Any, target: Any = None) -> Any:
    ImageDraw.Draw(image).point((1, 1), "black")
    return image.copy()


BAD = {
    "no dict": ("outputs", points(lambda p, e: p), "forward gives a Tensor; expected a dict"),
    "empty dict": ("outputs", points(lambda p, e: {}), "forward gives an empty dict"),
    "no tensor": ("outputs", points(lambda p, e: {"points_xy": [p]}), "'points_xy' is a list; expected a tensor"),
    "one row for all": (
        "outputs",
        points(lambda p, e: {"points_xy": p.sum(0, keepdim=True)}),
        r"of shape \(1, 2\) for 0 task tokens; expected \(0, ...\)",
    ),
    "half": ("outputs", points(lambda p, e: {"points_xy": p.half()}), "is torch.float16; expected float32"),
    "not finite": ("outputs", points(lambda p, e: {"points_xy": p / 0}), "is not finite for 1 task tokens"),
    "one value for all": ("outputs", head(postprocess=lambda self, out: [0]), "postprocess gives 1 values for 0"),
    "score shape": (
        "outputs",
        head(score=lambda self, out: out["points_xy"]),
        r"score is of shape \(0, 2\); expected \(0,\)",
    ),
    "score range": ("outputs", head(score=lambda self, out: out["points_xy"][:, 0] + 1), "expected 0 to 1"),
    "count": ("outputs", head(count_targets=lambda self, targets: 1), r"count_targets gives 1 for make_targets\(0\)"),
    "bfloat16": (
        "outputs_on_a_bfloat16_host",
        points(lambda p, e: {"points_xy": p.bfloat16() if len(e) and torch.equal(e, e.bfloat16().float()) else p}),
        "is torch.bfloat16; expected float32",
    ),
    "metrics": (
        "evaluation",
        head(loss=lambda self, out, targets, num: {"loss_a": (out["points_xy"].sum() / 0)}),
        "metrics are not finite",
    ),
    "no metrics": ("evaluation", head(loss=lambda self, *rest: {}), "is empty after targets were added"),
    "draws in place": ("evaluation", head(draw=draw_in_place), "draw changes the picture"),
    "draws nothing": ("evaluation", head(draw=lambda self, image, *rest: image), "gives back the picture"),
    "draws small": (
        "evaluation",
        head(draw=lambda self, image, *rest: image.resize((8, 8))),
        r"picture of size \(8, 8\) for one of \(64, 48\)",
    ),
    "no loss": ("losses", loss(lambda p, t, n: {}), "loss gives no named loss"),
    "loss name": ("losses", loss(lambda p, t, n: {"l1": summed(p, t) / n}), "a loss is named 'l1'; expected loss_"),
    "loss of many": (
        "losses",
        loss(lambda p, t, n: {"loss_a": (p - t).abs()}),
        r"of shape \(3, 2\); expected a scalar",
    ),
    "loss not finite": ("losses", loss(lambda p, t, n: {"loss_a": (p - t).abs().sum() / 0}), "loss_a is inf"),
    "loss detached": ("losses", loss(lambda p, t, n: {"loss_a": summed(p.detach(), t) / n}), "is not connected to the"),
    "loss mean": (
        "losses",
        loss(lambda p, t, n: {"loss_a": F.l1_loss(p, t)}),
        "with twice the num_targets; expected h",
    ),
    "loss of its own count": ("losses", loss(lambda p, t, n: {"loss_a": summed(p, t) / len(t)}), "expected half"),
    "loss mean / num": (
        "losses",
        loss(lambda p, t, n: {"loss_a": F.l1_loss(p, t) / n}),
        "same targets twice with twice the num_targets; expected the same",
    ),
    "loss of nothing": (
        "losses",
        loss(lambda p, t, n: {"loss_a": summed(p, t) / n * (summed(p, t) / summed(p, t)).detach()}),
        "loss_a is nan without targets; expected 0",
    ),
    "loss of nothing detached": (
        "losses",
        loss(lambda p, t, n: {"loss_a": summed(p, t) / n if len(t) else torch.zeros(())}),
        "not connected to the head without targets",
    ),
    "unused parameter": ("gradients", head(__init__=unused_parameter), "no gradient reaches .*unused.weight"),
    "cut off": (
        "gradients",
        head(forward=lambda self, e: GoodHead.forward(self, e.detach())),
        "no gradient reaches .*the task token|the task token's gradient is zero",
    ),
    "gradient not finite": (
        "gradients",
        points(lambda p, e: {"points_xy": p + (p - p.detach()).abs().sqrt()}),
        "the gradient is not finite at",
    ),
    "zero gradient": (
        "gradients",
        points(lambda p, e: {"points_xy": 0 * p + e[:, :2]}),
        "every gradient of the head is",
    ),
    "thaws": (
        "gradients",
        head(__init__=with_frozen_encoder, forward=thawing),
        "frozen weights got gradients: .*encoder",
    ),
    "early return": (
        "gradients_without_task_tokens",
        points(lambda p, e: {"points_xy": p if len(e) else torch.zeros(0, 2)}),
        "the gradient of proj.weight is missing for an empty batch",
    ),
    "hidden state": (
        "save_and_load",
        head(
            __init__=with_hidden_state,
            forward=lambda self, e: {"points_xy": GoodHead.forward(self, e)["points_xy"] + self.offset},
        ),
        "output 'points_xy' differs after saving and loading",
    ),
    "counts heads": (
        "beside_another_head",
        head(
            __init__=counting,
            forward=lambda self, e: {"points_xy": GoodHead.forward(self, e)["points_xy"] * type(self).built},
        ),
        r"output 'points_xy' differs with heads=\['under_test', 'kit_neighbour'\] and 0 task tokens",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_head_fails(kit, case, tmp_path):
    name, bad, message = BAD[case]
    with pytest.raises(AssertionError, match=message):
        run(kit(bad), f"test_{name}", tmp_path)


def test_a_head_that_is_no_task_head_fails(kit):
    with pytest.raises(AssertionError, match=r"Stray must derive from tpo_plugin\.TaskHead"):
        kit(
            type("Stray", (nn.Module,), {"__init__": lambda self, config, size: nn.Module.__init__(self)})
        ).test_outputs()


def test_a_value_that_json_cannot_hold_fails(kit):
    bad = head(to_json=lambda self, value: math.nan)
    with pytest.raises(ValueError, match="not JSON compliant"):
        kit(bad).test_outputs()
    assert json.dumps(math.nan) == "NaN"  # and without allow_nan=False it would pass


def test_changing_the_host_fails(kit, monkeypatch):
    monkeypatch.setattr(nn.Linear, "forward", nn.Linear.forward)  # put back whatever the head does to it

    def patching(self: Any, config: GoodConfig, hidden_size: int) -> None:
        GoodHead.__init__(self, config, hidden_size)
        nn.Linear.forward = lambda module, x: F.linear(x, module.weight, module.bias) * 1.001

    with pytest.raises(AssertionError, match="applying the head changes the host's outputs"):
        kit(head(__init__=patching)).test_host_is_left_alone()


def test_changing_the_host_in_a_forward_fails(kit, monkeypatch):
    monkeypatch.setattr(nn.Linear, "forward", nn.Linear.forward)

    def patching(self: Any, e_ND: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs = GoodHead.forward(self, e_ND)
        nn.Linear.forward = lambda module, x: F.linear(x, module.weight, module.bias) * 1.001
        return outputs

    with pytest.raises(AssertionError, match="a forward with task tokens changes the host's outputs"):
        kit(head(forward=patching)).test_host_is_left_alone()


def test_a_removal_that_leaves_something_fails(kit, monkeypatch):
    monkeypatch.setattr(testing, "remove_tpo", lambda model: model)
    with pytest.raises(AssertionError, match="after remove_tpo the host's weights differ"):
        kit().test_host_is_left_alone()


@pytest.mark.parametrize(
    ("part", "leave"),
    [
        ("requires_grad flags", lambda model: model.lm_head.requires_grad_(False)),
        ("training flags", lambda model: model.train()),
        ("attributes", lambda model: setattr(model, "forward", model.forward)),
        ("hooks", lambda model: model.lm_head.register_forward_hook(lambda *args: None)),
    ],
)
def test_what_a_removal_leaves_is_named(kit, monkeypatch, part, leave):
    def remove(model: Any) -> None:
        tpo.remove_tpo(model)
        leave(model)

    monkeypatch.setattr(testing, "remove_tpo", remove)
    with pytest.raises(AssertionError, match=f"after remove_tpo the host's {part} differ"):
        kit().test_host_is_left_alone()


def test_a_file_with_other_weights_fails(kit, monkeypatch, tmp_path):
    from safetensors.torch import save_file

    def save_pretrained(self: Any, directory: Path) -> None:
        save_file({"model.norm.weight": torch.zeros(2)}, directory / "tpo_model.safetensors")

    monkeypatch.setattr(tpo.TaskPreferenceModel, "save_pretrained", save_pretrained)
    with pytest.raises(AssertionError, match=r"more than the head's and its tokens' weights: \['model.norm.weight'\]"):
        kit().test_save_and_load(tmp_path)


def test_loading_other_weights_fails(kit, monkeypatch, tmp_path):
    def load(model: Any, directory: Path, tokenizer: Any) -> Any:
        loaded = tpo.load_tpo(model, directory, tokenizer)
        loaded.tpo.heads["under_test"].proj.weight.data[0, 0] += 1e-3
        return loaded

    monkeypatch.setattr(testing, "load_tpo", load)
    with pytest.raises(
        AssertionError, match=r"weights differ after saving and loading: \['heads.under_test.proj.weight'\]"
    ):
        kit().test_save_and_load(tmp_path)


# -- 9: overriding -----------------------------------------------------------------------------------------------------


def overriding(*marks: pytest.MarkDecorator) -> type[Kit]:
    def method(self: Kit) -> None:
        pass

    for mark in marks:
        method = mark(method)
    return type("Overriding", (Kit,), {"test_losses": method})


@pytest.mark.parametrize(
    "kit_class",
    [
        overriding(),
        overriding(pytest.mark.xfail),
        overriding(pytest.mark.skip(reason="never")),
        type("Overriding", (Kit,), {"test_losses": None}),
    ],
    ids=["unmarked", "xfail without a reason", "skip", "None"],
)
def test_overriding_a_standard_test_fails(kit, kit_class):
    with pytest.raises(AssertionError, match="Overriding overrides test_losses; remove that, or mark it"):
        kit(kit_class=kit_class).test_no_standard_test_is_overridden()


def test_an_expected_failure_with_its_reason_may_override(kit):
    kit_class = overriding(pytest.mark.xfail(reason="pairs are formed across the batch"))
    kit(kit_class=kit_class).test_no_standard_test_is_overridden()


def test_every_check_has_a_head_that_fails_it():
    here = Path(__file__).read_text(encoding="utf-8")
    covered = {f"test_{name}" for name, _, _ in BAD.values()}
    for name in STANDARD_TESTS:
        assert name in covered or f".{name}()" in here, f"no head is built to fail {name}"
