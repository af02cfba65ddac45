"""What a demo measured: a table for the terminal, and one HTML file with pictures."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from tpo_shapes import figures
from tpo_shapes.confidence import CONFIDENCE_NOTE, confidence_rows, reliability_plot
from tpo_shapes.evaluate import GIVEN, Answer, Question
from tpo_shapes.questions import CHAT, CLIP_CHAT

TPO, FROZEN, BASELINE, CONSTANT, HOST = "TPO", "frozen host", "text, MLP", "constant", "before TPO"

MEASURES = (
    ("pictures: box when asked", "images", "box_when_asked"),
    ("pictures: box not asked", "images", "box_otherwise"),
    ("pictures: Acc@0.5", "images", "acc50"),
    ("pictures: mean IoU", "images", "mean_iou"),
    ("pictures: box given", "images", "given"),
    ("pictures: chat", "images", "chat"),
    ("clips: box when asked", "clips", "box_when_asked"),
    ("clips: box not asked", "clips", "box_otherwise"),
    ("clips: Acc@0.5", "clips", "acc50"),
    ("clips: mean IoU", "clips", "mean_iou"),
    ("clips: box given", "clips", "given"),
    ("clips: chat", "clips", "chat"),
    ("moments: when asked", "clips", "moment_when_asked"),
    ("moments: not asked", "clips", "moment_otherwise"),
    ("moments: R@1 at IoU 0.3", "clips", "r1_30"),
    ("moments: R@1 at IoU 0.5", "clips", "r1_50"),
    ("moments: R@1 at IoU 0.7", "clips", "r1_70"),
    ("moments: mean IoU", "clips", "moment_iou"),
    ("pictures: mask not asked", "images", "mask_otherwise"),
    ("clips: mask not asked", "clips", "mask_otherwise"),
)
"""Title of a line of the table, and where its number stands in the results of a model."""

NOTE = (
    "In percent, but the mean IoUs. Held-out scenes, over photographs never trained on; every answer is generated. "
    "When asked, not asked: questions about a box (a moment), and all others, whose answer calls for one (emits the "
    "trigger; has the numbers). Acc@0.5, R@1, mean IoU: of the box, or of the first moment with the true one that fits "
    "it best; 0 without one. Box given: what is in a box that the user gives, its colour, its shape; the mean of the "
    "three. Chat: words exactly right, mean over the kinds of question. Frozen host: heads, task tokens and "
    "triggers alone train, for half of the steps, on answers of a trigger without words; its chat is the host's, but "
    "where it emits a trigger. Text, MLP: the same host, LoRA, stages, steps and records without "
    "masks, where boxes are numbers in the conversation (the word embeddings train too, as the host never learned "
    "numbers) and moments come from an MLP in the place of CG-DETR. Constant: the box and the moment that are right "
    "most often in training."
)
SMALL = (
    ("Is the box right? (pictures)", "images", "acc50"),
    ("Is the box right? (clips)", "clips", "acc50"),
    ("Is the moment right? (clips)", "clips", "r1_50"),
    ("Does it find boxes nobody asked for?", "images", "box_otherwise"),
    ("Does it answer in words? (pictures)", "images", "chat"),
)
SMALL_MASKS = (("outline", "How well does the mask fit? (pictures)"), ("follow", "How well does the mask fit? (clips)"))
"""The columns of the report's first table, as the questions that they answer."""
SMALL_NOTE = (
    "In percent of the questions. A box or a moment is right where it overlaps the true one by at least a half (IoU); "
    "an answer in words where it is word for word the expected one. How well a mask fits is J&F, the mean of the "
    "overlap of the masks and that of their outlines."
)
_INEXACT = ("mean_iou", "moment_iou")
OF_CONSTANT = ("acc50", "mean_iou", "r1_30", "r1_50", "r1_70", "moment_iou")
"""What a constant answer is measured by."""


MASK_KINDS = {
    "outline": "pictures: outline it",
    "follow": "clips: follow it",
    "follow_given": "clips: follow what a box gives",
}
MASK_SCORES = ("called", "J&F", "J", "F")
MASK_NOTE = (
    "In percent. Called: how many answers have a mask. J: overlap of the masks, F: of their outlines, over all frames, "
    "without a mask 0; the mean over questions. What is to be followed is to be seen in the first frame; it may leave, "
    "come back, and turn. A given box reaches the mask head through the language model alone. "
    "Filled box: that of the region head, in clips of its answers to questions about four moments, with straight lines "
    "between them; the given box where one is given. True box: the same SAM 2, prompted by the true first box."
)


