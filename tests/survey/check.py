"""What TPO promises, checked on one architecture; each check gives None, or the reason why it failed."""

from __future__ import annotations

import tempfile
import traceback
from inspect import signature
from typing import Any
from unittest import mock

import torch
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from tests import zoo
from tpo_plugin import HostError, apply_tpo, load_tpo, remove_tpo
from tpo_plugin.host import probe

from .build import FIRST_WORD, NUM_WORDS, build

Batch = dict[str, Any]
NUM_TASKS = 2
ENDS_ITSELF = {"BlipForConditionalGeneration"}
"""Hosts whose own `generate` sets the ids that end an answer."""


def tokenizer(num_words: int = NUM_WORDS) -> PreTrainedTokenizerFast:
    """A word-level tokenizer with `num_words` ids."""
    words = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(4, num_words))]
    backend = Backend(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def words(num_rows: int, length: int, seed: int = 1) -> Tensor:
    return torch.randint(FIRST_WORD, NUM_WORDS, (num_rows, length), generator=torch.Generator().manual_seed(seed))


def is_encoder_decoder(model: nn.Module) -> bool:
    return bool(getattr(model.config, "is_encoder_decoder", False))


class Case:
    """One architecture, with text alone or with media."""

    def __init__(self, class_name: str, media: Any = None) -> None:
        self.class_name, self.media = class_name, media
        self.model = build(class_name)
        self.notes: list[str] = []
        self.example: Batch | None = None

    def prompt(self, num_rows: int = 2, padded: bool = False) -> Batch:
        """Prompts of words; row 0 has left padding if `padded`."""
        ids = words(num_rows, 8)
        batch: Batch = {} if self.media is None else self.media(self.model, num_rows)
        inserted = batch.pop("inserted", ids[:, :0])
        ids = torch.cat([ids[:, :1], inserted, ids[:, 1:]], 1)
        mask = torch.ones_like(ids)
        if padded:
            pad = getattr(self.model.config.get_text_config(), "pad_token_id", None) or 0
            ids = torch.cat([words(num_rows, 3, 2), ids], 1)
            mask = torch.cat([torch.ones(num_rows, 3, dtype=torch.int64), mask], 1)
            ids[0, :3], mask[0, :3] = pad, 0
        batch = {"input_ids": ids, "attention_mask": mask, **batch}
        return self.grown(batch)

    def grown(self, batch: Batch) -> Batch:
        """The inputs with a column for each token, made anew for these ids."""
        if self.media is not None:
            return {**batch, **self.media.per_token(self.model, batch)}
        if "mm_token_type_ids" in signature(self.model.forward).parameters:
            return {**batch, "mm_token_type_ids": torch.zeros_like(batch["input_ids"])}
        return batch

    def row(self, batch: Batch, row: int) -> Batch:
        """One row without its padding."""
        num_rows, kept = len(batch["input_ids"]), batch["attention_mask"][row].bool()
        shape, one = batch["input_ids"].shape, {}
        for key, value in batch.items():
            per_token = isinstance(value, Tensor) and value.shape[:2] == shape
            if per_token and (key == "bbox" or not value.is_floating_point()):
                one[key] = value[row : row + 1, kept]
            elif isinstance(value, Tensor):
                packed = len(value) % num_rows  # all rows in one strip
                one[key] = value.chunk(num_rows, -1 if packed else 0)[row]
                if key.endswith("_token_pooling"):  # numbers of patches, counted over the whole batch
                    one[key] = one[key] - one[key].min()
            else:
                one[key] = value
        return one

    def with_answers(self, batch: Batch, answers: Tensor) -> Batch:
        ids = torch.cat([batch["input_ids"], answers], 1)
        mask = torch.cat([batch["attention_mask"], torch.ones_like(answers)], 1)
        return self.grown({**batch, "input_ids": ids, "attention_mask": mask})

    def with_tasks(self, model: Any, batch: Batch) -> Batch:
        trigger, task = model.tpo.token_ids["region"]
        answer = torch.tensor([FIRST_WORD, *[trigger, task, FIRST_WORD + 1] * NUM_TASKS])
        result = self.with_answers(batch, answer.expand(len(batch["input_ids"]), -1))
        labels = result["input_ids"].clone()
        labels[:, : batch["input_ids"].shape[1]] = -100
        labels[labels == task] = -100
        targets = {"region": {"boxes_xyxy": zoo.boxes(NUM_TASKS * len(labels))}}
        return result | {"labels": labels, "task_targets": targets}


def given(model: nn.Module, batch: Batch) -> Batch:
    """The batch for a host that may take no text before its answer."""
    text = {"input_ids", "attention_mask"} if "input_ids" not in signature(model.forward).parameters else set()
    return {key: value for key, value in batch.items() if key not in text}


def forward(model: nn.Module, batch: Batch) -> Any:
    with torch.no_grad():
        return model(**given(model, batch))


def generation(model: Any, **options: Any) -> dict[str, Any]:
    never = list(range(FIRST_WORD))  # ids that stand for media, and ends
    never_ends: dict[str, Any] = {"eos_token_id": None, "forced_eos_token_id": None}
    if type(model).__name__ in ENDS_ITSELF:
        never_ends = {}
    return {"max_new_tokens": 10, "do_sample": False, "suppress_tokens": never, **never_ends} | options


def survey(case: Case) -> dict[str, str]:
    """Runs all checks on one model; by check what is wrong, "" where nothing is."""
    found: dict[str, str] = {}
    model = case.model.requires_grad_(False)
    batch = case.prompt()
    tokens = tokenizer()
    memories = _memories(case, tokens)
    batch = labelled(batch)
    bare, again = forward(model, batch), forward(model, batch)
    if not torch.equal(bare.logits, again.logits):
        raise RuntimeError("the bare host is not deterministic")
    before = zoo.snapshot(model, tokens)
    torch.manual_seed(0)
    with mock.patch.object(probe, "SMALL", -1):  # on fake tensors, as models of the real sizes
        try:
            apply_tpo(model, tokens, ["region"])
        except HostError:
            if case.media is None:
                raise
            case.example = case.prompt(1)
            apply_tpo(model, tokens, ["region"], example_inputs=given(model, case.example))
            case.notes.append("give example_inputs= to apply_tpo")
    checks = {
        "loss": lambda: check_loss_equal(model, batch, bare),
        "gradient": lambda: check_gradient(case),
        "generation": lambda: check_generation(case),
        "save": lambda: check_save_and_load(case),
        "removal": lambda: check_removal(case, tokens, before, memories),
    }
    if case.media is None:
        checks["growth"] = lambda: check_growth(Case(case.class_name), case.notes)
    for name, check in checks.items():
        try:
            found[name] = check() or ""
        except HostError as error:
            found[name] = f"refused: {error}"
            model.eval()
        except Exception as error:
            where = " < ".join(f"{f.name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)[::-1][:4])
            found[name] = f"{type(error).__name__}: {str(error)[:300]} @ {where}"
            model.eval()
    return found


def labelled(batch: Batch) -> Batch:
    return batch | {"labels": batch["input_ids"].masked_fill(batch["input_ids"] < FIRST_WORD, -100)}


def _memories(case: Case, tokens: Any) -> dict[str, set[Any]]:
    """What the bare host itself changes in a forward, in evaluation and in training: attributes and buffers."""
    model, prompt = case.model, case.prompt()
    before = zoo.snapshot(model, tokens)
    forward(model, labelled(prompt))
    forward(model.train(), labelled(case.with_answers(prompt, words(2, 1 + 3 * NUM_TASKS))))
    after = zoo.snapshot(model.eval(), tokens)
    weights = {name for name, value in before["weights"].items() if after["weights"][name] != value}
    return {"attributes": _changed(before["attributes"], after["attributes"]), "weights": weights}


def check_loss_equal(model: Any, batch: Batch, bare: Any) -> str | None:
    after = forward(model, batch)
    if not torch.equal(bare.logits, after.logits):
        return f"logits differ by {(bare.logits - after.logits).abs().max():.1e}"
    if bare.loss is None:
        return "the bare host gives no loss for labels"
    return None if torch.equal(bare.loss, after.loss) else f"loss {bare.loss} became {after.loss}"


def check_gradient(case: Case) -> str | None:
    model = case.model.train()
    batch = case.with_tasks(model, case.prompt())
    out = model(**given(model, batch))
    if set(out.tpo.losses) != {"mllm", "assign", "region"}:
        return f"losses are {sorted(out.tpo.losses)}"
    if not out.loss.isfinite():
        return f"losses are { ({k: float(v) for k, v in out.tpo.losses.items()}) }"
    out.loss.backward()
    learns = {
        n: p for n, p in model.tpo.named_parameters() if p.requires_grad and ".encoder." not in n
    }  # no input token
    missing = [n for n, p in learns.items() if p.grad is None or not p.grad.any()]
    model.eval().zero_grad()
    if missing:
        return f"no gradient reaches {missing}"
    return _assignment_differs(model, batch)


def _assignment_differs(model: Any, batch: Batch) -> str | None:
    """Compares the assignment loss with a plain cross entropy of the logits at the triggers."""
    out, shift = forward(model, batch), model.tpo.host.label_shift
    targets = batch["labels"][:, shift:]
    logits = out.logits[:, out.logits.shape[1] - targets.shape[1] - shift :][:, : targets.shape[1]]
    wanted = targets == model.tpo.token_ids["region"][0]
    expected = nn.functional.cross_entropy(logits[wanted].float(), targets[wanted])
    same = torch.allclose(out.tpo.losses["assign"], expected, atol=1e-5)
    return None if same else f"the assignment loss is {float(out.tpo.losses['assign'])}, expected {float(expected)}"


def check_generation(case: Case) -> str | None:
    model = case.model
    if not hasattr(model, "generate"):
        case.notes.append("the host does not generate")
        return None
    options = generation(model)
    host_differs = False
    for padded in (True, False):
        batch = case.prompt(3, padded=padded)
        for seed in range(6):  # until triggers are as likely as words
            rows = model.tpo.embeddings["region"].output.data
            rows.normal_(std=2.0 ** (1 + seed), generator=torch.Generator().manual_seed(3 + seed))
            together = model.tpo.generate(**given(model, batch), **options)
            if sum(map(len, together.predictions)) >= 2:
                break
        else:
            return "no triggers were emitted"
        difference = _differs(case, model, batch, together, options)
        if difference is None:
            if host_differs:
                case.notes.append("its own generation with left padding differs from row by row")
            return _states_differ(case, model, batch, together)
        if not _host_differs(case, batch):
            return difference
        host_differs = True
    case.notes.append("its own batched generation differs from row by row")
    return None


def _differs(case: Case, model: Any, batch: Batch, together: Any, options: dict[str, Any]) -> str | None:
    for index, predictions in enumerate(together.predictions):
        alone = model.tpo.generate(**given(model, case.row(batch, index)), **options)
        padding = 0 if is_encoder_decoder(model) else together.sequences.shape[1] - alone.sequences.shape[1]
        if not torch.equal(together.sequences[index, padding:], alone.sequences[0]):
            return "row by row gives other tokens"
        for ours, theirs in zip(predictions, alone.predictions[0], strict=True):
            if (ours.position, ours.cut_off) != (theirs.position + padding, theirs.cut_off):
                return "row by row gives other positions"
            if not ours.cut_off and not torch.allclose(ours.value, theirs.value, atol=1e-4, rtol=1e-3):
                return f"row by row gives other values, by {(ours.value - theirs.value).abs().max():.1e}"
    return None


def _host_differs(case: Case, batch: Batch) -> bool:
    """Whether the bare host itself answers a batch otherwise than its rows alone."""
    bare: Any = build(case.class_name)
    options = generation(bare, return_dict_in_generate=True, output_logits=True)
    together = bare.generate(**given(bare, batch), **options)
    for index in range(len(batch["input_ids"])):
        alone = bare.generate(**given(bare, case.row(batch, index)), **options)
        pairs = zip(together.logits, alone.logits, strict=True)
        if not all(torch.allclose(t[index], a[0], atol=1e-4, rtol=1e-3) for t, a in pairs):
            return True
    return False


def _states_differ(case: Case, model: Any, batch: Batch, together: Any) -> str | None:
    """Compares what generation predicted with one forward over the finished sequences."""
    if is_encoder_decoder(model):
        return None
    for index, predictions in enumerate(together.predictions):
        one = case.row(batch, index)
        length = batch["input_ids"].shape[1]
        answers = together.sequences[index : index + 1, length:]
        full = case.with_answers(one, answers)
        places = (full["input_ids"] == model.tpo.token_ids["region"][1]).sum()
        full["task_targets"] = {"region": {"boxes_xyxy": zoo.boxes(int(places))}}
        slow = forward(model, full).tpo.predictions["region"]
        ours = [p.value for p in predictions if not p.cut_off]
        for k, (value, expected) in enumerate(zip(ours, slow, strict=True)):
            if not torch.allclose(value, expected, atol=1e-4, rtol=1e-3):
                if _host_decodes_otherwise(case, one, answers):
                    case.notes.append("its own decoding differs from a full forward")
                    return None
                return f"prediction {k} differs from a full forward by {(value - expected).abs().max():.1e}"
    return None


def _host_decodes_otherwise(case: Case, prompt: Batch, answers: Tensor) -> bool:
    """Whether the bare host itself gives other logits step by step than in one forward over what it answered."""
    bare: Any = build(case.class_name)
    options = generation(bare, max_new_tokens=answers.shape[1], return_dict_in_generate=True, output_logits=True)
    stepwise = bare.generate(**given(bare, prompt), **options)
    length = prompt["input_ids"].shape[1]
    full = forward(bare, case.with_answers(prompt, stepwise.sequences[:, length:])).logits[
        :, -answers.shape[1] - 1 : -1
    ]
    return not torch.allclose(torch.stack(stepwise.logits, 1), full, atol=1e-4, rtol=1e-3)


def check_save_and_load(case: Case) -> str | None:
    model = case.model
    batch = case.with_tasks(model, case.prompt())
    before = forward(model, batch)
    with tempfile.TemporaryDirectory() as directory:
        model.tpo.save_pretrained(directory)
        other = build(case.class_name)
        other.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("tpo.")}, strict=False)
        loaded = load_tpo(other, directory, example_inputs=case.example)
    after = forward(loaded, batch)
    same = torch.equal(after.logits, before.logits) and torch.equal(after.loss, before.loss)
    same = same and torch.equal(after.tpo.predictions["region"], before.tpo.predictions["region"])
    far = float((after.logits - before.logits).abs().max())
    if not same and far < 1e-5 and _same_state(loaded, model):
        case.notes.append(f"with the very same weights, saved and loaded, it computes the same to rounding ({far:.0e})")
        return None
    return None if same else f"the loaded model computes something else, logits by {far:.1e}"


