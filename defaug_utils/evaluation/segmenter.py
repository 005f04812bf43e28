"""A compact detector of defect pixels: a U-Net on the classifier's ResNets.

Ronneberger et al. 2015 (U-Net), He et al. 2016 (ResNet). Taken instead of DeSTSeg (Zhang et al. 2023), the
detector of AdaBLDM's tables, for two reasons. DeSTSeg's teacher is a frozen network that must know
ImageNet, and the workshop's small backbone has seen drawn shapes only. And its student learns from
anomalies that DeSTSeg simulates itself, which would blur what is compared here: the generated images. The
U-Net learns from the given images and masks alone. Its numbers stand beside each other, not beside
DeSTSeg's.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate
from transformers import ResNetModel

from defaug_utils.training.classifier import build_classifier

DEFECT_PRIOR = 0.01  # of every pixel before training, so that defects are not drowned (Lin et al. 2017, 3.3)
DICE_SMOOTHING = 1.0  # pixels; without defects the overlap term then asks for few positives


class Segmenter(nn.Module):
    """A ResNet whose stages are read back up, each joined with the one before it."""

    def __init__(self, resnet: ResNetModel) -> None:
        """Put a decoder with random weights on an encoder."""
        super().__init__()
        self.encoder = resnet
        channels = [resnet.config.embedding_size, *resnet.config.hidden_sizes]
        pairs = zip(channels[:0:-1], channels[-2::-1], strict=True)
        self.decoder = nn.ModuleList(_make_block(deep + skip, skip) for deep, skip in pairs)
        self.head = nn.Conv2d(channels[0], 1, kernel_size=1)
        nn.init.constant_(self.head.bias, math.log(DEFECT_PRIOR / (1 - DEFECT_PRIOR)))

    def forward(self, images: Tensor) -> Tensor:
        """Logits of "this pixel is defective".

        Args:
            images: shape (batch, 3, height, width), normalised, of any height and width.

        Returns:
            Shape (batch, height, width).
        """
        stem = self.encoder.embedder.embedder(images)
        state, skips = self.encoder.embedder.pooler(stem), [stem]
        for stage in self.encoder.encoder.stages:
            state = stage(state)
            skips.append(state)
        state = skips.pop()
        for block, skip in zip(self.decoder, reversed(skips), strict=True):
            state = block(torch.cat([_stretch(state, skip), skip], dim=1))
        return _stretch(self.head(state), images)[:, 0]


def _make_block(channels: int, out_channels: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, out_channels, kernel_size=3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


def _stretch(state: Tensor, like: Tensor) -> Tensor:
    return interpolate(state, like.shape[2:], mode="bilinear", align_corners=False)


def build_segmenter(backbone: str, weights: str = "") -> Segmenter:
    """Make a detector of defect pixels.

    Args:
        backbone: a name in `classifier.BACKBONES`.
        weights: of the encoder, as `build_classifier` takes them; the decoder starts at random.

    Returns:
        The model, in evaluation mode, on the processor.
    """
    return Segmenter(build_classifier(backbone, weights).resnet).eval()


def segmentation_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Cross-entropy of the pixels plus one minus the overlap (soft Dice, Milletari et al. 2016, section 3).

    The first keeps the scores comparable between images, the second counts a small defect as a large one.

    Args:
        logits: shape (batch, height, width).
        masks: same shape, 1 on the defect.

    Returns:
        One number.
    """
    found = logits.sigmoid()
    shared, total = (found * masks).sum(), found.sum() + masks.sum()
    overlap = (2 * shared + DICE_SMOOTHING) / (total + DICE_SMOOTHING)
    return binary_cross_entropy_with_logits(logits, masks) + 1 - overlap
