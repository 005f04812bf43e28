"""The classifier: a ResNet with one logit, weights from files that can't run code, and a saliency map.

He et al. 2016 (ResNet); Selvaraju et al. 2017 (Grad-CAM).
"""

import logging
import re
from pathlib import Path

import numpy as np
import torch
from captum.attr import LayerAttribution, LayerGradCam
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import ResNetConfig, ResNetForImageClassification
from transformers.utils import logging as transformers_logging

from defaug_utils.core.manifest import raise_problems

BACKBONES = {
    "resnet50": {
        "depths": [3, 4, 6, 3],
        "layer_type": "bottleneck",
        "hidden_sizes": [256, 512, 1024, 2048],
    },
    "resnet18": {"depths": [2, 2, 2, 2], "layer_type": "basic", "hidden_sizes": [64, 128, 256, 512]},
    "resnet18_quarter": {
        "depths": [2, 2, 2, 2],
        "layer_type": "basic",
        "embedding_size": 16,
        "hidden_sizes": [16, 32, 64, 128],
    },
    "resnet10_quarter": {
        "depths": [1, 1, 1, 1],
        "layer_type": "basic",
        "embedding_size": 16,
        "hidden_sizes": [16, 32, 64, 128],
    },
}
NORMALISATIONS = {  # name: mean and standard deviation by channel, of values in [0, 1]
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "symmetric": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),  # onto [-1, 1]
}
PICKLE_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".pkl")
CONVERSION = (
    'python -c "import torch; from safetensors.torch import save_file; '
    "save_file(torch.load('resnet50.pth', weights_only=True), 'resnet50.safetensors')\""
)
SALIENCY_COLOUR = (0, 90, 255)  # not the orange of a mask's outline
HEAD_KEYS = ("classifier.1.weight", "classifier.1.bias")
_RENAMES = (  # transformers' names to torchvision's
    (r"^resnet\.embedder\.embedder\.convolution\.", "conv1."),
    (r"^resnet\.embedder\.embedder\.normalization\.", "bn1."),
    (r"^resnet\.encoder\.stages\.(\d)\.layers\.", lambda found: f"layer{int(found[1]) + 1}."),
    (r"\.layer\.(\d)\.convolution\.", lambda found: f".conv{int(found[1]) + 1}."),
    (r"\.layer\.(\d)\.normalization\.", lambda found: f".bn{int(found[1]) + 1}."),
    (r"\.shortcut\.convolution\.", ".downsample.0."),
    (r"\.shortcut\.normalization\.", ".downsample.1."),
    (r"^classifier\.1\.", "fc."),
)

logger = logging.getLogger(__name__)


def build_classifier(backbone: str, weights: str = "") -> ResNetForImageClassification:
    """Make a ResNet with one output, the logit of "this image is positive".

    Args:
        backbone: a name in `BACKBONES`.
        weights: "" for random ones from PyTorch's global generator; a `.safetensors` file with
            torchvision's key names; a folder or hub id that `from_pretrained` reads. A classification
            head of more than one class is dropped (and logged): ours starts at random.

    Returns:
        The model, in evaluation mode, on the processor.

    Raises:
        ValueError: unknown backbone, a pickled file, or weights that don't fit (every key is listed).
        FileNotFoundError: there is no such file.
    """
    if backbone not in BACKBONES:
        raise ValueError(f"backbone {backbone!r} is none of {', '.join(BACKBONES)}")
    config = ResNetConfig(num_labels=1, **BACKBONES[backbone])
    is_file = bool(weights) and (Path(weights).is_file() or _has_weight_suffix(weights))
    if weights and not is_file:
        return _load_pretrained(weights, backbone, config).eval()
    model = ResNetForImageClassification(config)
    if is_file:
        for key in load_torchvision_weights(model, weights):
            logger.info("%s: %s is of other classes and was left out", weights, key)
    return model.eval()


def _has_weight_suffix(weights: str) -> bool:
    return Path(weights).suffix in (".safetensors", *PICKLE_SUFFIXES)


def torchvision_key(key: str) -> str:
    """Translate a parameter's name from transformers' ResNet to torchvision's."""
    for pattern, replacement in _RENAMES:
        key = re.sub(pattern, replacement, key)
    return key


def torchvision_keys(model: ResNetForImageClassification) -> dict[str, str]:
    """The way back: for every torchvision name of a parameter or buffer, its name in the model."""
    return {torchvision_key(key): key for key in model.state_dict()}


