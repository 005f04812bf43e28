"""AdaBLDM: defects blended into training negatives, by trimap and prompt (Li et al. 2024, section 3)."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import torch

from defaug_utils.core.images import hash_pixels
from defaug_utils.core.prompts import check_prompts
from defaug_utils.core.sources import check_learned_from, read_dataset
from defaug_utils.diffusion.autoencoder import AdaptationSettings, autoencode, to_floats
from defaug_utils.diffusion.compositing import choose_box, cover_cells, cut_out
from defaug_utils.diffusion.controlnet import TrimapModel
from defaug_utils.diffusion.jobs import InpaintedImage, InpaintJob, as_pixels, check_jobs, finish_image
from defaug_utils.diffusion.text2image import make_ddim
from defaug_utils.diffusion.trimap_models import TrimapModels
from defaug_utils.masks.objects import ObjectFinder
from defaug_utils.masks.patches import move_inside
from defaug_utils.masks.trimaps import FindForeground, make_trimap
from defaug_utils.methods.blending import Blend, BlendSettings, BlendStep, blend_latents, decode_adapted
from defaug_utils.methods.painting import MaskPainting
from defaug_utils.training.memory import run_in_parts

# Latents by jobs, about 6 KB for an image of 128 × 384. Their last bits depend on how many are blended at
# once, so the jobs of a call are looked up together.
LatentStore = dict[tuple, torch.Tensor]


def name_jobs(jobs: Sequence[InpaintJob]) -> tuple:
    """The key of jobs in a store: their prompts and seeds, and hashes of their images and masks."""
    return tuple((*job[2:], hash_pixels(job.image_u8), hash_pixels(job.mask)) for job in jobs)


def blend_batch(
    trimap_model: TrimapModel | TrimapModels,
    jobs: Sequence[InpaintJob],
    settings: BlendSettings,
    adaptation: AdaptationSettings | None,
    find_foreground: FindForeground | None = None,
    on_step: Callable[[BlendStep], None] | None = None,
    store: LatentStore | None = None,
) -> list[InpaintedImage]:
    """Blend all defects at once, or in halves if memory runs out; decoders are adapted image by image.

    Args:
        trimap_model, jobs, settings, on_step: see `blend_latents`.
        adaptation: of the decoder; None uses the model's own.
        find_foreground: finds the object on an image at the working size; None for textures.
        store: for this model and these settings; jobs that are in it are only decoded.

    Raises:
        ValueError: a mask, a prompt or the working size is unsuitable, or an image shows no object.
        MemoryError: not even one image fits.
    """
    model = trimap_model.model
    model.check_size(settings.size)
    check_jobs(jobs)
    check_prompts(model, [job.prompt for job in jobs])

    def finish(part: Sequence[InpaintJob]) -> list[InpaintedImage]:
        blend = blend_jobs(trimap_model, part, settings, find_foreground, on_step, store)
        decoded = decode_adapted(model.pipeline.vae, blend, adaptation)
        covers = [cover_cells(mask[0].cpu().numpy(), model.cell) for mask in blend.masks]
        cells_of = [int(cover.sum()) // model.cell**2 for cover in covers]
        returned = [None] * len(part)
        if settings.keep_detail:
            returned = as_pixels(autoencode(model.pipeline.vae, blend.images) / 2 + 0.5)
        finished = [
            finish_image(job, box, pixels, cells, back, keep_detail=settings.keep_detail, further=further)
            for job, box, cells, back, (pixels, further) in zip(
                part, blend.boxes, cells_of, returned, decoded, strict=True
            )
        ]
        if settings.paste_back:
            return finished
        return [replace(one, image_u8=one.painted_u8, is_restored=False) for one in finished]

    return run_in_parts(jobs, finish, model, settings.size)


def blend_jobs(
    trimap_model: TrimapModel | TrimapModels,
    jobs: Sequence[InpaintJob],
    settings: BlendSettings,
    find_foreground: FindForeground | None = None,
    on_step: Callable[[BlendStep], None] | None = None,
    store: LatentStore | None = None,
) -> Blend:
    """Everything except decoding; arguments as in `blend_batch`."""
    model, name = trimap_model.model, name_jobs(jobs)
    boxes = [choose_box(job.mask, settings.size, None) for job in jobs]
    cuts = [cut_out(job.image_u8, job.mask, box, settings.size) for job, box in zip(jobs, boxes, strict=True)]
    find = find_foreground or (lambda image_u8: np.ones(image_u8.shape[:2], bool))
    trimaps = [make_trimap(mask, find(image_u8)) for image_u8, mask in cuts]
    images = to_floats([image_u8 for image_u8, _ in cuts]).to(model.device)
    masks = torch.from_numpy(np.stack([mask for _, mask in cuts]))[:, None].to(model.device)
    if store is not None and name in store:
        return Blend(boxes, images, masks, store[name].to(model.device))
    prompts, negatives = ([getattr(job, text) for job in jobs] for text in ("prompt", "negative_prompt"))
    denoise = trimap_model.make_denoiser(trimaps, prompts, negatives, settings.guidance)
    seeds, vae = [job.seed for job in jobs], model.pipeline.vae
    latents = blend_latents(images, masks, seeds, denoise, vae, make_ddim(model), settings, on_step)
    if store is not None:
        store[name] = latents.cpu()
    return Blend(boxes, images, masks, latents)


@dataclass(frozen=True, eq=False, kw_only=True)
class AdaBLDM(MaskPainting):
    """Blending by trimap and prompt; further attributes as in `MaskPainting`.

    With adaptation, rows also have the columns `adaptation_before` and `adaptation_after` (losses),
    `adaptation_steps` and `adaptation_problem` (why the adaptation was discarded and the model's own decoder
    used). A second pool with the same store, model, settings and seed, with or without adaptation, only has
    to decode.
    """

    model: TrimapModel | TrimapModels
    settings: BlendSettings = field(default_factory=BlendSettings)
    adaptation: AdaptationSettings | None = None  #: of the decoder; without it, the origin is "adabldm_plain"
    find_object: ObjectFinder | None = None  #: masks are moved inside its object; None for textures
    store: LatentStore | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.model.model.check_size(self.settings.size)
        check_prompts(self.model.model, self.texts)

    @property
    def origin(self) -> str:
        """The row in the registry of origins."""
        return "adabldm" if self.adaptation else "adabldm_plain"

    def describe(self) -> dict:
        """Models, settings, what `MaskPainting` describes, and the images the ControlNet learned from."""
        trained_on = self.model.training.get("trained_on", {})
        names = [name for part in trained_on.values() for name in part]
        check_learned_from(names, read_dataset(self.data), "images that the ControlNet learned from")
        return {
            "model": self.model.describe(),
            "settings": self.settings.describe(),
            "adaptation": asdict(self.adaptation) if self.adaptation else None,
            "foreground": self.find_object.describe() if self.find_object else "whole",
            "learned_from": list(trained_on.get("defects", [])),
            **super().describe(),
        }

    def paint(self, jobs: Sequence[InpaintJob]) -> list[InpaintedImage]:
        """Blend all jobs at once."""
        how = (self.settings, self.adaptation, self.find_object)
        return blend_batch(self.model, jobs, *how, store=self.store)

    def fit_mask(
        self, image_u8: np.ndarray, mask: np.ndarray, generator: np.random.Generator
    ) -> np.ndarray | None:
        """Move a mask inside the image's object, if it isn't already."""
        return move_inside(mask, self.find_object(image_u8), generator) if self.find_object else mask
