"""Images to fine-tune on: which rows may teach a generator, their aspect-ratio buckets, and their latents."""

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
    """A fine-tuning that can't be done as asked."""


class BucketError(ValueError):
    """The settings leave no bucket, or an image doesn't suit its bucket."""


@dataclass(frozen=True)
class BucketSettings:
    """Which sizes there are; the defaults are In&Out's (sides 256 … 1024 in steps of 64, area 512²)."""

    area: int = 512 * 512  #: pixels that no bucket exceeds
    smallest: int = 256  #: shortest side, pixels
    largest: int = 1024  #: longest side, pixels
    step: int = 64  #: all sides are multiples of it, pixels
    may_enlarge: bool = True  #: allow images that are smaller than their bucket; it blurs them, and is told

    def __post_init__(self) -> None:
        area, smallest, largest, step = self.area, self.smallest, self.largest, self.step
        is_multiple = smallest >= 1 and step >= 1 and smallest % step == 0
        demands = {
            f"step {step} must be 1 or more": step >= 1,
            f"smallest {smallest} must be a multiple of the step {step}": is_multiple,
            f"largest {largest} must not be below smallest {smallest}": largest >= smallest,
            f"area {area} must hold smallest² = {smallest**2} pixels": area >= smallest**2,
        }
        check_demands("bucket settings", demands, BucketError)


