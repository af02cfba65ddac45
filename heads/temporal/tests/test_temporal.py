"""The temporal head alone: records, what it reads, targets, losses, results."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tpo_head_temporal.config import TemporalConfig
from tpo_head_temporal.head import TemporalHead
from tpo_head_temporal.inputs import append_word, clip_bounds, merged_clips
from tpo_head_temporal.matcher import giou, match
from tpo_head_temporal.positions import to_centre_width, to_start_end
from tpo_head_temporal.postprocess import suppress
from tpo_head_temporal.targets import make_targets, mix_videos

import tpo_plugin as tpo
from tpo_plugin.data import Record, Sample, Turn, VideoClip

HIDDEN = 8
SMALL = {
    "hidden": 16,
    "num_heads": 2,
    "feed_forward": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "cross_layers": 1,
    "dummy_layers": 1,
    "num_dummies": 3,
    "num_queries": 4,
    "total_prompts": 3,
    "input_dropout": 0.0,
    "dropout": 0.0,
}
FILES = {"features": "files", "video_size": 6, "text_features": "text", "text_size": HIDDEN}
SHARED = Path(__file__).resolve().parents[4] / "shared"
GOLDEN = Path(os.environ.get("TPO_GOLDEN", SHARED / "golden")) / "cg_detr"


def build(**options: Any) -> TemporalHead:
    torch.manual_seed(0)
    return TemporalHead(TemporalConfig(**{**SMALL, **FILES, **options}), HIDDEN)


@pytest.fixture
def head() -> TemporalHead:
    return build()


def inputs_of(num_clips: list[int], step_s: float = 2.0) -> dict[str, torch.Tensor]:
    """One row for each number of clips, each clip of `step_s`."""
    rows, longest = len(num_clips), max(num_clips)
    edges = torch.arange(longest + 1) * step_s
    generator = torch.Generator().manual_seed(1)
    return {
        "clips_s": torch.stack(((edges[:-1] + edges[1:]) / 2, edges[:-1], edges[1:]), -1).expand(rows, -1, -1),
        "num_clips": torch.tensor(num_clips).float(),
        "duration_s": torch.tensor(num_clips) * step_s,
        "video_group": torch.arange(rows),
        "question_group": torch.arange(rows),
        "video": torch.randn(rows, longest, 6, generator=generator),
        "words": torch.randn(rows, 3, HIDDEN, generator=generator),
        "num_words": torch.tensor([3.0, 2.0, 1.0][:rows]),
    }


def run(head: TemporalHead, num_clips: list[int], step_s: float = 2.0) -> dict[str, torch.Tensor]:
    e_ND = torch.randn(len(num_clips), HIDDEN, generator=torch.Generator().manual_seed(2))
    return head(e_ND, inputs=inputs_of(num_clips, step_s), batch_rows=torch.arange(len(num_clips)))


# -- records -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({}, "spans is None; expected a list of at least one"),
        ({"spans": []}, r"spans is \[\]; expected a list of at least one"),
        ({"spans": [3, 4]}, r"spans\[0\] is 3; expected two numbers"),
        ({"spans": [[1, 2], [3]]}, r"spans\[1\] is \[3\]; expected two numbers"),
        ({"spans": [[5, 4]]}, r"spans\[0\] is \[5, 4\]; expected 0 <= start < end"),
        ({"spans": [[5, 5]]}, "expected 0 <= start < end"),
        ({"spans": [[-1, 5]]}, "expected 0 <= start < end"),
        ({"spans": [[0, math.inf]]}, "expected two numbers"),
        ({"spans": [["0", 1]]}, "expected two numbers"),
        ({"spans": [[i, i + 1] for i in range(5)]}, "spans has 5 moments; expected at most num_queries=4"),
        ({"spans": [[1, 2]], "saliency": []}, r"saliency is \[\]; expected a number for each clip"),
        ({"spans": [[1, 2]], "saliency": [1, 13]}, r"saliency\[1\] is 13; expected 0 \(not relevant\) to 12"),
        ({"spans": [[1, 2]], "saliency": [1], "clip_s": 0}, "clip_s is 0; expected the seconds"),
    ],
)
def test_tasks_that_cannot_be_used(head, task, message):
    with pytest.raises(ValueError, match=message):
        head.check_task(task)


@pytest.mark.parametrize(
    "task", [{"spans": [[0, 0.5]]}, {"spans": [[1, 2], [4, 9]], "saliency": [0, 12, 3.5], "clip_s": 2.0, "query": "?"}]
)
def test_tasks_that_can(head, task):
    head.check_task(task)
    assert head.num_tokens(task) == 1


def test_collated_targets(head):
    targets = head.collate_targets(
        [{"spans": [[1, 2], [3, 4.5]]}, {"spans": [[0, 9]], "saliency": [0, 4], "clip_s": 2}]
    )
    assert [spans.tolist() for spans in targets["spans_s"]] == [[[1, 2], [3, 4.5]], [[0, 9]]]
    assert [values.tolist() for values in targets["saliency"]] == [[], [0, 4]]
    assert targets["clip_s"][0].isnan()
    assert targets["clip_s"][1] == 2
    assert head.count_targets(targets) == 2


# -- what it reads -----------------------------------------------------------------------------------------------------


def sample(times_s: list[float], duration_s: float, tasks: list[dict[str, Any]], video: str = "a.mp4") -> Sample:
    turns = (Turn("user", "<video>\nWhen?"), Turn("assistant", "Then.", tuple(tasks)))
    clip = VideoClip(np.zeros((len(times_s), 4, 4, 3), np.uint8), np.array(times_s), duration_s)
    return Sample(Record("7", "records.jsonl:3", turns, (), (Path(video),)), (), (clip,))


def test_clips_lie_between_true_frame_times():
    head = TemporalHead(TemporalConfig(**SMALL), HIDDEN, vision_size=5)
    tasks = [{"head": "temporal", "spans": [[1, 2]]}]
    batch = [sample([0.0, 1.0, 4.0], 10.0, tasks), sample([0.5], 3.0, tasks), sample([0.0, 1.0], 10.0, [])]
    inputs = head.collate_inputs(tasks, [], batch)
    torch.testing.assert_close(
        inputs["clips_s"][0], torch.tensor([[0, 0, 0.5], [1, 0.5, 2.5], [4, 2.5, 10]], dtype=torch.float32)
    )
    torch.testing.assert_close(inputs["clips_s"][1, 0], torch.tensor([0.5, 0, 3]))
    assert inputs["num_clips"].tolist() == [3, 1, 0]  # the last has no task of this head
    assert inputs["duration_s"].tolist() == [10, 3, 0]
    assert inputs["video_group"].tolist() == inputs["question_group"].tolist() == [0, 0, 0]
    assert head.collate_inputs([], [], batch)["num_clips"].tolist() == [3, 1, 2]  # a prompt has no tasks


@pytest.mark.parametrize("duration_s", [9.642966, 10.0, 10.291667])
def test_no_rounding_puts_a_span_behind_the_video(duration_s):
    head = TemporalHead(TemporalConfig(**SMALL), HIDDEN, vision_size=5)
    inputs = head.collate_inputs([], [], [sample([0.0], duration_s, [])])
    assert duration_s - 1e-6 < inputs["duration_s"].item() <= duration_s


def test_videos_are_told_apart_by_their_file():
    head = TemporalHead(TemporalConfig(**SMALL), HIDDEN, vision_size=5)
    batch = [sample([0.0], 3.0, [], video) for video in ("a.mp4", "b.mp4", "a.mp4")]
    assert head.collate_inputs([], [], batch)["video_group"].tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("span", "message"),
    [
        ([11, 12], r"records.jsonl:3: spans\[0\] is \[11, 12\], behind the end of its video, which lasts 10.000 s"),
        ([9, 11.5], "behind the end of its video"),
    ],
)
def test_span_behind_the_video(head, span, message):
    tasks = [{"head": "temporal", "spans": [span]}]
    for call in (head.check_sample, lambda t, s: head.collate_inputs(t, [], [s])):
        with pytest.raises(tpo.MediaError, match=message):
            call(tasks, sample([0.0, 5.0], 10.0, tasks))


def test_span_that_ends_a_rounding_behind_the_video():
    head = TemporalHead(TemporalConfig(**SMALL), HIDDEN, vision_size=5)
    tasks = [{"head": "temporal", "spans": [[8, 10.4]]}]
    head.check_sample(tasks, sample([0.0, 5.0], 10.0, tasks))
    truth = make_targets(run(build(), [5]), head.collate_targets(tasks))
    torch.testing.assert_close(to_start_end(truth.spans_cw)[0, 0], torch.tensor([0.8, 1.0]))


def test_task_without_a_video(head):
    tasks = [{"head": "temporal", "spans": [[0, 1]]}]
    turns = (Turn("user", "When?"), Turn("assistant", "Then.", tuple(tasks)))
    with pytest.raises(tpo.MediaError, match="a temporal task and 0 videos; expected one video"):
        head.collate_inputs(tasks, [], [Sample(Record("1", "x:1", turns))])


def test_features_from_files(tmp_path):
    for kind, width, scale in (("slowfast", 4, 3.0), ("clip", 2, 0.1)):
        (tmp_path / kind).mkdir()
        np.savez(tmp_path / kind / "a.npz", features=scale * np.ones((5, width), np.float32))
    (tmp_path / "text").mkdir()
    np.savez(tmp_path / "text" / "qid7.npz", last_hidden_state=np.ones((3, HIDDEN), np.float32))
    folders = [str(tmp_path / kind) for kind in ("slowfast", "clip")]
    head = build(video_features=folders, text_features=str(tmp_path / "text"), clip_s=2.0)
    inputs = head.collate_inputs([], [], [sample([0.0, 5.0], 10.0, [])])
    expected = torch.cat((torch.full((5, 4), 0.5), torch.full((5, 2), 0.5**0.5)), -1)  # each kind of length 1
    torch.testing.assert_close(inputs["video"][0], expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(inputs["clips_s"][0, :, 0], torch.tensor([1.0, 3, 5, 7, 9]))
    assert inputs["num_words"].tolist() == [3]
    value = head.postprocess(head(torch.randn(1, HIDDEN), inputs=inputs, batch_rows=torch.tensor([0])))[0]
    assert value["times_s"].tolist() == [1, 3, 5, 7, 9]

    tasks = [{"head": "temporal", "spans": [[0, 1]]}]
    longer = sample([0.0, 5.0], 40.0, tasks)
    with pytest.raises(tpo.MediaError, match="a.npz.*5.*40"):
        head.check_sample(tasks, longer)
    with pytest.raises(tpo.MediaError, match="other"):
        head.check_sample(tasks, sample([0.0], 10.0, tasks, video="other.mp4"))
    wrong = build(video_features=folders[:1], text_features=str(tmp_path / "text"))
    with pytest.raises(tpo.MediaError, match="4 numbers a row; expected 6"):
        wrong.check_sample(tasks, sample([0.0], 10.0, tasks))


def test_task_token_of_a_row_without_a_video(head):
    """Where the model asks for a moment of a picture: an empty answer, and the other rows as ever."""
    inputs = inputs_of([5, 4])
    inputs["num_clips"][1] = inputs["duration_s"][1] = 0
    e_ND = torch.randn(2, HIDDEN)
    outputs = head(e_ND, inputs=inputs, batch_rows=torch.tensor([0, 1]))
    values = head.postprocess(outputs)
    assert all(torch.isfinite(value).all() for value in outputs.values())
    assert [len(value["spans_s"]) for value in values] == [4, 0]
    assert [len(value["saliency"]) for value in values] == [5, 0]


def test_inputs_that_are_missing(head):
    with pytest.raises(tpo.TPOError, match="task_inputs\\['temporal'\\] is missing"):
        head(torch.randn(1, HIDDEN))
    host = TemporalHead(TemporalConfig(**SMALL), HIDDEN, vision_size=5)
    with pytest.raises(tpo.TPOError, match="looks at the host's own states"):
        host(torch.randn(1, HIDDEN), inputs=inputs_of([3]), batch_rows=torch.tensor([0]))


def test_a_tower_that_merges_frames():
    times_s = np.array([0.0, 1.0, 2.0, 3.0, 4.0])
    clips = np.concatenate((times_s[:, None], clip_bounds(times_s, 6.0)), -1)
    clips_s = torch.tensor(np.stack((clips, clips * 0)), dtype=torch.float32)
    merged, mask = merged_clips(clips_s, torch.tensor([5.0, 2.0]), torch.tensor([3.0, 1.0]), 3)
    torch.testing.assert_close(merged[0], torch.tensor([[0.5, 0, 1.5], [2.5, 1.5, 3.5], [4, 3.5, 6]]))
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    same, _ = merged_clips(clips_s, torch.tensor([5.0, 5.0]), torch.tensor([5.0, 5.0]), 5)
    torch.testing.assert_close(same, clips_s)


def test_a_word_goes_behind_the_last():
    text, mask = torch.ones(2, 3, 4), torch.tensor([[1.0, 1, 1], [1, 0, 0]])
    words, longer = append_word(text * mask[..., None], mask, torch.full((2, 4), 7.0))
    assert words[:, :, 0].tolist() == [[1, 1, 1, 7], [1, 7, 0, 0]]
    assert longer.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]


# -- a sample depends on itself ----------------------------------------------------------------------------------------


def test_a_prediction_does_not_depend_on_the_batch(head):
    head.eval()
    outputs = run(head, [5, 3, 4])
    for row, count in enumerate((5, 3, 4)):
        inputs = {name: value[row : row + 1] for name, value in inputs_of([5, 3, 4]).items()}
        inputs = {n: v[:, :count] if n in ("clips_s", "video") else v for n, v in inputs.items()}
        e_ND = torch.randn(3, HIDDEN, generator=torch.Generator().manual_seed(2))[row : row + 1]
        alone = head(e_ND, inputs=inputs, batch_rows=torch.tensor([0]))
        for name in ("spans_s", "scores"):
            torch.testing.assert_close(outputs[name][row], alone[name][0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(outputs["saliency"][row, :count], alone["saliency"][0], atol=1e-5, rtol=1e-4)


def test_with_the_reference_masks_it_does():
    outputs = [run(build(reference_masks=flag).eval(), [5, 3, 4])["saliency"] for flag in (True, False)]
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3


def test_exact_losses_do_not_depend_on_padding_or_accumulation():
    """Without what compares a sample with its batch: the contrasts, and (all of one video) the negative queries."""
    head = build(reference_losses=False, align_weight=0.0).eval()
    inputs = inputs_of([5, 3, 4]) | {"video_group": torch.zeros(3, dtype=torch.int64)}
    targets = {"spans_s": [torch.tensor([[0.0, 4]]), torch.tensor([[1.0, 3], [4, 6]]), torch.tensor([[2.0, 8]])]}
    e_ND = torch.randn(3, HIDDEN)

    def loss(rows: list[int]) -> torch.Tensor:
        index = torch.tensor(rows)
        outputs = head(e_ND[index], inputs=inputs, batch_rows=index)
        return sum(head.loss(outputs, {"spans_s": [targets["spans_s"][i] for i in rows]}, 3).values())

    torch.testing.assert_close(loss([0]) + loss([1, 2]), loss([0, 1, 2]))


# -- targets and losses ------------------------------------------------------------------------------------------------


def test_targets_without_saliency(head):
    outputs = run(head, [5, 4])
    truth = make_targets(outputs, {"spans_s": [torch.tensor([[2.5, 6.9], [8.9, 9.1]]), torch.tensor([[6.5, 6.6]])]})
    assert truth.saliency.tolist() == [[0, 1, 1, 0, 1], [0, 0, 0, 1, 0]]  # a short span has its nearest clip
    torch.testing.assert_close(truth.spans_cw[0], to_centre_width(torch.tensor([[0.25, 0.69], [0.89, 0.91]])))
    assert truth.span_mask.tolist() == [[1, 1], [1, 0]]
    torch.testing.assert_close(truth.pairs.sum((1, 2)), torch.tensor([2.0, 2.0]))
    assert truth.pairs[0, 1, 0] == pytest.approx(2 / 6)
    assert truth.pairs[1, :, 4].sum() == 0  # padding
    assert truth.real.tolist() == [True, True]


def test_targets_with_saliency(head):
    outputs = run(head, [5, 4])
    given = {"saliency": [torch.tensor([0.0, 3, 9, 5, 0]), torch.empty(0)], "clip_s": torch.tensor([2.0, math.nan])}
    truth = make_targets(outputs, {"spans_s": [torch.tensor([[2.0, 8]]), torch.tensor([[0.0, 4]])], **given})
    assert truth.saliency.tolist() == [[0, 3, 9, 5, 0], [1, 1, 0, 0, 0]]
    expected = torch.zeros(5, 5)
    expected[2, 1] += 1  # best and worst relevant clip
    expected[1:4, [0, 4]] += 1 / 6
    torch.testing.assert_close(truth.pairs[0], expected)
    even = make_targets(outputs, {"spans_s": [torch.tensor([[0.0, 8]])] * 2, "saliency": [torch.tensor([0.0, 6])] * 2})
    assert even.saliency.tolist() == [[0, 0, 6, 6, 6], [0, 0, 6, 6, 0]]


def test_matching_is_the_cheapest_of_all():
    from itertools import permutations

    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, 2, generator=generator)
    spans, true = (to_centre_width(torch.rand(6, n, 2, generator=generator).sort(-1).values) for n in (4, 3))
    there = torch.tensor([[1.0, 1, 1]] * 3 + [[1, 1, 0], [1, 0, 0], [0, 0, 0]])
    found = match(logits, spans, true, there, span=10, giou_=1, label=4)
    for row in range(6):
        count = int(there[row].sum())
        cost = 10 * (spans[row][:, None] - true[row]).abs().sum(-1) - 4 * logits[row].softmax(-1)[:, :1]
        cost = cost - giou(to_start_end(spans[row])[:, None], to_start_end(true[row]))
        best = min(permutations(range(4), count), key=lambda p: sum(cost[q, m] for m, q in enumerate(p)))
        assert found[row, :count].tolist() == list(best)


@pytest.mark.slow
def test_it_learns_where_a_marked_stretch_is():
    """From features alone: clips of a moment differ, words do not."""
    torch.manual_seed(0)
    head = build(encoder_layers=2, cross_layers=2, hidden=64, num_heads=4, feed_forward=128).train()
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(3)

    def batch(num: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        inputs = inputs_of([16] * 3, 1.0)
        inputs = {name: value[:1].expand(num, *value.shape[1:]).clone() for name, value in inputs.items()}
        inputs["video_group"] = torch.arange(num)
        inputs["question_group"] = torch.zeros(num, dtype=torch.int64)
        start = torch.randint(0, 11, (num, 1), generator=generator)
        spans = torch.cat((start, start + torch.randint(3, 6, (num, 1), generator=generator)), -1).float()
        place = torch.arange(16) + 0.5
        inside = (place > spans[:, :1]) & (place < spans[:, 1:])
        inputs["video"] = inputs["video"][:1] * 0.1 + torch.where(inside[..., None], 1.0, -1.0) * torch.linspace(
            -1, 1, 6
        )
        return inputs, {"spans_s": list(spans[:, None])}

    for _ in range(200):
        inputs, targets = batch(16)
        outputs = head(torch.zeros(16, HIDDEN), inputs=inputs, batch_rows=torch.arange(16))
        optimizer.zero_grad()
        sum(head.loss(outputs, targets, 16).values()).backward()
        optimizer.step()
    head.eval()
    inputs, targets = batch(64)
    metrics = head.metrics()
    metrics.update(head(torch.zeros(64, HIDDEN), inputs=inputs, batch_rows=torch.arange(64)), targets)
    assert metrics.compute()["R1@0.5"] > 0.8


# -- results -----------------------------------------------------------------------------------------------------------


def test_values(head):
    outputs = run(head.eval(), [5, 3])
    values = head.postprocess(outputs)
    assert (values[0]["scores"].diff() <= 0).all()
    assert ((values[1]["spans_s"] >= 0) & (values[1]["spans_s"] <= 6)).all()
    assert len(values[1]["saliency"]) == len(values[1]["times_s"]) == 3
    torch.testing.assert_close(head.score(outputs), torch.stack([value["scores"][0] for value in values]))
    assert json.loads(json.dumps(head.to_json(values[1])))["times_s"] == [1, 3, 5]


def test_suppression():
    spans, scores = torch.tensor([[0.0, 10], [0, 9], [20, 30], [5, 15]]), torch.tensor([0.9, 0.8, 0.7, 0.95])
    assert suppress(spans, scores, None).tolist() == [3, 0, 1, 2]
    assert suppress(spans, scores, 0.5).tolist() == [3, 0, 2]
    assert suppress(spans, scores, 0.25).tolist() == [3, 2]
    assert suppress(torch.tensor([[1.0, 1], [1, 1]]), torch.tensor([0.5, 0.4]), 0.0).tolist() == [0, 1]
    assert suppress(spans[:0], scores[:0], 0.5).tolist() == []


def test_results_as_the_public_code_makes_them():
    """Its decoding and suppression of `case_c_multi`'s outputs, with its rounding on top."""
    if not (GOLDEN / "postprocess.json").is_file():
        pytest.skip(f"needs shared/ (golden data): no postprocess.json in {GOLDEN}")
    expected = json.loads((GOLDEN / "postprocess.json").read_text())
    golden = load_file(GOLDEN / f"{expected['source'].removesuffix('.safetensors')}.safetensors")
    durations = torch.tensor(expected["durations"], dtype=torch.float32)
    outputs = {
        "logits": golden["outputs.pred_logits"][:, None],
        "spans_cw": golden["outputs.pred_spans"][:, None],
        "duration_s": durations,
    }
    spans = build()._spans(outputs)
    for row in range(len(durations)):
        ours = torch.cat((spans["spans_s"][row], spans["scores"][row, :, None]), -1)
        torch.testing.assert_close(ours, torch.tensor(expected["raw"][row]), atol=1.01e-4, rtol=0)
        processed = torch.tensor(expected["processed"][row])
        for name in ("0.3", "0.5", "0.7"):
            kept = suppress(processed[:, :2], processed[:, 2], float(name))
            assert processed[kept].tolist() == torch.tensor(expected[f"nms_{name}"][row]).tolist()


