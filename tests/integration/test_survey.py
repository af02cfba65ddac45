"""The survey's checks on architectures that are unlike the rest; `python -m tests.survey` looks at all of them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import transformers
from packaging.version import Version

sys.path.append(str(Path(__file__).parents[2]))

pytestmark = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5"), reason="the survey is of the newest transformers"
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # hosts of all kinds have their say
@pytest.mark.parametrize(
    "name",
    [
        "BertLMHeadModel",  # cuts its states to the last before they can be seen
        "ChameleonForConditionalGeneration",  # changes the output embedding's result in place
        "CpmAntForCausalLM",  # embeds a prompt of its own; its vocabulary cannot grow
        "Florence2ForConditionalGeneration",  # an encoder-decoder
        "Gemma4ForCausalLM",  # a third table of its vocabulary, which grows too
        "Molmo2ForConditionalGeneration",  # more rows in its input embedding than in its output embedding
        "ProphetNetForCausalLM",  # several streams of states
        "ReformerModelWithLMHead",  # pads to whole chunks, of which only a part goes on
    ],
)
def test_an_architecture_unlike_the_rest(name: str) -> None:
    assert wrong(name) == {}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    [
        "GitForCausalLM",  # its image stands before the text, without placeholders
        "Kosmos2ForConditionalGeneration",  # its text model generates in its place
        "PPFormulaNetForConditionalGeneration",  # does not say its input embedding; its answer begins in the prompt
        "UdopForConditionalGeneration",  # encoder and decoder have a module each for one table
    ],
)
def test_an_architecture_that_needs_an_image(name: str) -> None:
    assert wrong(name, "image") == {}


def wrong(name: str, kind: str | None = None) -> dict[str, str]:
    from tests.survey.build import build
    from tests.survey.check import Case, survey
    from tests.survey.media import find_media

    if not hasattr(transformers, name):
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    media = None if kind is None else find_media(build(name), kind)
    assert not isinstance(media, str), media
    return {check: reason for check, reason in survey(Case(name, media)).items() if reason}
