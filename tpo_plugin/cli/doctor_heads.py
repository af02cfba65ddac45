"""What `tpo doctor` says of a run whose heads have learnt nothing yet: by its own last evaluation, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def untaught(run: Path, heads: Sequence[str]) -> list[str]:
    """A sentence for each head of a finished run that is no better than a constant prediction, or was not measured."""
    from tpo_plugin.training.config import TrainConfig
    from tpo_plugin.training.evaluation import on_a_constant
    from tpo_plugin.training.outlook import FEW_STEPS_OF_HEADS
    from tpo_plugin.training.run import read_run, run_metrics

    saved, metrics = read_run(run), run_metrics(run)
    config = TrainConfig.from_dict(saved["config"], where=str(run))
    if not any(name.startswith(f"{head}_") for name in metrics for head in heads):
        return [
            f"no evaluation of this run measured a head, so nothing is known of what they learnt: tpo eval {run} "
            "--data RECORDS measures them on held-out records, and eval_data in a stage while it trains"
        ]
    sentences = []
    for sentence in on_a_constant(metrics, heads):
        head = sentence.partition(":")[0]
        losses = {name: stage.losses for name, stage in config.stages.items()}
        steps = {name: saved["stages"][name]["steps"] for name in losses if head in (losses[name] or [head])}
        number, alone = sum(steps.values()), sum(n for name, n in steps.items() if losses[name] == [head])
        if number < FEW_STEPS_OF_HEADS:
            remedy = f"fewer than {FEW_STEPS_OF_HEADS}, so give more steps or epochs"
        elif not alone:
            remedy = f"add a stage of some {FEW_STEPS_OF_HEADS} steps with losses: [{head}] before the last"
        else:
            remedy = "look at its records (tpo check --pictures), and try another rate of the head"
        sentences.append(f"{sentence}. Its loss trained for {number} steps, {alone} of them alone: {remedy}")
    return sentences
