"""Pretrained ResNets (He et al. 2016) from files that can't run code, and their features."""

import hashlib
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import interpolate
from transformers import ResNetConfig, ResNetForImageClassification
from transformers.utils import logging as transformers_logging

from defaug_utils.core.guards import raise_problems
from defaug_utils.core.images import fit_image
from defaug_utils.training.inception import build_inception
from defaug_utils.training.weights import list_broken

_QUARTER = {"layer_type": "basic", "embedding_size": 16, "hidden_sizes": [16, 32, 64, 128]}
BACKBONES = {
    "resnet50": {"depths": [3, 4, 6, 3], "layer_type": "bottleneck", "hidden_sizes": [256, 512, 1024, 2048]},
    "resnet18": {"depths": [2, 2, 2, 2], "layer_type": "basic", "hidden_sizes": [64, 128, 256, 512]},
    "resnet18_quarter": {"depths": [2, 2, 2, 2], **_QUARTER},
    "resnet10_quarter": {"depths": [1, 1, 1, 1], **_QUARTER},
}
NORMALISATIONS = {  # name: mean and standard deviation by channel, of values in [0, 1]
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "symmetric": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),  # onto [-1, 1]
}
PICKLE_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".pkl")
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

INCEPTION = "inception"
INCEPTION_SIDE = 299  # pixels (Szegedy et al. 2016)
# Of the input's side; for Inception's first and second max-pooling, where DIAG measured (Girella et al. 2024)
DIAG_LAYERS = ("quarter", "eighth")
RESNET_LAYERS = ("quarter", "first_stage", "eighth", "sixteenth", "thirty_second")

logger = logging.getLogger(__name__)


def build_classifier(backbone: str, weights: str = "") -> ResNetForImageClassification:
    """Make a ResNet, in evaluation mode, with one output: the logit of "this image is positive".

    Args:
        backbone: a name in `BACKBONES`.
        weights: "" for random ones from PyTorch's global generator; a `.safetensors` file with torchvision's
            key names; or a folder or hub id for `from_pretrained`. A classification head with several classes
            is dropped (and logged); ours is initialised randomly.

    Raises:
        ValueError: unknown backbone, a pickled file, or weights that don't fit (every key is listed).
        FileNotFoundError: there is no such file.
    """
    if backbone not in BACKBONES:
        raise ValueError(f"backbone {backbone!r} is not one of {', '.join(BACKBONES)}")
    config = ResNetConfig(num_labels=1, **BACKBONES[backbone])
    is_file = Path(weights).is_file() or Path(weights).suffix in (".safetensors", *PICKLE_SUFFIXES)
    if weights and not is_file:
        return _load_pretrained(weights, backbone, config).eval()
    model = ResNetForImageClassification(config)
    if is_file:
        for key in load_torchvision_weights(model, weights):
            logger.info("%s: %s has other classes and was left out", weights, key)
    return model.eval()


def torchvision_key(key: str) -> str:
    """Translate a parameter's name from transformers' ResNet to torchvision's."""
    for pattern, replacement in _RENAMES:
        key = re.sub(pattern, replacement, key)
    return key


def torchvision_keys(model: ResNetForImageClassification) -> dict[str, str]:
    """The reverse: torchvision's name of each parameter or buffer → its name in the model."""
    return {torchvision_key(key): key for key in model.state_dict()}


def load_torchvision_weights(model: ResNetForImageClassification, path: Path | str) -> tuple[str, ...]:
    """Load torchvision's weights in place; if classes differ, the head's keys are skipped and returned."""
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
        elif value.is_floating_point() or current[key].is_floating_point():  # not a counter
            problems += list_broken({torchvision_key(key): value})
    raise_problems(f"weights {path} don't fit the backbone", problems, ValueError)
    model.load_state_dict({**current, **renamed})
    return dropped


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    if path.suffix in PICKLE_SUFFIXES:
        raise ValueError(
            f"weights {path}: pickled files can run code, so only .safetensors files are read; "
            "convert it once, if you trust its source:\n"
            '  python -c "import torch; from safetensors.torch import save_file; '
            "save_file(torch.load('resnet50.pth', weights_only=True), 'resnet50.safetensors')\""
        )
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"weights {path}: not a readable safetensors file ({error})") from error


def _load_pretrained(weights: str, backbone: str, config: ResNetConfig) -> ResNetForImageClassification:
    """Load a folder or hub id, quietly; refuse a different architecture or missing weights."""
    if Path(weights).is_dir() and not (Path(weights) / "config.json").is_file():
        raise FileNotFoundError(f"weights folder {weights} has no config.json: it is not a saved model")
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        found, wanted = ResNetConfig.from_pretrained(weights).to_dict(), config.to_dict()
        names = ("depths", "layer_type", "embedding_size", "hidden_sizes", "downsample_in_bottleneck")
        differing = [name for name in names if found[name] != wanted[name]]
        problems = [f"{name} is {found[name]}, {backbone} has {wanted[name]}" for name in differing]
        raise_problems(f"weights {weights} belong to another backbone", problems)
        options = {"use_safetensors": True, "ignore_mismatched_sizes": True, "output_loading_info": True}
        model, report = ResNetForImageClassification.from_pretrained(weights, num_labels=1, **options)
    except OSError as error:
        raise FileNotFoundError(
            f"weights {weights!r}: not a file, not a folder with a safetensors model, and not on the model "
            f"hub (or there is no network): {error}"
        ) from error
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.enable_progress_bar()
    unmatched = {*report["missing_keys"], *report["unexpected_keys"]} - set(HEAD_KEYS)
    raise_problems(f"weights {weights}", [f"{key} is unmatched" for key in sorted(unmatched)], ValueError)
    return model


