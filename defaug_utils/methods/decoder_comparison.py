"""What decoder adaptation is worth: the same latents through the model's own decoder and the adapted ones."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from torch import nn

from defaug_utils.diffusion.autoencoder import (
    AdaptationSettings,
    BackgroundError,
    adapt_decoder,
    measure_background,
    to_u8,
)
from defaug_utils.methods.adabldm import Blend


class DecoderComparison(NamedTuple):
    """One image, decoded twice; nothing of the original is put back.

    Attributes:
        own_u8: by the model's own decoder, shape (height, width, 3), uint8.
        adapted_u8: by the adapted one, same shape.
        mask: shape (height, width), bool.
        own: errors of the first, grey levels.
        adapted: errors of the second.
        losses: of the adaptation, before each step and after the last.
        problem: why the adaptation was thrown away; empty when it was kept.
    """

    own_u8: np.ndarray
    adapted_u8: np.ndarray
    mask: np.ndarray
    own: BackgroundError
    adapted: BackgroundError
    losses: list[float]
    problem: str


def compare_decoders(
    vae: nn.Module,
    blend: Blend,
    settings: AdaptationSettings | None = None,
    on_images: Callable[[int], None] | None = None,
) -> list[DecoderComparison]:
    """Decode every image of a batch both ways, and measure what of the good part is lost outside the mask."""
    comparisons = []
    for number in range(len(blend.latents)):
        latents, good, mask = (
            part[number : number + 1] for part in (blend.latents, blend.images, blend.masks)
        )
        adapted = adapt_decoder(vae, latents, good, mask, settings)
        (own_u8,), (adapted_u8,) = to_u8(adapted.own_image), to_u8(adapted.image)
        errors = [measure_background(image, good, mask) for image in (adapted.own_image, adapted.image)]
        comparisons.append(
            DecoderComparison(
                own_u8, adapted_u8, mask[0, 0].cpu().numpy(), *errors, adapted.losses, adapted.problem
            )
        )
        if on_images:
            on_images(1)
    return comparisons


def tabulate_errors(comparisons: Sequence[DecoderComparison]) -> pd.DataFrame:
    """Errors in grey levels: image (from 0), place ("outside the mask" or "at its border"), before, after."""
    rows = [
        (number, place, before, after)
        for number, compared in enumerate(comparisons)
        for place, before, after in zip(
            ("outside the mask", "at its border"), compared.own, compared.adapted, strict=True
        )
    ]
    return pd.DataFrame(rows, columns=["image", "place", "before", "after"])