def load_torchvision_weights(model: ResNetForImageClassification, path: Path | str) -> tuple[str, ...]:
    """Load a torchvision state dict into a transformers ResNet, in place.

    Args:
        model: the ResNet.
        path: a `.safetensors` file with torchvision's key names.

    Returns:
        The file's keys that were left out: the head, where it has another number of classes.

    Raises:
        ValueError: a pickled or unreadable file, or one that doesn't fit; every key is listed.
        FileNotFoundError: there is no such file.
    """
    loaded = _read_safetensors(Path(path))
    current, our_key = model.state_dict(), torchvision_keys(model)
    head = [torchvision_key(key) for key in HEAD_KEYS]
    dropped = tuple(key for key in head if key in loaded and loaded[key].shape != current[our_key[key]].shape)
    renamed = {our_key.get(key, key): value for key, value in loaded.items() if key not in dropped}
    optional = {key for key in current if key in HEAD_KEYS or key.endswith("num_batches_tracked")}
    problems = [f"{key} is missing" for key in our_key if our_key[key] not in {*renamed, *optional}]
    for key, value in renamed.items():
        if key not in current:
            problems.append(f"{key} is unknown to this backbone")
        elif value.shape != current[key].shape:
            wanted = tuple(current[key].shape)
            problems.append(f"{torchvision_key(key)} is {tuple(value.shape)}, expected {wanted}")
    raise_problems(f"weights {path} don't fit the backbone", problems, ValueError)
    model.load_state_dict({**current, **renamed})
    return dropped


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    if path.suffix in PICKLE_SUFFIXES:
        raise ValueError(
            f"weights {path}: pickled files can run code when they are read, so only .safetensors files "
            f"are; convert it once, where you trust its source:\n  {CONVERSION}"
        )
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"weights {path}: not a readable safetensors file ({error})") from error


def _load_pretrained(weights: str, backbone: str, config: ResNetConfig) -> ResNetForImageClassification:
    """Load a folder or hub id, quietly, and refuse another architecture or missing weights."""
    if Path(weights).is_dir() and not (Path(weights) / "config.json").is_file():
        raise FileNotFoundError(f"weights folder {weights} has no config.json: it is no saved model")
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        found, wanted = ResNetConfig.from_pretrained(weights).to_dict(), config.to_dict()
        names = ("depths", "layer_type", "embedding_size", "hidden_sizes", "downsample_in_bottleneck")
        differing = [
            f"{name} is {found[name]}, {backbone} has {wanted[name]}"
            for name in names
            if found[name] != wanted[name]
        ]
        raise_problems(f"weights {weights} are of another backbone", differing, ValueError)
        model, report = ResNetForImageClassification.from_pretrained(
            weights,
            num_labels=1,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except OSError as error:
        raise FileNotFoundError(
            f"weights {weights!r}: no file, no folder with a safetensors model, and not on the model hub "
            f"(or there is no network): {error}"
        ) from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    unmatched = {*report["missing_keys"], *report["unexpected_keys"]} - set(HEAD_KEYS)
    raise_problems(f"weights {weights}", [f"{key} is unmatched" for key in sorted(unmatched)], ValueError)
    return model


def normalise_images(images_u8: Tensor, normalisation: str = "imagenet") -> Tensor:
    """Bring images to the classifier's input.

    Args:
        images_u8: shape (batch, height, width, 3), uint8.
        normalisation: a name in `NORMALISATIONS`.

    Returns:
        Shape (batch, 3, height, width), float32, channels last in memory.
    """
    if normalisation not in NORMALISATIONS:
        raise ValueError(f"normalisation {normalisation!r} is none of {', '.join(NORMALISATIONS)}")
    mean, deviation = (
        torch.tensor(values, device=images_u8.device) for values in NORMALISATIONS[normalisation]
    )
    return ((images_u8.float() / 255 - mean) / deviation).permute(0, 3, 1, 2)


def saliency_map(
    model: ResNetForImageClassification, images_u8: np.ndarray, normalisation: str = "imagenet"
) -> np.ndarray:
    """Where the model sees a defect: Grad-CAM of the logit at the last stage (Selvaraju et al. 2017).

    Args:
        model: the classifier, in evaluation mode.
        images_u8: shape (batch, height, width, 3), uint8.
        normalisation: the one that the model was trained with.

    Returns:
        Shape (batch, height, width), float32 in [0, 1]; each map is divided by its own maximum, and is
        0 everywhere when nothing in the image speaks for a defect.
    """
    device = next(model.parameters()).device
    inputs = normalise_images(torch.as_tensor(images_u8).to(device), normalisation)
    grad_cam = LayerGradCam(lambda batch: model(batch).logits[:, 0], model.resnet.encoder.stages[-1])
    coarse = grad_cam.attribute(inputs, relu_attributions=True)
    maps = LayerAttribution.interpolate(coarse, inputs.shape[2:], interpolate_mode="bilinear")
    maps = maps.detach()[:, 0]
    largest = maps.amax(dim=(1, 2), keepdim=True)
    return (maps / largest.clamp(min=torch.finfo(maps.dtype).tiny)).cpu().numpy()


def overlay_saliency(image_u8: np.ndarray, saliency: np.ndarray, opacity: float = 0.6) -> np.ndarray:
    """Tint an image blue where the saliency is high.

    Args:
        image_u8: shape (height, width, 3), uint8.
        saliency: shape (height, width), in [0, 1].
        opacity: of the tint where the saliency is 1.

    Returns:
        Same shape and dtype as the image.
    """
    weight = opacity * saliency[..., None]
    return np.rint((1 - weight) * image_u8 + weight * np.array(SALIENCY_COLOUR)).astype(np.uint8)
