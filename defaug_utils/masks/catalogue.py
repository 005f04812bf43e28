"""The expert's catalogue: a small table of defects that prompts, masks and checks are made from."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from defaug_utils.core.files import read_csv, write_csv
from defaug_utils.core.guards import name_nearest, raise_problems
from defaug_utils.masks.shapes import PLACES


class DefectType(NamedTuple):
    """What a type of the catalogue means to the masks and, unless its row has its own words, to the model."""

    shape: str  #: a kind in `SHAPES`
    prompt: str


TYPES = {
    "scratch": DefectType("scratch", "background scratched"),
    "crack": DefectType("crack", "background cracked"),
    "stain": DefectType("blob", "stain"),
    "mark": DefectType("blob", "white marks on the wall"),
}
COLUMNS = ("type", "prompt", "place", "smallest", "largest", "strength", "weight")


def read_catalogue(path: Path | str) -> list[dict]:
    """Read a catalogue, and return the lines of its board for `core.make_prompts`.

    Each row is a defect: `type` (a word of `TYPES`), `prompt` (the model's words; empty: the type's own),
    `place` (of `PLACES`; empty: anywhere), `smallest` and `largest` (length, as shares of the image's shorter
    side; empty: as for all), `strength` (least mean change inside the mask, grey levels; empty: as for all)
    and `weight` (relative frequency; empty: 1).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: lists every missing or unknown column, and every row with an unknown type or place, or a
            wrong number.
    """
    table = read_csv(path, dtype=str, keep_default_na=False)
    return read_rows(table.to_dict("records"), f"catalogue {path}", list(table))


def read_rows(rows: Sequence[Mapping[str, str]], what: str, columns: Sequence[str] = COLUMNS) -> list[dict]:
    """The lines of the board for rows of texts, see `read_catalogue`; `what` begins an error's message."""
    problems = [f"the column {name!r} is missing" for name in COLUMNS if name not in columns]
    problems += [
        f"the column {name!r} is unknown{name_nearest(name, COLUMNS)}"
        for name in columns
        if name not in COLUMNS
    ]
    problems += [] if len(rows) else ["there is no row: add a defect"]
    raise_problems(what, problems)
    lines = []
    for number, row in enumerate(rows, start=1):
        line, found = _read_row({name: text.strip() for name, text in row.items()})
        problems += [f"row {number}: {problem}" for problem in found]
        lines.append(line)
    raise_problems(what, problems)
    return lines


def find_problems(row: Mapping[str, str]) -> list[str]:
    """What is wrong with a row's texts, see `read_catalogue`."""
    return _read_row(row)[1]


def _read_row(row: Mapping[str, str]) -> tuple[dict, list[str]]:
    """One line of the board, and the problems of its row."""
    kind = TYPES.get(row["type"])
    numbers, problems = {}, []
    if kind is None:
        problems.append(
            f"type {row['type']!r} is not one of {', '.join(TYPES)}{name_nearest(row['type'], TYPES)}"
        )
    if row["place"] and row["place"] not in PLACES:
        nearest = name_nearest(row["place"], PLACES)
        problems.append(f"place {row['place']!r} is not one of {', '.join(PLACES)}{nearest}")
    for name in ("smallest", "largest", "strength", "weight"):
        try:
            numbers[name] = float(row[name] or "nan")
        except ValueError:
            problems.append(f"{name} {row[name]!r} is not a number such as 0.5")
    sizes = [numbers.get(name, 0.0) for name in ("smallest", "largest")]
    if bool(row["smallest"]) != bool(row["largest"]) or (row["smallest"] and not 0 < sizes[0] <= sizes[1]):
        problems.append(
            f"sizes {row['smallest']!r} to {row['largest']!r} must rise, above 0, or both be empty"
        )
    if row["strength"] and not 0 <= numbers.get("strength", 0.0) <= 255:
        problems.append(f"strength {row['strength']} must be in 0 … 255 grey levels")
    if row["weight"] and not 0 < numbers.get("weight", 1.0) < float("inf"):
        problems.append(f"weight {row['weight']} must be above 0")
    if problems:
        return {}, problems
    line = {"text": row["prompt"] or kind.prompt, "shape": kind.shape, "place": row["place"]}
    line |= {"length": tuple(sizes)} if row["smallest"] else {}
    line |= {"contrast": numbers["strength"]} if row["strength"] else {}
    return line | ({"weight": numbers["weight"]} if row["weight"] else {}), []


def write_catalogue(rows: Sequence[Mapping[str, str]], path: Path | str) -> None:
    """Store rows of texts, if all can be read; otherwise a ValueError lists the problems."""
    read_rows(rows, f"catalogue {path}")
    write_csv(pd.DataFrame(rows, columns=COLUMNS), Path(path))
