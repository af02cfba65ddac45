"""In the processes of a trainer: what its model was fed and what loss came of it is kept for `tests.trainers.check`.

TPO_RECORD is the folder. Python imports this at its start, as it does with that of `tpo run`.
"""

import importlib.abc
import os
import sys


class _Recorder(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path, target=None):
        if fullname != "tpo_plugin.script.trainer":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            record(module.ScriptTrainerMixin, os.environ["TPO_RECORD"])

        spec.loader.exec_module = exec_module
        return spec


def record(mixin, folder):
    import torch

    compute_loss, train = mixin.compute_loss, mixin.train
    steps = []

    def tensors(inputs):
        return {name: value.detach().clone() for name, value in inputs.items() if isinstance(value, torch.Tensor)}

    def recorded_loss(self, model, inputs, return_outputs=False, **kwargs):
        if not steps:
            host = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
            self.model.tpo.save_pretrained(f"{folder}/start")
            torch.save({k: v.clone() for k, v in host.state_dict().items()}, f"{folder}/start/host.pt")
        batch = tensors(inputs)
        boxes = inputs.get("task_targets", {}).get("region", {}).get("boxes_xyxy", torch.zeros(0, 4)).clone()
        given = {"step": self.state.global_step, "inputs": batch, "boxes": boxes}
        made = compute_loss(self, model, inputs, return_outputs, **kwargs)
        loss = made[0] if return_outputs else made
        steps.append({**given, "loss": loss.detach().clone()})
        return made

    def recorded_train(self, *args, **kwargs):
        result = train(self, *args, **kwargs)
        last = next(step for step in reversed(steps) if len(step["boxes"]))
        self.model.eval()
        with torch.no_grad():
            self.model(**{name: value for name, value in last["inputs"].items() if name != "labels"})
        boxes = self.tpo.last_output.outputs["region"]["boxes_xyxy"].clone()
        torch.save(
            {"steps": steps, "last": last, "boxes": boxes, "log": self.state.log_history, "class": type(self).__name__},
            f"{folder}/record.pt",
        )
        return result

    mixin.compute_loss, mixin.train = recorded_loss, recorded_train


if "TPO_RECORD" in os.environ:
    sys.meta_path.insert(0, _Recorder())
