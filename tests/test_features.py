"""Features over a ResNet from a file and from a folder, and over the first layers of Inception."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import conv2d, interpolate, max_pool2d
from transformers import ResNetConfig, ResNetForImageClassification

from defaug_utils.evaluation.distances import summarise_images
from defaug_utils.training.backbones import (
    BACKBONES,
    DIAG_LAYERS,
    FeatureNetwork,
    average_features,
    build_classifier,
    normalise_images,
    open_features,
)

ROOT = Path(__file__).parents[1]
KEYS = tuple(f"bn.{name}" for name in ("weight", "bias", "running_mean", "running_var"))
WEIGHTS = ROOT / "models" / "backbones" / "resnet10_quarter.safetensors"


@pytest.fixture(scope="module")
def network() -> FeatureNetwork:
    return open_features("resnet10_quarter", str(WEIGHTS))


def draw_images(count: int, seed: int = 0, shape: tuple[int, int] = (96, 32)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape, 3), dtype=np.uint8)


def test_layers_stand_at_a_quarter_and_an_eighth_of_the_side(network):
    maps = network.read_maps(draw_images(2))
    assert [tuple(maps[layer].shape) for layer in DIAG_LAYERS] == [(2, 16, 24, 8), (2, 32, 12, 4)]
    deeper = network.read_maps(draw_images(1), ["thirty_second"])
    assert deeper["thirty_second"].shape == (1, 128, 3, 1)


def test_maps_are_the_networks_own(network):
    """The library's hidden states come by another way: all after the stem, stage by stage."""
    images_u8 = draw_images(2)
    model = build_classifier("resnet10_quarter", str(WEIGHTS))
    with torch.inference_mode():
        inputs = normalise_images(torch.from_numpy(images_u8))
        states = model(inputs, output_hidden_states=True).hidden_states
    maps = network.read_maps(images_u8, list(network.parts))
    assert list(maps) == ["quarter", "first_stage", "eighth", "sixteenth", "thirty_second"]
    assert all(torch.equal(found, state) for found, state in zip(maps.values(), states, strict=True))
    assert list(network.read_maps(images_u8, ["eighth"])) == ["eighth"]


def test_a_summary_depends_on_neither_batches_nor_order_of_layers(network):
    images_u8 = draw_images(7)
    once = summarise_images(network, images_u8, batch_size=7)
    parts = summarise_images(network, iter(images_u8), batch_size=3)
    for layer in DIAG_LAYERS:
        assert once[layer].count == parts[layer].count == 7
        np.testing.assert_allclose(parts[layer].moments.covariance, once[layer].moments.covariance, atol=1e-6)
        assert parts[layer].diversity == pytest.approx(once[layer].diversity, rel=1e-4)
    maps = network.read_maps(images_u8)["eighth"]
    np.testing.assert_allclose(once["eighth"].kept, maps.mean(dim=(2, 3)), rtol=1e-5)


def test_images_of_another_size_are_resized_and_progress_is_told(network):
    told = []
    images_u8 = [*draw_images(3), *draw_images(1, shape=(120, 40))]
    summaries = summarise_images(network, images_u8, ["eighth"], batch_size=3, on_images=told.append)
    assert summaries["eighth"].count == 4
    assert told == [3, 1]


def test_a_folder_of_another_backbone_has_the_same_interface(tmp_path: Path, capfd: pytest.CaptureFixture):
    torch.manual_seed(0)
    config = ResNetConfig(num_labels=9, **BACKBONES["resnet18_quarter"])
    ResNetForImageClassification(config).save_pretrained(tmp_path)
    capfd.readouterr()
    network = open_features("resnet18_quarter", str(tmp_path))
    assert capfd.readouterr() == ("", ""), "no progress bar among a job's messages"
    summaries = summarise_images(network, draw_images(3))
    assert [summaries[layer].kept.shape for layer in DIAG_LAYERS] == [(3, 16), (3, 32)]
    assert network.name_distance("FD") == "FD-resnet18_quarter"


def test_names_never_claim_to_be_fid(network):
    names = {network.name_distance(kind) for kind in ("FD", "KD")}
    assert names == {"FD-resnet10_quarter", "KD-resnet10_quarter"}


def test_wrong_requests_say_what_to_do(network):
    with pytest.raises(ValueError, match="random features"):
        open_features("resnet50", "")
    with pytest.raises(ValueError, match="not one of resnet50"):
        open_features("vgg", "weights.safetensors")
    with pytest.raises(ValueError, match="no layer pool1: quarter, first_stage, eighth"):
        network.read_maps(draw_images(1), ["pool1"])


