"""Making an image of a painted pool again, from its row and the pool's recipe alone."""

import json
from collections.abc import Sequence
from pathlib import Path

from defaug_utils.core.manifest import image_seed
from defaug_utils.core.pools import GeneratedImage
from defaug_utils.core.prompts import Prompt
from defaug_utils.core.sources import list_sources, read_dataset, survey_sources
from defaug_utils.masks.shapes import ShapePriors
from defaug_utils.masks.sources import MaskSource, ProceduralMasks
from defaug_utils.methods.changes import CheckLimits
from defaug_utils.methods.painted_pools import FitMask, Paint, make_group, plan_image


def read_recipe(folder: Path | str) -> dict:
    """The recipe of a pool, as `generate_pool` wrote it.

    Args:
        folder: of the pool.

    Raises:
        FileNotFoundError: there is no pool.
    """
    (recipe,) = json.loads((Path(folder) / "recipe.json").read_text(encoding="utf-8")).values()
    return recipe


def read_settings(stored: dict, without: Sequence[str] = ()) -> dict:
    """A settings class's arguments as they were before JSON: lists are tuples again.

    Args:
        stored: part of a recipe.
        without: names that are no arguments.
    """
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in stored.items()
        if name not in without
    }


def remake_painted_image(
    row: dict,
    recipe: dict,
    data_folder: Path | str,
    paint: Paint,
    found: dict,
    mask_source: MaskSource | None = None,
    fit_mask: FitMask | None = None,
) -> GeneratedImage:
    """Make one image of a pool again; on the same machine, to the same byte.

    Images are painted in groups whose neighbours count for the last bits, so its whole group is painted.

    Args:
        row: of the pool's manifest.
        recipe: from `read_recipe`.
        data_folder: folder of the prepared data set.
        paint: the method, with the recipe's settings.
        found: what is given now for parts of the recipe, such as the model, to compare.
        mask_source: where masks come from files; procedural ones are drawn by the recipe's priors.
        fit_mask: see `plan_image`.

    Returns:
        The image, its mask and its row.

    Raises:
        ValueError: model, data or masks are not those of the recipe.
    """
    mask_source = mask_source or ProceduralMasks(_read_priors(recipe))
    sources = list_sources(read_dataset(data_folder))
    found = found | {"sources": survey_sources(sources, data_folder)} | mask_source.describe()
    _demand_same(recipe, found)
    index, group_size = int(Path(row["image"]).stem), recipe["batch_size"]
    first = index - index % group_size
    prompts = [Prompt(**prompt) for prompt in recipe["prompts"]]
    plans = [
        plan_image(
            i, image_seed(recipe["pool_seed"], i), sources, data_folder, prompts, mask_source, fit_mask
        )
        for i in range(first, first + group_size)
    ]
    limits = CheckLimits(**read_settings(recipe["checks"], without=["max_attempts"]))
    return make_group(paint, plans, limits, recipe["checks"]["max_attempts"])[index - first]


def _read_priors(recipe: dict) -> ShapePriors:
    if "priors" not in recipe:
        raise ValueError(f"the masks of this pool are {recipe['mask_source']!r}: give their source as well")
    return ShapePriors(**read_settings(recipe["priors"]))


def _demand_same(recipe: dict, found: dict) -> None:
    found = json.loads(json.dumps(found))
    differing = sorted(name for name in found if found[name] != recipe.get(name))
    if differing:
        raise ValueError(
            f"{', '.join(differing)} differ from the pool's recipe: an image can be made again from the same "
            "model, data and masks only"
        )
