"""The DIAG studio without widgets: paints what an expert requests, and stores the expert's decisions."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import pandas as pd

from defaug_utils.core.files import write_json, write_png
from defaug_utils.core.guards import as_json
from defaug_utils.core.images import hash_pixels, is_grey, read_image, read_mask
from defaug_utils.core.licences import RECIPE_FILE, tell_licence
from defaug_utils.core.manifest import ManifestError
from defaug_utils.core.pools import GeneratedImage, list_versions, recipe_key, remake
from defaug_utils.core.prompts import check_prompts
from defaug_utils.core.sources import list_sources, read_dataset
from defaug_utils.diffusion.inpainting import Inpainter, InpaintSettings, inpaint_batch
from defaug_utils.diffusion.jobs import InpaintJob, check_jobs
from defaug_utils.masks.drawn import mask_file_name
from defaug_utils.methods.painting import LIBRARIES, CheckLimits, check_image
from defaug_utils.widgets.kept_pictures import KeptPictures

ASKED = ("guidance", "strength", "steps")  # the settings in a request


@dataclass(frozen=True)
class StudioRequest:
    """An expert's request; `guidance`, `strength` and `steps` as in `InpaintSettings`."""

    source_image: str  #: a training negative of the data set
    mask: np.ndarray = field(repr=False)  #: shape (height, width), bool, true where the defect goes
    prompt: str  #: what to paint
    negative_prompt: str = ""  #: what must not appear
    guidance: float = 2.0
    strength: float = 0.99
    steps: int = 20
    seed: int = 0  #: of the first image's noise; each further image uses the next number


class StudioImage(NamedTuple):
    """One image, stored or not yet."""

    request: StudioRequest  #: what it was made from, including its seed
    before_u8: np.ndarray  #: the negative, shape (height, width, 3), uint8
    after_u8: np.ndarray  #: the image, same shape
    row: dict  #: its columns of the manifest; without `image` if not stored yet


@dataclass(frozen=True, eq=False)
class HandDrawn:
    """The `Method` of one request: DIAG in a hand-drawn mask, one image per seed."""

    origin: ClassVar[str] = "diag"
    group: ClassVar[int] = 1
    studio: "Studio"
    request: StudioRequest
    on_step: Callable[[], None] | None = None  #: see `Studio.paint`
    versions: dict[str, str] = field(default_factory=partial(list_versions, *LIBRARIES))

    @property
    def data(self) -> Path:
        """Folder of the data set."""
        return self.studio.data_folder

    @property
    def settings(self) -> InpaintSettings:
        """The studio's settings, with those of the request."""
        return replace(self.studio.settings, **{name: getattr(self.request, name) for name in ASKED})

    @property
    def on_grey(self) -> bool:
        """Whether the negative is grey, so that it is painted in grey; see `finish_image`."""
        return is_grey(read_image(self.data / self.request.source_image))

    def describe(self) -> dict:
        """Everything except mask, prompts, negative and seed, which are in the row."""
        return {
            "origin": self.origin,
            "model": self.studio.inpainter.describe(),
            "settings": self.settings.describe(),
            "checks": asdict(self.studio.limits),
            "batch_size": self.group,
            "mask_source": "drawn",
            "versions": self.versions,
            **({"stay_grey": True} if self.on_grey else {}),
        }

    def make(self, indices: Sequence[int], seeds: Sequence[int]) -> list[GeneratedImage]:
        """Paint one image for each seed, one by one."""
        job = self.studio.check_request(self.request)
        return [self._paint(job._replace(seed=seed)) for seed in seeds]

    def _paint(self, job: InpaintJob) -> GeneratedImage:
        (painted,) = inpaint_batch(self.studio.inpainter, [job], self.settings, on_step=self.on_step)
        check = check_image(job, painted, self.studio.limits)
        row = {
            "category": self.studio.categories[self.request.source_image],
            "source_image": self.request.source_image,
            "source_sha256": hash_pixels(job.image_u8),
            "mask_source": "drawn",
            "mask_name": mask_file_name(self.request.source_image),
            "mask_sha256": hash_pixels(job.mask),
            "prompt": self.request.prompt,
            "negative_prompt": self.request.negative_prompt,
            "latent_cells": painted.latent_cells,
        }
        return GeneratedImage(painted.image_u8, job.mask, row | check.as_row())


