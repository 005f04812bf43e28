"""What every notebook of the book holds to; each law is a small look at its cells."""

import ast
import builtins
import json
import re
import statistics
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat import NotebookNode
from nbstripout import strip_output
from papermill import inspect_notebook

from defaug_utils.book.profiles import read_profile

ROOT = Path(__file__).parents[1]
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SHARED = {"run_dir": "runs/workshop", "seed": 0, "interactive": False}
DRAWING_MODULES = {"matplotlib.pyplot", "seaborn"}
DRAWING = re.compile(r"report\.(plot_\w+|show_\w+|NotebookFigure)")  # of the room report
READY = re.compile(r"report\.(plot|show)_\w+")  # one call, which may stand in the open
MOST_CELLS = 32
SHOWN = 10  # parameters that the book doesn't fold
RARELY_CHANGED = {  # by a reader: the machine's, the networks' that compare, the batch queue's
    *("precision", "clip_skip", "feature_backbone", "feature_weights", "shard", "shard_count"),
}
MACHINE_PATH = re.compile(r"(?<![\w.:/<>])(?:/(?:home|root|Users|tmp|var|opt|usr|mnt|work)/|~/|[A-Z]:\\)")
INSTALL = re.compile(r"(?m)^\s*[!%]|\b(?:pip|pip3|conda|mamba|apt(?:-get)?)\s+install\b")
DIRECTIVE = re.compile(r"(?m)^`{3,}\{(exercise|solution)\} ?(\S*)\n((?::.*\n)*)")


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def prose(notebook: NotebookNode) -> str:
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def headings(notebook: NotebookNode) -> list[str]:
    return re.findall(r"(?m)^#+ .*$", prose(notebook))


def section(notebook: NotebookNode, heading: str) -> str:
    """The prose from a heading of level 2 to the next one."""
    assert f"## {heading}" in headings(notebook)
    return prose(notebook).split(f"\n## {heading}", 1)[1].split("\n## ", 1)[0]


def parameters_cell(notebook: NotebookNode) -> NotebookNode:
    (cell,) = [cell for cell in notebook.cells if "parameters" in tags(cell)]
    return cell


def parameter_names(notebook: NotebookNode) -> list[str]:
    return [statement.target.id for statement in ast.parse(parameters_cell(notebook).source).body]


def drawing_names(notebook: NotebookNode) -> set[str]:
    """The names under which a notebook knows what draws."""
    names = set()
    for statement in ast.walk(ast.parse("\n".join(cell.source for cell in code_cells(notebook)))):
        if isinstance(statement, ast.ImportFrom):
            if statement.module in DRAWING_MODULES:
                names |= {name.asname or name.name for name in statement.names}
        elif isinstance(statement, ast.Import):
            names |= {name.asname or name.name for name in statement.names if name.name in DRAWING_MODULES}
    return names


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def notebook(path: Path) -> NotebookNode:
    return read(path)


def test_format_and_ids(path: Path, notebook: NotebookNode):
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    ids = [cell["id"] for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]]
    assert len(ids) == len(set(ids))


def test_a_chapter_has_its_number_and_says_what_it_means_in_practice(path: Path, notebook: NotebookNode):
    assert headings(notebook)[0].startswith(f"# {int(path.stem[:2])}. ")
    assert "\n**In practice:** " in section(notebook, "Take-away")


def test_no_outputs(path: Path, notebook: NotebookNode):
    for cell in code_cells(notebook):
        assert cell.outputs == []
        assert cell.execution_count is None
    stripped = strip_output(read(path), keep_output=False, keep_count=False, keep_id=True)
    assert stripped == notebook, "run the pre-commit hook: it strips what must not be committed"


def test_parameters_are_literals_one_a_line(notebook: NotebookNode):
    cell = parameters_cell(notebook)
    assert cell is code_cells(notebook)[0], "the parameters come before any other code"
    lines = [line for line in cell.source.splitlines() if line.strip() and not line.startswith("#")]
    for line in lines:
        (statement,) = ast.parse(line).body
        assert isinstance(statement, ast.AnnAssign), line
        ast.literal_eval(statement.value)
        assert not set("|.") & set(ast.unparse(statement.annotation)), f"papermill does not see {line!r}"
        assert re.search(r"  # \w", line), f"{line!r} needs its meaning, unit, source"


