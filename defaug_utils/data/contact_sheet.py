"""A contact sheet of a pool: one HTML file with small pictures, for a colleague without Python."""

from base64 import b64encode
from collections.abc import Iterable, Iterator
from html import escape
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image
from scipy.ndimage import binary_dilation

from defaug_utils.core.files import write_atomically
from defaug_utils.core.guards import check_demands, collect_problems, raise_problems
from defaug_utils.core.images import fit_image, fit_mask, read_image, read_mask
from defaug_utils.core.licences import read_licence
from defaug_utils.core.manifest import validate_manifest
from defaug_utils.core.origins import ORIGINS, REAL
from defaug_utils.core.pools import find_failed
from defaug_utils.data.datasets import DATA_FOLDER

PICTURE_SIDE = 240  # longest side of a picture by default, pixels
SIDES = (32, 1024)  # smallest and largest
JPEG = {"format": "JPEG", "quality": 80, "optimize": True}
OUTLINE_RGBA = (255, 140, 0, 255)  # as in the book's figures
DECISIONS = {True: "accepted", False: "rejected"}
STYLE = """
body { font: 15px/1.4 sans-serif; margin: 1.5em; color: #222; background: #fff }
main { display: flex; flex-wrap: wrap; gap: 14px }
* { box-sizing: border-box; max-width: 100% }
figure { margin: 0; padding: 6px; border: 3px solid #ccc; border-radius: 4px }
figure.accepted { border-color: #1b7f3b } figure.rejected { border-color: #b00020 }
div { position: relative } img { display: block; height: auto }
img.outline { position: absolute; inset: 0 } #outlines:not(:checked) ~ main img.outline { display: none }
figcaption { font-size: 13px; overflow-wrap: anywhere; width: 0; min-width: max(100%, 160px) }
figcaption b { display: block }
@media print { figure { break-inside: avoid } }
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # neither scripts nor requests
HEAD = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
<p>{counts}<br>Licence of the real images: {licence}</p>
<input type="checkbox" id="outlines" checked> <label for="outlines">Show the outlines of the masks</label>
<main>
"""
TAIL = "</main>\n</body>\n</html>\n"


class SheetError(ValueError):
    """A contact sheet can't be made as requested."""


class ContactSheet(NamedTuple):
    """The result: the file, and counts."""

    path: Path
    images: int
    size: int  #: of the file, bytes


def write_contact_sheet(
    pool: pd.DataFrame, folder: Path | str, target: Path | str, title: str = "", side: int = PICTURE_SIDE
) -> ContactSheet:
    """Write a pool or a training set as one HTML file that any browser opens without network.

    It shows every image, the outline of its mask (which can be hidden), and what its row says: method,
    prompt, decision, note, why it failed its checks. Pictures are made and written one by one. An existing
    file is replaced, unless anything is wrong.

    Args:
        pool: manifest with paths relative to `folder`.
        folder: of a pool, a run or a prepared data set.
        target: file to write, ending in ".html".
        title: of the page; the folder's name by default.
        side: longest side of a picture, pixels; smaller images keep their size.

    Raises:
        SheetError: lists every image or mask that can't be shown; or the target or the size is invalid.
        ManifestError: the pool names files that don't exist.
    """
    folder, target = Path(folder), Path(target)
    demands = {
        f"{target} must end in .html, and not be a folder": target.suffix == ".html" and not target.is_dir(),
        f"side {side!r} must be a whole number in {SIDES[0]} … {SIDES[1]}": (
            type(side) is int and SIDES[0] <= side <= SIDES[1]
        ),
    }
    check_demands("contact sheet", demands, SheetError)
    validate_manifest(pool, folder / "pool", check_files=True)
    licence = read_licence(folder / DATA_FOLDER if (folder / DATA_FOLDER).is_dir() else folder)
    texts = {"title": title or folder.resolve().name, "counts": _count(pool), "licence": licence}
    head = HEAD.format(style=STYLE, policy=POLICY, **{name: escape(text) for name, text in texts.items()})
    problems: list[str] = []
    with write_atomically(target) as temporary:
        with temporary.open("w", encoding="utf-8", errors="backslashreplace") as page:
            page.writelines(chain([head], _draw_rows(pool, folder, side, problems), [TAIL]))
        raise_problems("contact sheet", problems, SheetError)
    return ContactSheet(target, len(pool), target.stat().st_size)


