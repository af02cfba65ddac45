"""Loading SAM 2: by file, by name, with its hash, into either backend; and what is said where that fails."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tpo_head_mask import checkpoints
from tpo_head_mask.architecture import CHECKPOINTS, architecture_of
from tpo_head_mask.checkpoints import build_backend
from tpo_head_mask.config import MaskConfig

import tpo_plugin as tpo
from tpo_plugin.testing import tiny_host

MICRO: dict[str, Any] = {"size": "micro", "image_size": 32}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as the authors publish theirs: the sam2 package's names, under "model", pickled."""
    pytest.importorskip("sam2")
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("sam2") / "micro.pt"
    torch.save({"model": build_backend(MaskConfig(backend="sam2", **MICRO)).model.state_dict()}, path)
    return path


def masks_of(backend: Any) -> torch.Tensor:
    with torch.no_grad():
        features = backend.encode(torch.full((1, 3, 32, 32), 100, dtype=torch.uint8))
        return backend.decode(features, backend.embed_boxes(torch.tensor([[0.1, 0.2, 0.6, 0.7]]))).mask_logits


def test_the_authors_file_loads_into_either_backend(original, backend_name):
    backend = build_backend(MaskConfig(backend=backend_name, checkpoint=str(original), **MICRO))
    reference = build_backend(MaskConfig(backend="sam2", checkpoint=str(original), **MICRO))
    torch.testing.assert_close(masks_of(backend), masks_of(reference), rtol=0.0, atol=1e-5)


def test_a_folder_as_transformers_writes_it(tmp_path):
    pytest.importorskip("transformers.models.sam2_video")
    backend = build_backend(MaskConfig(backend="transformers", **MICRO))
    backend.model.save_pretrained(tmp_path)
    config = MaskConfig(backend="transformers", checkpoint=str(tmp_path), **MICRO)
    torch.testing.assert_close(masks_of(build_backend(config)), masks_of(backend))


def test_the_hash_is_kept_and_checked(original):
    config = MaskConfig(checkpoint=str(original), **MICRO)
    build_backend(config)
    assert config.checkpoint_sha256 is not None
    assert len(config.checkpoint_sha256) == 64
    assert config.backend != "auto"
    build_backend(config)
    with pytest.raises(tpo.TPOError, match=r"micro\.pt has the sha256 .*the config names 0000"):
        build_backend(MaskConfig(checkpoint=str(original), checkpoint_sha256="0000", **MICRO))


def test_a_missing_checkpoint_is_named():
    with pytest.raises(tpo.TPOError, match=r"'nowhere/sam2\.pt' is neither a file or folder here nor a released SAM 2"):
        build_backend(MaskConfig(checkpoint="nowhere/sam2.pt"))


def test_a_checkpoint_of_another_size_is_named(original):
    with pytest.raises(tpo.TPOError, match=r"it is SAM 2 2\.1 micro: set size='micro' and version='2\.1'"):
        build_backend(MaskConfig(checkpoint=str(original), size="tiny", image_size=64))
    with pytest.raises(tpo.TPOError, match=r"it is SAM 2 2\.1 micro"):
        build_backend(MaskConfig(checkpoint=str(original), size="micro", version="2.0", image_size=32))


def test_a_checkpoint_that_lacks_weights_is_named(original, tmp_path):
    state = torch.load(original, weights_only=True)["model"]
    del state["no_obj_ptr"]
    save_file(state, tmp_path / "cut.safetensors")
    with pytest.raises(tpo.TPOError, match=r"cut\.safetensors does not fit SAM 2 2\.1 micro.*is missing"):
        build_backend(MaskConfig(checkpoint=str(tmp_path / "cut.safetensors"), **MICRO))


def test_a_file_that_is_no_checkpoint_is_named(tmp_path):
    for name in ("broken.pt", "broken.safetensors"):
        (tmp_path / name).write_bytes(b"not a checkpoint")
        with pytest.raises(tpo.TPOError, match=rf"{name} cannot be read"):
            build_backend(MaskConfig(checkpoint=str(tmp_path / name), **MICRO))
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(tpo.TPOError, match="holds no weights"):
        build_backend(MaskConfig(checkpoint=str(tmp_path / "list.pt"), **MICRO))
    (tmp_path / "empty").mkdir()
    with pytest.raises(tpo.TPOError, match="a folder with 0 files of weights"):
        build_backend(MaskConfig(checkpoint=str(tmp_path / "empty"), **MICRO))