def _same_state(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[key]) for key, value in ours.items())


def _changed(before: dict[str, Any], after: dict[str, Any]) -> set[tuple[str, str]]:
    """(module, attribute) of what differs."""
    gone = object()
    names = {(m, a) for state in (before, after) for m, attributes in state.items() for a in attributes}
    return {(m, a) for m, a in names if before.get(m, {}).get(a, gone) != after.get(m, {}).get(a, gone)}


def check_removal(case: Case, tokens: Any, before: dict[str, Any], memories: dict[str, set[Any]]) -> str | None:
    after = zoo.snapshot(remove_tpo(case.model), tokens)
    for state in (before, after):
        state["weights"] = {k: v for k, v in state["weights"].items() if k not in memories["weights"]}
    changed = [part for part in before if part != "attributes" and after[part] != before[part]]
    kept = _changed(before["attributes"], after["attributes"]) - memories["attributes"]
    changed += sorted(f"{module}.{attribute}" for module, attribute in kept)
    return f"{changed} not as before" if changed else None


def check_growth(case: Case, notes: list[str]) -> str | None:
    """With a tokenizer that fills the matrices: they grow, or a reasoned message says why not."""
    head, embed = case.model.get_output_embeddings(), case.model.get_input_embeddings()
    rows = min(len(module.weight) for module in (embed, head) if module is not None)
    batch = case.prompt()
    batch["labels"] = batch["input_ids"]  # of which an encoder-decoder makes its decoder's input
    before = forward(case.model, batch).logits
    state = {k: v.clone() for k, v in case.model.state_dict().items()}
    try:
        model = apply_tpo(case.model, tokenizer(rows), ["region"])
    except HostError as error:
        notes.append(f"its vocabulary does not grow: {error}")
        return None
    after = forward(model, batch).logits
    if not torch.allclose(after[..., :rows], before, atol=1e-5, rtol=1e-4):
        return "logits of the old vocabulary changed"
    if not forward(model, case.with_tasks(model, case.prompt())).loss.isfinite():
        return "the loss is not finite"
    now = remove_tpo(model).state_dict()
    same = now.keys() == state.keys() and all(torch.equal(now[k], v) for k, v in state.items())
    return None if same else "the state is not as before after removal"