def test_papermill_sees_every_parameter(path: Path, notebook: NotebookNode):
    assert list(inspect_notebook(str(path))) == parameter_names(notebook)


def test_a_default_is_of_its_annotated_type(notebook: NotebookNode):
    known = {"str": str, "int": int, "float": (int, float), "bool": bool, "list": list, "dict": dict}
    for statement in ast.parse(parameters_cell(notebook).source).body:
        kind = ast.unparse(statement.annotation).split("[")[0]
        value = ast.literal_eval(statement.value)
        assert isinstance(value, known[kind]), statement.target.id
        assert isinstance(value, bool) == (kind == "bool"), statement.target.id


def test_shared_parameters_have_the_same_default_everywhere(notebook: NotebookNode):
    assert {"run_dir", "seed"} <= set(parameter_names(notebook))
    for statement in ast.parse(parameters_cell(notebook).source).body:
        if statement.target.id in SHARED:
            assert ast.literal_eval(statement.value) == SHARED[statement.target.id]


def test_the_parameters_that_are_not_folded_are_those_that_a_reader_changes(notebook: NotebookNode):
    names = parameter_names(notebook)
    if len(names) > SHOWN:
        assert not RARELY_CHANGED & set(names[:SHOWN])
        assert {"run_dir", "interactive"} & set(names) <= set(names[:SHOWN])


def test_nothing_of_this_machine_and_no_installs(notebook: NotebookNode):
    for cell in notebook.cells:
        assert not MACHINE_PATH.search(cell.source), cell.id
    for cell in code_cells(notebook):
        assert not INSTALL.search(cell.source), cell.id


def test_code_cells_are_short(notebook: NotebookNode):
    _, _, *working, _ = code_cells(notebook)  # parameters, imports and watermark have a line for each name
    lengths = {cell.id: sum(map(bool, cell.source.splitlines())) for cell in working}
    assert {name: length for name, length in lengths.items() if length > 15} == {}
    assert statistics.median(lengths.values()) <= 8


def test_a_chapter_has_few_cells(notebook: NotebookNode):
    assert len(notebook.cells) <= MOST_CELLS


def test_imports_stand_in_one_cell_after_the_parameters(notebook: NotebookNode):
    importing = [
        cell.id
        for cell in code_cells(notebook)
        if any(isinstance(part, ast.Import | ast.ImportFrom) for part in ast.walk(ast.parse(cell.source)))
    ]
    assert importing == [code_cells(notebook)[1].id]


def test_it_opens_with_label_title_and_needs(notebook: NotebookNode):
    first = notebook.cells[0].source
    assert re.match(r"\([\w-]+\)=\n# \S", first)
    table = [line for line in first.splitlines() if line.startswith("|")]
    assert "workshop" in table[0] and "paper" in table[0], "times and needs at each profile"
    assert [heading for heading in headings(notebook) if heading.startswith("# ")] == [first.splitlines()[1]]


def test_take_away_answers_what_you_will_learn(notebook: NotebookNode):
    bullets = [
        re.findall(r"(?m)^- ", section(notebook, heading)) for heading in ("What you will learn", "Take-away")
    ]
    assert len(bullets[0]) == len(bullets[1]) > 1


def test_it_ends_with_references_and_watermark(notebook: NotebookNode):
    assert headings(notebook)[-2:] == ["## References", "## Watermark"]
    assert "```{bibliography}\n:filter: docname in docnames\n```" in section(notebook, "References")
    assert notebook.cells[-1].source == "watermark()"


def test_only_parameters_are_annotated(notebook: NotebookNode):
    """The watermark tells the annotated names, so a derived value must not be one."""
    for cell in code_cells(notebook)[1:]:
        assert not any(isinstance(part, ast.AnnAssign) for part in ast.walk(ast.parse(cell.source))), cell.id


def test_no_cell_gives_a_parameter_another_value(notebook: NotebookNode):
    """A comprehension's names and a function's are its own; a cell's are everybody's."""
    names = set(parameter_names(notebook))
    own = ast.FunctionDef | ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp

    def list_bound(part: ast.AST) -> Iterator[str]:
        if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
            yield part.id
        for child in ast.iter_child_nodes(part):
            if not isinstance(child, own):
                yield from list_bound(child)

    for cell in code_cells(notebook)[1:]:
        assert not names & set(list_bound(ast.parse(cell.source))), cell.id


