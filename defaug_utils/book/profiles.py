"""Profiles: parameters of all notebooks, checked against the notebooks' declarations."""

import ast
import json
import math
from pathlib import Path

from defaug_utils.core.guards import MAX_SHOWN, name_nearest, raise_problems
from defaug_utils.core.yaml_files import read_yaml

PLAIN_TYPES = {kind.__name__: kind for kind in (str, int, bool, list, dict)}


class ProfileError(ValueError):
    """A profile names a notebook or a parameter that doesn't exist, or can't be read."""


def read_profile(path: Path | str, notebook_folder: Path | str = "notebooks") -> dict[str, dict]:
    """Read a profile and check every key against the notebooks' parameters cells.

    A profile is YAML: `shared` contains values for every notebook that declares them, and a section named
    after a notebook (`02_memseg`) contains values for that notebook. Returns the parameters for papermill, by
    notebook. Raises a ProfileError that lists unknown keys, with the most similar known ones, and values that
    don't have the declared type.
    """
    content = _read_sections(Path(path))
    notebooks = sorted(Path(notebook_folder).glob("[0-9][0-9]_*.ipynb"))
    declared = {notebook.stem: _read_types(notebook) for notebook in notebooks}
    shared_types = {name: kind for types in declared.values() for name, kind in types.items()}
    known = {"shared": shared_types} | declared
    problems = []
    for section, values in content.items():
        if section not in known:
            problems.append(f"unknown section {section!r}{name_nearest(section, known)}")
            continue
        wrong = [name for name in values if name not in known[section]]
        problems += [
            f"{section}: unknown parameter {name!r}{name_nearest(name, known[section])}" for name in wrong
        ]
        problems += [
            f"{section}: {name} {str(value)[:MAX_SHOWN]!r} is not of type {known[section][name]}"
            for name, value in values.items()
            if name not in wrong and not _is_of_type(value, known[section][name])
        ]
    raise_problems(f"profile {path}", problems, ProfileError)
    shared = content.get("shared", {}).items()
    return {
        notebook: {name: value for name, value in shared if name in names} | content.get(notebook, {})
        for notebook, names in declared.items()
    }


def _read_types(notebook: Path) -> dict[str, str]:
    """The declared type of every parameter, such as "int"; generic types without their brackets."""
    declared = _read_declarations(notebook)
    return {line.target.id: ast.unparse(line.annotation).partition("[")[0] for line in declared}


def _read_declarations(notebook: Path) -> list[ast.AnnAssign]:
    """The lines `name: type = default` of the parameters cell; importing papermill would take a second."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    lines = ast.parse("\n".join(sources[:1])).body
    return [line for line in lines if isinstance(line, ast.AnnAssign)]


def _is_of_type(value: object, kind: str) -> bool:
    if kind == "float":
        return type(value) in (int, float) and math.isfinite(value)
    return kind not in PLAIN_TYPES or type(value) is PLAIN_TYPES[kind]


def _read_sections(path: Path) -> dict[str, dict]:
    if not path.is_file():
        known = ", ".join(sorted(other.stem for other in path.parent.glob("*.yaml"))) or "none"
        raise ProfileError(f"there is no profile {path}: {path.parent} has {known}")
    content = read_yaml(path, "profile", ProfileError) or {}
    if not isinstance(content, dict) or not all(isinstance(part, dict | None) for part in content.values()):
        raise ProfileError(f"profile {path}: expected sections of `name: value` lines")
    return {section: values or {} for section, values in content.items()}


def read_defaults(notebook: str, notebook_folder: Path | str = "notebooks") -> dict:
    """The values in a notebook's parameters cell: the defaults if a profile doesn't set them."""
    declared = _read_declarations(Path(notebook_folder) / f"{notebook}.ipynb")
    return {line.target.id: ast.literal_eval(line.value) for line in declared}
