"""Tables of several seeds: means, spreads, and the seed that is worst."""

from tpo_shapes.questions import CHAT, CLIP_CHAT, MASKS
from tpo_shapes.report import BASELINE, CONSTANT, FROZEN, HOST, MEASURES, TPO
from tpo_shapes.seeds import chat_table, masks_table, scores_table, summary_table

NAMES = (TPO, FROZEN, BASELINE, CONSTANT, HOST)


def results(acc, unasked, colour):
    """Of one seed: all measures 0.5 but some of TPO's; a kind of conversation 0.9, the constant has none."""
    rows = {}
    for name in NAMES:
        rows[name] = {"images": {}, "clips": {}}
        for _, media, key in MEASURES:
            rows[name][media][key] = 0.5
        for media, kinds in (("images", CHAT), ("clips", CLIP_CHAT)):
            rows[name][media]["kinds"] = dict.fromkeys(kinds, None if name == CONSTANT else 0.9)
    rows[TPO]["images"] |= {"acc50": acc, "box_otherwise": unasked}
    rows[TPO]["images"]["kinds"]["colour"] = colour
    masks = {name: {kind: {"J&F": 0.7} for kind in MASKS} for name in (TPO, FROZEN, "filled box", "true box")}
    return {"rows": rows, "masks": masks}


SEEDS = [results(0.9, 0.0, 0.9), results(0.8, 0.02, 0.88)]


def test_a_measure_has_its_mean_its_spread_and_its_worst_seed():
    rows = {row[0]: row[1:] for row in scores_table(SEEDS)}
    assert rows[""] == ("TPO", "spread", "worst", *NAMES[1:])
    assert rows["pictures: Acc@0.5"] == ("85.0", "7.1", "80.0", "50.0", "50.0", "50.0", "50.0")
    assert rows["pictures: box not asked"][:3] == ("1.0", "1.4", "2.0"), "the less the better"
    assert rows["pictures: chat"][-2:] == ("-", "50.0"), "a constant does not talk"
    assert [row[0] for row in scores_table(SEEDS, ("clips: chat",))] == ["", "clips: chat"]
    assert scores_table(SEEDS[:1])[1][2] == "-", "one seed has no spread"


def test_conversation_is_compared_with_the_host_seed_by_seed():
    rows = {row[0]: row[1:] for row in chat_table(SEEDS)}
    assert rows[""] == (HOST, TPO, "the most that a seed lost", FROZEN, BASELINE)
    assert rows["pictures: colour"] == ("90.0", "89.0", "2.0", "90.0", "90.0")
    assert rows["clips: event"][2] == "0.0"
    assert len(rows) == 1 + len(CHAT) + len(CLIP_CHAT)


def test_masks_and_the_summary():
    assert masks_table(SEEDS)[1][1:] == ("70.0", "0.0", "70.0", "70.0", "70.0", "70.0")
    rows = {row[0]: row[1:] for row in summary_table(SEEDS)}
    assert rows[TPO][0] == "85.0"
    assert rows["its worst seed"][0] == "80.0"
    assert rows[CONSTANT] == ("50.0", "50.0", "50.0", "-", "-", "-", "-")
