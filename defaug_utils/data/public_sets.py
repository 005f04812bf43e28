"""Which public data set a folder holds, told by its layout and its numbers of images, and its licence.

A layout alone tells nothing: engineers put their own parts into those of public data sets.
"""

from collections import Counter
from typing import NamedTuple

from defaug_utils.data.layouts import Listing

LICENCE = "licence"  # in the `attrs` of a manifest from `load_dataset`
SURFACES_NOTE = "surfaces.json"  # that `write_surfaces` leaves in what it drew
OWN_LICENCE = "MIT"  # of this project, and so of surfaces that it draws


class PublicSet(NamedTuple):
    """A public data set as it is published."""

    licence: str
    training_images: dict[str, int]  #: by category; any of the categories may be there


PUBLIC_SETS = {  # by layout
    "ksdd2": PublicSet("CC BY-NC-SA 4.0", {"": 2331}),
    "mvtec": PublicSet(
        "CC BY-NC-SA 4.0",
        {
            **{"bottle": 209, "cable": 224, "capsule": 219, "carpet": 280, "grid": 264, "hazelnut": 391},
            **{"leather": 245, "metal_nut": 220, "pill": 267, "screw": 320, "tile": 230, "toothbrush": 60},
            **{"transistor": 213, "wood": 247, "zipper": 240},
        },
    ),
    "btad": PublicSet("not stated here, see BTAD's page", {"01": 400, "02": 399, "03": 1000}),
}


def find_licence(listing: Listing) -> str:
    """The licence of a data set that is recognised; empty for all others, as for an engineer's own parts."""
    if listing.layout == "ksdd2" and (listing.root / SURFACES_NOTE).is_file():
        return OWN_LICENCE
    known = PUBLIC_SETS.get(listing.layout)
    found = Counter(row.get("category", "") for row in listing.rows if row["split"] == "train")
    if not known or not found or not found.keys() <= known.training_images.keys():
        return ""
    missing = [known.training_images[category] - count for category, count in found.items()]
    left_out = len(set(listing.left_out.values()))
    return known.licence if min(missing) >= 0 and sum(missing) <= left_out else ""
