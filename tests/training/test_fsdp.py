"""FSDP2 on two ranks of the CPU trains what one process trains, and saves it whole."""

from pathlib import Path

import pytest
import tiny_run
import torch
import transformers
from ranks import TRIES_FSDP, forked, use_fsdp
from safetensors.torch import load_file

from tpo_plugin import TPOError, apply_tpo, load_tpo, sharding, wrap_trainer

pytestmark = [
    pytest.mark.skipif(not TRIES_FSDP, reason="FSDP2 is tried on the newest transformers only"),
    pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning"),
]


def make(folder: Path, name: str, settings=(), **changes):
    fsdp = {"version": 2, "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]} | dict(settings)
    values = {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 1, "gradient_accumulation_steps": 2}
    values |= {"use_cpu": False, "dataloader_pin_memory": False, "fsdp": True, "fsdp_config": fsdp}
    args = tiny_run.arguments(folder / name, **values, **changes)
    model = transformers.LlamaForCausalLM.from_pretrained(folder / "host")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "host")
    torch.manual_seed(0)
    apply_tpo(model, tokenizer, heads=["point"])
    dataset = tiny_run.Samples(tokenizer)
    trainer = wrap_trainer(transformers.Trainer)(
        model=model, args=args, train_dataset=dataset, data_collator=tiny_run.collate
    )
    return model, trainer


def whole(model):
    sharding.at_rest(model)
    return sharding.whole(dict(model.named_parameters()))


def train_and_resume(folder: Path) -> None:
    use_fsdp()
    model, trainer = make(folder, "out")
    trainer.train()
    assert sharding.split(model.tpo.parameters())
    samples = tiny_run.Samples(model.tpo.tokenizer, 16)
    evaluation = trainer.evaluate(samples)  # in its first batch one rank has tasks, and the other none
    odd_evaluation = trainer.evaluate(tiny_run.Samples(model.tpo.tokenizer, 9))
    with torch.no_grad():
        out = model.eval()(**tiny_run.collate(list(samples)))
    trainer.save_model(str(folder / "out"))
    parameters = whole(model)
    runs = {}  # torch cannot load the state of a plain SGD, which has none
    for name, resume in (("straight", None), ("resumed", str(folder / "straight" / "checkpoint-5"))):
        model, again = make(folder, name, optim="adamw_torch", save_strategy="steps", save_steps=5)
        again.train(resume_from_checkpoint=resume)
        logs = [entry for entry in again.state.log_history if "loss" in entry]
        runs[name] = {"logs": logs, "parameters": whole(model)}
    if trainer.is_world_process_zero():
        result = {
            "logs": [entry for entry in trainer.state.log_history if "loss" in entry],
            "evaluation": evaluation,
            "odd evaluation": odd_evaluation,
            "parameters": parameters,
            "logits": out.logits,
            "predictions": out.tpo.predictions["point"],
        }
        torch.save(result | runs, folder / "result.pt")


@pytest.mark.slow
def test_two_ranks(tmp_path):
    torch.set_num_threads(1)
    tiny_run.install_head()
    host, tokenizer = tiny_run.tiny_host()
    host.save_pretrained(tmp_path / "host")
    tokenizer.save_pretrained(tmp_path / "host")
    forked(lambda: train_and_resume(tmp_path), tmp_path, 2)
    result = torch.load(tmp_path / "result.pt", weights_only=True)
    one = tiny_run.train(tiny_run.Run(), tmp_path / "one")
    tiny_run.assert_same(result, one)
    for name, value in one["odd evaluation"].items():
        if name.startswith(("eval_loss", "eval_point", "eval_assign", "eval_false")):
            assert result["odd evaluation"][name] == pytest.approx(value, rel=1e-5), name
    out = tmp_path / "out"
    loaded = load_tpo(transformers.LlamaForCausalLM.from_pretrained(out), out).eval()
    with torch.no_grad():
        output = loaded(**tiny_run.collate(list(tiny_run.Samples(loaded.tpo.tokenizer, 16))))
    torch.testing.assert_close(output.logits, result["logits"])
    torch.testing.assert_close(output.tpo.predictions["point"], result["predictions"])

    straight, resumed = result["straight"], result["resumed"]
    assert resumed["logs"] == straight["logs"]
    for name, parameter in straight["parameters"].items():
        assert torch.equal(resumed["parameters"][name], parameter), name
    weights = load_file(tmp_path / "straight" / "checkpoint-10" / "tpo_model.safetensors")
    for name, value in weights.items():
        assert torch.equal(value, straight["parameters"][f"tpo.{name}"]), name


@pytest.mark.parametrize(
    "settings",
    [
        {"auto_wrap_policy": "SIZE_BASED_WRAP", "min_num_params": 10},
        {"transformer_layer_cls_to_wrap": ["Linear"]},
    ],
)
def test_units_inside_of_heads_are_refused(settings, tmp_path):
    tiny_run.install_head()
    host, tokenizer = tiny_run.tiny_host()
    host.save_pretrained(tmp_path / "host")
    tokenizer.save_pretrained(tmp_path / "host")

    def refuse() -> None:
        use_fsdp()
        with pytest.raises(TPOError, match="wraps modules inside model.tpo"):
            make(tmp_path, "out", settings)

    forked(refuse, tmp_path, 2)
