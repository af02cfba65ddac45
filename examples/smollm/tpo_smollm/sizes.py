"""How much is made, trained and asked: all that decides how long the example takes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Size:
    """Counts of one call. Steps of a stage are optimizer steps of `batch` records, those of boxes alone of `lists`."""

    align_steps: int
    """Of the connector alone, without the language model, 512 patches each."""
    num_pictures: int
    """For the host's conversations, and for each seed's training."""
    num_heldout: int
    """Pictures that the tables ask about, one box and one question of conversation each."""
    num_general: int
    """Written prompts without a picture in training, at most those of `general.TRAIN`."""
    heldout_general: int
    chat_steps: int
    """Of the host's own conversations, before TPO."""
    batch: int
    lists: int
    steps: tuple[int, int, int]
    """Names and triggers; boxes alone; both. Of TPO and of the same with boxes as text."""
    frozen_steps: int
    """Of heads, task tokens and triggers on a host that nothing trains."""
    eval_steps: int
    """Steps between two looks at free answers."""
    general_tokens: int
    """Length of the language model's own answers."""
    timed: int
    """Questions that are answered one by one, by the clock."""


FULL = Size(
    align_steps=1000,
    num_pictures=2000,
    num_heldout=100,
    num_general=240,
    heldout_general=40,
    chat_steps=80,
    batch=8,
    lists=6,
    steps=(20, 240, 40),
    frozen_steps=60,
    eval_steps=10,
    general_tokens=32,
    timed=10,
)
QUICK = Size(
    align_steps=20,
    num_pictures=16,
    num_heldout=4,
    num_general=8,
    heldout_general=4,
    chat_steps=2,
    batch=2,
    lists=2,
    steps=(2, 2, 2),
    frozen_steps=2,
    eval_steps=2,
    general_tokens=8,
    timed=2,
)
"""Shows the path, and teaches nothing."""
