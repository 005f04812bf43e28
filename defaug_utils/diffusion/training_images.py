"""Images to fine-tune on: which rows a generator may learn from, their buckets and their latents."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from defaug_utils.core.guards import check_demands, raise_problems
from defaug_utils.core.images import crop_box, fit_image, read_image
from defaug_utils.core.manifest import read_manifest
from defaug_utils.core.sources import list_sources
from defaug_utils.data.datasets import choose_positives
from defaug_utils.diffusion.autoencoder import to_floats
from defaug_utils.diffusion.text2image import TextToImage

ZERO_SHOT_NEGATIVES = 50  # In&Out, section 4


class DreamBoothError(ValueError):
    """Fine-tuning can't be done as requested."""


class BucketError(ValueError):
    """The settings leave no bucket, or an image doesn't fit its bucket."""


@dataclass(frozen=True)
class BucketSettings:
    """The available sizes; the defaults are In&Out's (sides 256 … 1024 in steps of 64, area 512²)."""

    area: int = 512 * 512  #: largest area of a bucket, pixels
    smallest: int = 256  #: shortest side, pixels
    largest: int = 1024  #: longest side, pixels
    step: int = 64  #: all sides are multiples of it, pixels
    may_enlarge: bool = True  #: allow images smaller than their bucket; they are blurred, with a notice

    def __post_init__(self) -> None:
        area, smallest, largest, step = self.area, self.smallest, self.largest, self.step
        is_multiple = smallest >= 1 and step >= 1 and smallest % step == 0
        demands = {
            f"step {step} must be 1 or more": step >= 1,
            f"smallest {smallest} must be a multiple of the step {step}": is_multiple,
            f"largest {largest} must not be below smallest {smallest}": largest >= smallest,
            f"area {area} must be at least smallest² = {smallest**2} pixels": area >= smallest**2,
        }
        check_demands("bucket settings", demands, BucketError)


