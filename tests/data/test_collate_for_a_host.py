from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import torch
import transformers
from chats import POINT, Make, clip, llava_onevision, picture, record

from tpo_plugin.data.collate import TPOCollator
from tpo_plugin.data.dataset import Sample
from tpo_plugin.head import TaskHead


class TinyPointHead(TaskHead):
    def __init__(self, config: Any, hidden_size: int) -> None:
        super().__init__()
        self.proj = torch.nn.Linear(hidden_size, 2)

    def forward(self, e_ND: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"xy": self.proj(e_ND).sigmoid()}

    def loss(self, outputs: Any, targets: Any, num_targets: Any) -> dict[str, torch.Tensor]:
        return {"loss_l1": (outputs["xy"] - targets["xy"]).abs().sum() / num_targets}


def test_a_real_host_takes_the_batch(small_tokenizer: Make) -> None:
    """A tiny LLaVA-OneVision with the plugin: text, an image, several images and a clip in a batch; then generation."""
    from tpo_plugin import apply_tpo, register_plugin, unregister_plugin
    from tpo_plugin.hookspecs import hookimpl

    class Plugin:
        @hookimpl
        def register_heads(self, register: Callable[..., None]) -> None:
            register("point", head=TinyPointHead, trigger="<point_begin>", task_token="<point>")

    processor = llava_onevision(lambda special: small_tokenizer(special, heads=False))
    tokenizer = processor.tokenizer
    vision = transformers.SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    text = transformers.Qwen2Config(
        vocab_size=384,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = transformers.LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=[[28, 28], [28, 56], [56, 28], [56, 56]],
        vision_feature_layer=-1,
    )
    torch.manual_seed(0)
    model = transformers.LlavaOnevisionForConditionalGeneration(config).eval()
    register_plugin(Plugin(), "tiny-point")
    try:
        model = apply_tpo(model, processor, heads=["point"])
        several = Sample(
            record(model.tpo, "<image> or <image>?", "At <point>.", image=["a", "b"], tasks=[POINT]),
            (picture(60, 40), picture(40, 60)),
        )
        single = Sample(record(model.tpo, "<image>?", "red <point>", image="a", tasks=[POINT]), (picture(60, 40),))
        chat = Sample(record(model.tpo, "Hi", "Hello"))
        film = Sample(record(model.tpo, "<video>?", "<point>", video="v", tasks=[POINT]), (), (clip(),))
        samples = [several, single, chat, film]
        collate = pickle.loads(pickle.dumps(TPOCollator(model.tpo)))  # as a worker that is not forked gets it
        batch = collate(samples)
        out = model(**batch)
        assert torch.isfinite(out.loss)
        assert out.tpo.predictions["point"].shape == (3, 2)
        generated = model.tpo.generate(
            **TPOCollator(model.tpo, for_generation=True)(samples), max_new_tokens=4, do_sample=False
        )
        assert len(generated.predictions) == 4
        for row, sample in enumerate(samples):  # alone it says the same: other rows' media do not get into it
            alone = collate([sample])
            length = alone["input_ids"].shape[1]
            assert torch.allclose(model(**alone).logits[0], out.logits[row, :length], atol=1e-4)
    finally:
        unregister_plugin("tiny-point")
