"""Making an image of a DIAG pool again, from its row and the pool's recipe alone."""

import json
from pathlib import Path

from defaug_utils.changes import CheckLimits
from defaug_utils.diag import make_painter
from defaug_utils.inpaint import Inpainter
from defaug_utils.inpaint_settings import InpaintSettings
from defaug_utils.manifest import image_seed
from defaug_utils.mask_shapes import ShapePriors
from defaug_utils.masks import MaskSource, ProceduralMasks
from defaug_utils.painted_pools import make_group, plan_image
from defaug_utils.pools import GeneratedImage
from defaug_utils.prompts import Prompt
from defaug_utils.sources import list_sources, read_dataset, survey_sources


def read_recipe(folder: Path | str) -> dict:
    """The recipe of a pool, as `make_diag_pool` wrote it.

    Args:
        folder: of the pool.

    Raises:
        FileNotFoundError: there is no pool.
    """
    (recipe,) = json.loads((Path(folder) / "recipe.json").read_text(encoding="utf-8")).values()
    return recipe


def remake_image(
    row: dict,
    recipe: dict,
    data_folder: Path | str,
    inpainter: Inpainter,
    mask_source: MaskSource | None = None,
) -> GeneratedImage:
    """Make one image of a pool again; on the same machine, to the same byte.

    Images are painted in groups whose neighbours count for the last bits, so its whole group is painted.

    Args:
        row: of the pool's manifest.
        recipe: from `read_recipe`.
        data_folder: folder of the prepared data set.
        inpainter: the model that made the pool.
        mask_source: where masks come from files; procedural ones are drawn by the recipe's priors.

    Returns:
        The image, its mask and its row.

    Raises:
        ValueError: model, data or masks are not those of the recipe.
    """
    mask_source = mask_source or ProceduralMasks(_read_priors(recipe))
    sources = list_sources(read_dataset(data_folder))
    _demand_same(recipe, inpainter, survey_sources(sources, data_folder), mask_source)
    index, group_size = int(Path(row["image"]).stem), recipe["batch_size"]
    first = index - index % group_size
    prompts = [Prompt(**prompt) for prompt in recipe["prompts"]]
    plans = [
        plan_image(i, image_seed(recipe["pool_seed"], i), sources, data_folder, prompts, mask_source)
        for i in range(first, first + group_size)
    ]
    settings = {name: value for name, value in recipe["settings"].items() if name != "effective_steps"}
    limits = {name: value for name, value in recipe["checks"].items() if name != "max_attempts"}
    return make_group(
        make_painter(inpainter, InpaintSettings(**settings | {"size": tuple(settings["size"])})),
        plans,
        CheckLimits(**limits),
        recipe["checks"]["max_attempts"],
    )[index - first]


def _read_priors(recipe: dict) -> ShapePriors:
    if "priors" not in recipe:
        raise ValueError(f"the masks of this pool are {recipe['mask_source']!r}: give their source as well")
    return ShapePriors(
        **{name: tuple(v) if isinstance(v, list) else v for name, v in recipe["priors"].items()}
    )


def _demand_same(recipe: dict, inpainter: Inpainter, sources: dict, mask_source: MaskSource) -> None:
    found = json.loads(
        json.dumps({"model": inpainter.describe(), "sources": sources, **mask_source.describe()})
    )
    differing = sorted(name for name in found if found[name] != recipe.get(name))
    if differing:
        raise ValueError(
            f"{', '.join(differing)} differ from the pool's recipe: an image can be made again from the same "
            "model, data and masks only"
        )