def test_a_notebook_imports_rooms_and_calls_what_they_hand_on(notebook: NotebookNode):
    rooms = {}
    for part in ast.walk(ast.parse(code_cells(notebook)[1].source)):
        if isinstance(part, ast.ImportFrom) and part.module.startswith("defaug_utils"):
            assert part.module in ("defaug_utils", "defaug_utils.book"), part.module
            if part.module == "defaug_utils":
                rooms |= {name.name: import_module(f"defaug_utils.{name.name}") for name in part.names}
    for part in chain.from_iterable(ast.walk(ast.parse(cell.source)) for cell in code_cells(notebook)):
        if isinstance(part, ast.Attribute) and ast.unparse(part.value) in rooms:
            assert hasattr(rooms[part.value.id], part.attr), ast.unparse(part)


def is_call(part: ast.AST, name: str = "") -> bool:
    return isinstance(part, ast.Call) and (not name or ast.unparse(part.func) == name)


def walk_outside_functions(part: ast.AST) -> Iterator[ast.AST]:
    """What a cell does by itself, without what the functions would do that it defines."""
    yield part
    for child in ast.iter_child_nodes(part):
        if not isinstance(child, ast.FunctionDef):
            yield from walk_outside_functions(child)


def test_exercises_have_folded_solutions(notebook: NotebookNode):
    found = DIRECTIVE.findall(prose(notebook))
    labels = [re.search(r":label: (\S+)", options)[1] for kind, _, options in found if kind == "exercise"]
    solved = [name for kind, name, options in found if kind == "solution" and ":class: dropdown" in options]
    assert len(labels) >= 2
    assert solved == labels


def test_figures_have_caption_name_and_alt_text(notebook: NotebookNode):
    for cell in code_cells(notebook):
        described = cell.metadata.get("mystnb", {})
        if described:
            assert len(described["figure"]["caption"]) > 20, cell.id
            assert described["figure"]["name"].startswith("fig-"), cell.id
            assert len(described["image"]["alt"]) > 20, cell.id


def list_calls(cell: NotebookNode) -> list[str]:
    """The functions that a cell calls by itself, as they are written."""
    calls = [part.func for part in walk_outside_functions(ast.parse(cell.source)) if is_call(part)]
    return [ast.unparse(function) for function in calls]


def test_every_drawing_cell_is_a_figure_and_hides_what_only_draws(notebook: NotebookNode):
    drawers = drawing_names(notebook)
    for cell in code_cells(notebook)[2:]:
        called = list_calls(cell)
        drawing = [name for name in called if name.split(".")[0] in drawers or DRAWING.match(name)]
        if drawing:
            assert "mystnb" in cell.metadata, f"{cell.id} draws and has no caption"
            assert "hide-input" in tags(cell) or all(map(READY.fullmatch, drawing)), cell.id


def test_a_figures_cell_shows_nothing_else(notebook: NotebookNode):
    """MyST-NB would make a figure of every output, all of one name."""
    for cell in code_cells(notebook):
        if "mystnb" in cell.metadata:
            assert "display" not in list_calls(cell), cell.id


def test_what_the_book_folds_is_folded_in_jupyterlab_too(notebook: NotebookNode):
    for cell in code_cells(notebook):
        is_folded = not {"hide-input", "remove-input"}.isdisjoint(tags(cell))
        assert cell.metadata.get("jupyter", {}).get("source_hidden", False) == is_folded, cell.id


def test_a_computed_sentence_leaves_no_bar(notebook: NotebookNode):
    for cell in code_cells(notebook)[2:]:
        last = ast.parse(cell.source).body[-1]
        is_sentence = isinstance(last, ast.Expr) and is_call(last.value, "Markdown")
        if is_sentence and "hide-input" in tags(cell):
            assert "start_notebook" in list_calls(cell), f"{cell.id}: tag it remove-input"


def test_it_fails_loudly_when_run_unattended(notebook: NotebookNode):
    assert any(
        isinstance(part, ast.Assert)
        for cell in code_cells(notebook)
        for part in ast.walk(ast.parse(cell.source))
    )


