"""The world that the embedded model is trained on: surface, defect, mask and caption from one seed."""

from typing import NamedTuple

import numpy as np
from world_defects import DEFECTS, paint_defect
from world_materials import MATERIALS, draw_material

EMPTY_PROMPT_SHARE = 0.1  # share of dropped captions, for classifier-free guidance


class WorldSample(NamedTuple):
    """One drawn part, clean and with a defect.

    Attributes:
        clean_u8: the surface, shape (height, width, 3), uint8.
        image_u8: the surface with its defect, same shape.
        mask: shape (height, width), bool, true on the defect.
        words: what a caption can be made of: material, color, defect, shade, look, size, place.
    """

    clean_u8: np.ndarray
    image_u8: np.ndarray
    mask: np.ndarray
    words: dict[str, str]


def _describe_place(mask: np.ndarray) -> str:
    """Describe the position of the mask's centre, in thirds of height and width."""
    rows, columns = np.nonzero(mask)
    height, width = mask.shape
    vertical = ("at the top", "in the middle", "at the bottom")[min(2, int(3 * rows.mean() / height))]
    horizontal = ("left", "center", "right")[min(2, int(3 * columns.mean() / width))]
    return vertical if horizontal == "center" else f"{vertical} {horizontal}"


def _describe_size(mask: np.ndarray) -> str:
    """Describe the mask's size by its share of the image."""
    share = mask.mean()
    return "tiny" if share < 0.003 else "small" if share < 0.01 else "large" if share > 0.03 else "medium"


def draw_sample(seed: int, size: tuple[int, int] = (128, 384)) -> WorldSample:
    """Draw a part; the same seed gives the same part.

    Args:
        seed: seed of every random choice.
        size: (width, height) in pixels.

    Returns:
        The clean surface, the same surface with a defect, the mask and the words.
    """
    rng = np.random.default_rng(seed)
    material, defect = str(rng.choice(list(MATERIALS))), str(rng.choice(list(DEFECTS)))
    clean, color = draw_material(rng, (size[1], size[0]), material)
    image, mask, shade, look = paint_defect(rng, clean, defect)
    brightness = clean.mean()
    words = {
        "material": material,
        "color": color,
        "tone": "dark" if brightness < 0.25 else "bright" if brightness > 0.7 else "",
        "relief": "smooth" if clean.std((0, 1)).mean() < 0.03 else "",
        "defect": defect,
        "shade": shade,
        "look": look,
        "size": _describe_size(mask),
        "place": _describe_place(mask),
    }
    clean_u8, image_u8 = ((255 * picture + 0.5).astype(np.uint8) for picture in (clean, image))
    return WorldSample(clean_u8, image_u8, mask, words)


def _keep(rng: np.random.Generator, word: str, share: float = 0.5) -> str:
    """The word in `share` of the cases, otherwise an empty string."""
    return word if rng.random() < share else ""


def _join(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _pluralize(defect: str) -> str:
    return defect + ("es" if defect.endswith("ch") else "s")


def list_phrases(words: dict[str, str]) -> list[str]:
    """Short prompts like those in the papers that apply to a part with a defect."""
    material, defect = words["material"], words["defect"]
    verb = {
        "scratch": "scratched",
        "crack": "cracked",
        "stain": "stained",
        "dent": "dented",
        "scuff": "scuffed",
    }
    surface = "wall" if material.endswith("wall") else material
    return [
        f"background {verb[defect]}" if defect in verb else f"background with {_pluralize(defect)}",
        f"{_pluralize(defect)} on the {surface}",
        f"{material} {_pluralize(defect)}",
        f"{verb[defect]} {surface}" if defect in verb else f"{surface} with a {defect}",
        defect,
    ]


def caption_defect(rng: np.random.Generator, words: dict[str, str]) -> str:
    """Write a caption of a part with its defect; words are omitted randomly, sometimes all of them."""
    draw = rng.random()
    if draw < EMPTY_PROMPT_SHARE:
        return ""
    if draw < 0.55:
        return str(rng.choice(list_phrases(words)))
    defect = _join(
        "a", _keep(rng, words["size"]), _keep(rng, words["look"]), _keep(rng, words["shade"]), words["defect"]
    )
    defect = defect.replace("white white", "white")
    material = _join(_keep(rng, words["color"]), words["material"])
    return _join(defect, f"on {material}" if rng.random() < 0.8 else "", _keep(rng, words["place"]))


def caption_clean(rng: np.random.Generator, words: dict[str, str]) -> str:
    """Write a caption of a part without defect: plain, smooth, dark, or just the background."""
    draw = rng.random()
    if draw < EMPTY_PROMPT_SHARE:
        return ""
    if draw < 0.35:
        return "background"
    dark = ["dark", "shadow"] if words["tone"] == "dark" else []
    looks = [word for word in [words["relief"], "plain", *dark] if word and rng.random() < 0.6]
    if words["color"] == "black" and rng.random() < 0.5:
        looks.append("black")
    if draw < 0.6 and looks:
        return ", ".join(looks)
    ending = str(rng.choice(["", "surface", "background", "without defect"]))
    return _join(*looks, _keep(rng, words["tone"]), _keep(rng, words["color"]), words["material"], ending)
