"""The round-trip test of an autoencoder: what it changes, and numbers that are those of the two trainings."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import round_trip
import torch
from tiny_models import make_parts, save_model

from defaug_utils.core.files import write_png
from defaug_utils.data.samples import Samples
from defaug_utils.masks.patches import widen_mask


def test_generated_images_take_the_trip_inside_their_widened_masks_only(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(round_trip, "SIZE", (16, 48))
    images_u8 = np.random.default_rng(0).integers(0, 256, (3, 48, 16, 3), dtype=np.uint8)
    mask = np.zeros((48, 16), bool)
    mask[20:26, 5:9] = True
    write_png(tmp_path / "mask.png", mask)
    table = pd.DataFrame({"origin": ["real", "cut_paste", "real"], "mask": ["", "mask.png", "mask.png"]})
    samples = Samples(torch.from_numpy(images_u8.copy()), torch.tensor([0.0, 1.0, 1.0]), table)
    after = round_trip.send_through(make_parts(9)["vae"].eval(), samples, tmp_path)
    changed = (after.images_u8.numpy() != images_u8).any(axis=3)
    place = widen_mask(mask, round_trip.MARGIN)
    assert not changed[[0, 2]].any() and not changed[1][~place].any()
    assert changed[1][place].mean() > 0.9, "a random autoencoder gives little back"
    assert (samples.images_u8.numpy() == images_u8).all()


@pytest.fixture
def small(monkeypatch):
    """Few and small surfaces, and a training of one epoch."""
    for name, value in (("SURFACES", (60, 30)), ("SIZE", (32, 96)), ("COUNT", 4)):
        monkeypatch.setattr(round_trip, name, value)
    monkeypatch.setattr(round_trip, "PLAN", replace(round_trip.PLAN, epochs=1, weights=""))


def test_an_autoencoder_that_loses_nothing_costs_nothing(tmp_path: Path, small, monkeypatch):
    save_model(tmp_path / "model/inpainting")
    found = round_trip.measure_round_trip(tmp_path / "model", tmp_path / "run", seeds=(0, 1))
    assert (found["n_aug"], found["seeds"]) == (4, 2)
    assert all(0 <= found[name]["ap"] <= 1 and found[name]["std"] >= 0 for name in ("before", "after"))
    monkeypatch.setattr(round_trip, "autoencode_images", lambda vae, images_u8, size: images_u8)
    lossless = round_trip.measure_round_trip(tmp_path / "model", tmp_path / "lossless", seeds=(0, 1))
    assert lossless["after"] == lossless["before"] == found["before"]
