"""The ResNet against torchvision's architecture written out here, its weights, and the saliency map."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from defaug_utils.core.origins import Run
from defaug_utils.evaluation.classifier import ClassifierPlan, overlay_saliency, saliency_map
from defaug_utils.evaluation.recipes import plan_epochs
from defaug_utils.training.backbones import (
    BACKBONES,
    build_classifier,
    load_torchvision_weights,
    normalise_images,
    torchvision_key,
    torchvision_keys,
)


class BasicBlock(nn.Module):
    """torchvision's residual block of ResNet-18 and -34."""

    expansion = 1

    def __init__(self, width_in: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = make_downsample(width_in, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (inner + (x if self.downsample is None else self.downsample(x))).relu()


class Bottleneck(nn.Module):
    """torchvision's residual block of ResNet-50: "v1.5", with the stride in the 3 × 3 convolution."""

    expansion = 4

    def __init__(self, width_in: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = make_downsample(width_in, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn1(self.conv1(x)).relu()
        inner = self.bn3(self.conv3(self.bn2(self.conv2(inner)).relu()))
        return (inner + (x if self.downsample is None else self.downsample(x))).relu()


def make_downsample(width_in: int, width_out: int, stride: int) -> nn.Module | None:
    if stride == 1 and width_in == width_out:
        return None
    return nn.Sequential(nn.Conv2d(width_in, width_out, 1, stride, bias=False), nn.BatchNorm2d(width_out))


class TorchvisionResNet(nn.Module):
    """torchvision's ResNet, written out from its published architecture with its parameter names."""

    def __init__(self, block: type, depths: list[int], classes: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        width_in = 64
        for stage, depth in enumerate(depths):
            width = 64 * 2**stage
            blocks = []
            for layer in range(depth):
                blocks.append(block(width_in, width, 2 if stage > 0 and layer == 0 else 1))
                width_in = width * block.expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(width_in, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.bn1(self.conv1(x)).relu())
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


REFERENCES = {"resnet50": (Bottleneck, [3, 4, 6, 3]), "resnet18": (BasicBlock, [2, 2, 2, 2])}


def make_reference(backbone: str, classes: int) -> TorchvisionResNet:
    """The reference with random weights and BatchNorm statistics that are not those of a fresh model."""
    torch.manual_seed(0)
    model = TorchvisionResNet(*REFERENCES[backbone], classes)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight, module.running_var):
                nn.init.uniform_(values, 0.5, 1.5)
            for values in (module.bias, module.running_mean):
                nn.init.normal_(values, 0, 0.1)
    return model.eval()


@pytest.mark.parametrize(("backbone", "keys"), [("resnet50", 320), ("resnet18", 122)])
def test_every_key_and_shape_is_torchvisions(backbone, keys):
    expected = {key: value.shape for key, value in make_reference(backbone, 1).state_dict().items()}
    found = {torchvision_key(key): v.shape for key, v in build_classifier(backbone).state_dict().items()}
    assert found == expected
    assert len(found) == keys


@pytest.mark.parametrize("backbone", REFERENCES)
def test_outputs_equal_the_reference_for_the_same_weights(backbone, tmp_path):
    reference = make_reference(backbone, 1)
    save_file(reference.state_dict(), tmp_path / "weights.safetensors")
    model = build_classifier(backbone, str(tmp_path / "weights.safetensors"))
    inputs = torch.randn(2, 3, 70, 46, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, found = reference(inputs), model(inputs).logits
    assert expected.std() > 1e-3  # the comparison is of something
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backbone", REFERENCES)
def test_outputs_equal_torchvision(backbone, tmp_path):
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    theirs = getattr(models, backbone)(num_classes=1).eval()
    save_file(theirs.state_dict(), tmp_path / "weights.safetensors")
    ours = build_classifier(backbone, str(tmp_path / "weights.safetensors"))
    inputs = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(inputs).logits, theirs(inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_key_mapping_is_one_to_one(backbone):
    model = build_classifier(backbone)
    back = torchvision_keys(model)
    assert len(back) == len(model.state_dict())
    assert all(torchvision_key(ours) == theirs for theirs, ours in back.items())


def test_head_of_a_thousand_classes_is_left_out_and_the_rest_loaded(tmp_path, caplog):
    weights = make_reference("resnet18", 1000).state_dict()
    # files of older torchvision versions have no batch counters
    weights = {key: value for key, value in weights.items() if not key.endswith("num_batches_tracked")}
    save_file(weights, tmp_path / "w.safetensors")
    with caplog.at_level("INFO"):
        model = build_classifier("resnet18", str(tmp_path / "w.safetensors"))
    assert "fc.weight has other classes" in caplog.text
    assert model.classifier[1].weight.shape == (1, 512)
    loaded = model.state_dict()
    for key, value in weights.items():
        if not key.startswith("fc."):
            torch.testing.assert_close(loaded[torchvision_keys(model)[key]], value, rtol=0, atol=0)


def test_weights_that_do_not_fit_are_all_listed(tmp_path):
    weights = make_reference("resnet18", 1).state_dict()
    weights["conv2.weight"] = weights.pop("conv1.weight")
    weights["layer2.0.bn1.bias"] = torch.zeros(7)
    save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="3 problem") as error:
        build_classifier("resnet18", str(tmp_path / "w.safetensors"))
    assert "conv1.weight is missing" in str(error.value)
    assert "conv2.weight is unknown" in str(error.value)
    assert "layer2.0.bn1.bias is (7,), expected (128,)" in str(error.value)


def test_a_failed_load_leaves_the_model_as_it_was(tmp_path):
    model = build_classifier("resnet10_quarter")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    save_file(make_reference("resnet18", 1).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="don't fit"):
        load_torchvision_weights(model, tmp_path / "w.safetensors")
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


class Bomb:
    """Runs code when it is unpickled."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> tuple:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("name", ["weights.pth", "weights.pt", "weights.bin", "weights.safetensors"])
def test_pickled_files_are_refused_unread(name, tmp_path):
    (tmp_path / name).write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    with pytest.raises(ValueError, match="safetensors") as error:
        build_classifier("resnet50", str(tmp_path / name))
    assert name in str(error.value)
    assert not (tmp_path / "exploded").exists()


def test_the_refusal_says_how_to_convert(tmp_path):
    (tmp_path / "resnet50.pth").write_bytes(b"")
    with pytest.raises(ValueError, match="weights_only=True"):
        build_classifier("resnet50", str(tmp_path / "resnet50.pth"))


def test_missing_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no weights at .*none\.safetensors"):
        build_classifier("resnet50", str(tmp_path / "none.safetensors"))


def test_unknown_backbone():
    with pytest.raises(ValueError, match="resnet50, resnet18"):
        build_classifier("resnet51")


def test_folder_of_a_pretrained_model(tmp_path):
    torch.manual_seed(1)
    saved = build_classifier("resnet10_quarter")
    saved.save_pretrained(tmp_path)
    loaded = build_classifier("resnet10_quarter", str(tmp_path))
    for key, value in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_folder_of_another_backbone(tmp_path):
    build_classifier("resnet10_quarter").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"depths is \[1, 1, 1, 1\], resnet18_quarter has \[2, 2, 2, 2\]"):
        build_classifier("resnet18_quarter", str(tmp_path))


def test_folder_without_a_model(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        build_classifier("resnet10_quarter", str(tmp_path))


def test_folder_with_a_pickled_model(tmp_path):
    build_classifier("resnet10_quarter").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    with pytest.raises(FileNotFoundError, match="safetensors"):
        build_classifier("resnet10_quarter", str(tmp_path))
    assert not (tmp_path / "exploded").exists()


def test_random_weights_follow_the_seed():
    def first_weights(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return next(build_classifier("resnet10_quarter").parameters())

    assert torch.equal(first_weights(0), first_weights(0))
    assert not torch.equal(first_weights(0), first_weights(1))


def test_normalisation_by_hand():
    images_u8 = torch.zeros(1, 2, 3, 3, dtype=torch.uint8)
    images_u8[0, 1, 2] = torch.tensor([255, 0, 51], dtype=torch.uint8)
    found = normalise_images(images_u8)
    assert found.shape == (1, 3, 2, 3)
    assert found.is_contiguous(memory_format=torch.channels_last)
    expected = [(1 - 0.485) / 0.229, -0.456 / 0.224, (0.2 - 0.406) / 0.225]
    assert found[0, :, 1, 2].tolist() == pytest.approx(expected)
    assert normalise_images(images_u8, "unit")[0, :, 1, 2].tolist() == pytest.approx([1, 0, 0.2])
    with pytest.raises(ValueError, match="imagenet, unit"):
        normalise_images(images_u8, "zscore")


def make_brightness_model() -> nn.Module:
    """A model whose last stage passes brightness on and whose head calls bright images positive."""
    model = build_classifier("resnet10_quarter")
    with torch.no_grad():
        for key, value in model.state_dict().items():
            value.copy_(torch.zeros_like(value) if "running_var" not in key else torch.ones_like(value))
        for name, module in model.named_modules():
            if isinstance(module, nn.BatchNorm2d) and ("shortcut" in name or "embedder" in name):
                module.weight.fill_(1)
            if isinstance(module, nn.Conv2d) and ("shortcut" in name or "embedder" in name):
                middle = module.kernel_size[0] // 2
                module.weight[:, 0, middle, middle] = 1
        model.classifier[1].weight.fill_(1)
    return model


def test_saliency_points_at_what_speaks_for_a_defect():
    images_u8 = np.zeros((2, 128, 96, 3), np.uint8)
    images_u8[0, 92:124, :24] = 255
    found = saliency_map(make_brightness_model(), images_u8)
    assert found.shape == (2, 128, 96)
    assert found.dtype == np.float32
    assert found.max() == pytest.approx(1)
    assert np.unravel_index(found[0].argmax(), found[0].shape) == (112, 16) or found[0, 112, 16] > 0.9
    assert found[0, :64].max() < 0.1
    assert found[0, :, 64:].max() < 0.1
    assert (found[1] == 0).all()  # nothing bright: nothing speaks for a defect


def test_overlay_tints_only_where_the_saliency_is():
    image_u8 = np.full((2, 3, 3), 100, np.uint8)
    saliency = np.array([[0, 0, 0], [0, 0.5, 1]], np.float32)
    found = overlay_saliency(image_u8, saliency, opacity=0.5)
    assert found.dtype == np.uint8
    assert (found[saliency == 0] == 100).all()
    assert found[1, 1].tolist() == [75, 98, 139]  # 0.75 · 100 + 0.25 · (0, 90, 255), rounded
    assert found[1, 2].tolist() == [50, 95, 178]


@pytest.mark.parametrize("recipe", ["diag", "diag_paper", "diag_frozen"])
def test_diags_recipe_never_starts_from_random_weights(recipe):
    with pytest.raises(ValueError, match=rf"recipe '{recipe}' starts from pretrained.*microsoft/resnet-50"):
        ClassifierPlan(recipe, "resnet50")
    assert ClassifierPlan("in_and_out", "resnet50").weights == ""


@pytest.mark.parametrize("recipe", ["workshop", "diag"])
def test_no_augmentation_trained_as_long_shows_as_many_images_as_an_arm_with_generated_ones(recipe):
    plan = ClassifierPlan(recipe, "resnet10_quarter", "weights.safetensors", epochs=10)
    known = np.repeat([0, 1], [90, 5])
    shown = {}
    arms = {"memseg": np.append(known, np.ones(40)), "none_equal": known, "augmented": known}
    for arm, labels in arms.items():
        fitted = plan.fit_recipe(labels, Run("few-shot", arm, 40, 0))
        assert fitted.augment == (arm == "augmented")
        shown[arm] = sum(map(len, plan_epochs(labels, fitted, seed=0)))
    one_epoch = len(plan_epochs(known, fitted, seed=0)[0])
    assert abs(shown["none_equal"] - shown["memseg"]) <= one_epoch / 2
    assert shown["augmented"] == shown["none_equal"]
    assert plan.fit_recipe(known, Run("few-shot", "none", 0, 0)).epochs == 10


@pytest.mark.parametrize(
    ("value", "told"), [(float("nan"), "non-finite"), (None, "is int64, expected floating")]
)
def test_weights_that_no_network_can_work_with_are_refused(tmp_path, value, told):
    model = build_classifier("resnet10_quarter")
    weights = {torchvision_key(key): tensor for key, tensor in model.state_dict().items()}
    weights["bn1.weight"] = weights["bn1.weight"].long() if value is None else weights["bn1.weight"] * value
    save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=rf"w\.safetensors(.|\n)*bn1\.weight .*{told}"):
        build_classifier("resnet10_quarter", str(tmp_path / "w.safetensors"))