@pytest.mark.parametrize(
    ("backend", "file"), [("sam2", "sam2.1_hiera_base_plus.pt"), ("transformers", "model.safetensors")]
)
def test_a_name_is_looked_up_on_the_hub(monkeypatch, backend, file):
    """The file that each backend asks for; and the error where it cannot be had."""
    import huggingface_hub

    asked = []

    def offline(repository: str, name: str) -> str:
        asked.append((repository, name))
        raise OSError("we are offline")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    monkeypatch.setattr(checkpoints, "chosen_backend", lambda wanted: wanted)
    with pytest.raises(tpo.TPOError, match=rf"{file} of checkpoint .* nor could it be downloaded \(we are offline\)"):
        build_backend(MaskConfig(backend=backend, checkpoint="facebook/sam2.1-hiera-base-plus"))
    assert asked == [("facebook/sam2.1-hiera-base-plus", file)]


def test_the_names_are_those_of_the_sam2_package():
    pytest.importorskip("sam2")
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sam2.build_sam import HF_MODEL_ID_TO_FILENAMES
    assert set(CHECKPOINTS) == set(HF_MODEL_ID_TO_FILENAMES)
    for name, (_, file) in HF_MODEL_ID_TO_FILENAMES.items():
        assert name.split("/")[1].replace("-", "_") + ".pt" == file
        a = architecture_of(MaskConfig(checkpoint=name))
        assert a.name == name
        assert a.image_size == 1024


def test_the_missing_backend_says_how_to_install_it(monkeypatch):
    find_spec = importlib.util.find_spec

    def without(*missing: str) -> None:
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *rest: None if name in missing else find_spec(name, *rest)
        )

    sam2, transformers = "sam2", "transformers.models.sam2_video"
    without(sam2, transformers)
    with pytest.raises(tpo.TPOError, match=r"pip install sam2, or pip install 'transformers>=4\.57'"):
        build_backend(MaskConfig(**MICRO))
    without(sam2)
    with pytest.raises(tpo.TPOError, match=r"backend='sam2' has no SAM 2 .*SAM2_BUILD_CUDA=0 pip install sam2"):
        build_backend(MaskConfig(backend="sam2", **MICRO))
    without(transformers)
    with pytest.raises(tpo.TPOError, match=r"backend='transformers' has no SAM 2 installed here: pip install 'tr"):
        build_backend(MaskConfig(backend="transformers", **MICRO))


@pytest.mark.parametrize("train", ["nothing", "decoder"])
def test_what_comes_from_the_file_is_not_saved_again(original, tmp_path, train):
    config = tpo.TPOConfig(heads={"mask": {"checkpoint": str(original), "train": train, **MICRO}})
    model = tpo.apply_tpo(*tiny_host(), heads=["mask"], config=config)
    with torch.no_grad():
        for parameter in model.tpo.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    model.tpo.save_pretrained(tmp_path)
    saved = [key for key in load_file(tmp_path / "tpo_model.safetensors") if ".sam." in key]
    assert bool(saved) == (train == "decoder")
    assert all("mask_decoder" in key for key in saved)
    host, tokenizer = tiny_host()
    again = tpo.load_tpo(host, tmp_path, tokenizer)
    assert again.tpo.heads["mask"].config.checkpoint_sha256 == model.tpo.heads["mask"].config.checkpoint_sha256
    for name, value in model.tpo.state_dict().items():
        assert torch.equal(again.tpo.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("backend", "sam3", "backend: is 'sam3'; expected 'auto', 'sam2' or 'transformers'"),
        ("losses", [], r"losses: is \[\]; expected a list that is not empty"),
        ("losses", "pixel", "losses: is 'pixel'; expected a list"),
        ("losses", ["pixel", "sam"], r"losses\[1\]: is 'sam'; expected 'pixel' or 'prompt'"),
        ("losses", ["pixel", "pixel"], "expected each at most once"),
        ("image_size", 100, "image_size: is 100; expected a whole number of at least 32 and divisible by 32"),
        ("clip_frames", 0, "clip_frames: is 0; expected a whole number of at least 1"),
        ("clip_frames", True, "clip_frames: is True; expected a whole number"),
    ],
)
def test_a_wrong_setting_is_named(field, value, message):
    with pytest.raises(tpo.TPOError, match=message):
        MaskConfig(**{field: value})
    with pytest.raises(tpo.TPOError, match="which do not reach SAM 2"):
        MaskConfig(losses=["prompt"], train="decoder")
    with pytest.raises(tpo.TPOError, match="leave one out"):
        MaskConfig(train="all", cache_dir="cache")
