"""Words and phrases that the book and the docstrings avoid, each with what to write instead."""

import ast
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
AVOIDED = {  # regular expression: what to write instead
    r"is none of (?!the)": "is not one of",
    r"go(es|ing)? on (where|from where|at its)": "resume",
    r"(?<!a)mend(s|ed)?": "fix",
    r"some (two|three|four|five|ten|twenty|\d+)": "about",
    r"whom?ever": "name the person, or use the passive",
    r"likewise": "the same for …, also",
    r"(stand|stands|stood) (twice|beside|among|apart)": "occur twice, be next to, be separate",
    r"thrown away": "discarded",
    r"anew": "again",
    r"by (itself|themselves)": "on its own, automatically, separately",
    r"(a|one) (row|column|line|curve) an? \w+": "one row per …",
    r"(images|steps|triples) an? (step|second|image)": "per",
    r"are few to": "are too few to",
    r"(?-i:Had) (an?|the|it)": "If …",
    r"(?<!there )is no (number|list|name|file|readable|whole)": "is not a",
    r"\w+Error (tells|refuses)": "Raises a …Error if",
    r"to the bit": "bit for bit",
    r"asked[- ]for": "requested",
    r"put back": "restored",
}


def read_prose() -> Iterator[tuple[str, str]]:
    """Places and their text: the book's pages, the notebooks' Markdown, docstrings, older changes."""
    pages = [*(ROOT / "book").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    yield from ((page.name, page.read_text(encoding="utf-8")) for page in pages)
    _, _, *older = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").split("\n## ")
    yield from (("CHANGELOG.md", section) for section in older)
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        for cell in nbformat.read(path, as_version=nbformat.NO_CONVERT).cells:
            if cell.cell_type == "markdown":
                yield f"{path.name}, {cell.id}", cell.source
    folders = [ROOT / name for name in ("defaug_utils", "scripts", "book")]
    for path in chain.from_iterable(folder.rglob("*.py") for folder in folders):
        for part in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(part, ast.Module | ast.ClassDef | ast.FunctionDef):
                yield f"{path.relative_to(ROOT)}, {getattr(part, 'name', '')}", ast.get_docstring(part) or ""


def find_avoided(text: str) -> list[str]:
    """Every avoided phrase of a text, with what to write instead; a line's end counts as a space."""
    words = " ".join(text.split())
    return [
        f"{found[0]!r} → {better!r}"
        for phrase, better in AVOIDED.items()
        for found in re.finditer(rf"(?i)\b(?:{phrase})\b", words)
    ]


def test_no_avoided_phrase():
    found = [f"{place}: {problem}" for place, text in read_prose() for problem in find_avoided(text)]
    assert found == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("A killed training goes on\nwhere it was.", "'goes on where' → 'resume'"),
        ("It takes some three minutes.", "'some three' → 'about'"),
        ("One row an image.", "'One row an image' → 'one row per …'"),
        ("We recommend amending it: there is no file, and it had the wrong name.", None),
    ],
)
def test_a_phrase_is_found_across_lines(text: str, problem: str | None):
    assert find_avoided(text) == ([] if problem is None else [problem])