def normalise_images(images_u8: Tensor, normalisation: str = "imagenet") -> Tensor:
    """Convert uint8 images (batch, height, width, 3) to float32 input (batch, 3, height, width)."""
    if normalisation not in NORMALISATIONS:
        raise ValueError(f"normalisation {normalisation!r} is not one of {', '.join(NORMALISATIONS)}")
    mean, deviation = torch.tensor(NORMALISATIONS[normalisation], device=images_u8.device)
    return ((images_u8.float() / 255 - mean) / deviation).permute(0, 3, 1, 2)


def hash_weights(module: nn.Module) -> str:
    """SHA-256 over every bit of a module's weights and their names."""
    digest = hashlib.sha256()
    for name, weight in module.state_dict().items():
        bits = weight.detach().cpu().contiguous().view(-1).view(torch.uint8)
        digest.update(name.encode() + bits.numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class FeatureNetwork:
    """The first parts of a pretrained network, for reading features."""

    backbone: str
    parts: Mapping[str, nn.Module]  #: layer → module from the previous layer to it; in evaluation mode
    normalisation: str = "imagenet"  #: of its input, a name in `NORMALISATIONS`
    side: int = 0  #: pixels of the square that images are stretched to, 0 for their own size

    def describe(self) -> dict:
        """Name and fingerprint, for recipes."""
        return {"backbone": self.backbone, "fingerprint": hash_weights(nn.ModuleDict(self.parts))[:16]}

    def name_distance(self, kind: str) -> str:
        """Name of a Fréchet ("FD") or kernel distance ("KD"): only Inception's are called FID and KID."""
        if self.backbone == INCEPTION:
            return {"FD": "FID", "KD": "KID"}[kind]
        return f"{kind}-{self.backbone}"

    @torch.inference_mode()
    def read_maps(self, images_u8: np.ndarray, layers: Sequence[str] = DIAG_LAYERS) -> dict[str, Tensor]:
        """Outputs of some of the `parts`, by layer; parts after the last of them are not run.

        Images have shape (batch, height, width, 3), uint8; outputs (batch, channels, rows, columns), float32.
        """
        unknown = [name for name in layers if name not in self.parts]
        if unknown:
            raise ValueError(f"{self.backbone} has no layer {', '.join(unknown)}: {', '.join(self.parts)}")
        device = next(next(iter(self.parts.values())).parameters()).device
        state = normalise_images(torch.as_tensor(images_u8).to(device), self.normalisation)
        if self.side:
            state = interpolate(state, (self.side, self.side), mode="bilinear", antialias=True)
        maps: dict[str, Tensor] = {}
        for name, part in self.parts.items():
            if len(maps) == len(set(layers)):
                break
            state = part(state)
            if name in layers:
                maps[name] = state
        return maps


def open_features(backbone: str, weights: str, device: str | torch.device = "cpu") -> FeatureNetwork:
    """Open a pretrained network by name, with the layers `DIAG_LAYERS` (for a ResNet, all its stages).

    Args:
        backbone: a name in `BACKBONES`, or "inception" (Inception v3).
        weights: as for `build_classifier`; for Inception a `.safetensors` file with torchvision's key names.

    Raises:
        ValueError: unknown backbone, weights that don't fit, or no weights (random features mean nothing).
    """
    if not weights:
        raise ValueError(f"without weights, {backbone} would give random features: name pretrained weights")
    if backbone == INCEPTION:
        return _open_inception(Path(weights), device)
    resnet = build_classifier(backbone, weights).to(device).resnet
    parts = zip(RESNET_LAYERS, [resnet.embedder, *resnet.encoder.stages], strict=True)
    return FeatureNetwork(backbone, dict(parts))


def _open_inception(weights: Path, device: str | torch.device) -> FeatureNetwork:
    """Inception v3 up to its second max-pooling; no deeper layer is read."""
    first, second = build_inception(_read_safetensors(weights), weights)
    parts = {"quarter": first.eval().to(device), "eighth": second.eval().to(device)}
    return FeatureNetwork(INCEPTION, parts, "symmetric", INCEPTION_SIDE)


def read_in_batches(
    network: FeatureNetwork,
    images_u8: Iterable[np.ndarray],
    layers: Sequence[str],
    size: tuple[int, int] | None = None,
    batch_size: int = 16,
) -> Iterator[dict[str, Tensor]]:
    """Outputs of the layers for images, batch by batch, see `FeatureNetwork.read_maps`.

    Images are (height, width, 3), uint8, and can be loaded lazily to save memory. They are resized to `size`
    (width, height), or to the size of the first if None.
    """
    remaining = iter(images_u8)
    while batch := list(islice(remaining, batch_size)):
        size = size or (batch[0].shape[1], batch[0].shape[0])
        maps = network.read_maps(np.stack([fit_image(image, size) for image in batch]), layers)
        if not all(found.isfinite().all() for found in maps.values()):
            raise ValueError(f"features of {network.backbone} are not finite: its weights are broken")
        yield maps


def average_features(
    network: FeatureNetwork, images_u8: Iterable[np.ndarray], layer: str, batch_size: int = 16
) -> np.ndarray:
    """A layer's output averaged over all positions of each image, shape (images, channels), float32."""
    batches = read_in_batches(network, images_u8, [layer], batch_size=batch_size)
    features = [maps[layer].mean(dim=(2, 3)).cpu().numpy() for maps in batches]
    if not features:
        raise ValueError("there is no image to compute features of")
    return np.concatenate(features)
