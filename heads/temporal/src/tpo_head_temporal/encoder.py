"""A frozen CLIP or SigLIP of transformers, or a vision tower alone. T frames or words, C width of the features."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

import tpo_plugin as tpo


class Preparer:
    """From uint8 RGB frames [T, H, W, 3] to a model's input; without the model, so that a worker can have it."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, frames: np.ndarray) -> dict[str, Tensor]:
        return dict(self.processor(images=list(frames), return_tensors="pt"))


class Reader:
    """What a CLIP or SigLIP takes of frames and words; without its weights, so that a worker can have it.

    `name` is a folder or a hub name. Raises `TPOError` where it cannot be loaded.
    """

    def __init__(self, name: str) -> None:
        from transformers import AutoConfig, AutoImageProcessor

        self.name = name
        try:
            self.model_config = AutoConfig.from_pretrained(name)
            self.preparer = Preparer(AutoImageProcessor.from_pretrained(name))
        except (OSError, ValueError) as error:
            raise _not_loaded(name, error) from error

    def pixels(self, frames: np.ndarray) -> Tensor:
        """Of uint8 RGB frames [L, H, W, 3] what the model takes, [L, 3, H', W']."""
        return self.preparer(frames)["pixel_values"]

    def word_ids(self, question: str, place: str) -> tuple[Tensor, int]:
        """A question's tokens [T] and how many are its own. Raises `MediaError` for one that the model cannot take."""
        ids = self.token_ids(question)
        if len(ids) > self.max_words:
            raise tpo.MediaError(
                f"{place}: the question has {len(ids)} tokens of the CLIP, which takes {self.max_words}; "
                "expected a shorter one"
            )
        return torch.tensor(self.padded(ids)), len(ids)

    def token_ids(self, text: str) -> list[int]:
        """A text's tokens, all of them."""
        return self._tokenizer(text).input_ids

    @property
    def max_words(self) -> int:
        """So many tokens does the model take."""
        return self.model_config.text_config.max_position_embeddings

    def padded(self, ids: list[int]) -> list[int]:
        """Filled up as the model learned it: a SigLIP's texts have its longest length, and no mask."""
        wanted = self.max_words if self.model_config.model_type.startswith("siglip") else len(ids)
        return ids + [self._tokenizer.pad_token_id] * (wanted - len(ids))

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.name)


def _not_loaded(name: str, error: Exception) -> tpo.TPOError:
    reason = str(error).strip().splitlines()[0]
    return tpo.TPOError(
        f"{name!r} cannot be loaded as a frozen encoder ({reason}); expected a folder or hub name of a CLIP, a "
        "SigLIP or a vision tower, with its image processor"
    )


class FrozenEncoder(Reader):
    """Features of frames and words, float32, not normalised, without gradient.

    `name` is a folder or a hub name. A CLIP or SigLIP gives each frame's vector in the space that it shares with
    texts, and the last hidden state of each word. A vision tower alone, such as a host's own
    (`tower.save_pretrained(folder)`), gives the mean over patches of its last hidden state, and no words. Raises
    `TPOError` where neither can be loaded.
    """

    def __init__(self, name: str, device: str | torch.device = "cpu") -> None:
        from transformers import AutoModel

        super().__init__(name)
        self.device = torch.device(device)
        try:
            self.model = AutoModel.from_pretrained(name).float().eval().requires_grad_(False).to(self.device)
        except (OSError, ValueError) as error:
            raise _not_loaded(name, error) from error
        self.has_text = hasattr(self.model, "text_model")

    @torch.no_grad()
    def encode(self, inputs: Mapping[str, Tensor], batch_size: int = 64) -> Tensor:
        """[T, C] of what `preparer` gave, on the CPU."""
        total = len(next(iter(inputs.values())))
        parts = [self._encode(inputs, slice(start, start + batch_size)) for start in range(0, total, batch_size)]
        return torch.cat(parts)

    def frames(self, frames: np.ndarray) -> Tensor:
        """[T, C] of uint8 RGB frames [T, H, W, 3]."""
        return self.encode(self.preparer(frames))

    @torch.no_grad()
    def words(self, text: str) -> Tensor:
        """[T, C] of a text's tokens, those that begin and end it included; cut to as many as the model takes."""
        if not self.has_text:
            raise tpo.TPOError(f"{self.name!r} is a vision tower and takes no text; expected a CLIP or a SigLIP")
        ids = self._tokenizer(text, truncation=True, max_length=self.max_words).input_ids
        output = self.model.text_model(input_ids=torch.tensor([self.padded(ids)], device=self.device))
        return output.last_hidden_state[0, : len(ids)].float().cpu()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the weights, in any order and precision, and of how images are prepared.

        It is the same in every release of transformers, which name weights and options differently.
        """
        weights = [weight.detach().cpu().float().contiguous().numpy() for weight in self.model.parameters()]
        parts = sorted(hashlib.sha256(str(weight.shape).encode() + weight.tobytes()).hexdigest() for weight in weights)
        options = self.preparer.processor.to_dict()
        parts += [str([round(float(x), 6) for x in options.get(name) or ()]) for name in ("image_mean", "image_std")]
        prepared = self.preparer(np.zeros((1, 48, 64, 3), np.uint8))
        parts.append(str(tuple(next(iter(prepared.values())).shape)))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def vectors(self, batch: Mapping[str, Tensor]) -> Tensor:
        """[T, C] of prepared frames that are where the model is."""
        if not self.has_text:
            return self.model(**batch).last_hidden_state.mean(1).float()
        output = self.model.get_image_features(**batch)
        return (output if isinstance(output, Tensor) else output.pooler_output).float()  # transformers 4 and 5

    def _encode(self, inputs: Mapping[str, Tensor], rows: slice) -> Tensor:
        return self.vectors({name: value[rows].to(self.device) for name, value in inputs.items()}).cpu()
