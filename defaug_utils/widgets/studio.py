"""The DIAG studio without its widgets: paints what an expert asks for, and keeps what the expert decides."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import pandas as pd

from defaug_utils.core.files import explain_read_only, lock_file, write_json, write_png
from defaug_utils.core.guards import as_json
from defaug_utils.core.images import hash_pixels, is_grey, read_image, read_mask
from defaug_utils.core.manifest import (
    ManifestError,
    fold_decisions,
    make_manifest,
    read_manifest,
    write_manifest,
)
from defaug_utils.core.pools import GeneratedImage, list_versions, recipe_key, remake
from defaug_utils.core.prompts import check_prompts
from defaug_utils.core.sources import list_sources, read_dataset
from defaug_utils.diffusion.inpainting import Inpainter, InpaintSettings, inpaint_batch
from defaug_utils.diffusion.jobs import InpaintJob, check_jobs
from defaug_utils.masks.drawn import mask_file_name
from defaug_utils.methods.painting import LIBRARIES, CheckLimits, check_image

# rows with the same of these stand for the same picture
IDENTITY = ("recipe", "source_image", "prompt", "negative_prompt", "seed", "mask_sha256")
ASKED = ("guidance", "strength", "steps")  # the settings that a request brings


@dataclass(frozen=True)
class StudioRequest:
    """What the expert asks for; `guidance`, `strength` and `steps` as in `InpaintSettings`."""

    source_image: str  #: a training negative of the data set
    mask: np.ndarray = field(repr=False)  #: shape (height, width), bool, true where the defect goes
    prompt: str  #: what to paint
    negative_prompt: str = ""  #: what must not appear
    guidance: float = 2.0
    strength: float = 0.99
    steps: int = 20
    seed: int = 0  #: of the first image's noise; every further one takes the next number


class StudioImage(NamedTuple):
    """One picture, kept or not yet."""

    request: StudioRequest  #: what it was made from, with its own seed
    before_u8: np.ndarray  #: the negative, shape (height, width, 3), uint8
    after_u8: np.ndarray  #: the picture, same shape
    row: dict  #: its columns of the manifest; it has no `image` while it is not kept


@dataclass(frozen=True, eq=False)
class HandDrawn:
    """The `Method` of one request: DIAG where a hand drew, one picture a seed."""

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
        """The studio's, with what the request asks for."""
        return replace(self.studio.settings, **{name: getattr(self.request, name) for name in ASKED})

    @property
    def on_grey(self) -> bool:
        """Whether the negative is grey, and so what is painted on it; see `finish_image`."""
        return is_grey(read_image(self.data / self.request.source_image))

    def describe(self) -> dict:
        """All but mask, texts, negative and seed, which are the row's."""
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
        """Paint one picture for each seed, one by one."""
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
    """Paints one request after the other, and stores each decided picture with all that it was made from.

    The folder is a pool whose `recipe.json` has one recipe for each choice of settings. Pictures are painted
    one by one, so that a stop, the number asked for and their order change none of them.
    """

    def __init__(
        self,
        folder: Path | str,
        data_folder: Path | str,
        inpainter: Inpainter,
        settings: InpaintSettings,
        limits: CheckLimits | None = None,
    ) -> None:
        """Look up what may be painted on; a ValueError refuses a size that the model can't take.

        Decided pictures go to `folder`; `data_folder` is that of the prepared data set. The settings' size,
        crop and feather are those of all requests, which bring guidance, strength and steps. `limits` are of
        the automatic checks, which a person's decision overrules.
        """
        inpainter.check_size(settings.size)
        self.folder, self.data_folder, self.inpainter = Path(folder), Path(data_folder), inpainter
        self.settings, self.limits = settings, limits or CheckLimits()
        sources = list_sources(read_dataset(data_folder))
        self.categories = dict(zip(sources["image"], sources["category"], strict=True))

    def check_request(self, request: StudioRequest) -> InpaintJob:
        """The first job of a request; a ValueError tells what image, mask, text or setting makes no sense."""
        if request.source_image not in self.categories:
            raise ManifestError(f"{request.source_image} is no training negative: only those are painted on")
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
        """Denoising steps that one of its pictures takes."""
        return HandDrawn(self, request).settings.effective_steps

    def paint(
        self, request: StudioRequest, count: int = 1, on_step: Callable[[], None] | None = None
    ) -> Iterator[StudioImage]:
        """Paint pictures of the seeds `seed`, `seed` + 1, …; each is handed over when finished, not kept yet.

        `on_step` is called after every denoising step; what it raises stops the painting. Raises, too, what
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
        """Store a picture from `paint` or `load` with a decision and why; a second one replaces the first.

        Picture and mask are written before the row that names them, under the lock that reviews take, too:
        several windows or kernels on one folder keep the decisions of all. Returns the picture as kept.

        Raises:
            PermissionError: the folder can't be written to; nothing that it holds has changed.
            ManifestError: its manifest is broken.
            TimeoutError: another process keeps it locked.
        """
        path = self.folder / "manifest.csv"
        with explain_read_only(self.folder, "the decision was not stored"):
            self.folder.mkdir(parents=True, exist_ok=True)
            with lock_file(path):
                if path.is_file():
                    fold_decisions(path)
                kept, row = self.read_kept(), {**image.row, "accepted": accepted, "reviewer_note": note}
                wanted = pd.Series({column: str(row[column]) for column in IDENTITY})
                is_same = (kept.reindex(columns=IDENTITY).astype(str) == wanted).all(axis=1)
                if is_same.any():
                    row |= kept.loc[is_same, ["image", "mask"]].iloc[0].to_dict()
                    kept.loc[is_same, ["accepted", "reviewer_note"]] = [accepted, note]
                else:
                    row |= self._write_files(image, kept)
                    kept = make_manifest([*kept.to_dict("records"), row])
                write_manifest(kept, path)
        return image._replace(row=row)

    def _write_files(self, image: StudioImage, kept: pd.DataFrame) -> dict:
        """Write a picture, its mask and its recipe; returns the row's two paths."""
        index = max((int(Path(name).stem) + 1 for name in kept["image"]), default=0)
        row = {"image": f"images/{index:06d}.png", "mask": f"masks/{index:06d}.png"}
        write_png(self.folder / row["image"], image.after_u8)
        write_png(self.folder / row["mask"], image.request.mask)
        recipes = self.read_recipes()
        if image.row["recipe"] not in recipes:
            recipe = as_json(HandDrawn(self, image.request).describe())
            write_json(self.folder / "recipe.json", recipes | {recipe_key(recipe): recipe})
        return row

    def read_kept(self) -> pd.DataFrame:
        """The manifest of all decided pictures, empty while there is none."""
        path = self.folder / "manifest.csv"
        kept = read_manifest(path) if path.is_file() else make_manifest([])
        if "negative_prompt" in kept:
            kept["negative_prompt"] = kept["negative_prompt"].astype(object).fillna("")
        return kept

    def read_recipes(self) -> dict[str, dict]:
        """The recipes of all decided pictures by their keys."""
        path = self.folder / "recipe.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def load(self, row: dict) -> StudioImage:
        """A kept picture with what it was made from; a ValueError says which of its files has vanished."""
        settings, mask = self._read_recipe(row)["settings"], read_mask(self.folder / row["mask"])
        asked = {name: settings[name] for name in ASKED} | {"seed": int(row["seed"])}
        request = StudioRequest(row["source_image"], mask, row["prompt"], row["negative_prompt"], **asked)
        before_u8 = read_image(self.data_folder / row["source_image"])
        return StudioImage(request, before_u8, read_image(self.folder / row["image"]), row)

    def _read_recipe(self, row: dict) -> dict:
        recipe = self.read_recipes().get(row["recipe"])
        if recipe is None:
            raise ValueError(f"{row['image']}: {self.folder / 'recipe.json'} has no recipe {row['recipe']}")
        return recipe

    def remake(self, row: dict) -> np.ndarray:
        """Make a kept picture again, shape (height, width, 3), uint8; on the same machine, to the same byte.

        A ValueError tells where model, settings, negative or mask are not those that it was made with.
        """
        image = self.load(row)
        found = {"negative": (image.before_u8, "source_sha256"), "mask": (image.request.mask, "mask_sha256")}
        differing = [name for name, (now, key) in found.items() if hash_pixels(now) != row[key]]
        if differing:
            raise ValueError(
                f"{row['image']}: its {' and '.join(differing)} differ from those that it was made with: it "
                "can be made again from the same ones only"
            )
        method = HandDrawn(self, image.request, versions=self._read_recipe(row)["versions"])
        return remake(self.folder, row["image"], method).image_u8
