"""The format "imagefolder" of the library `datasets`: one `metadata.jsonl` per split, recipes and a card."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from huggingface_hub import DatasetCardData
from PIL import Image

from defaug_utils.core.cards import name_licence, write_card
from defaug_utils.core.files import write_atomically, write_json, write_png
from defaug_utils.core.licences import RECIPE_FILE
from defaug_utils.core.origins import ORIGINS, REAL
from defaug_utils.core.pools import find_failed, read_recipe
from defaug_utils.core.texts import escape_markdown

METADATA = "metadata.jsonl"
RECIPES = "recipes.json"
SIZES = {"n<1K": 10**3, "1K<n<10K": 10**4, "10K<n<100K": 10**5, "100K<n<1M": 10**6}  # the hub's words
CARD_TEXT = """\
# Surface defects

Licence of the real images: **{licence}**. It also applies to everything painted on them or learned from them.
The licences of generators and of texture images may add further conditions.

## Images

{count} images. Each split has a `metadata.jsonl`. Masks are 255 on the defect; those of negatives are empty.

| split | label | origin | images |
|---|---|---|---|
{table}

## How the generated images were made

{generators}

`{recipes}` has all settings by recipe. Together with the data set, recipe and seed reproduce an image.

## Limits

- A generated image shows a generator's idea of a defect, not a real part. Never test on it.
- Automatic checks and reviewers find most failures of a generator, but not all.
- A mask shows where a defect was requested; parts of it may be invisible.
- The benefit of generated images depends on the part and on the detector: compare with a training without
  them.
"""


def name_folder(split: str) -> str:
    """The folder of a split, under the name that `datasets` expects."""
    return "validation" if split == "val" else split


def write_image_folder(rows: pd.DataFrame, folder: Path, staging: Path, licence: str) -> None:
    """Write everything but images and masks: metadata, the negatives' masks, recipes and the card.

    `rows` have their paths in the export, and the original ones, relative to `folder`, in `exported_from`.
    """
    rows = rows.assign(mask=list(_mask_all(rows, staging)))
    has_masks = bool((rows["mask"] != "").any())
    for split, part in rows.groupby("split"):
        lines = [json.dumps(line, ensure_ascii=False) for line in _describe_rows(part, has_masks)]
        with write_atomically(staging / name_folder(split) / METADATA) as temporary:
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    recipes = dict(_find_recipes(rows, folder))
    write_json(staging / RECIPES, recipes)
    data = DatasetCardData(
        **name_licence(licence),
        pretty_name=folder.resolve().name,
        size_categories=next((word for word, limit in SIZES.items() if len(rows) < limit), "n>1M"),
        task_categories=["image-classification", "image-segmentation"],
        tags=["surface-defect-detection", *(["synthetic"] if (rows["origin"] != REAL).any() else [])],
    )
    counts = rows.assign(split=rows["split"].map(name_folder)).groupby(["split", "label", "origin"]).size()
    text = CARD_TEXT.format(
        licence=escape_markdown(licence),
        count=len(rows),
        table="\n".join(f"| {' | '.join(key)} | {count} |" for key, count in counts.items()),
        generators="\n".join(_describe_generators(rows, recipes)) or "None: all images are real.",
        recipes=RECIPES,
    )
    write_card(staging, data, text)


def _mask_all(rows: pd.DataFrame, staging: Path) -> Iterator[str]:
    """The rows' masks; a negative gets an empty one, a positive without a known mask none."""
    for row in rows.itertuples():
        mask = row.mask
        if row.label == "negative":
            mask = f"{name_folder(row.split)}/masks/{Path(row.image).stem}.png"
            with Image.open(staging / row.image) as opened:
                write_png(staging / mask, np.zeros(opened.size[::-1], bool))
        yield mask


def _describe_rows(rows: pd.DataFrame, has_masks: bool) -> Iterator[dict]:
    """The lines of a split's metadata: paths, and all else as text, so that splits have the same types."""
    told = rows.drop(columns=["image", "mask", "split"]).astype(object)
    texts = told.where(told.notna(), "").map(_write_value)
    for image, mask, own in zip(rows["image"], rows["mask"], texts.to_dict("records"), strict=True):
        paths = {"file_name": _shorten(image)}
        if has_masks:
            paths["mask_file_name"] = _shorten(mask) if mask else None
        yield paths | own


def _write_value(value: object) -> str:
    return str(value).lower() if isinstance(value, bool | np.bool_) else str(value)


def _shorten(path: str) -> str:
    """A path below its split's folder."""
    return path.partition("/")[2]


def _find_recipes(rows: pd.DataFrame, folder: Path) -> Iterator[tuple[str, dict]]:
    """The recipes of generated rows by key, from the pools of the images."""
    generated = rows[rows["recipe"] != ""].drop_duplicates("recipe")
    for key, image in generated[["recipe", "exported_from"]].itertuples(index=False):
        pool = (folder / image).parent.parent
        if (pool / RECIPE_FILE).is_file():
            yield key, read_recipe(pool, key)


def _describe_generators(rows: pd.DataFrame, recipes: dict) -> Iterator[str]:
    """One line per recipe."""
    for (origin, key), part in rows[rows["origin"] != REAL].groupby(["origin", "recipe"]):
        model = recipes.get(key, {}).get("model")
        told = [f"{len(part)} by {ORIGINS[origin].label}", f"recipe {escape_markdown(key) or 'unknown'}"]
        if isinstance(model, dict):
            told += [f"{name} `{model[name]}`" for name in ("pipeline", "fingerprint") if name in model]
        prompts = ", ".join(f"*{escape_markdown(prompt)}*" for prompt in part["prompt"].unique() if prompt)
        told += [f"prompts {prompts}"] if prompts else []
        accepted, rejected = (int((part["accepted"] == answer).sum()) for answer in (True, False))
        told += [f"{accepted} accepted and {rejected} rejected by a person"]
        told += [f"{int(find_failed(part).sum())} failed their checks"]
        told += [f"{int((part['mask'] == '').sum())} without a mask"]
        yield f"- {'; '.join(told)}."
