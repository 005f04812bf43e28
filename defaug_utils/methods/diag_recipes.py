"""Making an image of a DIAG pool again, from its row and the pool's recipe alone."""

from pathlib import Path

from defaug_utils.core.pools import GeneratedImage
from defaug_utils.diffusion.inpainting import Inpainter, InpaintSettings
from defaug_utils.masks.sources import MaskSource
from defaug_utils.methods.diag import make_painter
from defaug_utils.methods.painted_recipes import read_settings, remake_painted_image


def remake_image(
    row: dict,
    recipe: dict,
    data_folder: Path | str,
    inpainter: Inpainter,
    mask_source: MaskSource | None = None,
) -> GeneratedImage:
    """Make one image of a pool again, see `remake_painted_image`.

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
    settings = InpaintSettings(**read_settings(recipe["settings"], without=["effective_steps"]))
    return remake_painted_image(
        row,
        recipe,
        data_folder,
        make_painter(inpainter, settings),
        {"model": inpainter.describe()},
        mask_source,
    )
