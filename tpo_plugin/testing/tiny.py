"""A tiny random host and batches for it: for the conformance kit, on the CPU and without a network."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tpo_plugin.seen import HostFeatures, Seen

HIDDEN_SIZE, VISION_SIZE = 32, 24
WORDS = ("<pad>", "<s>", "</s>", "<unk>", "where", "is", "the", "red", "circle", "it", "stands", "here")
PROMPT_LENGTH, ANSWER_LENGTH = 8, 16


def tiny_host(dtype: torch.dtype = torch.float32) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A random two-layer llama, the same at every call, with spare vocabulary rows, and its word-level tokenizer."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_input_names=["input_ids", "attention_mask"],
    )
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=HIDDEN_SIZE,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    return model.to(dtype).eval(), tokenizer


def tiny_batch(tokenizer: Any, pairs: list[tuple[int, int]], inputs: list[int]) -> dict[str, Tensor]:
    """Two rows [2, T], T fixed: a prompt with input tokens, an answer with (trigger, task token) pairs, and words.

    Pairs and input tokens go to the two rows in turn, at most six pairs to a row.
    """
    where, the, it, stands, here = tokenizer.convert_tokens_to_ids(["where", "the", "it", "stands", "here"])
    ids, labels = [], []
    for row in range(2):
        prompt = [tokenizer.bos_token_id, where, *inputs[row::2]]
        prompt += [the] * (PROMPT_LENGTH - len(prompt))
        answer, target = [it, stands], [it, stands]
        for trigger, task in pairs[row::2]:
            answer += [trigger, task]
            target += [trigger, -100]
        filler = [here] * (ANSWER_LENGTH - len(answer))
        ids.append([*prompt, *answer, *filler])
        labels.append([-100] * len(prompt) + target + filler)
    input_ids = torch.tensor(ids)
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "labels": torch.tensor(labels)}


def tiny_features(batch_rows: Tensor) -> HostFeatures:
    """What task tokens at the end of these rows of a batch of two see: three words, a video of four frames."""
    generator = torch.Generator().manual_seed(0)
    seen = Seen([(row, [2, 3, 4]) for row in range(2)], frames=[[4], [4]])
    seen.keep_text(torch.randn(2, PROMPT_LENGTH, HIDDEN_SIZE, generator=generator))
    seen.keep_words(torch.randn(2, PROMPT_LENGTH, HIDDEN_SIZE, generator=generator))
    seen.keep_tower(torch.randn(8, 5, VISION_SIZE, generator=generator))
    nothing = torch.zeros(0, VISION_SIZE)
    return HostFeatures([(row, PROMPT_LENGTH) for row in batch_rows.tolist()], seen, nothing)


def logits_of(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**batch).logits


def state_of(model: nn.Module, tokenizer: Any) -> dict[str, Any]:
    """Everything of a host that `remove_tpo` must put back."""
    modules = dict(model.named_modules())
    return {
        "weights": {name: value.numpy().tobytes() for name, value in model.state_dict().items()},
        "requires_grad flags": {name: p.requires_grad for name, p in model.named_parameters()},
        "training flags": {name: module.training for name, module in modules.items()},
        "attributes": {name: sorted(vars(module)) for name, module in modules.items()},
        "hooks": {
            (name, kind): list(hooks)
            for name, module in modules.items()
            for kind, hooks in vars(module).items()
            if kind.endswith("_hooks")
        },
        "vocabulary": tokenizer.get_vocab(),
    }
