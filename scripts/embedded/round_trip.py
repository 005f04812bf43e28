"""What one trip through the autoencoder costs a classifier that learns from generated defects.

Whatever a latent model paints has gone through its autoencoder. So cut-and-paste's images show what a
generator could be worth at best, and the same images after the trip what it can be worth with this
autoencoder. The surfaces are the workshop's, drawn by a program; the real positives are those of few-shot.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionInpaintPipeline

from defaug_utils.core.images import read_mask
from defaug_utils.core.origins import Run
from defaug_utils.core.pools import PoolPlan, make_pool
from defaug_utils.core.sources import list_sources, read_dataset
from defaug_utils.data.datasets import choose_positives, draw_validation, load_dataset
from defaug_utils.data.preparation import prepare_dataset
from defaug_utils.data.samples import Samples, load_samples
from defaug_utils.data.surfaces import write_surfaces
from defaug_utils.diffusion.autoencoder import autoencode_images
from defaug_utils.diffusion.compositing import composite
from defaug_utils.evaluation.classifier import ClassifierPlan, finish_classifier
from defaug_utils.masks.patches import read_defects, widen_mask
from defaug_utils.masks.trimaps import TripleSet, TripleSettings, read_good_images
from defaug_utils.methods.cut_paste import CutPaste
from defaug_utils.protocol.mixing import compose_training_set
from defaug_utils.protocol.run_folder import read_data, read_pools

SURFACES, SIZE, VALIDATION_SHARE = (600, 400), (128, 384), 0.2  # the workshop's
FEW, COUNT, MARGIN = 5, 40, 2  # real positives, pasted ones, pixels around a mask that take the trip, too
TEMPLATE = "background with a {defect_type}"
PLAN = ClassifierPlan("workshop", "resnet10_quarter", "models/backbones/resnet10_quarter.safetensors")


def prepare_surfaces(folder: Path) -> None:
    """Draw the workshop's data set, once."""
    write_surfaces(folder / "surfaces", *SURFACES, seed=0)
    dataset = draw_validation(load_dataset(folder / "surfaces"), VALIDATION_SHARE, seed=0)
    prepare_dataset(dataset, folder / "surfaces", folder / "data", SIZE)


def paste_defects(folder: Path, run: Run) -> Samples:
    """The training set of a run: all good parts, the known defects, and these pasted into good parts."""
    dataset = read_dataset(folder / "data")
    known = choose_positives(dataset, run.scenario, run.seed, FEW)
    goods = read_good_images(list_sources(dataset), folder / "data", SIZE)
    triples = TripleSet(read_defects(known, folder / "data", SIZE), goods, TripleSettings(template=TEMPLATE))
    pool = folder / run.arm / f"{run.scenario}-seed{run.seed}"
    make_pool(pool, CutPaste(folder / "data", triples), PoolPlan(run.n_aug))
    training_set = compose_training_set(read_data(folder), read_pools(folder, run), run)
    return load_samples(training_set, folder)


def send_through(vae: torch.nn.Module, samples: Samples, folder: Path) -> Samples:
    """The same, where generated images have been through the autoencoder, inside their widened masks."""
    images_u8, table = samples.images_u8.numpy().copy(), samples.table
    generated = np.flatnonzero(table["origin"] != "real")
    returned = autoencode_images(vae, list(images_u8[generated]), SIZE)
    for index, returned_u8 in zip(generated, returned, strict=True):
        mask = widen_mask(read_mask(folder / table["mask"].iloc[index]), MARGIN)
        images_u8[index] = composite(images_u8[index], returned_u8, mask)
    return samples._replace(images_u8=torch.from_numpy(images_u8))


def measure_round_trip(model: Path, folder: Path, seeds: Sequence[int] = range(4)) -> dict:
    """AP on the test set before and after the trip, mean and standard deviation over training seeds."""
    prepare_surfaces(folder)
    vae = StableDiffusionInpaintPipeline.from_pretrained(model / "inpainting").vae
    found: dict[str, list[float]] = {"before": [], "after": []}
    for seed in seeds:
        run = Run("few-shot", "cut_paste", COUNT, seed)
        samples = paste_defects(folder, run)
        for name, given in (("before", samples), ("after", send_through(vae, samples, folder))):
            found[name].append(finish_classifier(folder / name, run.name, given, PLAN).numbers["ap"])
    spread = {
        name: {"ap": round(float(np.mean(values)), 3), "std": round(float(np.std(values, ddof=1)), 3)}
        for name, values in found.items()
    }
    return {"n_aug": COUNT, "seeds": len(found["before"]), "margin": MARGIN, **spread}
