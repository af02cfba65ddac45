"""What the ablation's tables say of numbers made by hand."""

import pytest
from tpo_shapes.cells import CELLS, COMPARISONS, Comparison
from tpo_shapes.effect import (
    CONTRADICTED,
    DIRECTION,
    MEASURES,
    NOT,
    REPRODUCED,
    Difference,
    cells_table,
    claims_table,
    difference,
    differences_table,
    draw,
    paired,
    verdict,
)

BOXES, LOSS = MEASURES["boxes"], MEASURES["words"]


def result(cell, seed, **measures):
    return {"cell": cell, "seed": seed, "seconds": 60 + seed, "measures": dict.fromkeys(MEASURES) | measures}


RESULTS = [
    result("region", 0, boxes=0.50, chat=0.9),
    result("region", 1, boxes=0.60, chat=0.9),
    result("region", 2, boxes=0.70, chat=0.9),
    result("region-mask", 0, boxes=0.54, masks=0.5),
    result("region-mask", 1, boxes=0.66, masks=0.5),
    result("region-mask", 2, boxes=0.75, masks=0.5),
    result("region-mask", 3, boxes=0.10, masks=0.5),  # a seed that "region" lacks
    result("retain", 1, chat=0.95),
    result("all-chat", 1, chat=0.94),
]
(MASKS_HELP,) = [c for c in COMPARISONS if (c.cell, c.other) == ("region-mask", "region")]


def test_the_interval_of_paired_differences():
    # 4, 6, 5 points: mean 5, standard deviation 1, t(2) = 4.303
    found = difference(RESULTS, MASKS_HELP, "boxes")
    assert (found.number, found.mean) == (3, pytest.approx(0.05))
    assert found.half == pytest.approx(4.302653 * 0.01 / 3**0.5, rel=1e-5)
    assert found.shown(BOXES) == "+5.0 [+2.5, +7.5]"
    assert paired([0.02]) == Difference(1, 0.02, None)
    assert paired([0.0, 0.02]).half == pytest.approx(12.7062 * 0.0141421 / 2**0.5, rel=1e-4)
    assert difference(RESULTS, Comparison(cell="all", other="region", measures={}), "boxes") is None


@pytest.mark.parametrize(
    ("mean", "half", "paper", "said"),
    [
        (0.05, 0.025, 2.9, REPRODUCED),
        (0.05, 0.025, 7.4, REPRODUCED),
        (0.05, 0.025, 7.6, DIRECTION),
        (0.05, 0.025, None, DIRECTION),
        (0.05, 0.05, 2.9, NOT),
        (-0.01, 0.02, 2.9, NOT),
        (-0.05, 0.025, 2.9, CONTRADICTED),
        (0.05, None, 2.9, "one seed: no interval"),
    ],
)
def test_a_verdict_is_the_rules(mean, half, paper, said):
    assert verdict(Difference(3, mean, half), BOXES, paper) == said


def test_of_a_loss_less_is_better():
    assert verdict(Difference(3, -0.01, 0.005), LOSS, None) == DIRECTION
    assert verdict(Difference(3, 0.01, 0.005), LOSS, None) == CONTRADICTED


def test_tables_have_what_was_measured():
    _, (header, *rows) = cells_table(RESULTS)
    assert [row[0] for row in rows] == [CELLS[n].about for n in ("region", "region-mask", "all-chat", "retain")]
    region = dict(zip(header, rows[0], strict=True))
    assert region["boxes: Acc@0.5"] == "60.0 ± 10.0"
    assert region["conversation"] == "90.0 ± 0.0"
    assert region["masks: J&F"] == "-"
    assert (region["seeds"], region["CPU seconds"]) == ("3", "61")
    assert dict(zip(header, rows[3], strict=True))["conversation"] == "95.0"
    _, (_, *rows) = claims_table(RESULTS)
    assert rows == [(MASKS_HELP.claim, "boxes: Acc@0.5", "+2.9", "+5.0 [+2.5, +7.5]", "3", REPRODUCED)]
    _, (_, *rows) = differences_table(RESULTS)
    assert rows == [(CELLS["retain"].about, CELLS["all-chat"].about, "conversation", "+1.0", "1")]


def test_plots_are_drawn_and_the_same_again(tmp_path):
    pytest.importorskip("matplotlib")
    for folder in ("a", "b"):
        draw(RESULTS, tmp_path / folder)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["effect_differences.svg", "effect_together.svg"]
    for name in names:
        text = (tmp_path / "a" / name).read_text()
        assert text == (tmp_path / "b" / name).read_text()
        assert "</svg>" in text