# -- configuration -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": "frames"}, "features: is 'frames'; expected 'host', 'clip' or 'files'"),
        ({"text": "tokens"}, "text: is 'tokens'; expected 'states' or 'words'"),
        ({"features": "clip"}, "clip is None; expected the folder or name"),
        ({"features": "files"}, "video_size is None"),
        ({"features": "files", "video_size": 4, "text_features": "x"}, "text_size is None"),
        ({"hidden": 20, "num_heads": 4}, "hidden: is 20; expected a multiple of num_heads and of 8"),
        ({"dropout": 1.0}, "dropout: is 1.0; expected a finite number of at least 0 and below 1"),
        ({"num_prompts": 11}, "num_prompts: is 11; expected at most 10"),
        ({"num_heads": 0}, "num_heads: is 0; expected a whole number of at least 1"),
        ({"span_weight": -1}, "span_weight: is -1; expected a finite number of at least 0"),
        ({"nms": 2.0}, "nms: is 2.0; expected a finite number of at least 0 and at most 1 or null"),
    ],
)
def test_configurations_that_cannot_be(options, message):
    with pytest.raises(tpo.TPOError, match=message):
        TemporalConfig(**options)


def test_published_size():
    head = TemporalHead(TemporalConfig(), 512, vision_size=2816)
    assert 12.4e6 < sum(p.numel() for p in head.parameters()) < 12.7e6


def test_questions_about_one_video_are_mixed_with_those_about_others():
    head = build()
    inputs = inputs_of([3] * 5)
    groups = torch.tensor([0, 0, 0, 1, 1])
    inputs |= {"video_group": groups, "question_group": groups, "num_words": torch.ones(5)}
    outputs = head(torch.randn(5, HIDDEN), inputs, torch.arange(5))
    spans_s = [torch.tensor([[float(i), i + 1.0]]) for i in range(5)]
    truth = make_targets(outputs, {"spans_s": spans_s})
    assert truth.real.tolist() == [False, False, True, False, True]
    mixed, targets = mix_videos(outputs, truth)
    order = [0, 3, 1, 4, 2]
    assert mixed["video_group"].tolist() == [0, 1, 0, 1, 0]
    assert targets.real.tolist() == [True, True, True, True, False]
    for name in outputs:
        assert torch.equal(mixed[name], outputs[name][order])
    for name in ("spans_cw", "span_mask", "saliency", "pairs"):
        assert torch.equal(getattr(targets, name), getattr(truth, name)[order])
