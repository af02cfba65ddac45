"""In the processes of a trainer: what its model was fed and what loss came of it is kept for `tests.trainers.check`.

TPO_RECORD is the folder. Python imports this at its start, as it does with that of `tpo run`.
"""

import importlib.abc
import os
import sys


class _Recorder(importlib.abc.MetaPathFinder):
    def __init__(self, name, start):
        self.name, self.start = name, start

    def find_spec(self, fullname, path, target=None):
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            self.start(module, os.environ["TPO_RECORD"])

        spec.loader.exec_module = exec_module
        return spec


def tensors(inputs):
    """Those of a batch, as they were."""
    import torch

    return {name: value.detach().clone() for name, value in inputs.items() if isinstance(value, torch.Tensor)}


def boxes_of(inputs):
    """What a batch trains."""
    import torch

    return (inputs.get("task_targets") or {}).get("region", {}).get("boxes_xyxy", torch.zeros(0, 4)).clone()


def save_start(model, folder):
    """The host with TPO, before the first step."""
    import torch

    model.tpo.save_pretrained(f"{folder}/start")
    torch.save({k: v.clone() for k, v in model.state_dict().items()}, f"{folder}/start/host.pt")


def save(model, name, steps, log, folder):
    """What was recorded, and what the trained model predicts."""
    import torch

    last = next(step for step in reversed(steps) if len(step["boxes"]))
    model.eval()
    with torch.no_grad():
        model(**{name: value for name, value in last["inputs"].items() if name != "labels"})
    boxes = model.tpo.last_output.outputs["region"]["boxes_xyxy"].clone()
    torch.save({"steps": steps, "last": last, "boxes": boxes, "log": log, "class": name}, f"{folder}/record.pt")


def record_trainer(module, folder):
    """A Trainer's losses, as its `compute_loss` gives them."""
    mixin = module.ScriptTrainerMixin
    compute_loss, train = mixin.compute_loss, mixin.train
    steps = []

    def recorded_loss(self, model, inputs, return_outputs=False, **kwargs):
        if not steps:
            save_start(self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model, folder)
        given = {"step": self.state.global_step, "inputs": tensors(inputs), "boxes": boxes_of(inputs)}
        made = compute_loss(self, model, inputs, return_outputs, **kwargs)
        loss = made[0] if return_outputs else made
        steps.append({**given, "loss": loss.detach().clone()})
        return made

    def recorded_train(self, *args, **kwargs):
        result = train(self, *args, **kwargs)
        save(self.model, type(self).__name__, steps, self.state.log_history, folder)
        return result

    mixin.compute_loss, mixin.train = recorded_loss, recorded_train


def record_loop(module, folder):
    """A loop's losses, as its model returns them, and the gradients that its optimizer finds."""
    import atexit

    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    begin = module.Loop.__init__
    steps, norms = [], []

    def began(self, *args, **kwargs):
        begin(self, *args, **kwargs)
        save_start(self.host, folder)

        def before(model, args, kwargs):
            if torch.is_grad_enabled():
                steps.append({"step": len(norms), "inputs": tensors(kwargs), "boxes": boxes_of(kwargs)})

        def after(model, args, kwargs, output):
            if torch.is_grad_enabled():
                parts = {f"loss_{name}": float(loss.detach()) for name, loss in output.tpo.losses.items()}
                steps[-1].update(loss=output.loss.detach() / self.runner.accumulation(), parts=parts)

        def stepped(optimizer, args, kwargs):
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            norms.append(float(torch.nn.utils.get_total_norm(gradients)))

        def finish():
            first = [step for step in steps if step["step"] == 0]
            log = {name: sum(step["parts"][name] for step in first) for name in first[0]["parts"]}
            log |= {"loss": float(sum(step["loss"] for step in first)), "grad_norm": norms[0]}
            save(self.host, self.runner.name, steps, [log], folder)

        self.host.register_forward_pre_hook(before, with_kwargs=True)
        self.host.register_forward_hook(after, with_kwargs=True)
        register_optimizer_step_post_hook(stepped)
        atexit.register(finish)

    module.Loop.__init__ = began


if "TPO_RECORD" in os.environ:
    sys.meta_path.insert(0, _Recorder("tpo_plugin.script.trainer", record_trainer))
    sys.meta_path.insert(0, _Recorder("tpo_plugin.script.loop_parts", record_loop))
