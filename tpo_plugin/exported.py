"""The heads of an exported checkpoint, on states that any engine has computed.

`tpo export` writes a checkpoint that runs without this package, and beside it `tpo_heads.json`, which says what the
heads need of it, and the heads' weights as `model.tpo.save_pretrained` writes them.

Suffixes: B answers, T sequence, D hidden size, E width of the input embeddings.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig

from tpo_plugin.checkpoint import checked_config, load_tokenizer
from tpo_plugin.codec import Codec, registered_codec
from tpo_plugin.config import TPOConfig
from tpo_plugin.errors import TPOError
from tpo_plugin.files import CONFIG_FILE, WEIGHTS_FILE, load_weights, read_saved, weight_shapes
from tpo_plugin.generation.answers import Prediction, find, predict, run_heads
from tpo_plugin.head import TaskHead, bare_codec, build_head
from tpo_plugin.host import Host
from tpo_plugin.hub import local_folder
from tpo_plugin.plugins import registry
from tpo_plugin.positions import Positions, token_positions
from tpo_plugin.seen import special_ids
from tpo_plugin.session import Prompt, Session, TriggerProcessor
from tpo_plugin.step import TaskArguments, seen_of
from tpo_plugin.tasks import Tasks
from tpo_plugin.tokens import HeadTokens, TokenRows, add_tokens, resolve_tokens

HEADS_FILE = "tpo_heads.json"


@dataclass(kw_only=True)
class DescribedState:
    """Which state a head takes."""

    at: str
    """Of which token: "task_token"."""
    size: int
    """D."""
    module: str | None
    """Name of the host's module whose output it is; None where no module gives it out as it is."""
    module_class: str | None
    after_last_norm: bool | None
    """Whether that module is the last norm; the state is what the output embedding gets, in any case."""


@dataclass(kw_only=True)
class DescribedVision:
    """The host's vision tower, of whose last hidden state some heads take the mean of each frame's patches."""

    modules: list[str]
    size: int | None


@dataclass(kw_only=True)
class DescribedReading:
    """How media were read in training: the fields of `tpo_plugin.data.ImageOptions` and `VideoOptions`."""

    image: dict[str, Any]
    video: dict[str, Any]


@dataclass(kw_only=True)
class DescribedHead:
    """A head and its tokens."""

    config: dict[str, Any]
    trigger: str
    trigger_id: int
    task_token: str
    task_id: int
    input_token: str | None
    """Stands in a prompt for what a user gives, whose embedding the head computes (`HeadsOnStates.with_given`)."""
    input_id: int | None
    needs: list[str]
    """What it takes beside states: "inputs", what it makes of the media (`task_inputs`); "seen", what the host computed
    of the question's text and of the frames."""


@dataclass(kw_only=True)
class Described:
    """What `tpo_heads.json` holds beside its version."""

    host_class: str
    state: DescribedState
    vision: DescribedVision
    reading: DescribedReading
    heads: dict[str, DescribedHead]
    decodes: bool
    """Whether the host is an encoder-decoder, whose answers stand on the decoder's side."""
    label_shift: int
    untied: bool
    """Whether the host's input and output embeddings were one matrix, which had to become two."""
    never_emitted: list[int]
    """Ids that may not be chosen freely: task and input tokens, and rows that no token owns."""


def load_heads(directory: str | os.PathLike[str], *, revision: str | None = None) -> HeadsOnStates:
    """The heads beside an exported checkpoint, in evaluation mode, on the CPU; the checkpoint itself is not read.

    `directory` is a folder, or the name of a repository on the hub, at `revision`.
    Raises `TPOError` for a folder that `tpo export` did not write, and as `load_tpo` does.
    """
    directory = local_folder(directory, revision)
    path = directory / HEADS_FILE
    if not path.is_file():
        raise TPOError(f"{directory} has no {HEADS_FILE}; expected a folder that tpo export wrote")
    described = read_saved(path, Described)[1]
    saved, config = checked_config(directory)
    host = Host(
        embed=nn.Identity(),
        head=nn.Identity(),
        hidden=None,
        hidden_size=described.state.size,
        head_gives_logits=False,
        honours_num_items=False,
        ids="decoder_input_ids" if described.decodes else "input_ids",
        label_shift=described.label_shift,
        vision_size=described.vision.size,
    )
    specs = registry().choose(saved.heads)
    config.heads = {spec.name: spec.make_config(config.heads.get(spec.name, {})) for spec in specs}
    processor = load_tokenizer(directory)
    tokenizer = getattr(processor, "tokenizer", processor)
    tokens, _ = add_tokens(tokenizer, resolve_tokens(specs, config.heads))
    for name, own in tokens.items():
        if (own.trigger_id, own.task_id) != saved.token_ids[name]:
            raise TPOError(
                f"{directory / CONFIG_FILE}: head {name!r} has the token ids {list(saved.token_ids[name])}, its "
                f"tokenizer gives {[own.trigger_id, own.task_id]}; expected the tokenizer that was saved with it"
            )
    shapes = weight_shapes(directory / WEIGHTS_FILE)
    heads, codecs, rows = {}, {}, {}
    for spec in specs:
        head = build_head(spec, config.heads[spec.name], host.hidden_size, lambda: host.vision_size).float()
        heads[spec.name] = head
        own_codec = registered_codec(spec, config.heads[spec.name])
        codecs[spec.name] = own_codec or bare_codec(spec, config.heads[spec.name], head)
        sizes = [shapes.get(f"embeddings.{spec.name}.{kind}", [0])[0] for kind in ("task", "output")]
        rows[spec.name] = TokenRows(torch.zeros(2, sizes[0]), torch.zeros(sizes[1]))
    ids = special_ids(tokenizer, AutoConfig.from_pretrained(directory, trust_remote_code=False))
    made = HeadsOnStates(heads, rows, tokens, config, tokenizer, processor, codecs, ids, host)
    load_weights(made, directory)
    return made.eval()