def list_buckets(settings: BucketSettings) -> list[tuple[int, int]]:
    """For every width the largest height that fits the area, the same for heights, and the largest square."""
    side = math.isqrt(settings.area) // settings.step * settings.step
    buckets = {(side, side)} if settings.smallest <= side <= settings.largest else set()
    for width in range(settings.smallest, settings.largest + 1, settings.step):
        height = min(settings.largest, settings.area // width) // settings.step * settings.step
        if height >= settings.smallest:
            buckets |= {(width, height), (height, width)}
    return sorted(buckets, key=lambda size: (size[0] / size[1], size))


def choose_bucket(size: tuple[int, int], buckets: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The bucket with the nearest aspect ratio on a logarithmic scale; the largest if several are equal."""
    aspect = math.log(size[0] / size[1])
    return min(buckets, key=lambda b: (round(abs(math.log(b[0] / b[1]) - aspect), 9), -b[0] * b[1]))


def assign_buckets(sizes: Mapping[str, tuple[int, int]], settings: BucketSettings) -> pd.DataFrame:
    """Assign a bucket to every image, given by name and (width, height); refuses disallowed enlargements.

    Columns: image, width and height of the bucket, scale (above 1 enlarges), cropped (share).
    """
    buckets = list_buckets(settings)
    if not buckets:
        raise BucketError(f"{settings} leaves no bucket: increase the area or the largest side")
    rows, small = [], []
    for image, (width, height) in sizes.items():
        bucket = choose_bucket((width, height), buckets)
        scale = max(bucket[0] / width, bucket[1] / height)
        left, top, right, bottom = crop_box((height, width), bucket, "centre_crop")
        cropped = 1 - (right - left) * (bottom - top) / (width * height)
        rows.append((image, *bucket, scale, cropped))
        if scale > 1 and not settings.may_enlarge:
            small.append(f"{image} {width} × {height} (bucket {bucket[0]} × {bucket[1]})")
    advice = "reduce the area, use larger images, or allow enlarging (may_enlarge)"
    raise_problems(f"{len(rows)} images, some smaller than their bucket: {advice}", small, BucketError)
    return pd.DataFrame(rows, columns=["image", "width", "height", "scale", "cropped"])


def count_buckets(assigned: pd.DataFrame) -> pd.DataFrame:
    """A table with one row per used bucket (width × height); `cropped` is a share of an image."""
    columns = ["bucket", "images", "enlarged", "largest scale", "most cropped"]
    rows = []
    for (width, height), part in assigned.groupby(["width", "height"]):
        scale, cropped = part["scale"], part["cropped"]
        rows.append((f"{width} × {height}", len(part), (scale > 1).sum(), scale.max(), cropped.max()))
    return pd.DataFrame(rows, columns=columns)


def tell_fit(assigned: pd.DataFrame) -> list[str]:
    """Notices about images that are enlarged, or lose more than 5 % of their area at the edges."""
    enlarged, cropped = assigned[assigned["scale"] > 1], assigned[assigned["cropped"] > 0.05]
    notices = []
    if len(enlarged):
        notices.append(
            f"{len(enlarged)} of {len(assigned)} images are smaller than their bucket and enlarged, up to "
            f"{enlarged['scale'].max():.2f} times, which blurs them; a smaller area avoids this"
        )
    if len(cropped):
        notices.append(
            f"{len(cropped)} of {len(assigned)} images lose up to {cropped['cropped'].max():.0%} of their "
            "area at two opposite edges, where a defect may be; a smaller step gives better fitting buckets"
        )
    return notices


def choose_training_rows(
    dataset: pd.DataFrame,
    scenario: str,
    seed: int,
    few_shot_count: int = 5,
    negative_count: int = ZERO_SHOT_NEGATIVES,
) -> pd.DataFrame:
    """The rows that a scenario's generator is fine-tuned on (Capogrosso et al. 2024, section 4).

    Zero-shot uses random negatives, the others the positives of the training sets with the same seed.

    Raises:
        DreamBoothError: there are fewer negatives than requested.
        MixingError: the scenario is unknown, or there are too few positives.
    """
    if scenario != "zero-shot":
        return choose_positives(dataset, scenario, seed, few_shot_count)
    negatives = list_sources(dataset)
    known = len(negatives)
    if not 1 <= negative_count <= known:
        expected = f"expected 1 … {known}: the train split has {known} negatives"
        raise DreamBoothError(f"negative_count is {negative_count}, {expected}")
    return negatives.sample(negative_count, random_state=seed)


def check_training_rows(rows: pd.DataFrame, dataset: pd.DataFrame) -> None:
    """Refuse to fine-tune on anything but real images of the train split; lists every such row."""
    if rows.empty:
        raise DreamBoothError("there is no instance image to fine-tune on: give at least one, better five")
    known = dataset.set_index("image")[["split", "origin"]]
    problems = []
    for image in rows["image"]:
        split, origin = known.loc[image] if image in known.index else ("unknown to the data set", "real")
        if split != "train":
            problems.append(f"{image} is {split}: a generator may learn only from train images")
        if origin != "real":
            problems.append(f"{image} is {origin}: a generator may learn only from real images")
    raise_problems("instance images", problems, DreamBoothError)


@dataclass(frozen=True)
class TrainingImages:
    """Training images: first instances, then regularisation images."""

    items: pd.DataFrame  #: one row per image: image (name), path, is_class
    buckets: pd.DataFrame  #: see `assign_buckets`, in the same order
    digest: str  #: hash of the instances' names and of all files' contents

    def sizes(self, is_class: bool) -> list[tuple[int, int]]:
        """The buckets of all instances, or of all regularisation images."""
        chosen = self.buckets[self.items["is_class"] == is_class]
        return list(chosen[["width", "height"]].itertuples(index=False, name=None))

    def describe(self) -> dict:
        """The instances, the number of regularisation images, and a hash of everything."""
        names = self.items["image"][~self.items["is_class"]].tolist()
        return {"instances": names, "class_images": len(self.sizes(is_class=True)), "sha256": self.digest}


def read_training_images(
    rows: pd.DataFrame,
    dataset: pd.DataFrame,
    data_folder: Path | str,
    buckets: BucketSettings,
    class_folder: Path | str | None = None,
) -> TrainingImages:
    """Check all images of a fine-tuning, and assign a bucket to each.

    Args:
        rows: instances from `choose_training_rows`; they are checked against the prepared `dataset`.
        class_folder: pool of regularisation images; None for no prior preservation.

    Raises:
        DreamBoothError: missing or invalid rows, or unreadable images; lists all.
        BucketError: there is no bucket for an image, see `assign_buckets`.
    """
    check_training_rows(rows, dataset)
    items = [(name, Path(data_folder) / name, False) for name in rows["image"]]
    if class_folder is not None:
        pool = read_manifest(Path(class_folder) / "manifest.csv")
        items += [(f"class/{name}", Path(class_folder) / name, True) for name in pool["image"]]
    digest, sizes, problems = hashlib.sha256(), {}, []
    for name, path, _ in items:
        try:
            with Image.open(path) as opened:
                opened.verify()
                sizes[name] = opened.size
            digest.update(f"{name}\n".encode() + path.read_bytes())
        except (OSError, ValueError) as error:
            problems.append(f"{path}: not a readable image ({error})")
    raise_problems("images to train on", problems, DreamBoothError)
    table = pd.DataFrame(items, columns=["image", "path", "is_class"])
    return TrainingImages(table, assign_buckets(sizes, buckets), digest.hexdigest()[:16])


def check_bucket_step(buckets: BucketSettings, model: TextToImage) -> None:
    """Refuse buckets whose sides are not multiples of the model's step."""
    step = model.side_step
    if buckets.step % step:
        raise DreamBoothError(
            f"bucket step {buckets.step} is not a multiple of {step}, which {model.model} needs: use "
            f"{-(-buckets.step // step) * step}"
        )


@torch.inference_mode()
def cache_latents(model: TextToImage, images: TrainingImages) -> list[tuple[Tensor, Tensor]]:
    """Mean and deviation of each image's latents (channels, height, width), scaled for the U-Net."""
    vae, cached, broken = model.pipeline.vae, [], []
    sizes = images.buckets[["width", "height"]].itertuples(index=False, name=None)
    for name, path, size in zip(images.items["image"], images.items["path"], sizes, strict=True):
        image = to_floats([fit_image(read_image(path), size, "centre_crop")]).contiguous()
        posterior = vae.encode(image.to(model.device, vae.dtype)).latent_dist
        scaled = [vae.config.scaling_factor * part[0] for part in (posterior.mean, posterior.std)]
        cached.append(tuple(part.float().cpu().clone() for part in scaled))
        if not all(part.isfinite().all() for part in cached[-1]):
            broken.append(name)
    what = "non-finite latents (load the model in float32 or bfloat16)"
    raise_problems(what, broken, DreamBoothError)
    return cached
