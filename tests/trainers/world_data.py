"""What the records of `world` say."""

from __future__ import annotations

QUESTION = "Where is the truck?"
ANSWERS: list[tuple[str, list[list[float]]]] = [
    ("It is here: <region>.", [[0.1, 0.2, 0.5, 0.6]]),
    (
        "One is at <region>, and further to the right there are two: <region>.",
        [[0.0, 0.1, 0.3, 0.4], [0.5, 0.1, 0.9, 1.0]],
    ),
    ("There is none.", []),
    ("<region>", [[0.25, 0.25, 0.75, 0.5]]),
]
"""Answers with the box of each placeholder."""

TASKS = [[{"head": "region", "boxes": [box]} for box in boxes] for _, boxes in ANSWERS]