class HeadsOnStates(Tasks):
    """Heads without a host: they take the states that some engine has computed with the exported checkpoint.

    `TPOCollator(heads, for_generation=True)` makes prompts for it, as for `model.tpo`.
    """

    def __init__(
        self,
        heads: dict[str, TaskHead],
        rows: dict[str, TokenRows],
        tokens: dict[str, HeadTokens],
        config: TPOConfig,
        tokenizer: Any,
        processor: Any,
        codecs: dict[str, Codec],
        ids: list[int],
        host: Host,
    ) -> None:
        super().__init__(
            heads, rows, tokens, config, tokenizer, None if processor is tokenizer else processor,
            codecs=codecs, special_ids=ids,
        )  # fmt: skip
        self.host = host
        """What is known of the host that computes the states; none of its modules."""

    @torch.no_grad()
    def predict(
        self,
        sequences_BT: Tensor,
        states_BTD: Tensor,
        *,
        prompt_length: int,
        task_inputs: dict[str, Any] | None = None,
        task_frames: list[list[int]] | None = None,
        task_positions: Positions | None = None,
        words_BTE: Tensor | None = None,
        vision: Any = None,
        vision_grid: Tensor | None = None,
        logprobs_BT: Tensor | None = None,
    ) -> list[list[Prediction]]:
        """What the heads make of finished answers: for each row its predictions, as `model.tpo.generate` gives them.

        Args:
            sequences_BT: Ids of prompt and answer, each trigger with its task token behind it.
            states_BTD: What the output embedding gets, for at least the columns up to the last task token.
            prompt_length: Columns before the answers.
            task_inputs: As `TPOCollator(heads, for_generation=True)` makes it; so with the next two.
            task_frames: Frames that each row shows.
            task_positions: Where task and input tokens stand.
            words_BTE: Input embeddings of the prompt, for a head that looks at the question's words.
            vision: What the vision tower returned for the videos, for a head that looks at their frames.
            vision_grid: Frames, height and width [videos, 3], where the tower packs the patches of all of them.
            logprobs_BT: Logarithm of the probability of each token, which becomes `Prediction.score`; None leaves it
                out.

        A trigger without its task token behind it is `cut_off`. Raises `TPOError` where states are missing, and where a
        head does not get what it looks at.
        """
        if states_BTD.dim() != 3 or states_BTD.shape[::2] != (len(sequences_BT), self.host.hidden_size):
            raise TPOError(
                f"the states have the shape {list(states_BTD.shape)}; expected [{len(sequences_BT)} answers, columns, "
                f"{self.host.hidden_size}]"
            )
        arguments = {"task_inputs": task_inputs, "task_frames": task_frames, "task_positions": task_positions}
        given = TaskArguments.taken(arguments, list(self.heads))
        seen = seen_of(self, sequences_BT[:, :prompt_length], None, given)
        if seen is not None:
            seen.keep_text(states_BTD)
            if words_BTE is not None:
                seen.keep_words(words_BTE)
            if vision is not None:
                seen.keep_tower(vision, vision_grid)
        prompt = Prompt(given, len(sequences_BT), prompt_length, seen)
        session = Session(self, self.host, prompt, keeps_states=False)
        found = find(session, sequences_BT, "trigger_first")
        for f in found:
            if f.state >= states_BTD.shape[1]:
                raise TPOError(
                    f"answer {f.row} has the task token of head {f.head!r} in column {f.state}, and the states end "
                    f"before column {states_BTD.shape[1]}; run the finished sequence once more for the state there"
                )
            if f.state >= 0:
                session.states[f.row, f.state] = states_BTD[f.row, f.state]
        processor = TriggerProcessor(session)
        if logprobs_BT is not None:
            processor.logprobs = {(f.row, f.trigger): float(logprobs_BT[f.row, f.trigger]) for f in found}
        return predict(session, processor, sequences_BT, found, run_heads(session, sequences_BT, found))

    @torch.no_grad()
    def with_given(self, input_ids_BT: Tensor, embeds_BTE: Tensor, task_inputs: dict[str, Any]) -> Tensor:
        """The input embeddings of a prompt with what its users give (`task_inputs`) in the place of input tokens."""
        positions = token_positions(input_ids_BT, None, self.tokens)
        embeds = embeds_BTE.clone()
        changed = self.insert(embeds, positions, task_inputs, learns=False, given_here=True)
        return embeds if changed is None else changed
