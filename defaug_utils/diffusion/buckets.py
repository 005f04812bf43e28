"""Aspect-ratio buckets: images of any shape trained without distortion, each at one of a few sizes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from defaug_utils.core.images import crop_box, fit_image


class BucketError(ValueError):
    """The settings leave no bucket, or an image doesn't suit its bucket."""


@dataclass(frozen=True)
class BucketSettings:
    """Which sizes there are; the defaults are In&Out's (sides 256 … 1024 in steps of 64, area 512²).

    Attributes:
        area: pixels that no bucket exceeds.
        smallest: shortest side, pixels.
        largest: longest side, pixels.
        step: all sides are multiples of it, pixels.
        may_enlarge: allow images that are smaller than their bucket; they are blurred by it, and told.
    """

    area: int = 512 * 512
    smallest: int = 256
    largest: int = 1024
    step: int = 64
    may_enlarge: bool = True

    def __post_init__(self) -> None:
        """Refuse values that make no sense, all in one message."""
        demands = {
            f"step {self.step} must be 1 or more": self.step >= 1,
            f"smallest {self.smallest} must be a multiple of the step {self.step}": (
                self.smallest >= 1 and self.step >= 1 and self.smallest % self.step == 0
            ),
            f"largest {self.largest} must not be below smallest {self.smallest}": (
                self.largest >= self.smallest
            ),
            f"area {self.area} must hold smallest² = {self.smallest**2} pixels": self.area
            >= self.smallest**2,
        }
        broken = [message for message, is_met in demands.items() if not is_met]
        if broken:
            raise BucketError("bucket settings: " + "; ".join(broken))


def list_buckets(settings: BucketSettings) -> list[tuple[int, int]]:
    """All sizes (width, height), from the most upright to the widest.

    For every width the largest height that the area allows, and the same lying; and the largest square.

    Args:
        settings: sides, step and area.
    """
    side = math.isqrt(settings.area) // settings.step * settings.step
    buckets = {(side, side)} if settings.smallest <= side <= settings.largest else set()
    for width in range(settings.smallest, settings.largest + 1, settings.step):
        height = min(settings.largest, settings.area // width) // settings.step * settings.step
        if height >= settings.smallest:
            buckets |= {(width, height), (height, width)}
    return sorted(buckets, key=lambda size: (size[0] / size[1], size))


def choose_bucket(size: tuple[int, int], buckets: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The bucket whose aspect ratio is nearest on a logarithmic scale; of equal ones the largest.

    Args:
        size: (width, height) of an image.
        buckets: from `list_buckets`.
    """
    aspect = math.log(size[0] / size[1])
    return min(buckets, key=lambda b: (round(abs(math.log(b[0] / b[1]) - aspect), 9), -b[0] * b[1]))


def fit_to_bucket(image_u8: np.ndarray, bucket: tuple[int, int]) -> np.ndarray:
    """Scale an image until it covers its bucket, and cut off what stands over on both sides.

    Args:
        image_u8: shape (height, width, 3), uint8.
        bucket: (width, height).

    Returns:
        Shape (bucket[1], bucket[0], 3), uint8; both axes are scaled alike.
    """
    return fit_image(image_u8, bucket, "centre_crop")


def measure_fit(size: tuple[int, int], bucket: tuple[int, int]) -> tuple[float, float]:
    """How many times larger an image becomes in its bucket, and the share of it that is cut off.

    Args:
        size: (width, height) of the image.
        bucket: (width, height).
    """
    left, top, right, bottom = crop_box((size[1], size[0]), bucket, "centre_crop")
    width, height = right - left, bottom - top
    scale = max(bucket[0] / size[0], bucket[1] / size[1])
    return scale, 1 - width * height / (size[0] * size[1])


def assign_buckets(sizes: Mapping[str, tuple[int, int]], settings: BucketSettings) -> pd.DataFrame:
    """Give every image its bucket.

    Args:
        sizes: image name → (width, height).
        settings: of the buckets.

    Returns:
        One row an image: image, width and height of the bucket, scale (above 1 enlarges), cropped (share).

    Raises:
        BucketError: there is no bucket; or, where enlarging is not allowed, lists every image that is
            smaller than its bucket.
    """
    buckets = list_buckets(settings)
    if not buckets:
        raise BucketError(f"{settings} leaves no bucket: raise the area or the largest side")
    rows = []
    for image, size in sizes.items():
        width, height = choose_bucket(size, buckets)
        scale, cropped = measure_fit(size, (width, height))
        rows.append({"image": image, "width": width, "height": height, "scale": scale, "cropped": cropped})
    table = pd.DataFrame(rows, columns=["image", "width", "height", "scale", "cropped"])
    small = table[table["scale"] > 1]
    if len(small) and not settings.may_enlarge:
        listed = "; ".join(
            f"{row.image} {sizes[row.image][0]} × {sizes[row.image][1]} (bucket {row.width} × {row.height})"
            for row in small.head(20).itertuples()
        )
        raise BucketError(
            f"{len(small)} of {len(table)} images are smaller than their bucket: {listed}: lower the area, "
            "bring larger images, or allow enlarging (may_enlarge)"
        )
    return table


def count_buckets(assigned: pd.DataFrame) -> pd.DataFrame:
    """The table to print: one row a bucket that has images.

    Args:
        assigned: from `assign_buckets`.

    Returns:
        Columns: bucket ("128 × 384", width × height), images, enlarged (images), largest scale, most cropped
        (share of an image).
    """
    rows = []
    for (width, height), part in assigned.groupby(["width", "height"]):
        rows.append(
            {
                "bucket": f"{width} × {height}",
                "images": len(part),
                "enlarged": int((part["scale"] > 1).sum()),
                "largest scale": part["scale"].max(),
                "most cropped": part["cropped"].max(),
            }
        )
    return pd.DataFrame(rows, columns=["bucket", "images", "enlarged", "largest scale", "most cropped"])


def tell_fit(assigned: pd.DataFrame, crop_limit: float = 0.05) -> list[str]:
    """What a user must know about how the images fit: how many are enlarged, how many lose an edge.

    Args:
        assigned: from `assign_buckets`.
        crop_limit: share of an image from which a cut is told.
    """
    enlarged, cropped = assigned[assigned["scale"] > 1], assigned[assigned["cropped"] > crop_limit]
    notices = []
    if len(enlarged):
        notices.append(
            f"{len(enlarged)} of {len(assigned)} images are smaller than their bucket and enlarged, up to "
            f"{enlarged['scale'].max():.2f} times: they train blurred; a smaller area avoids it"
        )
    if len(cropped):
        notices.append(
            f"{len(cropped)} of {len(assigned)} images lose up to {cropped['cropped'].max():.0%} of their "
            "area at two opposite edges, where a defect may lie; a smaller step gives buckets that fit better"
        )
    return notices
