"""Docstrings as plain text, and API pages without uninformative members."""

import re

from sphinx.application import Sphinx

PACKAGE = "defaug_utils"


def skip_member(app: Sphinx, what: str, name: str, member: object, skip: bool, options: dict) -> bool | None:
    """Skip a NamedTuple's "Alias for field number …" and anything that another library defined."""
    is_alias = str(getattr(member, "__doc__", "")).startswith("Alias for field number")
    module = getattr(member, "__module__", None) or PACKAGE
    return True if is_alias or not module.startswith(PACKAGE) else None


def escape_underscores(app: Sphinx, what: str, name: str, obj: object, options: dict, lines: list) -> None:
    """Keep a word such as paper_ from being read as a link of reStructuredText."""
    for index, line in enumerate(lines):
        parts = line.split("`")  # text between backticks is code and stays unchanged
        parts[::2] = [re.sub(r"(?<=\w)_(?!\w)", r"\_", part) for part in parts[::2]]
        lines[index] = "`".join(parts)


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to autodoc, before napoleon rewrites the docstrings."""
    app.connect("autodoc-process-docstring", escape_underscores, priority=400)
    app.connect("autodoc-skip-member", skip_member)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
