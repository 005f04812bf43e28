"""Features of images at named layers of a pretrained network, summarised batch by batch.

The layers stand for those at which DIAG measured (Girella et al. 2024): Inception's first and second
max-pooling, at a quarter and an eighth of the input's side, with 64 and 192 channels.
"""

import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import interpolate

from defaug_utils.core.images import fit_image
from defaug_utils.training.classifier import build_classifier, normalise_images

INCEPTION = "inception"
INCEPTION_SIDE = 299  # pixels (Szegedy et al. 2016)
DIAG_LAYERS = ("quarter", "eighth")  # of the input's side: DIAG's first and second max-pooling


@dataclass(frozen=True)
class FeatureNetwork:
    """The first parts of a pretrained network, to be looked into.

    Attributes:
        backbone: its name.
        parts: name of a layer → what leads to it from the layer before; in evaluation mode.
        normalisation: of its input, a name in `classifier.NORMALISATIONS`.
        side: pixels of the square that images are stretched to, 0 for their own size.
    """

    backbone: str
    parts: Mapping[str, nn.Module]
    normalisation: str = "imagenet"
    side: int = 0

    def name_distance(self, kind: str) -> str:
        """The honest name of a distance over these features.

        Args:
            kind: "FD" (Fréchet) or "KD" (kernel).

        Returns:
            "FD-resnet50" and the like. FID and KID are names for Inception alone, and torchvision's weights
            are not those of the usual programs, so that even there the name says whose they are.
        """
        if self.backbone == INCEPTION:
            return {"FD": "FID", "KD": "KID"}[kind] + " (torchvision)"
        return f"{kind}-{self.backbone}"

    @torch.inference_mode()
    def read_maps(self, images_u8: np.ndarray, layers: Sequence[str] = DIAG_LAYERS) -> dict[str, Tensor]:
        """What the layers answer to some images; no part beyond the last of them is run.

        Args:
            images_u8: shape (batch, height, width, 3), uint8.
            layers: names of layers.

        Returns:
            Layer → shape (batch, channels, rows, columns), float32.

        Raises:
            ValueError: a layer is unknown.
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
    """Open a pretrained network by its name.

    Args:
        backbone: a name in `classifier.BACKBONES`, or "inception" (torchvision's, where it is installed).
        weights: for a ResNet what `build_classifier` takes (a folder, a `.safetensors` file with
            torchvision's key names or a hub id); for Inception such a file.
        device: where it runs.

    Returns:
        The network with the layers `DIAG_LAYERS`; a ResNet also has the others of its stages.

    Raises:
        ValueError: unknown backbone, weights that don't fit, or none (random features say nothing).
        ModuleNotFoundError: Inception is asked for and torchvision is not installed.
    """
    if not weights:
        raise ValueError(
            f"features of {backbone} without weights would be those of a random network: name pretrained ones"
        )
    if backbone == INCEPTION:
        return _open_inception(Path(weights), device)
    resnet = build_classifier(backbone, weights).to(device).resnet
    names = ("quarter", "first_stage", "eighth", "sixteenth", "thirty_second")
    return FeatureNetwork(backbone, dict(zip(names, [resnet.embedder, *resnet.encoder.stages], strict=True)))


def _open_inception(weights: Path, device: str | torch.device) -> FeatureNetwork:
    """Torchvision's Inception v3 with weights of its key names."""
    models = _import_torchvision_models()
    if weights.suffix != ".safetensors" or not weights.is_file():
        raise ValueError(
            f"weights {weights}: expected an existing .safetensors file of torchvision's Inception"
        )
    network = models.inception_v3(weights=None, init_weights=False)
    network.load_state_dict(load_file(weights))
    network = network.eval().to(device)
    first = [network.Conv2d_1a_3x3, network.Conv2d_2a_3x3, network.Conv2d_2b_3x3, network.maxpool1]
    second = [network.Conv2d_3b_1x1, network.Conv2d_4a_3x3, network.maxpool2]
    parts = {"quarter": nn.Sequential(*first), "eighth": nn.Sequential(*second)}
    return FeatureNetwork(INCEPTION, parts, "symmetric", INCEPTION_SIDE)


def _import_torchvision_models() -> ModuleType:
    try:
        return importlib.import_module("torchvision.models")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Inception comes with torchvision, which is not installed: install it, or choose a ResNet as "
            "feature_backbone"
        ) from error


def average_features(
    network: FeatureNetwork,
    images_u8: Iterable[np.ndarray],
    layer: str,
    size: tuple[int, int] | None = None,
    batch_size: int = 16,
) -> np.ndarray:
    """The feature of every image: the mean of a layer's output over all places.

    Args:
        network: from `open_features`.
        images_u8: each of shape (height, width, 3), uint8.
        layer: its name.
        size: (width, height) that images of another size are resized to; that of the first if None.
        batch_size: images looked at together.

    Returns:
        Shape (images, channels), float32.

    Raises:
        ValueError: the layer is unknown, or there is no image.
    """
    features, remaining = [], iter(images_u8)
    while batch := list(islice(remaining, batch_size)):
        size = size or (batch[0].shape[1], batch[0].shape[0])
        stacked = stack_images(batch, size)
        features.append(network.read_maps(stacked, [layer])[layer].mean(dim=(2, 3)).cpu().numpy())
    if not features:
        raise ValueError("no image to take features of")
    return np.concatenate(features)


def stack_images(images_u8: Sequence[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """Images of one size (width, height), resized where they have another, as one array."""
    return np.stack([image if image.shape[1::-1] == size else fit_image(image, size) for image in images_u8])