def list_buckets(settings: BucketSettings) -> list[tuple[int, int]]:
    """For every width the largest height that the area allows, both ways, and the largest square; sorted."""
    side = math.isqrt(settings.area) // settings.step * settings.step
    buckets = {(side, side)} if settings.smallest <= side <= settings.largest else set()
    for width in range(settings.smallest, settings.largest + 1, settings.step):
        height = min(settings.largest, settings.area // width) // settings.step * settings.step
        if height >= settings.smallest:
            buckets |= {(width, height), (height, width)}
    return sorted(buckets, key=lambda size: (size[0] / size[1], size))


def choose_bucket(size: tuple[int, int], buckets: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The bucket nearest in aspect ratio on a logarithmic scale; of equal ones the largest."""
    aspect = math.log(size[0] / size[1])
    return min(buckets, key=lambda b: (round(abs(math.log(b[0] / b[1]) - aspect), 9), -b[0] * b[1]))


def assign_buckets(sizes: Mapping[str, tuple[int, int]], settings: BucketSettings) -> pd.DataFrame:
    """Give every image, by its name and (width, height), a bucket, or list all that may not be enlarged.

    Columns: image, width and height of the bucket, scale (above 1 enlarges), cropped (share).
    """
    buckets = list_buckets(settings)
    if not buckets:
        raise BucketError(f"{settings} leaves no bucket: raise the area or the largest side")
    rows, small = [], []
    for image, (width, height) in sizes.items():
        bucket = choose_bucket((width, height), buckets)
        scale = max(bucket[0] / width, bucket[1] / height)
        left, top, right, bottom = crop_box((height, width), bucket, "centre_crop")
        cropped = 1 - (right - left) * (bottom - top) / (width * height)
        rows.append((image, *bucket, scale, cropped))
        if scale > 1 and not settings.may_enlarge:
            small.append(f"{image} {width} × {height} (bucket {bucket[0]} × {bucket[1]})")
    advice = "lower the area, bring larger images, or allow enlarging (may_enlarge)"
    raise_problems(f"{len(rows)} images, some smaller than their bucket: {advice}", small, BucketError)
    return pd.DataFrame(rows, columns=["image", "width", "height", "scale", "cropped"])


def count_buckets(assigned: pd.DataFrame) -> pd.DataFrame:
    """The table to print, one row a bucket (width × height) with images; cropped is a share of an image."""
    columns = ["bucket", "images", "enlarged", "largest scale", "most cropped"]
    rows = []
    for (width, height), part in assigned.groupby(["width", "height"]):
        scale, cropped = part["scale"], part["cropped"]
        rows.append((f"{width} × {height}", len(part), (scale > 1).sum(), scale.max(), cropped.max()))
    return pd.DataFrame(rows, columns=columns)


def tell_fit(assigned: pd.DataFrame) -> list[str]:
    """How many images are enlarged, and how many lose more than 5 % of their area at the edges."""
    enlarged, cropped = assigned[assigned["scale"] > 1], assigned[assigned["cropped"] > 0.05]
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


def choose_training_rows(
    dataset: pd.DataFrame,
    scenario: str,
    seed: int,
    few_shot_count: int = 5,
    negative_count: int = ZERO_SHOT_NEGATIVES,
) -> pd.DataFrame:
    """The rows that a scenario's generator is fine-tuned on (Capogrosso et al. 2024, section 4).

    Zero-shot takes random negatives, the others the positives that training sets of the same seed hold.

    Raises:
        DreamBoothError: there are fewer negatives than asked for.
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
    """Refuse, naming every such row, to fine-tune on anything but real images of the train split."""
    if rows.empty:
        raise DreamBoothError("there is no instance image to fine-tune on: give at least one, better five")
    known = dataset.set_index("image")[["split", "origin"]]
    problems = []
    for image in rows["image"]:
        split, origin = known.loc[image] if image in known.index else ("unknown to the data set", "real")
        if split != "train":
            problems.append(f"{image} is {split}, only train images may teach a generator")
        if origin != "real":
            problems.append(f"{image} is {origin}, only real images may teach a generator")
    raise_problems("instance images", problems, DreamBoothError)


@dataclass(frozen=True)
class TrainingImages:
    """Images to train on: instances first, then regularisation images."""

    items: pd.DataFrame  #: one row an image: image (name), path, is_class
    buckets: pd.DataFrame  #: see `assign_buckets`, in the same order
    digest: str  #: hash of the instances' names and all files' contents

    def sizes(self, is_class: bool) -> list[tuple[int, int]]:
        """The buckets of all instances, or of all regularisation images."""
        chosen = self.buckets[self.items["is_class"] == is_class]
        return list(chosen[["width", "height"]].itertuples(index=False, name=None))

    def describe(self) -> dict:
        """Which instances, how many regularisation images, and a hash of all."""
        names = self.items["image"][~self.items["is_class"]].tolist()
        return {"instances": names, "class_images": len(self.sizes(is_class=True)), "sha256": self.digest}


def read_training_images(
    rows: pd.DataFrame,
    dataset: pd.DataFrame,
    data_folder: Path | str,
    buckets: BucketSettings,
    class_folder: Path | str | None = None,
) -> TrainingImages:
    """Look at all images of a fine-tuning, and give each its bucket.

    Args:
        rows: instances, of `choose_training_rows`; they are checked against the prepared `dataset`.
        class_folder: pool of regularisation images; None trains without prior preservation.

    Raises:
        DreamBoothError: no or wrong rows, or images that can't be read; lists all.
        BucketError: there is no bucket for an image; see `assign_buckets`.
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
    """Refuse buckets whose sides are no multiples of what the model takes."""
    step = model.side_step
    if buckets.step % step:
        raise DreamBoothError(
            f"bucket step {buckets.step} is no multiple of {step}, which {model.model} needs: use "
            f"{-(-buckets.step // step) * step}"
        )


@torch.inference_mode()
def cache_latents(model: TextToImage, images: TrainingImages) -> list[tuple[Tensor, Tensor]]:
    """Mean and deviation of every image's latents (channels, height, width), scaled for the U-Net."""
    vae, cached, broken = model.pipeline.vae, [], []
    sizes = images.buckets[["width", "height"]].itertuples(index=False, name=None)
    for name, path, size in zip(images.items["image"], images.items["path"], sizes, strict=True):
        image = to_floats([fit_image(read_image(path), size, "centre_crop")]).contiguous()
        posterior = vae.encode(image.to(model.device, vae.dtype)).latent_dist
        scaled = [vae.config.scaling_factor * part[0] for part in (posterior.mean, posterior.std)]
        cached.append(tuple(part.float().cpu().clone() for part in scaled))
        if not all(part.isfinite().all() for part in cached[-1]):
            broken.append(name)
    what = "latents that are no numbers (load the model in float32 or bfloat16)"
    raise_problems(what, broken, DreamBoothError)
    return cached
