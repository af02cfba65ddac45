"""Which parameters a stage trains, on real architectures without weights, and at what rate."""

import re

import pytest
import tiny_run
import torch
import transformers
from peft import LoraConfig, get_peft_model

from tpo_plugin import Host, TPOError
from tpo_plugin.training.parts import can_learn_triggers, language_linears, optimizer_groups, set_trainable

VISION_HOSTS = {
    "LlavaForConditionalGeneration": ("multi_modal_projector", "vision_tower"),
    "LlavaNextForConditionalGeneration": ("multi_modal_projector", "vision_tower"),
    "Qwen2VLForConditionalGeneration": ("visual.merger", "visual.blocks"),
    "Qwen3VLForConditionalGeneration": ("visual.deepstack_merger_list", "visual.blocks"),
    "Idefics3ForConditionalGeneration": ("connector", "vision_model"),
    "InternVLForConditionalGeneration": ("multi_modal_projector", "vision_tower"),
    "PaliGemmaForConditionalGeneration": ("multi_modal_projector", "vision_tower"),
    "VideoLlavaForConditionalGeneration": ("multi_modal_projector", "video_tower"),
}

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")


@pytest.fixture
def model():
    return tiny_run.host_with_tpo()[0]


@pytest.fixture
def lora_model():
    host, tokenizer = tiny_run.tiny_host()
    tiny_run.install_head()
    model = get_peft_model(host, LoraConfig(r=2, target_modules=language_linears(host), task_type="CAUSAL_LM"))
    return tiny_run.apply_tpo(model, tokenizer, heads=["point"])


def trainable(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("name", VISION_HOSTS)
def test_connector_and_vision_of_hosts(name):
    cls = getattr(transformers, name, None)
    if cls is None:
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    try:
        with torch.device("meta"):
            names = [n for n, _ in cls(cls.config_class()).named_parameters()]
    except (AttributeError, AssertionError) as error:
        if transformers.__version__.startswith("5."):
            raise
        pytest.skip(f"its default configuration does not build: {error}")
    connector, vision = VISION_HOSTS[name]
    of = {part: [n for n in names if re.search(pattern, n)] for part, pattern in Host.parts.items()}
    assert any(connector in n for n in of["connector"])
    assert any(vision in n for n in of["vision"])
    assert not any("language_model" in n or ("layers" in n and "text" in n) for n in of["connector"] + of["vision"])


def test_lora_goes_to_the_language_model_only():
    cls = transformers.LlavaForConditionalGeneration
    with torch.device("meta"):
        model = cls(cls.config_class())
    pattern = re.compile(language_linears(model))
    linears = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    matched = {n for n in linears if pattern.fullmatch(n)}
    assert matched == {n for n in linears if "language_model" in n and "lm_head" not in n}
    assert not any(pattern.fullmatch(n) for n in ("lm_head", "language_model.lm_head"))


def test_parts_and_rates(lora_model):
    rates = set_trainable(lora_model, {"lora": 1e-3, "tokens": 2e-3, "task_tokens.point": 3e-3, "heads": 4e-3})
    assert set(rates) == trainable(lora_model)
    assert {rates[n] for n in rates if "lora_" in n} == {1e-3}
    by_end = {n.rsplit("tpo.", 1)[1]: r for n, r in rates.items() if ".tpo." in n}
    assert by_end == {
        "embeddings.point.trigger": 2e-3,
        "embeddings.point.output": 2e-3,
        "embeddings.point.task": 3e-3,
        "heads.point.proj.weight": 4e-3,
        "heads.point.proj.bias": 4e-3,
    }
    groups = {(g["lr"], g["weight_decay"]): len(g["params"]) for g in optimizer_groups(lora_model, rates, 0.02)}
    assert groups == {(1e-3, 0.02): 28, (2e-3, 0.0): 2, (3e-3, 0.0): 1, (4e-3, 0.02): 1, (4e-3, 0.0): 1}


def test_a_later_stage_freezes_again(lora_model):
    set_trainable(lora_model, {"heads": 1e-3, "language": 1e-4})
    assert any("embed_tokens" in name for name in trainable(lora_model))
    set_trainable(lora_model, {"triggers": 1e-3})
    assert {n.rsplit(".", 1)[1] for n in trainable(lora_model)} == {"trigger", "output"}


def test_parts_of_ones_own(model):
    set_trainable(model, {"last": 1e-3}, {"last": r"layers\.1\."})
    assert trainable(model)
    assert all("layers.1." in name for name in trainable(model))


def test_parameters_that_a_head_keeps_frozen_stay_frozen(model):
    model.tpo.trainable = model.tpo.trainable - {"heads.point.proj.weight"}
    set_trainable(model, {"heads": 1e-3})
    assert trainable(model) == {"tpo.heads.point.proj.bias"}


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"head": 1e-3}, r"stage2: learning_rates has 'head', which is no part of this model; did you mean 'heads'\?"),
        ({"heads.pont": 1e-3}, r"did you mean 'heads.point'\?"),
        ({"lora": 1e-3}, "no parameter belongs to it; lora is null in the config"),
        ({"vision": 1e-3}, r"no parameter belongs to it; leave it out .* modules: \{vision: <regular expression>\}"),
    ],
)
def test_parts_that_are_not_there(model, rates, message):
    with pytest.raises(TPOError, match=message):
        set_trainable(model, rates, where="stage2")


def test_can_learn_triggers(model):
    for rates, expected in (({"heads": 1.0}, False), ({"triggers": 1.0}, True), ({"language": 1.0}, True)):
        set_trainable(model, rates)
        assert can_learn_triggers(model) is expected, rates
