"""Finds a head's placeholder that was tokenised as text: it would be learned letter by letter, and its task be lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tpo_plugin.data.format import RecordFormat
from tpo_plugin.errors import TPOError
from tpo_plugin.tokens import HeadTokens


class LiteralPlaceholders:
    """Looks for placeholders by the text of ids, for `<region>` merges with its neighbours into ever other tokens."""

    def __init__(self, tokenizer: Any, format: RecordFormat, tokens: Mapping[str, HeadTokens]) -> None:
        self.tokenizer, self.placeholder = tokenizer, format.placeholder
        special = {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids}
        self.own = torch.tensor([i for t in tokens.values() for i in t.by_kind().values()])
        # Most rows have no such token, so they need not be decoded.
        openings = [i for token, i in tokenizer.get_vocab().items() if "<" in token and i not in special]
        self.openings = torch.tensor(openings, dtype=torch.int64)

    def check(self, input_ids: Tensor, places: Sequence[str]) -> None:
        """Raises `TPOError` for a row [T] of `input_ids` [B, T] with the text of a placeholder in it."""
        ids = input_ids.cpu()
        for row in torch.isin(ids, self.openings).any(-1).nonzero().flatten().tolist():
            kept = ids[row][(ids[row] >= 0) & ~torch.isin(ids[row], self.own)]
            text = self.tokenizer.decode(kept.tolist())
            found = self.placeholder.search(text)
            if found:
                place = places[row] if len(places) == len(ids) else f"row {row} of the batch"
                around = text[max(0, found.start() - 40) : found.end() + 20]
                raise TPOError(
                    f"{place}: the model would be fed the text of the placeholder {found[0]} (in {around!r}): its row "
                    "was tokenised where tpo run could not see its tasks. Give the tasks in the rows that the trainer "
                    "reads, under 'tasks', or by --data with the id of each; clear a cache of tokenised data that was "
                    "made without tpo run"
                )