def _count(pool: pd.DataFrame) -> str:
    """Such as "40 images: 12 accepted, 3 rejected, 25 not reviewed; 2 failed their checks."."""
    if pool.empty:
        return "There is no image in this pool."
    answers = {word: int((pool["accepted"] == answer).sum()) for answer, word in DECISIONS.items()}
    told = ", ".join(f"{count} {word}" for word, count in answers.items())
    failed = int(find_failed(pool).sum())
    open_ones = len(pool) - sum(answers.values())
    return f"{len(pool)} images: {told}, {open_ones} not reviewed; {failed} failed their checks."


def _draw_rows(pool: pd.DataFrame, folder: Path, side: int, problems: list[str]) -> Iterator[str]:
    """One figure per row; what can't be read is added to the problems."""
    shown = pool.assign(failed=find_failed(pool))
    for row in shown.to_dict("records"):
        with collect_problems(problems):
            yield _draw_row(row, folder, side)


def _draw_row(row: dict, folder: Path, side: int) -> str:
    image_u8 = read_image(folder / row["image"])
    height, width = image_u8.shape[:2]
    scale = min(1.0, side / max(width, height))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    pictures = [("", f"{row['label']} {row['image']}", Image.fromarray(fit_image(image_u8, size)), JPEG)]
    if row["mask"]:
        mask = read_mask(folder / row["mask"])
        if mask.shape != (height, width):
            found = f"{mask.shape[1]} × {mask.shape[0]}"
            raise ValueError(f"{row['mask']}: {found} pixels, but its image has {width} × {height}")
        pictures.append(("outline", "", _draw_outline(fit_mask(mask, size)), {"format": "PNG"}))
    images = "".join(_embed(*picture) for picture in pictures)
    decision = DECISIONS.get(row["accepted"] if not pd.isna(row["accepted"]) else None, "")
    caption = "<br>".join(escape(line) for line in _describe(row, decision))
    name = escape(row["image"])
    return (
        f'<figure class="{decision}"><div>{images}</div>'
        f"<figcaption><b>{name}</b>{caption}</figcaption></figure>\n"
    )


def _draw_outline(mask: np.ndarray) -> Image.Image:
    """The pixels around a mask (height, width), on a transparent picture."""
    pixels_u8 = np.zeros((*mask.shape, 4), np.uint8)
    pixels_u8[binary_dilation(mask) & ~mask] = OUTLINE_RGBA
    return Image.fromarray(pixels_u8)


def _embed(kind: str, alt: str, picture: Image.Image, options: dict) -> str:
    """An image element that holds its file."""
    stream = BytesIO()
    picture.save(stream, **options)
    held = b64encode(stream.getvalue()).decode("ascii")
    place = f'src="data:image/{options["format"].lower()};base64,{held}"'
    size = f'width="{picture.width}" height="{picture.height}"'
    return f'<img class="{kind}" {place} {size} alt="{escape(alt)}">'


def _describe(row: dict, decision: str) -> Iterable[str]:
    """What a row says about its image, a line each."""
    origin = row["origin"]
    yield f"{row['label']}, {'real' if origin == REAL else ORIGINS[origin].label}"
    if row["prompt"]:
        yield f"“{row['prompt']}”"
    if row["failed"]:
        yield f"failed its checks: {row.get('check_reason') or 'no reason stated'}"
    if decision or row["reviewer_note"]:
        yield ": ".join(filter(None, (decision, row["reviewer_note"])))