def count_code() -> tuple[int, int, int]:
    """Lines of code of all notebooks, those that are hidden, and distinct names from the package."""
    lines, hidden, names = 0, 0, set()
    for cell in chain.from_iterable(map(code_cells, map(read, PATHS))):
        length = sum(map(bool, map(str.strip, cell.source.splitlines())))
        lines += length
        hidden += length * any(tag.startswith(("hide", "remove")) for tag in tags(cell))
        for part in ast.walk(ast.parse(cell.source)):
            if isinstance(part, ast.ImportFrom) and part.module.startswith("defaug_utils"):
                names |= {(part.module, name.name) for name in part.names}
    return lines, hidden, len(names)


def test_the_notebooks_are_short_and_show_their_steps():
    lines, hidden, _ = count_code()
    assert lines <= 139 * len(PATHS)
    assert hidden <= 0.4 * lines


def test_the_notebooks_need_few_names():
    assert count_code()[2] <= 70


def test_citations_are_in_the_bibliography():
    known = set(re.findall(r"@\w+\{(\w+),", (ROOT / "book" / "references.bib").read_text(encoding="utf-8")))
    pages = [page.read_text(encoding="utf-8") for page in (ROOT / "book").glob("*.md")]
    for text in chain(pages, (prose(read(path)) for path in PATHS)):
        for cited in re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", text):
            assert {key.strip() for key in cited.split(",")} <= known


def test_labels_and_figure_names_are_unique_in_the_book():
    labels = []
    for notebook in map(read, PATHS):
        labels += re.findall(r"(?m)^\(([\w-]+)\)=$|^:label: (\S+)$|^:name: (\S+)$", prose(notebook))
        labels += [
            cell.metadata["mystnb"]["figure"]["name"]
            for cell in code_cells(notebook)
            if "mystnb" in cell.metadata
        ]
    for page in (ROOT / "book").glob("*.md"):
        text = page.read_text(encoding="utf-8")
        labels += re.findall(r"(?m)^\(([\w-]+)\)=$|^:label: (\S+)$|^:name: (\S+)$", text)
    names = ["".join(label) for label in labels]
    assert sorted(names) == sorted(set(names))
    assert len(names) >= 3 * len(PATHS)


def test_notebooks_are_the_books_chapters_and_the_profiles_sections():
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    pages = [contents["root"], *(page["file"] for part in contents["parts"] for page in part["chapters"])]
    assert len(pages) == len(set(pages))
    chapters = [Path(page).name for page in pages if page.startswith("notebooks/")]
    assert chapters == [path.stem for path in PATHS], "the table of contents has them in their order"
    for profile in (ROOT / "profiles").glob("*.yaml"):
        assert set(read_profile(profile, ROOT / "notebooks")) == set(chapters)
    assert sorted(page for page in pages if not page.startswith("notebooks/")) == sorted(
        f"book/{page.stem}" for page in (ROOT / "book").glob("*.md")
    )


def test_solutions_use_only_names_that_their_notebook_knows(notebook: NotebookNode):
    trees = [ast.parse(cell.source) for cell in code_cells(notebook)]
    solutions = [ast.parse(code) for code in re.findall(r"```python\n(.*?)```", prose(notebook), re.DOTALL)]
    known = {*dir(builtins), *(name for tree in [*trees, *solutions] for name in list_names(tree))}
    rooms = {name for name in known if find_spec(f"defaug_utils.{name}")}
    for part in chain.from_iterable(map(ast.walk, solutions)):
        if isinstance(part, ast.Name):
            assert part.id in known, f"{part.id} is not known to {notebook.cells[0].source[:40]!r}"
        elif isinstance(part, ast.Attribute) and ast.unparse(part.value) in rooms:
            assert hasattr(import_module(f"defaug_utils.{part.value.id}"), part.attr), ast.unparse(part)


def list_names(tree: ast.AST) -> Iterator[str]:
    """The names that some code binds, as variable, argument, function or import."""
    for part in ast.walk(tree):
        if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
            yield part.id
        elif isinstance(part, ast.FunctionDef):
            yield part.name
        elif isinstance(part, ast.arg):
            yield part.arg
        elif isinstance(part, ast.alias):
            yield (part.asname or part.name).split(".")[0]
