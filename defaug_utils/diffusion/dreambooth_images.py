"""DreamBooth's images: which rows may train a generator, their buckets, and their latents, computed once."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from defaug_utils.core.images import read_image
from defaug_utils.core.manifest import raise_problems, read_manifest
from defaug_utils.core.sources import choose_positives, list_sources
from defaug_utils.diffusion.buckets import BucketSettings, assign_buckets, fit_to_bucket
from defaug_utils.diffusion.dreambooth_plan import DreamBoothError
from defaug_utils.diffusion.text2image import TextToImage

ZERO_SHOT_NEGATIVES = 50  # In&Out, section 4


def choose_training_rows(
    dataset: pd.DataFrame,
    scenario: str,
    seed: int,
    few_shot_count: int = 5,
    negative_count: int = ZERO_SHOT_NEGATIVES,
) -> pd.DataFrame:
    """The rows that a scenario's generator is fine-tuned on (Capogrosso et al. 2024, section 4).

    Args:
        dataset: manifest of the prepared data set.
        scenario: "zero-shot" takes random negatives, the others the positives that training sets of the
            same seed hold.
        seed: draws them.
        few_shot_count: positives in few-shot.
        negative_count: negatives in zero-shot.

    Raises:
        DreamBoothError: there are fewer negatives than asked for.
        MixingError: the scenario is unknown, or there are too few positives.
    """
    if scenario != "zero-shot":
        return choose_positives(dataset, scenario, seed, few_shot_count)
    negatives = list_sources(dataset)
    if not 1 <= negative_count <= len(negatives):
        raise DreamBoothError(
            f"negative_count is {negative_count}, expected 1 … {len(negatives)}: the train split has "
            f"{len(negatives)} negatives"
        )
    return negatives.sample(negative_count, random_state=seed)


def check_training_rows(rows: pd.DataFrame, dataset: pd.DataFrame) -> None:
    """Refuse to fine-tune a generator on anything but real training images of the data set.

    Raises:
        DreamBoothError: there is no image; or lists every row that is unknown, generated, or not in the
            train split.
    """
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
    """Images to train on: instances first, then regularisation images.

    Attributes:
        items: one row an image: image (name), path, is_class.
        buckets: see `assign_buckets`, in the same order.
        digest: hash of the instances' names and all files' contents.
    """

    items: pd.DataFrame
    buckets: pd.DataFrame
    digest: str

    def count(self, is_class: bool) -> int:
        """How many there are."""
        return int((self.items["is_class"] == is_class).sum())

    def sizes(self, is_class: bool) -> list[tuple[int, int]]:
        """The buckets of all instances, or of all regularisation images."""
        chosen = self.buckets[self.items["is_class"] == is_class]
        return [
            (int(width), int(height)) for width, height in zip(chosen["width"], chosen["height"], strict=True)
        ]

    def describe(self) -> dict:
        """Which instances, how many regularisation images, and a hash of all."""
        names = self.items["image"][~self.items["is_class"]].tolist()
        return {"instances": names, "class_images": self.count(is_class=True), "sha256": self.digest}


def read_training_images(
    rows: pd.DataFrame,
    dataset: pd.DataFrame,
    data_folder: Path | str,
    buckets: BucketSettings,
    class_folder: Path | str | None = None,
) -> TrainingImages:
    """Look at all images of a fine-tuning, and give each its bucket.

    Args:
        rows: instances, of `choose_training_rows`.
        dataset: manifest of the prepared data set, which the rows are checked against.
        data_folder: folder of that manifest.
        buckets: sizes to train at.
        class_folder: pool of regularisation images; None trains without prior preservation.

    Raises:
        DreamBoothError: see `check_training_rows`; or lists every image that can't be read.
        BucketError: see `assign_buckets`.
    """
    check_training_rows(rows, dataset)
    items = [(name, Path(data_folder) / name, False) for name in rows["image"]]
    if class_folder is not None:
        pool = read_manifest(Path(class_folder) / "manifest.csv")
        items += [(f"class/{name}", Path(class_folder) / name, True) for name in pool["image"]]
    digest, sizes, problems = hashlib.sha256(), {}, []
    for name, path, _ in items:
        try:
            sizes[name] = _read_size(path)
            digest.update(f"{name}\n".encode() + path.read_bytes())
        except (OSError, ValueError) as error:
            problems.append(f"{path}: not a readable image ({error})")
    raise_problems("images to train on", problems, DreamBoothError)
    table = pd.DataFrame(items, columns=["image", "path", "is_class"])
    return TrainingImages(table, assign_buckets(sizes, buckets), digest.hexdigest()[:16])


def _read_size(path: Path) -> tuple[int, int]:
    with Image.open(path) as opened:
        opened.verify()
        return opened.size


def check_bucket_step(buckets: BucketSettings, model: TextToImage) -> None:
    """Refuse buckets whose sides the model can't take.

    Raises:
        DreamBoothError: the step or the smallest side is no multiple of the model's.
    """
    if buckets.step % model.side_step:
        raise DreamBoothError(
            f"bucket step {buckets.step} is no multiple of {model.side_step}, which {model.model} needs: use "
            f"{-(-buckets.step // model.side_step) * model.side_step}"
        )


@torch.inference_mode()
def cache_latents(model: TextToImage, images: TrainingImages) -> list[tuple[Tensor, Tensor]]:
    """Encode every image once, at its bucket's size.

    Training draws from the autoencoder's distribution anew at every step, as if it were encoded each time.

    Args:
        model: its autoencoder, without an adapter.
        images: from `read_training_images`.

    Returns:
        Mean and standard deviation of each, shape (channels, height, width), scaled as the U-Net wants them.
    """
    vae, cached = model.pipeline.vae, []
    for path, width, height in zip(
        images.items["path"], images.buckets["width"], images.buckets["height"], strict=True
    ):
        fitted_u8 = fit_to_bucket(read_image(path), (int(width), int(height)))
        image = torch.from_numpy(fitted_u8.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        posterior = vae.encode(image.to(model.device, vae.dtype)).latent_dist
        factor = vae.config.scaling_factor
        cached.append(
            tuple((factor * part[0]).float().cpu().clone() for part in (posterior.mean, posterior.std))
        )
    broken = [
        name
        for name, (mean, deviation) in zip(images.items["image"], cached, strict=True)
        if not (mean.isfinite().all() and deviation.isfinite().all())
    ]
    raise_problems(
        "latents that are no numbers (load the model in float32 or bfloat16)", broken, DreamBoothError
    )
    return cached
