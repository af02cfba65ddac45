"""The wrapped trainer: what it refuses, logs, evaluates, and saves."""

import json

import pytest
import tiny_run
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from tpo_plugin import HeadMetrics, TPOConfig, TPOError, wrap_trainer
from tpo_plugin.training.trainer import SEES_WHOLE_STEP

Wrapped = wrap_trainer(transformers.Trainer)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning"),  # the tiny host comes from nowhere
]


def make(tmp_path, model=None, tokenizer=None, trainer=Wrapped, dataset=None, **changes):
    if model is None:
        model, tokenizer = tiny_run.host_with_tpo()
    options = {k: changes.pop(k) for k in ("compute_loss_func", "eval_dataset", "data_collator") if k in changes}
    dataset = tiny_run.Samples(tokenizer) if dataset is None else dataset
    args = tiny_run.arguments(tmp_path, **changes)
    return trainer(model=model, args=args, train_dataset=dataset, **{"data_collator": tiny_run.collate} | options)


def with_lora():
    host, tokenizer = tiny_run.tiny_host()
    tiny_run.install_head()
    torch.manual_seed(0)
    tiny_run.apply_tpo(host, tokenizer, heads=["point"])
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.1, task_type="CAUSAL_LM")
    return get_peft_model(host, lora), tokenizer


def test_a_head_trained_alone_costs_one_row_of_logits_a_step(tmp_path):
    model, tokenizer = tiny_run.host_with_tpo(config=TPOConfig(loss_weights={"mllm": 0.0, "assign": 0.0}))
    rows = []
    model.tpo.host.head.register_forward_hook(lambda module, args, logits: rows.append(logits[..., 0].numel()))
    trainer = make(tmp_path, model, tokenizer, max_steps=3)
    trainer.train()
    assert rows == [1, 1, 1]
    assert [sorted(k for k in e if k.startswith("loss_")) for e in trainer.state.log_history if "loss" in e] == [
        ["loss_point"]
    ] * 3


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_wraps_classes_only():
    with pytest.raises(TPOError, match=r"expected a subclass of transformers.Trainer"):
        wrap_trainer(dict)
    assert wrap_trainer(Wrapped) is Wrapped
    assert Wrapped.__name__ == "TPOTrainer"


def test_without_tpo(tmp_path):
    host, _ = tiny_run.tiny_host()
    with pytest.raises(TPOError, match="this LlamaForCausalLM has no TPO: call apply_tpo"):
        make(tmp_path, host, dataset=[{}])


def test_label_smoothing(tmp_path):
    with pytest.raises(TPOError, match="label_smoothing_factor > 0: it takes the labels away"):
        make(tmp_path, label_smoothing_factor=0.1)


@pytest.mark.skipif(not SEES_WHOLE_STEP, reason="transformers 4.45 has no compute_loss_func")
def test_compute_loss_func(tmp_path):
    with pytest.raises(TPOError, match="compute_loss_func: it takes the labels away"):
        make(tmp_path, compute_loss_func=lambda outputs, labels, **kwargs: outputs.logits.sum())


def test_data_parallel(tmp_path, monkeypatch):
    monkeypatch.setattr(transformers.TrainingArguments, "n_gpu", 2)
    monkeypatch.setattr(transformers.TrainingArguments, "train_batch_size", 8)
    with pytest.raises(TPOError, match=r"more than one GPU in one process \(DataParallel\)"):
        make(tmp_path)


def test_dispatched_batches(tmp_path):
    trainer = make(tmp_path, accelerator_config={"dispatch_batches": True})
    with pytest.raises(TPOError, match="dispatch_batches slices every tensor"):
        trainer.train()


def test_columns_that_would_be_dropped(tmp_path):
    trainer = make(tmp_path, remove_unused_columns=True)
    with pytest.raises(TPOError, match=r"would drop the dataset's columns \['points'\].*remove_unused_columns=False"):
        trainer.train()


def test_columns_of_an_arrow_dataset_that_would_be_dropped(tmp_path):
    datasets = pytest.importorskip("datasets")
    model, tokenizer = tiny_run.host_with_tpo()
    dataset = datasets.Dataset.from_list(list(tiny_run.Samples(tokenizer)))
    trainer = make(tmp_path, model, dataset=dataset, remove_unused_columns=True)
    with pytest.raises(TPOError, match=r"would drop the dataset's columns \['points'\]"):
        trainer.train()


def test_nothing_trainable(tmp_path):
    model, tokenizer = tiny_run.host_with_tpo()
    model.tpo.requires_grad_(False)
    with pytest.raises(TPOError, match=r"nothing in model.tpo is trainable"):
        make(tmp_path, model, tokenizer).train()


