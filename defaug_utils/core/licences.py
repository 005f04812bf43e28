"""The licence of real images: stored next to the prepared data set, repeated by every pool and export.

It is part of a pool's stored recipe but not of its identity, because no image depends on it.
"""

from pathlib import Path

from defaug_utils.core.files import write_atomically
from defaug_utils.core.guards import check_demands, read_settings

NOT_STATED = "not stated"
DATA_LICENCE = "data_licence"  # key in recipes and exports
LICENCE_FILE = "licence.txt"  # one line, next to the prepared data set's manifest
RECIPE_FILE = "recipe.json"
REMAKE = "delete the folder to remake the pool, or choose another one"  # if a recipe can't be read
MAX_LETTERS = 200


def check_licence(licence: object, error: type[Exception] = ValueError) -> str:
    """A licence (name or sentence), stripped; raises `error` unless it is one line of text."""
    is_text = isinstance(licence, str)
    line = licence.strip() if is_text else ""
    demands = {
        f"{licence!r} is not text": is_text,
        "it has more than one line, or signs that can't be printed": line.isprintable(),
        f"it has {len(line)} letters, at most {MAX_LETTERS} are kept": len(line) <= MAX_LETTERS,
    }
    check_demands("licence (give a name such as 'CC BY 4.0', or a short sentence)", demands, error)
    return line


def write_licence(folder: Path | str, licence: str) -> None:
    """Store the licence of a prepared data set's images, see `check_licence`; empty means "not stated"."""
    with write_atomically(Path(folder) / LICENCE_FILE) as temporary:
        temporary.write_text((check_licence(licence) or NOT_STATED) + "\n", encoding="utf-8")


def read_licence(folder: Path | str) -> str:
    """The licence of the real images in a prepared data set, or behind a pool; "not stated" if none is known.

    Raises a ValueError if the note or the recipe can't be read.
    """
    note, recipe = Path(folder) / LICENCE_FILE, Path(folder) / RECIPE_FILE
    if note.is_file():
        try:
            return check_licence(note.read_text(encoding="utf-8")) or NOT_STATED
        except ValueError as problem:
            raise ValueError(f"{note} is not a licence: fix or delete it\n{problem}") from problem
    if not recipe.is_file():
        return NOT_STATED
    recipes = read_settings(recipe, REMAKE)
    told = (entry.get(DATA_LICENCE) for entry in recipes.values() if isinstance(entry, dict))
    return "; ".join(sorted({line for line in told if isinstance(line, str)})) or NOT_STATED


def tell_licence(recipe: dict, data_folder: Path | str | None) -> dict:
    """A recipe in its stored form, with the licence of the images that the method uses."""
    return recipe if data_folder is None else recipe | {DATA_LICENCE: read_licence(data_folder)}


def drop_licence(recipe: dict) -> dict:
    """A stored recipe without the licence: everything that its images depend on."""
    return {name: value for name, value in recipe.items() if name != DATA_LICENCE}
