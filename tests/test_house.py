"""The house: versions, pins, pages and commands agree with each other."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from defaug_utils import __version__
from defaug_utils.core.files import read_csv, write_png
from defaug_utils.core.manifest import SPLITS, check_sources, make_manifest, read_manifest, write_manifest
from defaug_utils.report.papers import published_results

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "defaug_utils"
MODULES = {  # "core.manifest" → its file
    f"{path.parent.name}.{path.stem}": path for path in PACKAGE.glob("*/*.py") if path.stem != "__init__"
}
DRAWING_LIBRARIES = {"matplotlib", "seaborn"}
MACHINE_PATH = re.compile(r"(?<![\w.:/<>])/(?:home|root|Users|tmp|work)/\w")


def read_text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def project() -> dict:
    return tomllib.loads(read_text("pyproject.toml"))["project"]


def pins(lines: list[str]) -> dict[str, str]:
    """Exact versions by normalised name, of `name==version` lines in their order."""
    wanted = [Requirement(line) for line in lines if line.strip() and not line.startswith(("#", "-"))]
    for requirement in wanted:
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", f"{requirement} is no exact version"
    return {canonicalize_name(wish.name): next(iter(wish.specifier)).version for wish in wanted}


def constraints() -> dict[str, str]:
    return pins(read_text("constraints.txt").splitlines())


def requirements() -> list[Requirement]:
    extras = project()["optional-dependencies"].values()
    return [Requirement(line) for line in chain(project()["dependencies"], *extras)]


def environment() -> dict:
    return yaml.safe_load(read_text("environment.yml"))


def prose_pages() -> list[Path]:
    return [*(ROOT / "book").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


def test_versions_agree():
    assert project()["version"] == __version__
    assert yaml.safe_load(read_text("CITATION.cff"))["version"] == __version__


def test_licence_and_citation_agree():
    citation = yaml.safe_load(read_text("CITATION.cff"))
    assert project()["license"] == citation["license"] == "MIT"
    assert read_text("LICENSE").startswith("MIT License")
    assert {"cff-version", "message", "title", "authors", "type"} <= set(citation)
    for work in citation["references"]:
        assert {"type", "title", "authors"} <= set(work)


def test_torch_comes_first_among_the_tested_versions():
    assert next(iter(constraints().items())) == ("torch", "2.13.0")


@pytest.mark.parametrize("requirement", requirements(), ids=lambda requirement: requirement.name)
def test_every_dependency_is_pinned_to_a_version_it_allows(requirement: Requirement):
    pinned = constraints()
    assert canonicalize_name(requirement.name) in pinned
    assert pinned[canonicalize_name(requirement.name)] in requirement.specifier


def test_conda_users_get_the_same_versions():
    *conda, by_pip = environment()["dependencies"]
    assert by_pip["pip"][:2] == ["--constraint constraints.txt", "torch==2.13.0"]
    for name, version in pins(by_pip["pip"]).items():
        assert constraints()[name] == version
    (python,) = [line.partition("=")[2] for line in conda if line.startswith("python=")]
    assert SpecifierSet(project()["requires-python"]).contains(python)
    extras = re.search(r"--editable \.\[([\w,-]+)\]", " ".join(by_pip["pip"]))[1]
    assert set(extras.split(",")) == set(project()["optional-dependencies"])


def test_hooks_run_tools_that_the_project_installs():
    config = yaml.safe_load(read_text(".pre-commit-config.yaml"))
    installed = {canonicalize_name(requirement.name) for requirement in requirements()}
    for hook in chain.from_iterable(repository["hooks"] for repository in config["repos"]):
        folder, _, tool = hook["entry"].split()[0].rpartition("/")
        assert (folder, hook["language"]) == (".venv/bin", "system")
        assert tool in installed


def test_the_marks_by_which_tests_are_chosen_exist():
    """Pytest takes an unknown mark behind -m for one that no test has."""
    options = tomllib.loads(read_text("pyproject.toml"))["tool"]["pytest"]["ini_options"]
    known = {mark.partition(":")[0] for mark in options["markers"]}
    texts = [read_text(name) for name in ("Makefile", ".ci/run", ".github/workflows/tests.yml")]
    chosen = [re.findall(r"pytest .*-m (\w+|\"[\w ]+\")", text) for text in texts]
    assert all(chosen)
    words = set(" ".join(chain(*chosen)).replace('"', "").split())
    assert words - {"and", "or", "not"} <= known


def test_the_api_pages_are_made_for_every_room():
    listed = re.findall(r"(?m)^   defaug_utils\.(\w+)$", read_text("book/api.md"))
    assert sorted(listed) == sorted({name.partition(".")[0] for name in MODULES})


@pytest.mark.parametrize("path", prose_pages(), ids=lambda path: path.name)
def test_commands_in_the_text_exist(path: Path):
    targets = set(re.findall(r"(?m)^(\w+):", read_text("Makefile")))
    variables = set(re.findall(r"(?m)^(\w+) \?=", read_text("Makefile")))
    text = path.read_text(encoding="utf-8")
    code = [*re.findall(r"(?m)^```bash\n([^`]*)^```$", text), *re.findall(r"`([^`\n]+)`", text)]
    for command in re.findall(r"(?m)^make ([^#\n]+)", "\n".join(code)):
        target, *settings = re.sub(r'"[^"]*"', "quoted", command).split()
        assert target in targets, command
        assert {setting.partition("=")[0] for setting in settings if "=" in setting} <= variables, command


@pytest.mark.parametrize("path", prose_pages(), ids=lambda path: path.name)
def test_links_to_files_lead_somewhere(path: Path):
    for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
        assert (path.parent / link).exists(), link


def test_names_of_the_package_in_the_text_exist():
    named = set()
    for path in prose_pages():
        named |= set(
            re.findall(r"`defaug_utils/(\w+/\w+)\.py`\s\(`(\w+)`\)", path.read_text(encoding="utf-8"))
        )
    assert named
    for module, name in named:
        found = importlib.import_module(f"defaug_utils.{module.replace('/', '.')}")
        assert hasattr(found, name), f"{module}.{name}"


def test_profiles_and_files_named_in_the_text_exist():
    for path in prose_pages():
        for name in re.findall(r"PROFILE=(\w+)", path.read_text(encoding="utf-8")):
            assert name == "parts" or (ROOT / "profiles" / f"{name}.yaml").is_file(), (path.name, name)


def test_every_printed_table_has_its_row_on_the_page_of_rebuilds():
    page = read_csv(ROOT / "book" / "rebuilds.csv", dtype=str, keep_default_na=False)
    printed = published_results()[["source", "table"]].drop_duplicates()
    tables = {(row.source, "–" if pd.isna(row.table) else str(row.table)) for row in printed.itertuples()}
    assert tables <= set(zip(page["paper"], page["table"], strict=True))
    assert {"In&Out", "DIAG", "AdaBLDM"} <= set(page["paper"])
    assert (page["what differs"] != "").all()
    for row in page.itertuples():
        command = re.fullmatch(r"`make (\w+) PROFILE=(\w+)( DATA=[\w/]+)?`|none", row.command)
        assert command, row.command
        if row.command == "none":
            assert not row.profile and not row[6], "what no command makes takes no hours"
            continue
        assert re.search(rf"(?m)^{command[1]}:", read_text("Makefile")), row.command
        assert row.profile == command[2] and (ROOT / "profiles" / f"{row.profile}.yaml").is_file()
        assert row[6], "hours and memory, or that they were not measured"


def test_the_example_method_makes_a_pool(tmp_path: Path):
    (example,) = re.findall(r"(?m)^```python\n(from [^`]*)^```$", read_text("book/adding_a_method.md"))
    (tmp_path / "example.py").write_text(example, encoding="utf-8")
    rows = [{"image": f"images/{split}.png", "split": split} for split in SPLITS]
    data = tmp_path / "runs" / "workshop" / "data"
    for row in rows:
        write_png(data / row["image"], np.full((48, 16, 3), 90, np.uint8))
    dataset = make_manifest(row | {"label": "negative", "origin": "real"} for row in rows)
    write_manifest(dataset, data / "manifest.csv")
    subprocess.run([sys.executable, "example.py"], cwd=tmp_path, check=True)
    pool = read_manifest(tmp_path / "runs" / "workshop" / "white_squares" / "manifest.csv", check_files=True)
    assert len(pool) == 40
    check_sources(pool, dataset)


def test_the_book_executes_nothing_and_finds_its_files():
    config = yaml.safe_load(read_text("_config.yml"))
    assert config["execute"]["execute_notebooks"] == "off"
    sphinx = config["sphinx"]
    named = [config["logo"], *config["bibtex_bibfiles"], *sphinx["config"]["html_static_path"]]
    extensions = [f"{folder}/{name}.py" for name, folder in sphinx["local_extensions"].items()]
    for name in [*named, *extensions, *sphinx["config"]["templates_path"]]:
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize(
    "path", sorted((ROOT / "book" / "_static").glob("*.svg")), ids=lambda path: path.name
)
def test_a_diagram_has_a_title_and_is_readable_on_a_dark_page(path: Path):
    """It brings its own light ground, nearly as large as itself, and needs no other file."""
    drawing = ElementTree.parse(path).getroot()  # noqa: S314 - our own file
    parts = [part for part in drawing if not part.tag.endswith(("title", "defs"))]
    assert drawing.findtext("{*}title")
    assert 'href="http' not in path.read_text(encoding="utf-8")
    if path.stem == "logo":
        return
    width, height = map(float, drawing.get("viewBox").split()[2:])
    assert (parts[0].get("width"), parts[0].get("height")) == (f"{width - 2:g}", f"{height - 2:g}")
    assert parts[0].get("fill") == "#ffffff"


def test_every_method_has_its_diagram():
    notebooks = "".join(
        path.read_text(encoding="utf-8") for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
    )
    shown = re.findall(r"\{figure\} \.\./book/_static/(\w+)\.svg", notebooks)
    assert shown == ["memseg", "in_and_out", "diag", "adabldm"]


@pytest.mark.parametrize("name", sorted(MODULES))
def test_computation_neither_prints_nor_draws(name: str):
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    printing = [part.lineno for part in ast.walk(tree) if is_print(part)]
    assert printing == []
    if name not in ("report.curves", "report.decision_plots", "report.pictures", "book.session"):
        assert not imported_libraries(tree) & DRAWING_LIBRARIES


def is_print(part: ast.AST) -> bool:
    return isinstance(part, ast.Call) and isinstance(part.func, ast.Name) and part.func.id == "print"


def imported_libraries(tree: ast.AST) -> set[str]:
    """First parts of the names of all imported modules."""
    modules = set()
    for part in ast.walk(tree):
        if isinstance(part, ast.Import):
            modules |= {name.name for name in part.names}
        elif isinstance(part, ast.ImportFrom):
            modules.add(part.module)
    return {module.partition(".")[0] for module in modules}


def test_nothing_names_a_folder_of_somebodys_machine():
    texts = [*prose_pages(), *MODULES.values(), *(ROOT / "profiles").glob("*.yaml"), ROOT / "Makefile"]
    for path in [*texts, ROOT / "Snakefile", ROOT / "CHANGELOG.md"]:
        assert not MACHINE_PATH.search(path.read_text(encoding="utf-8")), path.name
