"""The conformance kit: a good head passes it, and its tests are not overridden."""

from __future__ import annotations

import pytest
from good_head import STANDARD_TESTS, GoodHead, Kit, run

import tpo_plugin as tpo
from tpo_plugin.testing import TaskHeadTests


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