def mask_cells(results: dict[str, Any]) -> dict[str, list[str]]:
    """The numbers of the table of masks as text: for each measure one of each source of masks."""
    return {
        f"{title}, {key}": [_cell(found[kind].get(key), key) for found in results["masks"].values()]
        for kind, title in MASK_KINDS.items()
        for key in MASK_SCORES
    }


def mask_table(results: dict[str, Any]) -> Table:
    """What the masks are worth."""
    asked = ", ".join(f"{found['num']} {kind}" for kind, found in results["masks"][TPO].items())
    caption = f"{MASK_NOTE} Questions: {asked}."
    shown = Table(title="Masks", caption=caption, box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    shown.add_column("", no_wrap=True)
    for name in results["masks"]:
        shown.add_column(name, justify="right", max_width=8, style="bold" if name == TPO else "")
    for title, values in mask_cells(results).items():
        shown.add_row(title, *values)
    return shown


_CONFIDENCE_HEAD = ("TPO's scores", "AP@0.5", "AP", "calibration error")


def confidence_table(results: dict[str, Any]) -> Table:
    """What the heads' scores are worth."""
    shown = Table(title="Scores", caption=CONFIDENCE_NOTE, box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    for number, title in enumerate(_CONFIDENCE_HEAD):
        shown.add_column(title if number else "", justify="right" if number else "left", no_wrap=not number)
    for row in confidence_rows(results):
        shown.add_row(*row)
    return shown


def cells(results: dict[str, Any]) -> dict[str, list[str]]:
    """The numbers of the table as text: for each measure one of each model."""
    lines = {}
    for title, media, key in MEASURES:
        values = [
            None if name == CONSTANT and key not in OF_CONSTANT else scores[media][key]
            for name, scores in results["rows"].items()
        ]
        lines[title] = [_cell(value, key) for value in values]
    seconds = [results["seconds"]["cpu"].get(name, {}).get("training") for name in results["rows"]]
    lines["training, CPU minutes"] = ["-" if value is None else f"{value / 60:.1f}" for value in seconds]
    return lines


def _cell(value: float | None, key: str) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if key in _INEXACT else f"{100 * value:.1f}"


def table(results: dict[str, Any]) -> Table:
    """The one table of a run."""
    counts = results["rows"][TPO]
    asked = ", ".join(
        f"{c['num_region']} + {c['num_moment']} + {c['num_other']} about {media}" for media, c in counts.items()
    )
    title = f"Held-out scenes, seed {results['seed']}"
    title += " (quick: the path, not the quality)" if results["quick"] else ""
    caption = f"{NOTE} Questions (box, moment, other): {asked}. {took(results)}"
    shown = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    shown.add_column("", no_wrap=True)
    for name in results["rows"]:
        shown.add_column(name, justify="right", max_width=8, style="bold" if name == TPO else "")
    for title, values in cells(results).items():
        shown.add_row(title, *values)
    return shown


def took(results: dict[str, Any]) -> str:
    """How long the demo took, over all of its calls."""
    seconds = results["seconds"]
    calls = "" if seconds["calls"] == 1 else f", over {seconds['calls']} calls"
    return f"{seconds['wall'] / 60:.1f} minutes in all{calls}."


def write_report(
    directory: Path, results: dict[str, Any], questions: list[Question], answers: dict[str, list[Answer]]
) -> Path:
    """Writes report.html: pictures and clips, one small table, and then all that was measured."""
    pairs = list(zip(questions, answers[TPO], strict=True))
    body = [
        "<h1>What the demo's model finds</h1>",
        "<p class=warn>A quick run: it shows the path, not the quality.</p>" if results["quick"] else "",
        "<p>Held-out scenes, over photographs never trained on; every answer is generated, and the examples are taken "
        "at even distances, not picked.</p>",
        *_examples(list(zip(questions, answers[TPO], answers[BASELINE], strict=True)), pairs),
        "<h2>How often is it right?</h2>",
        _small_table(results),
        f"<p>{html.escape(SMALL_NOTE)}</p>",
        "<details><summary>All that was measured</summary>",
        *_all_numbers(directory, results),
        "</details>",
    ]
    path = directory / "report.html"
    path.write_text(_PAGE.replace("BODY", "\n".join(body)), encoding="utf-8")
    return path


def _examples(asked: list[tuple[Question, Answer, Answer]], pairs: list[tuple[Question, Answer]]) -> list[str]:
    """Pictures and clips of each kind of question."""
    boxes = [pair for pair in asked if pair[0].wanted == "box"]
    moments = [pair for pair in asked if pair[0].wanted == "moment"]
    given = [pair for pair in asked if pair[0].kind in GIVEN and not pair[0].clip]
    chat = [pair for pair in asked if pair[0].kind not in GIVEN and pair[0].wanted is None and not pair[0].clip]
    masks = [
        figures.mask_figure(question, answer, TPO)
        for kind, number in (("outline", 5), ("follow", 5), ("follow_given", 5))
        for question, answer in _spread([pair for pair in pairs if pair[0].kind == kind], number)
    ]
    return [
        "<h2>Where is it?</h2><p><b class=true>Blue</b>: the true box. <b class=found>Orange</b>: the head's. "
        "<b class=text>Violet</b>: the box that the same training says in words.</p>",
        _gallery([figures.box_figure(*pair) for pair in _spread([p for p in boxes if not p[0].clip], 10)]),
        "<h2>Where is it in a clip?</h2><p>Each clip stands at the frame that its question names, and plays.</p>",
        _gallery([figures.box_figure(*pair) for pair in _spread([p for p in boxes if p[0].clip], 5)]),
        "<h2>Which pixels?</h2><p><b class=found>Orange</b>: the mask head's. <b class=true>Blue</b>: the outline of "
        "the true ones, and the box that a question gives.</p>",
        _gallery(masks),
        "<h2>When is it?</h2><p>The clip, and all of it from left to right.</p>",
        _gallery([figures.moment_figure(*pair) for pair in _spread(moments, 5)]),
        "<h2>What does it say?</h2><p><b class=true>Blue</b>: the box that a question gives.</p>",
        _gallery([figures.box_figure(*pair) for pair in [*_spread(chat, 5), *_spread(given, 5)]]),
    ]


def _small_table(results: dict[str, Any]) -> str:
    """A line for each model, a column for each question."""
    shown = []
    for name, scores in results["rows"].items():
        values = [
            None if name == CONSTANT and key not in OF_CONSTANT else scores[media][key] for _, media, key in SMALL
        ]
        outlined = [results["masks"].get(name, {}).get(kind, {}).get("J&F") for kind, _ in SMALL_MASKS]
        shown.append([name, *(_cell(value, key) for value, (_, _, key) in zip(values, SMALL, strict=True))])
        shown[-1] += [_cell(value, "J&F") for value in outlined]
    return _html_table(["", *(title for title, _, _ in SMALL), *(title for _, title in SMALL_MASKS)], shown)


def _all_numbers(directory: Path, results: dict[str, Any]) -> list[str]:
    return [
        _html_table(["", *results["rows"]], [[k, *v] for k, v in cells(results).items()]),
        f"<p>{html.escape(NOTE)}</p>",
        _html_table(["", *results["masks"]], [[k, *v] for k, v in mask_cells(results).items()]),
        f"<p>{html.escape(MASK_NOTE)}</p>",
        _html_table(list(_CONFIDENCE_HEAD), confidence_rows(results)),
        f"<p>{html.escape(CONFIDENCE_NOTE)}</p>",
        f"<p>Seed {results['seed']}. {took(results)}</p>",
        "<h3>Each kind of question</h3>",
        _kinds(results),
        "<h2>Are the scores right?</h2><p>The overlap that was reached over the head's score; grey where they agree. "
        "The larger a dot, the more answers.</p>",
        reliability_plot(results),
        "<h2>Losses</h2><p>Orange: TPO, violet: text, MLP. Grey: where a stage ends.</p>",
        *_curves(directory),
    ]


def _gallery(shown: list[str]) -> str:
    return f"<div class=gallery>{''.join(shown)}</div>"


def _spread(pairs: list[Any], number: int) -> list[Any]:
    """Examples taken at even distances, not picked."""
    step = max(1, len(pairs) // number)
    return pairs[::step][:number]


def _kinds(results: dict[str, Any]) -> str:
    rows = []
    names = [name for name in results["rows"] if name != CONSTANT]
    for media, kinds in (("images", CHAT), ("clips", CLIP_CHAT)):
        for kind in (*kinds, *GIVEN):
            values = [results["rows"][name][media]["kinds"][kind] for name in names]
            rows.append([f"{media}: {kind}", *(_cell(value, kind) for value in values)])
    return _html_table(["", *names], rows)


def _html_table(head: list[str], rows: list[list[str]]) -> str:
    def line(cells: list[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return "<table>" + line(head, "th") + "".join(line(row, "td") for row in rows) + "</table>"


# -- curves ------------------------------------------------------------------------------------------------------------


def _curves(directory: Path) -> list[str]:
    runs = {"found": read_losses(directory), "text": read_losses(directory / "baseline")}
    named = (
        ("loss_mllm", "conversation", ("found", "text")),
        ("loss_assign", "assignment", ("found",)),
        ("loss_region", "region", ("found",)),
        ("loss_temporal", "temporal", ("found",)),
        ("loss_mask", "mask", ("found",)),
    )
    return [
        curve(title, {kind: runs[kind][key] for kind in kinds}, runs["found"]["ends"]) for key, title, kinds in named
    ]


def read_losses(run: Path) -> dict[str, list[Any]]:
    """(step, value) of each loss over all stages of a run, and the steps at which stages end."""
    found: dict[str, list[Any]] = {
        name: [] for name in ("loss_mllm", "loss_assign", "loss_region", "loss_temporal", "loss_mask", "ends")
    }
    begin = 0
    for stage in json.loads((run / "run.json").read_text(encoding="utf-8"))["stages"].values():
        for entry in stage["log"]:
            for name in found:
                if name in entry:
                    found[name].append((begin + entry["step"], entry[name]))
        begin += stage["steps"]
        found["ends"].append(begin)
    return found


def curve(title: str, lines: dict[str, list[tuple[int, float]]], ends: list[int]) -> str:
    """An inline SVG of one loss over the steps."""
    width, height, left, bottom = 560, 200, 44, 22
    last = max(ends)
    top = max((value for points in lines.values() for _, value in points), default=1.0) or 1.0

    def at(step: float, value: float) -> str:
        x = left + step / last * (width - left - 8)
        return f"{x:.1f},{8 + (1 - value / top) * (height - bottom - 8):.1f}"

    marks = "".join(f'<polyline points="{at(s, 0)} {at(s, top)}" stroke="#ddd" fill="none"/>' for s in ends[:-1])
    for value in (0.0, top / 2, top):
        x, y = at(0, value).split(",")
        marks += f'<text x="{left - 6}" y="{float(y) + 4}" text-anchor="end">{value:.2g}</text>'
        marks += f'<polyline points="{x},{y} {at(last, value)}" stroke="#eee" fill="none"/>'
    for step in (0, *ends):
        marks += f'<text x="{at(step, 0).split(",")[0]}" y="{height - 6}" text-anchor="middle">{step}</text>'
    for kind, points in lines.items():
        places = " ".join(at(step, value) for step, value in points)
        marks += f'<polyline points="{places}" stroke="{figures.COLOURS[kind]}" fill="none" stroke-width="1.5"/>'
    return f'<h3>{html.escape(title)}</h3><svg viewBox="0 0 {width} {height}" width="{width}">{marks}</svg>'


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>tpo demo</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1320px; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse } th, td { padding: .3em .7em; border-bottom: 1px solid #ddd; text-align: right }
th { vertical-align: bottom; max-width: 9em; font-weight: 600 }
th:first-child, td:first-child { text-align: left; white-space: nowrap } h2 { margin-top: 2em }
summary { cursor: pointer; margin: 2em 0 1em }
.gallery { display: flex; flex-wrap: wrap; gap: 14px } figure { margin: 0; max-width: 240px }
.small > img, .small > video { width: 240px } img, video { max-width: 100%; display: block }
.wide { max-width: none; margin-bottom: 1em }
.beside { display: flex; gap: 14px; align-items: flex-start }
.beside > video { width: 180px } .beside > img { width: 860px; min-width: 0 }
figcaption { font-size: 13px } svg text { font-size: 11px; fill: #777 }
.warn { color: #b00; font-weight: bold }
.true { color: #1e90ff } .found { color: #ff8c00 } .text { color: #b050ff }
</style>
BODY
</html>
"""