def test_a_trigger_that_can_never_be_learned(tmp_path):
    model, tokenizer = tiny_run.host_with_tpo()
    model.requires_grad_(False)
    model.tpo.heads.requires_grad_(True)
    with pytest.raises(TPOError, match="no trainable parameter decides whether a trigger is emitted"):
        make(tmp_path, model, tokenizer).train()
    model.tpo.config.loss_weights["assign"] = 0.0
    make(tmp_path, model, tokenizer, max_steps=1).train()


def test_a_trainer_that_computes_a_loss_of_its_own(tmp_path):
    class Own(transformers.Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            outputs = model(**inputs)
            loss = outputs.logits.float().pow(2).mean()
            return (loss, outputs) if return_outputs else loss

    with pytest.raises(TPOError, match="TPOOwn trains on a loss that is not the one the model returns"):
        make(tmp_path, trainer=wrap_trainer(Own)).train()


def test_a_trainer_that_adds_to_the_loss(tmp_path):
    class Regularised(transformers.Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
            loss = loss + 0.1 * outputs.logits.float().pow(2).mean()
            return (loss, outputs) if return_outputs else loss

    trainer = make(tmp_path, trainer=wrap_trainer(Regularised), max_steps=1)
    trainer.train()
    logs = trainer.state.log_history[0]
    assert logs["loss"] > logs["loss_mllm"] + logs["loss_assign"] + logs["loss_point"] + 1e-4


def test_a_trainer_that_multiplies_the_loss(tmp_path, caplog):
    """By the share of a micro-batch, say: what is added beside stays, the model's loss is that of the global batch."""

    class Sharing(transformers.Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
            share = (inputs["labels"] != -100).float().mean()
            loss = share * loss + self.extra * outputs.logits.float().pow(2).mean()
            return (loss, outputs) if return_outputs else loss

    def first(base, extra, output):
        base.extra = extra
        trainer = make(output, trainer=wrap_trainer(base), max_steps=1, max_grad_norm=1e9)
        trainer.train()
        return trainer.state.log_history[0]

    plain, shared = first(transformers.Trainer, 0, tmp_path / "a"), first(Sharing, 0, tmp_path / "b")
    assert [
        r.getMessage() for r in caplog.records if "multiplies the model's loss by a number of its own" in r.msg % r.args
    ]
    for name in ("loss", "loss_point", "grad_norm"):
        assert shared[name] == pytest.approx(plain[name], rel=1e-5)
    assert first(Sharing, 0.1, tmp_path / "c")["loss"] > plain["loss"] + 1e-4


def test_a_trainer_that_takes_the_labels_out(tmp_path):
    class Own(transformers.Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            labels = inputs.pop("labels")
            outputs = model(**inputs)
            logits = outputs.logits[:, :-1].flatten(0, 1)
            loss = outputs.loss + torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten())
            return (loss, outputs) if return_outputs else loss

    with pytest.raises(TPOError, match="TPOOwn trains on a loss that is not the one the model returns"):
        make(tmp_path, trainer=wrap_trainer(Own)).train()


def test_short_epoch_on_old_transformers(tmp_path):
    if SEES_WHOLE_STEP:
        pytest.skip("only transformers 4.45 steps on parts of such an epoch")
    trainer = make(tmp_path, per_device_train_batch_size=8, gradient_accumulation_steps=8)
    with pytest.raises(TPOError, match="use at most 3 accumulation steps"):
        trainer.train()


# -- what it does ------------------------------------------------------------------------------------------------------


def test_weights_of_losses(tmp_path):
    def first_log(**weights):
        model, tokenizer = tiny_run.host_with_tpo(config=TPOConfig(loss_weights=weights))
        trainer = make(tmp_path, model, tokenizer, max_steps=1)
        trainer.train()
        return trainer.state.log_history[0]

    plain, weighted = first_log(), first_log(mllm=0.5, assign=2.0, point=3.0)
    for kind in ("mllm", "assign", "point"):
        assert weighted[f"loss_{kind}"] == pytest.approx(plain[f"loss_{kind}"], rel=1e-5), "logged without weight"
    expected = 0.5 * plain["loss_mllm"] + 2 * plain["loss_assign"] + 3 * plain["loss_point"]
    assert weighted["loss"] == pytest.approx(expected, rel=1e-5)


def test_log_is_a_mean_over_its_steps(tmp_path):
    logs = {}
    for every in (1, 5):
        trainer = make(tmp_path, logging_steps=every)
        trainer.train()
        logs[every] = [entry for entry in trainer.state.log_history if "loss" in entry]
    for key in ("loss_mllm", "loss_assign", "loss_point"):
        assert logs[5][1][key] == pytest.approx(sum(entry[key] for entry in logs[1][5:]) / 5, rel=1e-5)


def test_sums_of_other_ranks_are_all_taken_over(tmp_path):
    """Also those that the first rank has none of: it may have seen no trigger since the last log."""
    trainer = make(tmp_path)
    plain = {"num_steps": 1, "num_left_out": 0, "total_loss": 0.0, "total_steps": 0}
    trainer._restore_sums([plain | {"sums": {"loss": 1.0}}, plain | {"sums": {"loss": 3.0, "assign_total": 4.0}}])
    assert {name: value.item() for name, value in trainer._sums.items()} == {"loss": 2.0, "assign_total": 4.0}


def test_peft_freezes_and_the_trainer_thaws(tmp_path):
    model, tokenizer = with_lora()
    assert not any(p.requires_grad for p in model.tpo.parameters())
    before = model.tpo.embeddings["point"].task.detach().clone()
    make(tmp_path, model, tokenizer, max_steps=2).train()
    assert not torch.equal(model.tpo.embeddings["point"].task, before)


def test_evaluation_has_the_heads_metrics(tmp_path):
    model, tokenizer = tiny_run.host_with_tpo()
    samples = tiny_run.Samples(tokenizer, 12)
    trainer = make(tmp_path, model, tokenizer, eval_dataset=samples, per_device_eval_batch_size=5)
    metrics = trainer.evaluate()
    whole = model(**tiny_run.collate(list(samples)))
    for kind in ("mllm", "assign", "point"):
        assert metrics[f"eval_loss_{kind}"] == pytest.approx(whole.tpo.losses[kind].item(), rel=1e-5), kind
    assert metrics["eval_point_loss_l2"] == pytest.approx(whole.tpo.losses["point"].item(), rel=1e-5)
    assert 0 <= metrics["eval_assign_accuracy"] <= 1
    assert 0 <= metrics["eval_false_trigger_rate"] <= 1
    assert trainer.state.log_history[-1]["eval_point_loss_l2"] == metrics["eval_point_loss_l2"]
    assert trainer.predict(samples).metrics["test_point_loss_l2"] == metrics["eval_point_loss_l2"]


@pytest.mark.parametrize(("hits", "says"), [(0.22, True), (0.6, False)])
def test_evaluation_has_the_best_constant_prediction_beside_a_metric(hits, says, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(HeadMetrics, "compute", lambda self: {"hits": hits})
    monkeypatch.setattr(HeadMetrics, "constant", lambda self: {"hits": 0.2})
    model, tokenizer = tiny_run.host_with_tpo()
    trainer = make(tmp_path, model, tokenizer, eval_dataset=tiny_run.Samples(tokenizer, 4))
    metrics = trainer.evaluate()
    assert (metrics["eval_point_hits"], metrics["eval_point_constant_hits"]) == (hits, 0.2)
    sentence = (
        f"eval, step 0: point: about as good as the best prediction that is always the same: hits {hits:.3f} (0.200)"
    )
    assert (sentence in caplog.text) == says


def test_evaluation_does_not_change_what_is_trained(tmp_path):
    """Dropout draws the same, whenever is evaluated."""
    weights = []
    for evaluation in ({}, {"eval_strategy": "steps", "eval_steps": 1}):
        model, tokenizer = with_lora()
        trainer = make(
            tmp_path, model, tokenizer, eval_dataset=tiny_run.Samples(tokenizer, 4), max_steps=3, **evaluation
        )
        trainer.train()
        weights.append(dict(model.named_parameters()))
        assert len([entry for entry in trainer.state.log_history if "eval_loss" in entry]) == 3 * bool(evaluation)
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_best_checkpoint_by_a_heads_metric(tmp_path):
    model, tokenizer = tiny_run.host_with_tpo()
    trainer = make(
        tmp_path, model, tokenizer, eval_dataset=tiny_run.Samples(tokenizer, 8), eval_strategy="steps", eval_steps=2,
        save_strategy="steps", save_steps=2, max_steps=6, load_best_model_at_end=True,
        metric_for_best_model="eval_point_loss_l2", greater_is_better=True,
    )  # fmt: skip
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert best.endswith("checkpoint-2"), "the loss falls, and the greatest was asked for"
    for key, value in load_file(f"{best}/tpo_model.safetensors").items():
        assert torch.equal(model.tpo.state_dict()[key], value)


@pytest.mark.parametrize("kind", ["host", "lora"])
def test_checkpoints_hold_tpo_and_resume_is_exact(kind, tmp_path):
    def build():
        model, tokenizer = tiny_run.host_with_tpo() if kind == "host" else with_lora()
        if kind == "lora":
            model.get_input_embeddings().requires_grad_(True)  # PEFT does not save it
        return model, tokenizer

    def run(folder, resume=None, **changes):
        model, tokenizer = build()
        trainer = make(
            folder, model, tokenizer, optim="adamw_torch", learning_rate=1e-2, lr_scheduler_type="cosine",
            per_device_train_batch_size=2, gradient_accumulation_steps=4, save_strategy="steps", save_steps=2,
            max_steps=8, **changes,
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=resume)
        return model, [entry for entry in trainer.state.log_history if "loss" in entry]

    whole, logs = run(tmp_path / "a")
    checkpoint = tmp_path / "a" / "checkpoint-4"  # in the middle of the second epoch of three steps
    assert json.loads((checkpoint / "tpo_config.json").read_text())["heads"] == ["point"]
    for name in ("model.safetensors", "adapter_model.safetensors"):
        if (checkpoint / name).is_file():
            assert not any("tpo" in key for key in load_file(checkpoint / name))
    resumed, resumed_logs = run(tmp_path / "b", resume=str(checkpoint))
    assert resumed_logs == logs
    for (name, mine), theirs in zip(resumed.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, theirs), name


def test_end_of_training_saves_tpo_too(tmp_path):
    trainer = make(tmp_path, max_steps=1)
    trainer.train()
    trainer.save_model(str(tmp_path / "out"))
    assert (tmp_path / "out" / "tpo_model.safetensors").is_file()
    assert (tmp_path / "out" / "tpo_config.json").is_file()


# -- TRL ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def trl():
    return pytest.importorskip("trl")


def sft(trl, tmp_path, model, tokenizer, **changes):
    datasets = pytest.importorskip("datasets")
    values = vars(tiny_run.arguments(tmp_path)).items()
    keep = {
        "output_dir", "per_device_train_batch_size", "max_steps", "learning_rate", "lr_scheduler_type", "logging_steps",
        "save_strategy", "report_to", "use_cpu", "remove_unused_columns", "disable_tqdm", "seed", "max_grad_norm",
    }  # fmt: skip
    settings = {k: v for k, v in values if k in keep} | {
        "optim": "sgd", "bf16": False, "gradient_checkpointing": False, "max_length": None,
        "dataset_kwargs": {"skip_prepare_dataset": True},
    }  # fmt: skip
    options = {"data_collator": tiny_run.collate} | {k: changes.pop(k) for k in ("data_collator",) if k in changes}
    return wrap_trainer(trl.SFTTrainer)(
        model=model,
        args=trl.SFTConfig(**settings | changes),
        train_dataset=datasets.Dataset.from_list(list(tiny_run.Samples(tokenizer))),
        processing_class=tokenizer,
        **options,
    )


def test_sft_trains_as_the_plain_trainer_does(trl, tmp_path):
    plain = tiny_run.train(tiny_run.Run(), tmp_path)
    model, tokenizer = tiny_run.host_with_tpo()
    trainer = sft(trl, tmp_path, model, tokenizer, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    for entry, expected in zip(logs, plain["logs"], strict=True):
        for key in ("loss", "loss_mllm", "loss_assign", "loss_point"):
            assert entry[key] == pytest.approx(expected[key], rel=1e-5), key
    for name, parameter in plain["parameters"].items():
        assert (dict(model.named_parameters())[name] - parameter).abs().max() <= 1e-6, name


def test_sft_with_its_own_collator_is_refused(trl, tmp_path):
    model, tokenizer = tiny_run.host_with_tpo()
    with pytest.raises(TPOError, match="TRL's own data collator, which drops task_inputs and task_targets"):
        sft(trl, tmp_path, model, tokenizer, data_collator=None)


def test_sft_with_another_loss_is_refused(trl, tmp_path):
    model, tokenizer = tiny_run.host_with_tpo()
    with pytest.raises(TPOError, match="loss_type other than 'nll'"):
        sft(trl, tmp_path, model, tokenizer, loss_type="dft")


def test_other_trl_trainers_are_refused(trl):
    with pytest.raises(TPOError, match="DPOTrainer computes a loss of its own"):
        wrap_trainer(trl.DPOTrainer)
