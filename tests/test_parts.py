"""Parts of a notebook as jobs: the cells that they run are enough for them, and errors are told."""

import ast
import builtins
from pathlib import Path

import nbformat
import pytest

from defaug_utils.book.batch import NotebookError
from defaug_utils.book.parts import TRAINING, cut_notebook
from defaug_utils.book.profiles import read_defaults
from defaug_utils.core.origins import ORIGINS, list_notebooks

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
SHARDED = [name for name in list_notebooks() if "shard" in read_defaults(name, NOTEBOOKS)]
LEARNING = sorted({row.notebook for row in ORIGINS.values() if row.learns})


def names(source: str, kind: type) -> set[str]:
    """Names that a cell reads (`ast.Load`) or binds (`ast.Store`, also by imports and definitions)."""
    nodes = list(ast.walk(ast.parse(source)))
    found = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, kind)}
    if kind is ast.Store:
        found |= {(a.asname or a.name).partition(".")[0] for node in nodes for a in getattr(node, "names", [])
                  if isinstance(a, ast.alias)}  # fmt: skip
        found |= {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
        found |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    return found


@pytest.mark.parametrize(
    ("name", "until", "does"),
    [*((name, "", "core.make_pool") for name in SHARDED), *((name, TRAINING, "train_") for name in LEARNING)],
)
def test_the_cells_of_a_part_need_no_other_cell_and_end_where_it_is_made(name: str, until: str, does: str):
    cells = cut_notebook(NOTEBOOKS / f"{name}.ipynb", until).cells
    assert "parameters" in cells[0].metadata.tags and does in cells[-1].source
    known = set(dir(builtins)) | {"__name__"}
    for cell in cells:
        known |= names(cell.source, ast.Store)
        assert not names(cell.source, ast.Load) - known, f"{cell.id} needs a cell that is not tagged `part`"


def test_whatever_learns_or_paints_can_be_made_in_parts():
    assert SHARDED == ["03_lora_finetune", "04_diag_inpainting", "05_adabldm", "11_diag_tuned"]
    assert LEARNING == ["03_lora_finetune", "05_adabldm", "11_diag_tuned"]


def test_a_name_that_cells_of_a_part_change_is_changed_by_no_other_cell():
    """Cells that add to what an earlier one made, such as one more pool, are needed, too."""
    for name in SHARDED:
        notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
        parts = cut_notebook(NOTEBOOKS / f"{name}.ipynb").cells
        made = set().union(*(names(cell.source, ast.Store) for cell in parts))
        last = [cell.id for cell in notebook.cells].index(parts[-1].id)
        others = {cell.id for cell in notebook.cells[:last]} - {cell.id for cell in parts}
        for cell in notebook.cells[:last]:
            if cell.cell_type == "code" and cell.id in others:
                targets = [
                    target.value.id
                    for node in ast.walk(ast.parse(cell.source))
                    for target in getattr(node, "targets", [getattr(node, "target", None)])
                    if isinstance(target, ast.Subscript | ast.Attribute)
                    and isinstance(target.value, ast.Name)
                ]
                changed = made & set(targets) - names(cell.source, ast.Store)
                assert not changed, f"{name}: {cell.id} changes {changed} and is not tagged `part`"


def test_a_notebook_without_such_cells_is_refused():
    with pytest.raises(NotebookError, match=r"02_memseg\.ipynb has no cell tagged 'part'"):
        cut_notebook(NOTEBOOKS / "02_memseg.ipynb")
    with pytest.raises(NotebookError, match=r"04_diag_inpainting\.ipynb has no cell tagged 'training'"):
        cut_notebook(NOTEBOOKS / "04_diag_inpainting.ipynb", TRAINING)
