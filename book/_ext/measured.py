"""A directive that inserts measured numbers into a page when it is built."""

import json
import re
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

PLACEHOLDER = re.compile(r"\{([A-Za-z_][\w.]*)(?::([^{}]*))?\}")


def fill_in(text: str, values: dict) -> str:
    """Replace `{inpainting.oval.found:.0%}` with the value at that path, in Python's format.

    Raises:
        KeyError: there is no value at a path, which the error names.
    """

    def look_up(match: re.Match) -> str:
        value = values
        for name in match[1].split("."):
            if not isinstance(value, dict) or name not in value:
                raise KeyError(match[1])
            value = value[name]
        return format(value, match[2] or "")

    return PLACEHOLDER.sub(look_up, text)


class Measured(SphinxDirective):
    """Markdown with placeholders, and the JSON file (relative to the page) with their values."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        """Fill in the placeholders and parse the text."""
        _, path = self.env.relfn2path(self.arguments[0])
        self.env.note_dependency(path)
        if not Path(path).is_file():
            raise self.error(f"there are no measurements at {path}: run scripts/embedded/measure.py")
        try:
            text = fill_in("\n".join(self.content), json.loads(Path(path).read_text(encoding="utf-8")))
        except (KeyError, ValueError) as error:
            raise self.error(f"{path} has no such value: {error}") from error
        return self.parse_text_to_nodes(text)


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the directive."""
    app.add_directive("measured", Measured)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
