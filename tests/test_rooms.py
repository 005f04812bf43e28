"""The house's one law: a room imports only from rooms to its left."""

import ast
import importlib
from pathlib import Path

import pytest

ROOMS = (
    *("core", "training", "data", "masks", "diffusion", "methods"),
    *("protocol", "evaluation", "report", "widgets", "book"),
)
PACKAGE = Path(__file__).parents[1] / "defaug_utils"


def list_imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [node.module] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from (name.split(".") for name in names if name)


def test_every_room_is_in_the_law():
    assert sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py")) == sorted(ROOMS)


def test_a_room_imports_only_from_rooms_to_its_left():
    for path in PACKAGE.glob("*/*.py"):
        reached = {name[1] for name in list_imports(path) if name[0] == "defaug_utils" and len(name) > 1}
        right = [room for room in reached if ROOMS.index(room) > ROOMS.index(path.parent.name)]
        assert not right, f"{path.relative_to(PACKAGE)} imports from {right}"


def test_only_the_room_diffusion_imports_diffusers_or_peft():
    for path in PACKAGE.glob("*/*.py"):
        foreign = {name[0] for name in list_imports(path)} & {"diffusers", "peft"}
        assert not foreign or path.parent.name == "diffusion", (
            f"{path.relative_to(PACKAGE)} imports {foreign}"
        )


@pytest.mark.parametrize("room", ROOMS)
def test_every_name_that_a_room_hands_on_exists(room):
    module = importlib.import_module(f"defaug_utils.{room}")
    assert module.__all__ == sorted(module.__all__)
    for name in module.__all__:
        assert getattr(module, name, None) is not None, name
