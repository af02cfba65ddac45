"""Prompts without a picture, and the language model's own answers to them: what training shall not change."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

TRAIN_WORDINGS = (
    "What is {}?",
    "Tell me about {}.",
    "Write one sentence about {}.",
    "Name two things that go with {}.",
    "Explain {} to a child.",
    "Where can I learn about {}?",
    "Why do people like {}?",
    "Where is {} found?",
    "Show me a poem about {}.",
    "Find a good title for a book about {}.",
)
TRAIN_TOPICS = (
    "the moon",
    "bread",
    "an elephant",
    "gravity",
    "music",
    "the sea",
    "chess",
    "iron",
    "a library",
    "rain",
    "democracy",
    "a bicycle",
    "coffee",
    "the heart",
    "a volcano",
    "paper",
    "mathematics",
    "a garden",
    "the internet",
    "winter",
    "a bridge",
    "honey",
    "history",
    "a lion",
)
HELDOUT = (
    "Where is the elephant?",
    "What is the capital of France?",
    "Where is the Eiffel Tower?",
    "How do I boil an egg?",
    "Find the mistake: he go to school.",
    "Give me three tips for sleeping well.",
    "What colour is the sky?",
    "How many legs does a spider have?",
    "Where does the sun rise?",
    "Locate Brazil on a map for me.",
    "Show me how to tie a knot.",
    "What shape is the Earth?",
    "Translate 'good morning' into Spanish.",
    "Who wrote Romeo and Juliet?",
    "What is a red giant?",
    "Write a haiku about autumn.",
    "What is seven times eight?",
    "Point out one advantage of trains.",
    "Where do penguins live?",
    "Describe a circle.",
    "What is the difference between a square and a triangle?",
    "Summarise why we need water.",
    "Name a green vegetable.",
    "Where are my keys?",
    "What should I cook tonight?",
    "How far is the moon?",
    "List three yellow fruits.",
    "What is photosynthesis?",
    "Is a tomato a fruit?",
    "Tell me a short joke.",
    "What time is it?",
    "Where is the blue whale found?",
    "Find a rhyme for light.",
    "What is a computer?",
    "How are you today?",
    "Where is the nearest star?",
    "What do bees make?",
    "Who are you?",
    "Write a sentence with the word box.",
    "What does a compass show?",
)
"""Many of them begin as questions for a box do."""


def train_prompts(number: int) -> list[str]:
    """So many different ones, always the same, of `TRAIN_WORDINGS` about `TRAIN_TOPICS`."""
    prompts = [wording.format(topic) for wording in TRAIN_WORDINGS for topic in TRAIN_TOPICS]
    random.Random(0).shuffle(prompts)
    return prompts[:number]


@torch.no_grad()
def own_answers(model: Any, tokenizer: Any, prompts: Sequence[str], num_tokens: int) -> list[str]:
    """Greedy answers, of at most so many tokens; one that goes on is cut behind its last whole sentence."""
    answers: list[str] = []
    for start in range(0, len(prompts), 32):
        messages = [[{"role": "user", "content": prompt}] for prompt in prompts[start : start + 32]]
        batch = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        ids = model.generate(**batch, max_new_tokens=num_tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        for row in ids[:, batch["input_ids"].shape[1] :]:
            text = tokenizer.decode(row, skip_special_tokens=True).strip()
            end = max(text.rfind(mark) for mark in ".!?\n")
            cut = tokenizer.eos_token_id not in row.tolist() and end > 0
            answers.append(text[: end + 1].strip() if cut else text)
    return answers


@torch.no_grad()
def agreement(model: Any, tokenizer: Any, prompts: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
    """How far a model would say the given answers: "agreement", the share of their tokens that are its likeliest next
    ones behind the answer's own words, and "perplexity" of them. The end of an answer does not count.
    """
    right, losses = [], []
    for prompt, answer in zip(prompts, answers, strict=True):
        message = [{"role": "user", "content": prompt}]
        asked = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=True)["input_ids"]
        said = tokenizer(answer, add_special_tokens=False)["input_ids"]
        ids = torch.tensor([[*asked, *said]])
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, len(asked) - 1 : -1].float()
        right.append(logits.argmax(-1) == ids[0, len(asked) :])
        losses.append(F.cross_entropy(logits, ids[0, len(asked) :], reduction="none"))
    return {
        "agreement": torch.cat(right).float().mean().item(),
        "perplexity": torch.cat(losses).mean().exp().item(),
    }
