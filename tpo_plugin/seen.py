"""What heads may see of a host's forward: states of the prompt's text, and features of the video's frames.

Suffixes: B batch, T sequence, N task tokens, D hidden size, L text tokens, F frames, C width of the vision tower, P
patches, n frames that the tower saw.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from tpo_plugin.errors import HostError, TPOError
from tpo_plugin.positions import TextGroups


class HostFeatures:
    """What the host computed of the samples of N task tokens, in the very forward that fed them; with its gradient.

    Computed when it is asked for, so that a head which looks at the frames does not pay for the text.
    """

    def __init__(self, places: Sequence[tuple[int, int]], seen: Seen, nothing: Tensor) -> None:
        self._places, self._seen = places, seen
        self._nothing = nothing
        """What is seen of the frames where there is no task token: [0, C]."""

    @property
    def text(self) -> Tensor:
        """Last hidden states of the question's ordinary tokens, float32 [N, L, D], zero where `text_mask` is False.

        A question is the text between the task token's answer and the answer before it, as far as labels, or
        `TPOCollator`, say where that is: neither labelled nor special tokens, nor media.
        """
        return self._texts[0]

    @property
    def text_mask(self) -> Tensor:
        """bool [N, L]"""
        return self._texts[1]

    @cached_property
    def words(self) -> Tensor:
        """Input embeddings of the same tokens, float32 [N, L, E], zero where `text_mask` is False.

        Training the host, but for its word embeddings, does not move them. Raises `HostError` for a host that embeds
        the question elsewhere, as the encoder of an encoder-decoder does.
        """
        rows = self._seen.word_rows
        if rows is None:
            raise HostError(
                "the input embeddings of the prompt's text were not seen: a head that looks at the question's words "
                "needs input_ids, and a host that embeds them where it embeds the task tokens"
            )
        return self._gathered(rows)[0]

    @property
    def vision(self) -> Tensor:
        """The vision tower's last hidden state of each frame, its mean over patches, float32 [N, F, C]; zero where
        `vision_mask` is False. A tower that merges pairs of frames gives half as many. Only frames of videos.

        Raises `HostError` where what the tower gave cannot be told apart by frames, and `TPOError` where the batch
        does not say how many frames each row has (`task_frames`, as `TPOCollator` gives it).
        """
        return self._visions[0]

    @property
    def vision_mask(self) -> Tensor:
        """bool [N, F]"""
        return self._visions[1]

    @cached_property
    def _texts(self) -> tuple[Tensor, Tensor]:
        rows = self._seen.text_rows
        if rows is None:
            raise HostError(
                "the states of the prompt's text were not seen: a head that looks at them needs input_ids, and a host "
                "whose last hidden state covers the whole prompt"
            )
        return self._gathered(rows)

    def _gathered(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Of rows of all the text those of each task token's question, and their mask."""
        groups = self._seen.text_groups
        starts = [0, *accumulate(len(columns) for _, columns in groups)]
        chosen: list[list[int]] = []
        for row, column in self._places:
            before = [i for i, (r, columns) in enumerate(groups) if r == row and columns[0] < column]
            last = before[-1] if before else None
            indices = [] if last is None else list(range(starts[last], starts[last + 1]))
            inside = [] if last is None else [i for i, c in zip(indices, groups[last][1], strict=True) if c < column]
            chosen.append(inside)
        return _padded([rows.index_select(0, _on(rows.device, indices)) for indices in chosen], rows)

    @cached_property
    def _visions(self) -> tuple[Tensor, Tensor]:
        if not self._places:  # a head runs in every training step, also where no row has a video
            return _padded([], self._nothing)
        frames = self._seen.frame_features()
        if not frames:
            raise TPOError(
                "a head looks at the frames that the host's vision tower saw, and there are none: give a batch with "
                "videos, as TPOCollator makes it (task_frames says how many frames each row has)"
            )
        return _padded([frames[row] for row, _ in self._places], frames[0])


