"""A cell of parameters shows the first ten and folds the others; a fold's bar says what is behind it."""

from docutils import nodes
from myst_nb.sphinx_ import HideCodeCellNode
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform

SHOWN = 10  # lines of a cell of parameters, one each


class FoldParameters(SphinxPostTransform):
    """Split the source of every cell of parameters, and fold its second part."""

    default_priority = 198  # just before MyST-NB folds cells
    formats = ("html",)

    def run(self, **kwargs: object) -> None:
        """Fold what is beyond the first ten lines."""
        for cell in list(self.document.findall(nodes.container)):
            if "tag_parameters" in cell["classes"]:
                fold_lines(cell)


def fold_lines(cell: nodes.container) -> None:
    """Put all but the first lines of a cell's code behind a bar that counts them."""
    lines = cell[0].astext().splitlines()
    if len(lines) <= SHOWN:
        return
    parts = [cell[0].deepcopy() for _ in range(2)]
    for part, chosen in zip(parts, (lines[:SHOWN], lines[SHOWN:]), strict=True):
        (block,) = part.findall(nodes.literal_block)
        block.rawsource = "\n".join(chosen)
        block.children = [nodes.Text(block.rawsource)]
    words = f"the other {len(lines) - SHOWN} parameters"
    fold = HideCodeCellNode(prompt_show=f"Show {words}", prompt_hide=f"Hide {words}", classes=["above-input"])
    fold += parts[1]
    cell[:1] = [parts[0], fold]


def setup(app: Sphinx) -> dict[str, bool]:
    """Fold where pages are written."""
    app.add_post_transform(FoldParameters)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
