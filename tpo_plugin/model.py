"""The task preference model: all task tokens and heads of a host, and how a batch flows through them.

Suffixes: B batch, T sequence, D hidden size, E width of the input embeddings, N task tokens, V vocabulary.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tpo_plugin.codec import Codec
from tpo_plugin.config import TPOConfig
from tpo_plugin.errors import HostError, TPOError
from tpo_plugin.head import TaskHead
from tpo_plugin.host import Host, tables
from tpo_plugin.insert import empty_inputs, insert_rows
from tpo_plugin.losses import Call, TPOOutput, add_losses, flat_index, float32, split_labels, with_result
from tpo_plugin.positions import Positions, decoder_ids, token_positions
from tpo_plugin.seen import Captured, HostFeatures, last_layer, special_ids, text_groups, tower_grid
from tpo_plugin.structure import follow_peft, look_again
from tpo_plugin.tokens import HeadTokens, TokenRows, Undo
from tpo_plugin.vocabulary import Growth

FORWARD_ARGUMENTS = ("task_inputs", "task_targets", "task_positions", "task_frames", "task_counts")
"""Keyword arguments that the plugin takes out of the host's forward."""


class TaskPreferenceModel(nn.Module):
    """`model.tpo`: the only module that TPO adds to a host. Its parameters stay float32 when the host is cast."""

    def __init__(
        self,
        model: nn.Module,
        host: Host,
        heads: dict[str, TaskHead],
        rows: dict[str, TokenRows],
        tokens: dict[str, HeadTokens],
        config: TPOConfig,
        tokenizer: Any,
        processor: Any = None,
        growth: Growth | None = None,
        codecs: Mapping[str, Codec] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self.heads = nn.ModuleDict(heads)
        self.codecs = dict(codecs)
        """What reads the records of each head, without weights."""
        self.embeddings = nn.ModuleDict(rows)
        self.tokens = tokens
        self.config = config
        self.tokenizer, self.processor = tokenizer, processor
        self.hidden_size = host.hidden_size
        self.trainable = frozenset(name for name, p in self.named_parameters() if p.requires_grad)
        """Names of the parameters that may train at all; a head's frozen encoder is not among them."""
        self.last_output: TPOOutput | None = None
        self.session: Any = None
        """The generation in progress (`tpo_plugin.session`), or None."""
        self.host = host
        """Its hook points."""
        self._model = (model,)  # in a tuple, so that the host does not become a submodule of its own submodule
        self.call: Call | None = None
        """The forward in progress, or None."""
        self._hooks: list[Any] = []
        self._undo: list[Undo] = []
        self.splicing = False
        """Whether the host is embedding pieces of rows, into which nothing is put yet."""
        self._taken = False
        """Whether the last hidden state of the forward in progress was seen."""
        self._num_columns = 0
        """Columns of the ids that were embedded last."""
        self._warned: set[str] = set()
        triggers = [tokens[name].trigger_id for name in heads]
        self.register_buffer("_triggers", torch.tensor(triggers), persistent=False)
        self._unused: Tensor
        self.register_buffer("_unused", torch.zeros(0, dtype=torch.int64), persistent=False)
        self.set_growth(growth)
        self._options_of_head = {name: set(inspect.signature(head.forward).parameters) for name, head in heads.items()}
        sees = any("seen" in options for options in self._options_of_head.values())
        self.special_ids = special_ids(tokenizer, model.config) if sees else None
        """Ids that are no text, where a head looks at the host's states of the text; None where none does."""

    @property
    def model(self) -> nn.Module:
        """The host."""
        return self._model[0]

    @property
    def token_ids(self) -> dict[str, tuple[int, int]]:
        """(trigger id, task token id) by head."""
        return {name: (t.trigger_id, t.task_id) for name, t in self.tokens.items()}

    def set_growth(self, growth: Growth | None) -> None:
        """Tells which rows of the vocabulary were added; those that no trigger owns get no probability."""
        self.growth = growth
        added = range(growth.old_size, growth.new_size) if growth else ()
        unused = sorted(set(added) - {t.trigger_id for t in self.tokens.values()})
        self._unused = torch.tensor(unused, dtype=torch.int64, device=self._unused.device)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generates with the heads; see `tpo_plugin.generate.generate`."""
        from tpo_plugin.generate import generate

        return generate(self, *args, **kwargs)

    def save_pretrained(self, directory: Any) -> None:
        """Writes config, task tokens, heads and tokenizer; see `tpo_plugin.files.save_tpo`."""
        from tpo_plugin.files import save_tpo

        save_tpo(self, directory)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TaskPreferenceModel:
        def keep_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(keep_dtype, recurse)

    def __getstate__(self) -> dict[str, Any]:
        # What a step left behind holds its graph, which cannot be copied.
        return self.__dict__ | {"last_output": None, "session": None, "call": None}

    # -- hooks ---------------------------------------------------------------------------------------------------------

    def attach(self) -> None:
        """Hooks the host. Its modules are looked up anew when PEFT has wrapped one of them."""
        host = self.host
        self._hooks = [
            self.model.register_forward_pre_hook(self._before_forward, with_kwargs=True),
            self.model.register_forward_hook(self._after_forward, with_kwargs=True, always_call=True),
            *(
                table.register_forward_hook(self._insert_rows, with_kwargs=True, prepend=True)
                for table in tables(self.model, host.embed)
            ),
            host.head.register_forward_hook(self._add_trigger_logits),
            *host.attach(self.model),
        ]
        if self.special_ids is not None:
            layers = [layer for layer in map(last_layer, host.towers) if layer is not None]
            self._hooks += [layer.register_forward_hook(self._capture_tower_layer) for layer in layers]
            hook = self._capture_tower
            self._hooks += [tower.register_forward_hook(hook, with_kwargs=True) for tower in host.towers]
        if host.hidden is not None:
            self._hooks.append(host.hidden.register_forward_hook(self._capture_output))
        self._hooks.append(host.head.register_forward_pre_hook(self._capture_input))

    def detach(self) -> None:
        """Takes the hooks off the host."""
        for handle in self._hooks:
            handle.remove()
        self._hooks = []

    @torch.compiler.disable
    def _before_forward(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return self.begin(args, kwargs)

    @torch.compiler.disable
    def _after_forward(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        if output is None:  # the host raised: this hook runs all the same, so that no state stays behind
            self.call = None
            return None
        return self.finish(output)

    @torch.compiler.disable
    def _insert_rows(self, module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> Tensor | None:
        """Puts task tokens, trigger rows and encoded inputs where their ids stand."""
        ids = args[0] if args else kwargs.get("input")
        if not isinstance(ids, Tensor) or ids.dim() == 0 or ids.is_floating_point() or ids.numel() == 0:
            return None
        if self.splicing:  # `insert_into_spliced` puts the rows in when the pieces are together
            return None
        call = self.call
        ids_BT = ids.reshape(-1, ids.shape[-1])
        self._num_columns = ids_BT.shape[1]
        if self.captured is not None and self.host.ids == "input_ids":
            copies = self.session.copies(ids_BT) if self.session is not None else 1
            self.captured.keep_words(output.reshape(*ids_BT.shape, -1), copies)
        positions = call.positions if call is not None and not call.inserted else None
        if positions is None or positions["shape"] != list(ids_BT.shape) or self.host.ids != "input_ids":
            # other ids than those of `positions`: a decoding step's, or an encoder's
            positions = token_positions(ids_BT, None, self.tokens)
        elif call is not None:
            call.inserted = True
        if self.session is not None and self.session.capturing and self.session.positions is None:
            self.session.positions = positions
        return insert_rows(self, output, positions)

    @torch.compiler.disable
    def _capture_output(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        self._taken = self._capture(output)

    @torch.compiler.disable
    def _capture_input(self, module: nn.Module, args: tuple) -> None:
        if not self._taken:  # of what the module gave, another part may go on (reformer pads to whole chunks)
            self._capture(args[0])

    @torch.compiler.disable
    def _capture_tower(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        captured = self.captured
        if captured is not None:
            captured.keep_tower(output, tower_grid(args, kwargs))

    @torch.compiler.disable
    def _capture_tower_layer(self, module: nn.Module, args: tuple, output: Any) -> None:
        captured = self.captured
        if captured is not None:
            captured.layer_output = output

    @property
    def captured(self) -> Captured | None:
        """What is kept, for heads that look at it, of the forward or generation in progress."""
        source = self.session if self.session is not None else self.call
        return None if source is None else source.captured

    @property
    def task_inputs(self) -> dict[str, Any] | None:
        """Those of the forward in progress, or else of the generation."""
        source = self.call if self.call is not None and self.call.task_inputs else self.session
        return None if source is None else source.task_inputs

    def capture(
        self,
        input_ids: Tensor | None,
        labels: Tensor | None,
        frames: list[list[int]] | None,
        positions: Positions | None = None,
    ) -> Captured | None:
        """What to keep of a forward or of a prompt for heads that look at it; None where no head does."""
        if self.special_ids is None:
            return None
        groups = (positions or {}).get("text")
        if groups is None:
            groups = [] if input_ids is None else text_groups(input_ids, labels, self.special_ids)
        return Captured(groups, frames)

    def _capture(self, hidden_BTD: Tensor) -> bool:
        """Keeps the rows of the last hidden state at task tokens and before labelled triggers, if it fits the ids."""
        if hidden_BTD.dim() == 4:  # several streams, of which the first predicts the next token
            hidden_BTD = hidden_BTD[:, 0]
        if self.host.media_first:
            hidden_BTD = hidden_BTD[:, -self._num_columns :]
        taken = self.session is not None and self.session.capturing and self.session.capture(hidden_BTD)
        call = self.call
        if call is None or call.positions is None or call.positions["shape"] != list(hidden_BTD.shape[:2]):
            return taken
        groups = {name: call.positions["task"][name] for name in self.heads}
        if call.labels is not None:
            groups["assign"] = [[row, column - self.host.label_shift] for row, column in call.positions["labels"]]
        index = flat_index(list(chain.from_iterable(groups.values())), hidden_BTD.shape[1], hidden_BTD.device)
        rows = hidden_BTD.flatten(0, 1).index_select(0, index)
        call.rows = dict(zip(groups, rows.split([len(places) for places in groups.values()]), strict=True))
        if call.captured is not None:
            call.captured.keep_text(hidden_BTD)
        return True

    @torch.compiler.disable
    def _add_trigger_logits(self, module: nn.Module, args: tuple, logits: Tensor) -> None:
        """Adds the trained part of the trigger's output rows, in place: a Linear saves nothing of its output."""
        if self.call is not None:
            self.call.head_ran = True
        if len(self._unused):  # rows that belong to no token must not take probability
            logits.index_fill_(-1, self._unused.to(logits.device), torch.finfo(logits.dtype).min)
        rows = torch.stack([self.embeddings[name]("output") for name in self.heads])
        added = F.linear(args[0], rows.to(args[0]))
        logits.index_add_(-1, self._triggers.to(logits.device), added.to(logits.dtype))

    # -- one forward ---------------------------------------------------------------------------------------------------

    def begin(self, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """Takes the plugin's arguments out of the host's and splits the labels."""
        if args:
            names = [n for n, p in self._parameters_of_forward().items() if p.kind is not p.VAR_KEYWORD]
            kwargs, args = dict(zip(names, args, strict=False)) | kwargs, ()
        taken = {name: kwargs.pop(name, None) for name in FORWARD_ARGUMENTS}
        self._check_names(taken)
        follow_peft(self)
        self._taken = False
        labels, counts, positions = kwargs.get("labels"), taken["task_counts"], taken["task_positions"]
        if self.host.unseen:
            look_again(self, kwargs)
        input_ids = self.ids_of(kwargs)
        if positions is None and input_ids is not None and self.session is None:
            positions = token_positions(input_ids, labels, self.tokens, self.host.label_shift)
        captured = None
        if self.session is not None:
            self.session.positions = None
            if self.session.captured is not None:
                self.session.captured.start_forward()
        else:
            captured = self.capture(input_ids, labels, taken["task_frames"], positions)
        self.call = Call(
            task_inputs=taken["task_inputs"] or {},
            task_targets=taken["task_targets"],
            counts=counts or {},
            labels=labels,
            positions=positions,
            captured=captured,
        )
        if labels is not None:
            kwargs["labels"] = split_labels(labels, self.tokens)
            if counts is not None:
                kwargs.pop("num_items_in_batch", None)
                if self.host.honours_num_items:
                    kwargs["num_items_in_batch"] = torch.as_tensor(counts["mllm"], device=labels.device)
            elif kwargs.get("num_items_in_batch") is not None and self.training and taken["task_targets"]:
                self.warn_once(
                    "a trainer passes num_items_in_batch, but not the counts of the other losses, so they are means "
                    "over the micro-batch: train with wrap_trainer(YourTrainer), which weights them over the whole step"
                )
        return args, kwargs

    def ids_of(self, kwargs: dict[str, Any]) -> Tensor | None:
        """The tokens that reach the output embedding; an encoder-decoder's are made of its labels where not given.

        Where no label is a trigger, the host makes them itself: some take other inputs for it than labels.
        """
        name, labels = self.host.ids, kwargs.get("labels")
        given = [kwargs.get(key) for key in (name, "decoder_inputs_embeds")]
        if name != "input_ids" and labels is not None and given == [None, None]:
            made = decoder_ids(self.model, labels, self.tokens)
            if torch.isin(labels, self._triggers.to(labels.device)).any():
                kwargs[name] = made
            return made
        return kwargs.get(name)

    def finish(self, output: Any) -> Any:
        """Runs the heads on the captured rows and adds the losses to the host's output."""
        call, self.call = self.call, None
        assert call is not None
        positions = call.positions or {"task": {}}
        has_tasks = any(positions["task"].values())
        if call.labels is None and call.task_targets is None and (not has_tasks or self.session is not None):
            return output
        if not call.rows and not has_tasks and not positions.get("labels") and not self.training:
            return output  # ordinary text, of which we need to see nothing
        if not call.rows:
            raise HostError(
                f"the last hidden state of {type(self.model).__name__} was not seen in this forward, so task tokens "
                "cannot be read; a forward with task tokens needs input_ids of the same length as its hidden states"
            )
        result = TPOOutput(_heads=self.heads)
        for name in self.heads:
            places = positions["task"][name]
            result.outputs[name] = self.run_head(name, call.rows[name], places, call.task_inputs, call.captured)
        if call.labels is not None or call.task_targets is not None:
            add_losses(self, result, call, output)
        self.last_output = result
        return with_result(output, result, call.counts.get("scale", 1))

    def run_head(
        self,
        name: str,
        rows_ND: Tensor,
        places: Sequence[Sequence[int]],
        task_inputs: dict[str, Any],
        captured: Captured | None = None,
        copies: int = 1,
    ) -> dict[str, Tensor]:
        """A head on the rows of its task tokens, in float32, with what else its forward declares.

        `places` are (row, column) of the tokens; `copies` answers of each sample stand in successive rows.
        """
        head, options = self.heads[name], {}
        if "inputs" in self._options_of_head[name]:
            given = task_inputs.get(name)
            options["inputs"] = empty_inputs(self, name, rows_ND.device) if given is None else given
        if "batch_rows" in self._options_of_head[name]:
            batch_rows = torch.tensor([row // copies for row, _ in places], dtype=torch.int64)
            options["batch_rows"] = batch_rows.to(rows_ND.device, non_blocking=True)
        if "seen" in self._options_of_head[name]:
            assert captured is not None
            nothing = rows_ND.new_zeros(0, self.host.vision_size or 0)
            options["seen"] = HostFeatures([(row // copies, column) for row, column in places], captured, nothing)
        with float32(rows_ND.device):
            return head(rows_ND.float(), **options)

    def _check_names(self, taken: dict[str, Any]) -> None:
        for argument in ("task_inputs", "task_targets"):
            unknown = set(taken[argument] or {}) - set(self.heads)
            if unknown:
                raise TPOError(
                    f"{argument} has {sorted(unknown)}, which is not among the applied heads {list(self.heads)}"
                )

    def _parameters_of_forward(self) -> dict[str, inspect.Parameter]:
        return dict(inspect.signature(self.model.forward).parameters)

    def warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, stacklevel=3)
