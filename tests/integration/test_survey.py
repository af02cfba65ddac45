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
    ],
)
def test_an_architecture_unlike_the_rest(name: str) -> None:
    from tests.survey.check import Case, survey

    if not hasattr(transformers, name):
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    found = survey(Case(name))
    assert {check: reason for check, reason in found.items() if reason} == {}
