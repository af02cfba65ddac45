"""The results as a table."""

from __future__ import annotations

from statistics import mean
from typing import Any

ROWS = {
    "box when asked": "emission",
    "box in shapes chat": "false_chat",
    "box in general prompts": "false_general",
    "Acc@0.5": "acc@0.5",
    "mean IoU": "mean_iou",
    "AP at IoU 0.5": "ap@0.5",
    "shapes chat, whole sentence right": "chat",
    "own general answers, agreement": "agreement",
}
"""In percent."""
OTHERS = {
    "own general answers, perplexity": ("perplexity", 2),
    "CPU ms an answer, one by one": ("cpu_ms_an_answer", 0),
    "boxes a CPU second, batch 32": ("boxes_a_cpu_s", 1),
}


def as_markdown(results: dict[str, Any]) -> str:
    """A row for each measure, in percent but for the last three: the mean over the seeds, the least and the most."""
    seeds = list(results["seeds"].values())
    names = list(seeds[0])
    lines = [f"Seeds {', '.join(results['seeds'])}", "", f"| | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for title, key in ROWS.items():
        lines.append(f"| {title} | {' | '.join(_cell([seed[name][key] for seed in seeds]) for name in names)} |")
    for title, (key, digits) in OTHERS.items():
        cells = [f"{mean(seed[name][key] for seed in seeds):.{digits}f}" for name in names]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(values: list[float | None]) -> str:
    known = [100 * value for value in values if value is not None]
    if not known:
        return "-"
    spread = f" ({min(known):.1f} to {max(known):.1f})" if len(known) > 1 else ""
    return f"{mean(known):.1f}{spread}"