class Studio:
    """Paints one request after another, and stores each judged image with everything it was made from.

    The folder is a pool whose `recipe.json` has one recipe per choice of settings. Images are painted one by
    one, so that they don't depend on stops, their number or their order.
    """

    def __init__(
        self,
        folder: Path | str,
        data_folder: Path | str,
        inpainter: Inpainter,
        settings: InpaintSettings,
        limits: CheckLimits | None = None,
    ) -> None:
        """List the images that may be painted on; raises a ValueError for a size that the model can't use.

        Judged images go to `folder`; `data_folder` is that of the prepared data set. Size, crop and feather
        of the settings apply to all requests, which set guidance, strength and steps. `limits` belong to the
        automatic checks, which the expert's decision overrides.
        """
        inpainter.check_size(settings.size)
        self.folder, self.data_folder, self.inpainter = Path(folder), Path(data_folder), inpainter
        self.settings, self.limits = settings, limits or CheckLimits()
        self.kept = KeptPictures(folder)
        sources = list_sources(read_dataset(data_folder))
        self.categories = dict(zip(sources["image"], sources["category"], strict=True))

    def check_request(self, request: StudioRequest) -> InpaintJob:
        """The first job of a request; raises a ValueError for an invalid image, mask, prompt or setting."""
        if request.source_image not in self.categories:
            raise ManifestError(f"{request.source_image} is not a training negative: only those can be used")
        if not request.mask.any():
            raise ValueError("the mask is empty: draw where the defect goes, then generate")
        image_u8 = read_image(self.data_folder / request.source_image)
        job = InpaintJob(image_u8, request.mask, request.prompt, request.negative_prompt, request.seed)
        check_jobs([job])
        negative = [request.negative_prompt] if request.negative_prompt else []
        check_prompts(self.inpainter, [request.prompt, *negative])
        self.count_steps(request)
        return job

    def count_steps(self, request: StudioRequest) -> int:
        """Denoising steps for one image of a request."""
        return HandDrawn(self, request).settings.effective_steps

    def paint(
        self, request: StudioRequest, count: int = 1, on_step: Callable[[], None] | None = None
    ) -> Iterator[StudioImage]:
        """Paint images with the seeds `seed`, `seed` + 1, …; yield each when finished, without storing it.

        `on_step` is called after every denoising step; an exception from it stops painting. Also raises what
        `check_request` raises.
        """
        before_u8 = self.check_request(request).image_u8
        for seed in range(request.seed, request.seed + count):
            method = HandDrawn(self, replace(request, seed=seed), on_step)
            (made,) = method.make([0], [seed])
            row = {"label": "positive", "split": "train", "origin": method.origin, "seed": seed}
            row |= made.row | {"recipe": recipe_key(as_json(method.describe()))}
            yield StudioImage(method.request, before_u8, made.image_u8, row)

    def decide(self, image: StudioImage, accepted: bool, note: str = "") -> StudioImage:
        """Store an image from `paint` or `load` with a decision and a note; a new decision replaces the old.

        Image and mask are written before the row that names them, under the lock that reviews also use:
        several windows or kernels on one folder keep all decisions. The time does not depend on the number of
        kept images. Returns the stored image.

        Raises:
            PermissionError: the folder can't be written to; its content is unchanged.
            ManifestError: its manifest is broken.
            TimeoutError: another process keeps it locked.
        """
        row = {**image.row, "accepted": accepted, "reviewer_note": note}
        return image._replace(row=self.kept.store(row, lambda name: self._write_files(image, name)))

    def _write_files(self, image: StudioImage, name: str) -> None:
        """Write an image, its mask and its recipe."""
        write_png(self.folder / "images" / name, image.after_u8)
        write_png(self.folder / "masks" / name, image.request.mask)
        recipes = self.read_recipes()
        if image.row["recipe"] not in recipes:
            recipe = as_json(HandDrawn(self, image.request).describe())
            recipes |= {recipe_key(recipe): recipe}
            told = {key: tell_licence(entry, self.data_folder) for key, entry in recipes.items()}
            write_json(self.folder / RECIPE_FILE, told)

    def read_kept(self) -> pd.DataFrame:
        """The manifest of all judged images, empty if there are none."""
        return self.kept.read()

    def read_recipes(self) -> dict[str, dict]:
        """The recipes of all judged images, by key."""
        path = self.folder / RECIPE_FILE
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def load(self, row: dict) -> StudioImage:
        """A stored image with what it was made from; raises a ValueError if one of its files is missing."""
        settings, mask = self._read_recipe(row)["settings"], read_mask(self.folder / row["mask"])
        asked = {name: settings[name] for name in ASKED} | {"seed": int(row["seed"])}
        request = StudioRequest(row["source_image"], mask, row["prompt"], row["negative_prompt"], **asked)
        before_u8 = read_image(self.data_folder / row["source_image"])
        return StudioImage(request, before_u8, read_image(self.folder / row["image"]), row)

    def _read_recipe(self, row: dict) -> dict:
        recipe = self.read_recipes().get(row["recipe"])
        if recipe is None:
            raise ValueError(f"{row['image']}: {self.folder / RECIPE_FILE} has no recipe {row['recipe']}")
        return recipe

    def remake(self, row: dict) -> np.ndarray:
        """Remake a stored image, shape (height, width, 3), uint8; on the same machine, bytes are identical.

        Raises a ValueError if model, settings, negative or mask are not those that it was made with.
        """
        image = self.load(row)
        found = {"negative": (image.before_u8, "source_sha256"), "mask": (image.request.mask, "mask_sha256")}
        differing = [name for name, (now, key) in found.items() if hash_pixels(now) != row[key]]
        if differing:
            raise ValueError(
                f"{row['image']}: its {' and '.join(differing)} differ from those that it was made with: it "
                "can only be remade with the same ones"
            )
        method = HandDrawn(self, image.request, versions=self._read_recipe(row)["versions"])
        return remake(self.folder, row["image"], method).image_u8
