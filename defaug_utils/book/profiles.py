"""Profiles: the parameters of every notebook, checked against what the notebooks declare."""

import ast
from pathlib import Path

import yaml
from papermill import inspect_notebook

from defaug_utils.core.guards import name_nearest, raise_problems


class ProfileError(ValueError):
    """A profile names a notebook or a parameter that doesn't exist, or can't be read."""


def read_profile(path: Path | str, notebook_folder: Path | str = "notebooks") -> dict[str, dict]:
    """Read a profile and check every key against the notebooks' parameters cells.

    A profile is YAML: `shared` holds values for every notebook that declares them, and a section named as a
    notebook (`02_memseg`) holds values for that one. The result has what papermill shall inject, by notebook.
    A ProfileError lists every unknown key, with the nearest known one.
    """
    content = _read_sections(Path(path))
    notebooks = sorted(Path(notebook_folder).glob("[0-9][0-9]_*.ipynb"))
    declared = {notebook.stem: set(inspect_notebook(notebook)) for notebook in notebooks}
    known = {"shared": set().union(*declared.values())} | declared
    problems = []
    for section, values in content.items():
        if section not in known:
            problems.append(f"unknown section {section!r}{name_nearest(section, known)}")
            continue
        wrong = [name for name in values if name not in known[section]]
        problems += [
            f"{section}: unknown parameter {name!r}{name_nearest(name, known[section])}" for name in wrong
        ]
    raise_problems(f"profile {path}", problems, ProfileError)
    shared = content.get("shared", {}).items()
    return {
        notebook: {name: value for name, value in shared if name in names} | content.get(notebook, {})
        for notebook, names in declared.items()
    }


def _read_sections(path: Path) -> dict[str, dict]:
    if not path.is_file():
        known = ", ".join(sorted(other.stem for other in path.parent.glob("*.yaml"))) or "none"
        raise ProfileError(f"no profile {path}: {path.parent} has {known}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ProfileError(f"profile {path} is not valid YAML: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(part, dict | None) for part in content.values()):
        raise ProfileError(f"profile {path}: expected sections of `name: value` lines")
    return {section: values or {} for section, values in content.items()}


def read_defaults(notebook: str, notebook_folder: Path | str = "notebooks") -> dict:
    """The values in a notebook's parameters cell, which hold where a profile says nothing."""
    declared = inspect_notebook(Path(notebook_folder) / f"{notebook}.ipynb")
    return {name: ast.literal_eval(parameter["default"]) for name, parameter in declared.items()}
