"""Working with flawed data sets: what is left out or read differently, and the record of it.

`load_dataset` records every change in `attrs["changes"]` of its manifest; `prepare_dataset` writes them next
to the prepared images.
"""

import unicodedata
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import pandas as pd

from defaug_utils.core.guards import name_nearest, raise_problems
from defaug_utils.data.layouts import DatasetError, Listing

CHANGES = "changes"
CHANGES_FILE = f"{CHANGES}.csv"
CHANGE_COLUMNS = ("image", "change", "reason")
LEFT_OUT, READ_AS_NEGATIVE = "left out", "read as negative"
NAMED, EMPTY_MASK = "named in leave_out", "its mask is empty"
EMPTY_MASKS = {"refuse": "", "negative": READ_AS_NEGATIVE, "skip": LEFT_OUT}


def read_names(leave_out: Iterable[str] | str | Path) -> list[str]:
    """Names from a list, or from a text file (UTF-8) with one name per line; empty lines are ignored.

    Raises:
        DatasetError: the file doesn't exist or is not text, or entries of the list are not names.
    """
    if isinstance(leave_out, str | Path) and str(leave_out):
        try:
            leave_out = Path(leave_out).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, ValueError) as error:
            raise DatasetError(
                f"leave_out: {leave_out} is not a readable text file ({error}): give a list of names, or a "
                "file with one name per line"
            ) from error
    wrong = [f"{name!r} is not a name" for name in leave_out if not isinstance(name, str)]
    raise_problems("leave_out: expected the names of images in the data set", wrong, DatasetError)
    names = (unicodedata.normalize("NFC", name.strip()) for name in leave_out)
    return list(dict.fromkeys(name for name in names if name))


def list_unknown(names: Iterable[str], listing: Listing) -> list[str]:
    """Problems for names that are not in the data set, each with the most similar known name."""
    unknown = [name for name in names if name not in {*listing.left_out, *listing.skipped}]
    known = sorted({row[column] for row in listing.rows for column in ("image", "mask")} - {""})
    of_stem = {PurePosixPath(name).stem: name for name in reversed(known)}
    return [
        f"leave_out: the data set has no {name!r}"
        + (f" (did you mean {twin!r}?)" if (twin := of_stem.get(PurePosixPath(name).stem)) else "")
        + ("" if twin else name_nearest(name, known))
        for name in unknown
    ]


def read_changes(folder: Path | str) -> pd.DataFrame:
    """What was left out or read differently when a folder's images were prepared, one row each."""
    path = Path(folder) / CHANGES_FILE
    if not path.is_file():
        return pd.DataFrame(columns=list(CHANGE_COLUMNS), dtype=str)
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def count_changes(changes: pd.DataFrame) -> list[str]:
    """Summaries such as "3 left out" and "2 read as negative"."""
    return [f"{count} {change}" for change, count in changes["change"].value_counts(sort=False).items()]
