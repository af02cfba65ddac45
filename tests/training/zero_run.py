"""Ten steps under DeepSpeed on the CPU, as one of several ranks: `python zero_run.py STAGE FOLDER`.

FOLDER/host is the tiny host. ZeRO-3 splits it while it is loaded, as in any script that makes its arguments first.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import tiny_run
import torch
import transformers
from ranks import use_deepspeed

from tpo_plugin import apply_tpo, sharding, wrap_trainer

SIZES = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")


def settings(stage: int) -> dict[str, Any]:
    """Of ZeRO, in a form that gathers and releases every parameter, however small."""
    options = {"stage3_param_persistence_threshold": 0, "stage3_gather_16bit_weights_on_model_save": True}
    return {
        "zero_optimization": {"stage": stage} | (options if stage == 3 else {}),
        "zero_allow_untested_optimizer": True,  # plain SGD
        "gradient_clipping": "auto",
        **dict.fromkeys(SIZES, "auto"),
    }


def train(stage: int, folder: Path, name: str, resume: Path | None = None) -> tuple[Any, Any]:
    args = tiny_run.arguments(
        folder / name, per_device_train_batch_size=2, per_device_eval_batch_size=1, gradient_accumulation_steps=2,
        use_cpu=False, deepspeed=settings(stage), save_strategy="steps", save_steps=5,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM.from_pretrained(folder / "host")
    assert bool(sharding.split(model.parameters())) == (stage == 3)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "host")
    torch.manual_seed(0)
    apply_tpo(model, tokenizer, heads=["point"])
    trainer = wrap_trainer(transformers.Trainer)(
        model=model, args=args, train_dataset=tiny_run.Samples(tokenizer), data_collator=tiny_run.collate
    )
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return model, trainer


def main(stage: int, folder: Path) -> None:
    tiny_run.install_head()
    model, trainer = train(stage, folder, "out")
    samples = tiny_run.Samples(model.tpo.tokenizer, 16)
    evaluation = trainer.evaluate(samples)  # in its first batch one rank has tasks, and the other none
    odd_evaluation = trainer.evaluate(tiny_run.Samples(model.tpo.tokenizer, 9))
    with torch.no_grad():
        own = tiny_run.collate([samples[trainer.args.process_index]])
        alone = model.eval()(input_ids=own["input_ids"], attention_mask=own["attention_mask"]).logits
    trainer.save_model(str(folder / "out"))
    with torch.no_grad():
        out = model.eval()(**tiny_run.collate(list(samples)))
    with sharding.gathered(model.parameters()):
        parameters = {name: p.detach().clone() for name, p in model.named_parameters()}
    resumed, again = train(stage, folder, "again", folder / "out" / "checkpoint-5")
    with sharding.gathered(resumed.parameters()):
        after_resuming = {name: p.detach().clone() for name, p in resumed.named_parameters()}
    if trainer.is_world_process_zero():
        result = {
            "engine": type(trainer.model_wrapped).__name__,
            "logs": [entry for entry in trainer.state.log_history if "loss" in entry],
            "evaluation": evaluation,
            "odd evaluation": odd_evaluation,
            "logits of the first": alone,
            "parameters": parameters,
            "logits": out.logits,
            "predictions": out.tpo.predictions["point"],
            "resumed logs": [entry for entry in again.state.log_history if "loss" in entry],
            "resumed parameters": after_resuming,
        }
        torch.save(result, folder / "result.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    use_deepspeed()
    main(int(sys.argv[1]), Path(sys.argv[2]))
