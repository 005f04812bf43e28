"""A folder of several categories or products (MVTec AD, BTAD): a run for each of them, and one table."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from defaug_utils.core.guards import raise_problems
from defaug_utils.core.yaml_files import read_yaml

TABLES = "profiles/categories"  # <layout>.yaml: what is known of a public data set's categories
FOREGROUNDS = ("whole", "object")
FIELDS = {"noun": str, "foreground": str, "types": dict}


class CategoryError(ValueError):
    """The table of a data set's categories can't be read."""


class Category(NamedTuple):
    """A category or product: a folder with `train` and `test`."""

    name: str  #: of its folder
    noun: str  #: in prompts
    foreground: str = ""  #: "whole" or "object"; empty for the profile's
    words: Mapping[str, str] = {}  #: defect type → what prompts call it; others by their name


def find_categories(root: Path | str, tables: Path | str = TABLES) -> list[Category]:
    """The categories in a folder of several; none if the folder is itself a data set.

    A category that the layout's table lists must have all defect types of the table.

    Raises:
        DatasetError: lists every folder that is not complete, or the folders of two layouts.
        CategoryError: the table can't be read.
    """
    root = Path(root)
    if not root.is_dir() or any((root / part).is_dir() for part in ("train", "test")):
        return []
    from defaug_utils.data.layouts import GOOD_FOLDERS, DatasetError  # reads pandas, which takes a second

    folders = sorted(path for path in root.iterdir() if path.is_dir())
    found = {
        layout: [path for path in folders if (path / "train" / good).is_dir()]
        for layout, good in GOOD_FOLDERS.items()
    }
    layouts = [layout for layout, parts in found.items() if parts]
    if not layouts:
        return []
    if len(layouts) > 1:
        listed = [f"{layout}: {', '.join(path.name for path in found[layout])}" for layout in layouts]
        what = f"{root} mixes two layouts (put each data set into a folder of its own)"
        raise_problems(what, listed, DatasetError)
    (layout,) = layouts
    known = read_categories(Path(tables) / f"{layout}.yaml")
    problems = [
        f"{path.name}: has no train/{GOOD_FOLDERS[layout]}: unpack it again, or move it elsewhere"
        for path in folders
        if path not in found[layout] and ((path / "train").is_dir() or (path / "test").is_dir())
    ]
    for path in found[layout]:
        problems += _list_missing(path, known.get(path.name), GOOD_FOLDERS[layout])
    raise_problems(f"categories in {root}", problems, DatasetError)
    return [known.get(path.name) or Category(path.name, path.name) for path in found[layout]]


def find_category(root: Path | str, folder: Path | str, tables: Path | str = TABLES) -> Category:
    """The category in a folder of several that has this folder; a CategoryError if there is none."""
    found = {one.name: one for one in find_categories(root, tables)}
    if Path(folder).name not in found:
        raise CategoryError(f"{folder} is not one of the categories in {root}: {', '.join(found) or 'none'}")
    return found[Path(folder).name]


def _list_missing(folder: Path, known: Category | None, good: str) -> list[str]:
    """What a category lacks, one sentence at most."""
    test = folder / "test"
    types = {path.name for path in test.iterdir() if path.is_dir()} - {good} if test.is_dir() else set()
    if not types:
        return [f"{folder.name}: test has no folder of a defect type: unpack it again, or move it elsewhere"]
    missing = [name for name in (known.words if known else ()) if name not in types]
    if not missing:
        return []
    return [f"{folder.name}: test lacks the defect type {', '.join(missing)}: unpack the data set again"]


def read_categories(path: Path | str) -> dict[str, Category]:
    """The table of a layout, by category: noun, foreground and the words for its defect types.

    Raises a CategoryError that lists every entry that is incomplete or not of its type.
    """
    content = read_yaml(Path(path), "table of categories", CategoryError) or {}
    if not isinstance(content, dict):
        raise CategoryError(f"table of categories {path}: expected one section for each category")
    problems = []
    for name, entry in content.items():
        if not isinstance(entry, dict) or {key: type(value) for key, value in entry.items()} != FIELDS:
            problems.append(f"{name}: expected noun (text), foreground (text) and types (type: words)")
        elif entry["foreground"] not in FOREGROUNDS:
            problems.append(
                f"{name}: foreground {entry['foreground']!r} is not one of {', '.join(FOREGROUNDS)}"
            )
        elif not all(isinstance(word, str) and word for word in entry["types"].values()):
            problems.append(f"{name}: the words for its types must be text")
    raise_problems(f"table of categories {path}", problems, CategoryError)
    return {
        str(name): Category(str(name), entry["noun"], entry["foreground"], entry["types"])
        for name, entry in content.items()
    }


def adapt_parameters(parameters: Mapping[str, dict], category: Category) -> dict[str, dict]:
    """A profile's parameters (of `read_profile`), with what is known of a category on top."""
    foreground = {"foreground": category.foreground} if category.foreground else {}
    template = parameters["05_adabldm"].get("template", "")
    prompts = {"template": template.replace("{category}", category.noun)} if template else {}
    further = {
        "02_memseg": foreground,
        "05_adabldm": {**foreground, **prompts, "words": dict(category.words)},
    }
    return {name: {**values, **further.get(name, {})} for name, values in parameters.items()}
