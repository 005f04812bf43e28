"""The shipped backbone, and the script that trains it."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from defaug_utils.training.backbones import build_classifier, torchvision_keys

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "models" / "backbones" / "resnet10_quarter.safetensors"


@pytest.fixture(scope="module")
def script():
    """The script as a module, with one texture of each kind so that it starts at once."""
    spec = importlib.util.spec_from_file_location("pretrain", ROOT / "scripts" / "pretrain_backbone.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.VARIANTS = 1
    return module


def test_the_shipped_backbone_is_small_and_fits():
    assert SHIPPED.stat().st_size < 2_000_000
    model = build_classifier("resnet10_quarter", str(SHIPPED))
    loaded, keys = model.state_dict(), torchvision_keys(model)
    for key, value in load_file(SHIPPED).items():
        assert torch.isfinite(value).all(), key
        assert torch.equal(loaded[keys[key]], value), key
    assert "fc.weight" not in load_file(SHIPPED)


def test_every_object_is_drawn_and_differs_from_the_others(script):
    drawn = [script.draw_object(np.random.default_rng(3), name) for name in script.OBJECTS]
    assert len(drawn) == 12
    for index, canvas in enumerate(drawn):
        assert canvas.shape == (script.SIDE, script.SIDE)
        assert canvas.min() == 0
        assert 0.5 < canvas.max() <= 1
        assert not any(np.array_equal(canvas, other) for other in drawn[:index])


def test_labels_tell_what_was_drawn(script, monkeypatch):
    names = []

    def draw(generator: np.random.Generator, name: str) -> np.ndarray:
        names.append(name)
        return np.zeros((script.SIDE, script.SIDE))

    monkeypatch.setattr(script, "draw_object", draw)
    textures = [np.full((256, 256, 3), 20 * kind, np.uint8) for kind in range(8)]
    for seed in range(5):
        names.clear()
        image_u8, labels = script.draw_example(np.random.default_rng(seed), textures)
        assert image_u8.shape == (script.SIDE, script.SIDE, 3)
        assert image_u8.dtype == np.uint8
        assert [name for name, present in zip(script.OBJECTS, labels, strict=False) if present] == names
        assert labels[len(script.OBJECTS) :].sum() == 1


def test_a_short_pretraining_repeats_and_loads(script, tmp_path, capsys):
    for name in ("a", "b"):
        script.pretrain(tmp_path / f"{name}.safetensors", "resnet10_quarter", 3, 2, 1e-3, 0)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert "step 3 of 3: loss" in capsys.readouterr().out
    build_classifier("resnet10_quarter", str(tmp_path / "a.safetensors"))