class Seen:
    """What the hooks keep of one forward, or of the prompt of a generation, for `HostFeatures`."""

    def __init__(self, groups: TextGroups, frames: Sequence[Sequence[int]] | None) -> None:
        self.text_groups = groups
        self.text_rows: Tensor | None = None
        """States of all tokens of `text_groups`, [sum of their lengths, D]."""
        self.word_rows: Tensor | None = None
        """Their input embeddings, [sum of their lengths, E]."""
        self.frames = frames
        """For each batch row the number of frames of each of its videos; None where the batch does not say."""
        self.spans: list[list[tuple[int, int]]] | None = None
        """For each batch row [start, stop) of each of its videos among all that the tower saw in its last call, where
        the host says so; then `frames` is not needed."""
        self.layer_output: Any = None
        """What the last layer of the vision tower that is running gave."""
        self.tower_calls: list[tuple[Tensor, Tensor | None]] = []
        """What the vision tower gave, and the grid that it got, for each of its calls in the last forward with any."""
        self._stale = False

    def start_forward(self) -> None:
        """A new forward begins: if the tower runs in it, what it gave before is out of date."""
        self._stale = True

    def keep_tower(self, output: Any, grid: Tensor | None = None) -> None:
        """Adds what the tower gave; `grid` [videos, 3] are frames, height and width where it packs all patches."""
        if self._stale:
            self.tower_calls, self._stale = [], False
        layer_output, self.layer_output = self.layer_output, None
        self.tower_calls.append((tower_states(output, layer_output, packed=grid is not None), grid))

    def keep_prompt(self, hidden_BTD: Tensor, copies: int) -> None:
        """As `keep_text`, of the first forward of a generation, if that covers the prompt."""
        if self.text_rows is None and self._covered(hidden_BTD, copies):
            self.keep_text(hidden_BTD, copies)

    def keep_text(self, hidden_BTD: Tensor, copies: int = 1) -> None:
        """Takes the text's rows out of the last hidden state, in which each sample stands `copies` times."""
        self.text_rows = self._rows_of_text(hidden_BTD, copies)

    def splice(self, groups: TextGroups, spans: list[list[tuple[int, int]]] | None) -> None:
        """The host put media between the text, which stands at `groups` now; `spans` where it says so."""
        self.text_groups, self.spans = groups, spans

    def keep_words(self, embeds_BTE: Tensor, copies: int = 1) -> None:
        """Takes the text's rows out of the first input embeddings that cover it."""
        if self.word_rows is None and self._covered(embeds_BTE, copies):
            self.word_rows = self._rows_of_text(embeds_BTE, copies)

    def _covered(self, states_BTD: Tensor, copies: int) -> bool:
        num_rows, length = states_BTD.shape[:2]
        return all(row * copies < num_rows and columns[-1] < length for row, columns in self.text_groups)

    def _rows_of_text(self, states_BTD: Tensor, copies: int) -> Tensor:
        length = states_BTD.shape[1]
        flat = [row * copies * length + column for row, columns in self.text_groups for column in columns]
        return states_BTD.flatten(0, 1).index_select(0, _on(states_BTD.device, flat))

    def frame_features(self) -> list[Tensor]:
        """For each batch row [F, C]: the mean over patches of each frame of its videos, one video after another."""
        if self.spans is not None and self.tower_calls and any(self.spans):
            frames = _means(*self.tower_calls[-1])
            return [torch.cat([frames[:0], *(frames[start:stop] for start, stop in row)]) for row in self.spans]
        if self.frames is None or not self.tower_calls or not any(map(sum, self.frames)):
            return []
        counts, total = [count for row in self.frames for count in row], sum(map(sum, self.frames))
        calls = [_means(states, grid) for states, grid in self.tower_calls]
        # Images come before videos, which are one call, or one call each.
        frames = calls[-1] if len(calls[-1]) % total == 0 else torch.cat(calls)
        if len(frames) and len(frames) % total == 0:
            copies, merged = len(frames) // total, 1
        elif len(frames) and total % len(frames) == 0 and all(count % (total // len(frames)) == 0 for count in counts):
            copies, merged = 1, total // len(frames)
        else:
            raise HostError(
                f"the vision tower gave {[tuple(states.shape) for states, _ in self.tower_calls]} for videos of "
                f"{counts} frames, so its features cannot be told apart by frames"
            )
        # Beam search repeats each prompt: with all its videos where they are packed, else each of its videos.
        packed = self.tower_calls[-1][1] is not None
        rows = [[sum(row)] if packed else list(row) for row in self.frames]
        parts = iter(frames.split([count // merged for row in rows for count in row for _ in range(copies)])[::copies])
        return [torch.cat([frames[:0], *(next(parts) for _ in row)]) for row in rows]


def _means(states: Tensor, grid: Tensor | None) -> Tensor:
    """[n, C], the mean over patches of each frame that a tower saw, from [n, P, C] or from packed patches [P, C]."""
    if grid is None:
        return states.flatten(0, -3).mean(1) if states.dim() > 2 else states
    sizes = [(t, t * h * w) for t, h, w in grid.tolist()]
    patches, states = sum(size for _, size in sizes), states.flatten(0, -2)
    if not len(states) or patches % len(states):
        raise HostError(f"the vision tower gave {len(states)} patches for videos of {sizes} (frames, patches)")
    merged = patches // len(states)
    parts = states.split([size // merged for _, size in sizes])
    return torch.cat([part.unflatten(0, (t, -1)).mean(1) for part, (t, _) in zip(parts, sizes, strict=True)])


def _padded(parts: Sequence[Tensor], like: Tensor) -> tuple[Tensor, Tensor]:
    """[N, longest, width] and its mask, from N tensors [length, width]."""
    if not parts:
        return like.new_zeros(0, 0, like.shape[-1]).float(), torch.zeros(0, 0, dtype=torch.bool, device=like.device)
    lengths = _on(like.device, [len(part) for part in parts])
    padded = nn.utils.rnn.pad_sequence([part.float() for part in parts], batch_first=True)
    return padded, torch.arange(padded.shape[1], device=like.device) < lengths[:, None]


def _on(device: torch.device, numbers: list[int]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64).to(device, non_blocking=True)


# -- text --------------------------------------------------------------------------------------------------------------


def special_ids(tokenizer: Any, config: Any) -> list[int]:
    """Ids that are no text: the tokenizer's special tokens, and the placeholders of media that a config names."""
    ids = {*tokenizer.all_special_ids, *(i for i, t in tokenizer.added_tokens_decoder.items() if t.special)}
    for kind in ("image", "video", "audio"):
        for name in (f"{kind}_token_id", f"{kind}_token_index"):
            value = getattr(config, name, None)
            ids |= {value} if isinstance(value, int) else set()
    return sorted(ids)


# -- vision ------------------------------------------------------------------------------------------------------------


def tower_grid(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The argument [videos, 3] by which a tower that packs patches knows their frames, heights and widths."""
    for value in (kwargs.get("grid_thw"), *args[1:]):
        if isinstance(value, Tensor) and value.dim() == 2 and value.shape[1] == 3 and not value.is_floating_point():
            return value
    return None


def tower_states(output: Any, layer_output: Any, *, packed: bool) -> Tensor:
    """The last hidden state in what a vision tower returned, before it merges patches.

    transformers 4 returns packed patches already merged, 5 as `last_hidden_state` those before: there what the last
    layer gave, `layer_output`, is the same.
    """
    states = getattr(output, "last_hidden_state", None)
    if isinstance(states, Tensor):
        return states
    if packed and layer_output is not None:
        output = layer_output
    return output if isinstance(output, Tensor) else output[0]
