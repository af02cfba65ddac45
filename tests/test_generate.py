"""Generation with heads: what is captured, in every way of decoding, against slow full forwards."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
import transformers
import zoo
from torch import Tensor

from tpo_plugin import TPOError, apply_tpo

KIND = zoo.host("llama")
OPTIONS = {"max_new_tokens": 14, "eos_token_id": None}
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True},
    "sampling cold": {"do_sample": True, "temperature": 0.5, "top_k": 5},
    "several": {"do_sample": True, "num_return_sequences": 2},
    "beams": {"do_sample": False, "num_beams": 3},
    "several beams": {"do_sample": False, "num_beams": 4, "num_return_sequences": 2},
    "static cache": {"do_sample": False, "cache_implementation": "static"},
    "no cache": {"do_sample": False, "use_cache": False},
    "route": {"do_sample": False, "route": "region"},
}
EXACT = ("greedy", "static cache", "no cache")


@pytest.fixture
def model(echo: str) -> Any:
    model = apply_tpo(KIND.build(), zoo.tokenizer(), ["region", echo])
    zoo.talkative(model)
    return model


@pytest.fixture
def quiet(echo: str) -> Any:
    """A model that emits no trigger by itself."""
    return apply_tpo(KIND.build(), zoo.tokenizer(), ["region", echo])


def batch_of(model: Any, num_rows: int = 3) -> dict[str, Tensor]:
    return zoo.example(KIND, model, num_rows, padded=True)


def check(model: Any, batch: dict[str, Tensor], generated: Any) -> int:
    """Every prediction against one full forward of its row without padding; the number of states compared."""
    copies, compared = len(generated.sequences) // len(batch["input_ids"]), 0
    length = batch["input_ids"].shape[1]
    by_id = {ids[0]: (name, ids[1]) for name, ids in model.tpo.token_ids.items()}
    never = [t.task_id for t in model.tpo.tokens.values()] + [model.tpo.tokens["region"].input_id]
    for row, (sequence, predictions) in enumerate(zip(generated.sequences, generated.predictions, strict=True)):
        padding = int((batch["attention_mask"][row // copies] == 0).sum())
        with torch.no_grad():
            out = model(input_ids=sequence[None, padding:], output_hidden_states=True)
        hidden, logits = out.hidden_states[-1][0], out.logits[0].clone()
        logits[:, never] = float("-inf")
        ids, found = sequence.tolist(), []
        start = length
        for column in range(length, len(ids)):
            if ids[column] in by_id:
                name, task = by_id[ids[column]]
                if column + 1 < len(ids):
                    assert ids[column + 1] == task
                found.append((name, column, start))
                start = column + 2
            elif ids[column] in never:
                assert ids[column - 1] in by_id
        assert [(p.head, p.text_span) for p in predictions] == [(n, (s, c)) for n, c, s in found]
        for p, (name, column, _) in zip(predictions, found, strict=True):
            assert p.cut_off == (column == len(ids) - 1)
            assert p.position == column + (not p.cut_off)
            expected = logits[column - 1 - padding].softmax(-1)[model.tpo.token_ids[name][0]].item()
            assert p.score == pytest.approx(expected, abs=1e-4)
            assert p.text == model.tpo.tokenizer.decode(ids[p.text_span[0] : p.text_span[1]], skip_special_tokens=True)
            if p.cut_off:
                assert p.value is None
                continue
            state = hidden[p.position - padding]
            if name == "region":
                with torch.no_grad():
                    state = model.tpo.heads["region"](state[None])["boxes_xyxy"][0].clamp(0, 1)
            torch.testing.assert_close(p.value, state, atol=1e-4, rtol=1e-4)
            compared += 1
    return compared


@pytest.mark.parametrize("way", WAYS)
def test_states_and_scores_equal_a_full_forward(model: Any, way: str) -> None:
    batch = batch_of(model)
    torch.manual_seed(0)
    generated = model.tpo.generate(**batch, **OPTIONS, **WAYS[way])
    assert check(model, batch, generated) >= 3
    assert len({p.head for row in generated.predictions for p in row}) == 2


@pytest.mark.parametrize("way", [way for way in WAYS if way != "route"])
def test_the_text_is_the_hosts_own(quiet: Any, way: str) -> None:
    """Where no trigger comes, heads change nothing."""
    batch, sequences = batch_of(quiet), []
    spare = list(range(zoo.NUM_WORDS, zoo.NUM_ROWS))
    options = {**OPTIONS, **WAYS[way], "suppress_tokens": spare}
    for generate in (quiet.generate, lambda **kw: quiet.tpo.generate(**kw).sequences):
        torch.manual_seed(0)
        sequences.append(generate(**batch, **options))
    assert torch.equal(*sequences)


@pytest.mark.parametrize("way", EXACT)
def test_ways_that_give_the_same(model: Any, way: str) -> None:
    batch = batch_of(model)
    expected = model.tpo.generate(**batch, **OPTIONS, do_sample=False)
    generated = model.tpo.generate(**batch, **OPTIONS, **WAYS[way])
    assert torch.equal(generated.sequences, expected.sequences)
    for ours, theirs in zip(generated.predictions, expected.predictions, strict=True):
        for p, q in zip(ours, theirs, strict=True):
            assert (p.head, p.position, p.cut_off) == (q.head, q.position, q.cut_off)


def test_the_same_seed_gives_the_same_bits(model: Any) -> None:
    batch, results = batch_of(model), []
    for _ in range(2):
        torch.manual_seed(7)
        results.append(model.tpo.generate(**batch, **OPTIONS, do_sample=True))
    assert torch.equal(results[0].sequences, results[1].sequences)
    for ours, theirs in zip(*(r.predictions for r in results), strict=True):
        assert [p.score for p in ours] == [p.score for p in theirs]
        assert all(p.cut_off or torch.equal(p.value, q.value) for p, q in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("way", ["greedy", "beams"])
def test_embeddings_in_place_of_ids(model: Any, way: str) -> None:
    batch = batch_of(model)
    expected = model.tpo.generate(**batch, **OPTIONS, **WAYS[way])
    embeds = model.get_input_embeddings()(batch["input_ids"]).detach()
    length = embeds.shape[1]
    generated = model.tpo.generate(inputs_embeds=embeds, attention_mask=batch["attention_mask"], **OPTIONS, **WAYS[way])
    assert torch.equal(generated.sequences, expected.sequences[:, length:])
    for ours, theirs in zip(generated.predictions, expected.predictions, strict=True):
        for p, q in zip(ours, theirs, strict=True):
            assert p.position == q.position - length
            assert p.score == pytest.approx(q.score, abs=1e-5)
            if not p.cut_off:
                torch.testing.assert_close(p.value, q.value, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("way", ["prompt lookup", "assisted"])
def test_assisted_decoding(model: Any, way: str) -> None:
    batch = {k: v[1:2] for k, v in batch_of(model).items()}
    extra = {"prompt_lookup_num_tokens": 2} if way == "prompt lookup" else {"assistant_model": KIND.build()}
    options = {**OPTIONS, "eos_token_id": zoo.NUM_ROWS - 1}  # prompt lookup in transformers 4 needs one
    generated = model.tpo.generate(**batch, **options, do_sample=False, **extra)
    assert check(model, batch, generated) >= 1


def test_route_calls_the_head_once_more_than_the_model_would(quiet: Any) -> None:
    batch = batch_of(quiet)
    spare = [i for i in range(zoo.NUM_WORDS, zoo.NUM_ROWS) if i != quiet.tpo.token_ids["region"][0]]
    options = {**OPTIONS, "do_sample": False, "suppress_tokens": spare}
    assert quiet.tpo.generate(**batch, **options).predictions == [[], [], []]
    routed = quiet.tpo.generate(**batch, **options, route="region")
    assert [[(p.head, p.cut_off) for p in row] for row in routed.predictions] == [[("region", False)]] * 3


@pytest.mark.parametrize("new", [1, 2, 3, 4, 5, 6])
def test_cut_off_and_task_token_at_the_end(model: Any, new: int) -> None:
    """At each length an answer ends in words, at a trigger (cut off) or at a task token (one more forward)."""
    batch = batch_of(model)
    options = {**OPTIONS, "max_new_tokens": new, "do_sample": False}
    generated = model.tpo.generate(**batch, **options)
    check(model, batch, generated)
    ends = [p for row in generated.predictions for p in row if p.position == generated.sequences.shape[1] - 1]
    test_cut_off_and_task_token_at_the_end.seen |= {p.cut_off for p in ends}  # type: ignore[attr-defined]
    if new == 6:
        assert test_cut_off_and_task_token_at_the_end.seen == {True, False}  # type: ignore[attr-defined]


test_cut_off_and_task_token_at_the_end.seen = set()  # type: ignore[attr-defined]


def test_a_task_token_in_the_prompt_is_no_prediction(model: Any) -> None:
    batch = batch_of(model)
    trigger, task = model.tpo.token_ids["region"]
    batch["input_ids"][1, 4], batch["input_ids"][1, 5] = trigger, task
    generated = model.tpo.generate(**batch, **OPTIONS, do_sample=False)
    assert all(p.position >= batch["input_ids"].shape[1] for row in generated.predictions for p in row)
    check(model, batch, generated)


def test_task_first_replaces_the_trigger(model: Any) -> None:
    """The authors' order: a state with the task token in the trigger's place, and an answer that goes on without it."""
    batch = {k: v[1:2] for k, v in batch_of(model).items()}
    generated = model.tpo.generate(**batch, **{**OPTIONS, "max_new_tokens": 6}, do_sample=False, order="task_first")
    assert generated.predictions[0]
    for p in generated.predictions[0]:
        sequence = generated.sequences.clone()
        trigger, task = model.tpo.token_ids[p.head]
        assert sequence[0, p.position] == trigger
        sequence[0, p.position] = task
        with torch.no_grad():
            state = model(input_ids=sequence[:, : p.position + 1], output_hidden_states=True).hidden_states[-1][0, -1]
            value = state if p.head == "echo" else model.tpo.heads["region"](state[None])["boxes_xyxy"][0].clamp(0, 1)
        torch.testing.assert_close(p.value, value, atol=1e-4, rtol=1e-4)


def test_the_hosts_whole_result_is_there(model: Any) -> None:
    batch = batch_of(model)
    generated = model.tpo.generate(
        **batch, **OPTIONS, do_sample=False, return_dict_in_generate=True, output_scores=True
    )
    assert len(generated.output.scores) == OPTIONS["max_new_tokens"]
    assert torch.equal(generated.output.sequences, generated.sequences)


def test_a_generation_config_and_a_processor_of_ones_own(model: Any) -> None:
    class NoRegion(transformers.LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            return scores.index_fill(-1, torch.tensor(model.tpo.token_ids["region"][0]), float("-inf"))

    config = transformers.GenerationConfig(**OPTIONS, pad_token_id=zoo.PAD)
    processors = transformers.LogitsProcessorList([NoRegion()])
    generated = model.tpo.generate(**batch_of(model), generation_config=config, logits_processor=processors)
    assert generated.sequences.shape[1] == batch_of(model)["input_ids"].shape[1] + OPTIONS["max_new_tokens"]
    assert {p.head for row in generated.predictions for p in row} == {"echo"}


def assert_same_predictions(ours: Any, theirs: Any) -> None:
    assert torch.equal(ours.sequences, theirs.sequences)
    assert sum(map(len, ours.predictions)) > 0
    for mine, other in zip(ours.predictions, theirs.predictions, strict=True):
        for p, q in zip(mine, other, strict=True):
            assert p.score == pytest.approx(q.score, abs=1e-5)
            if p.value is not None:
                torch.testing.assert_close(p.value, q.value)


def test_what_a_config_of_ones_own_does_not_say_is_the_models(model: Any) -> None:
    model.generation_config.num_beams = 4
    expected = model.tpo.generate(**batch_of(model), max_new_tokens=12)
    config = transformers.GenerationConfig(max_new_tokens=12)
    generated = model.tpo.generate(**batch_of(model), generation_config=config)
    if not torch.equal(generated.sequences, expected.sequences):
        pytest.skip(f"transformers {transformers.__version__} does not read the model's own then")
    assert_same_predictions(generated, expected)


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"max_new_tokens": 3}, {}], ids=str)
def test_padding_without_a_mask_is_padding(model: Any, options: dict[str, Any]) -> None:
    """As generate takes it; the replay of beams, and of an answer that ends in its task token, too."""
    options = {"max_new_tokens": 12, "do_sample": False} | options
    batch = batch_of(model)
    assert (batch["attention_mask"] == 0).any()
    expected = model.tpo.generate(**batch, **options)
    assert_same_predictions(model.tpo.generate(input_ids=batch["input_ids"], **options), expected)


def test_to_units_and_json(model: Any) -> None:
    generated = model.tpo.generate(**batch_of(model), **OPTIONS, do_sample=False)
    box = next(p for row in generated.predictions for p in row if p.head == "region" and not p.cut_off)
    torch.testing.assert_close(box.to_units(width=200, height=100), box.value * torch.tensor([200.0, 100, 200, 100]))
    plain = box.to_json()
    assert plain["value"] == box.value.tolist()
    assert plain["text_span"] == list(box.text_span)
    assert {"head", "position", "score", "head_score", "text", "cut_off"} <= plain.keys()


def test_wrong_use(model: Any) -> None:
    batch = batch_of(model)
    with pytest.raises(TPOError, match="route='regin' is not an applied head.*did you mean 'region'"):
        model.tpo.generate(**batch, route="regin")
    with pytest.raises(TPOError, match="order='both'; expected 'trigger_first' or 'task_first'"):
        model.tpo.generate(**batch, order="both")
    assert model.tpo.hooks.now.session is None


def test_an_error_in_the_middle_leaves_no_session(model: Any) -> None:
    with pytest.raises(ValueError, match="num_return_sequences"):
        model.tpo.generate(**batch_of(model), **OPTIONS, do_sample=False, num_return_sequences=2)
    assert model.tpo.hooks.now.session is None
    model.tpo.generate(**batch_of(model), **OPTIONS, do_sample=False)


@pytest.mark.parametrize("new", [13, 14, 15])
def test_embeddings_and_an_answer_that_ends_in_its_task_token(model: Any, new: int) -> None:
    """The replay of the last one leaves the states of the others as they were captured."""
    batch = batch_of(model)
    options = {**OPTIONS, "max_new_tokens": new, "do_sample": False}
    expected = model.tpo.generate(**batch, **options)
    embeds = model.get_input_embeddings()(batch["input_ids"]).detach()
    generated = model.tpo.generate(inputs_embeds=embeds, attention_mask=batch["attention_mask"], **options)
    for ours, theirs in zip(generated.predictions, expected.predictions, strict=True):
        for p, q in zip(ours, theirs, strict=True):
            if not p.cut_off:
                torch.testing.assert_close(p.value, q.value, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("way", ["greedy", "beams"])
def test_ids_beside_embeddings_are_the_prompt(model: Any, way: str) -> None:
    """The host gives back both then; a call of an earlier turn is no prediction."""
    batch = zoo.example(KIND, model, 1)
    batch["input_ids"][0, 3:5] = torch.tensor(model.tpo.token_ids["region"])
    embeds = model.get_input_embeddings()(batch["input_ids"]).detach()
    wanted = model.tpo.generate(**batch, **OPTIONS, **WAYS[way])
    found = model.tpo.generate(**batch, inputs_embeds=embeds, **OPTIONS, **WAYS[way])
    assert found.prompt_length == wanted.prompt_length == batch["input_ids"].shape[1]
    same_predictions(found, wanted)


@pytest.mark.skipif(
    not hasattr(transformers.GenerationConfig(), "assistant_early_exit"), reason="this transformers has no such option"
)
def test_a_model_that_drafts_for_itself(model: Any) -> None:
    """Fewer of its own layers draft (`assistant_early_exit`); their states are not those of the answer."""
    batch = zoo.example(KIND, model, 1)
    wanted = model.tpo.generate(**batch, **OPTIONS, do_sample=False)
    found = model.tpo.generate(**batch, **OPTIONS, do_sample=False, assistant_early_exit=1)
    same_predictions(found, wanted)


def same_predictions(found: Any, wanted: Any) -> None:
    assert torch.equal(found.sequences, wanted.sequences)
    assert [p.position for p in found.predictions[0]] == [p.position for p in wanted.predictions[0]] != []
    for one, other in zip(found.predictions[0], wanted.predictions[0], strict=True):
        torch.testing.assert_close(one.value, other.value, rtol=1e-4, atol=1e-5)


def test_a_prompt_that_ends_in_a_trigger_calls_its_head(quiet: Any) -> None:
    batch = zoo.example(KIND, quiet, 1)
    trigger, task = quiet.tpo.token_ids["region"]
    batch["input_ids"][0, -1] = trigger
    length = batch["input_ids"].shape[1]
    generated = quiet.tpo.generate(**batch, max_new_tokens=4, do_sample=False)
    (prediction,) = generated.predictions[0]
    assert int(generated.sequences[0, length]) == task
    assert (prediction.head, prediction.position, prediction.text_span) == ("region", length, (length - 1, length - 1))
    with torch.no_grad():
        hidden = quiet(input_ids=generated.sequences[:, : length + 1], output_hidden_states=True).hidden_states[-1]
    wanted = quiet.tpo.heads["region"](hidden[0, length:].float())["boxes_xyxy"][0]
    torch.testing.assert_close(prediction.value, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 2, "do_sample": False},
        {"num_beams": 2, "do_sample": False, "use_cache": False},
        {"num_return_sequences": 2, "do_sample": True},
    ],
)
def test_given_boxes_are_given_to_every_copy_of_a_prompt(model: Any, options: dict[str, Any]) -> None:
    """As where the prompt's embeddings have them already."""
    batch, boxes = zoo.example(KIND, model, 2), zoo.boxes(2)
    batch["input_ids"][:, 3] = model.tpo.tokens["region"].input_id
    options = options | {"max_new_tokens": 5, "eos_token_id": None}
    torch.manual_seed(0)
    found = model.tpo.generate(**batch, task_inputs={"region": {"boxes_xyxy": boxes}}, **options)
    ids = batch.pop("input_ids")
    embeds = model.get_input_embeddings().weight.detach()[ids]
    embeds[:, 3] = model.tpo.heads["region"].encode({"boxes_xyxy": boxes}).detach()
    torch.manual_seed(0)
    try:
        wanted = model.tpo.generate(inputs_embeds=embeds, **batch, **options)
    except NotImplementedError as error:
        pytest.skip(f"this transformers has no beams of embeddings without a cache: {error}")
    assert torch.equal(found.sequences[:, ids.shape[1] :], wanted.sequences)


def test_the_hosts_cache_is_the_callers(model: Any) -> None:
    """What `model.generate` gives back is not kept beside the predictions."""
    whole = model.generate(**batch_of(model), **OPTIONS, return_dict_in_generate=True)
    if isinstance(whole.past_key_values, tuple):
        pytest.skip("this transformers gives a tuple, which cannot be watched")
    cache = weakref.ref(whole.past_key_values)
    assert model.tpo.last_generated.predictions
    del whole
    gc.collect()
    assert cache() is None
