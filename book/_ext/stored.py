"""A directive that makes tables and sentences of stored results when a page is built."""

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from defaug_utils.book.stored_pages import write_part
from defaug_utils.book.stored_results import PROVENANCE


class Stored(SphinxDirective):
    """Folder of stored results (relative to the page) and the part of them to show."""

    required_arguments = 2

    def run(self) -> list[nodes.Node]:
        """Write the part and parse it."""
        folder, part = self.arguments
        _, path = self.env.relfn2path(f"{folder}/{PROVENANCE}")
        self.env.note_dependency(path)
        try:
            text = write_part(path.removesuffix(PROVENANCE), part)
        except (ValueError, OSError) as error:
            raise self.error(str(error)) from error
        return self.parse_text_to_nodes(text)


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the directive."""
    app.add_directive("stored", Stored)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