@pytest.fixture
def inception_weights() -> dict[str, torch.Tensor]:
    """Random weights under torchvision's names, with one of a deeper layer."""
    shapes = {"1a_3x3": (32, 3, 3), "2a_3x3": (32, 32, 3), "2b_3x3": (64, 32, 3), "3b_1x1": (80, 64, 1)}
    weights, generator = {"fc.weight": torch.zeros(1000, 2048)}, torch.Generator().manual_seed(0)
    for name, (channels, taken, side) in {**shapes, "4a_3x3": (192, 80, 3)}.items():
        layer = f"Conv2d_{name}"
        weights[f"{layer}.conv.weight"] = torch.randn(channels, taken, side, side, generator=generator) / 9
        for statistic in ("weight", "bias", "running_mean", "running_var"):
            weights[f"{layer}.bn.{statistic}"] = torch.rand(channels, generator=generator) + 0.5
    return weights


def test_inceptions_distances_are_fid_and_kid_at_diags_layers(tmp_path: Path, inception_weights):
    save_file(inception_weights, tmp_path / "inception.safetensors")
    network = open_features("inception", str(tmp_path / "inception.safetensors"))
    assert {network.name_distance(kind) for kind in ("FD", "KD")} == {"FID", "KID"}
    images_u8 = draw_images(2)
    maps = network.read_maps(images_u8)
    assert [tuple(maps[layer].shape) for layer in DIAG_LAYERS] == [(2, 64, 73, 73), (2, 192, 35, 35)]

    def convolve(state: torch.Tensor, name: str, **further: int) -> torch.Tensor:
        given = {key.rpartition(".")[2]: inception_weights[f"Conv2d_{name}.{key}"] for key in KEYS}
        state = conv2d(state, inception_weights[f"Conv2d_{name}.conv.weight"], **further)
        rows = [given[key][:, None, None] for key in ("running_mean", "running_var", "weight", "bias")]
        mean, variance, scale, shift = rows
        return ((state - mean) / (variance + 0.001).sqrt() * scale + shift).clamp(min=0)

    state = torch.from_numpy(images_u8).permute(0, 3, 1, 2) / 127.5 - 1
    state = interpolate(state, (299, 299), mode="bilinear", antialias=True)
    state = convolve(convolve(state, "1a_3x3", stride=2), "2a_3x3")
    quarter = max_pool2d(convolve(state, "2b_3x3", padding=1), 3, 2)
    torch.testing.assert_close(maps["quarter"], quarter, rtol=1e-3, atol=1e-3)
    eighth = max_pool2d(convolve(convolve(quarter, "3b_1x1"), "4a_3x3"), 3, 2)
    torch.testing.assert_close(maps["eighth"], eighth, rtol=1e-3, atol=1e-3)


def test_weights_that_are_not_inceptions_are_listed(tmp_path: Path, inception_weights):
    del inception_weights["Conv2d_1a_3x3.bn.bias"]
    inception_weights["Conv2d_2a_3x3.bn.bias"] = torch.zeros(3)
    inception_weights["Conv2d_4a_3x3.bn.running_var"][0] = torch.nan
    save_file(inception_weights, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other\.safetensors are not Inception v3's: 3 problem") as caught:
        open_features("inception", str(tmp_path / "other.safetensors"))
    for told in (
        "1a_3x3.bn.bias is missing",
        "2a_3x3.bn.bias is (3,), expected (32,)",
        "4a_3x3.bn.running_var",
    ):
        assert told in str(caught.value)


def test_average_features_are_those_of_the_summary_in_their_order(network):
    images = draw_images(5)
    averaged = average_features(network, images, "eighth", batch_size=2)
    kept = summarise_images(network, images, ["eighth"])["eighth"].kept
    np.testing.assert_allclose(averaged, kept, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(averaged[3:4], average_features(network, images[3:4], "eighth"), rtol=1e-4)


def test_average_features_of_nothing_are_refused(network):
    with pytest.raises(ValueError, match="no image"):
        average_features(network, [], "eighth")


@pytest.mark.parametrize("look", [lambda *given: average_features(*given, "eighth"), summarise_images])
def test_broken_weights_are_told(look):
    network = open_features("resnet10_quarter", str(WEIGHTS))
    with torch.no_grad():
        next(network.parts["eighth"].parameters()).fill_(np.nan)
    with pytest.raises(ValueError, match="resnet10_quarter are not finite"):
        look(network, draw_images(2))
