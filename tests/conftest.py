"""What all tests share: settings of the numerical libraries and of hypothesis."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Workers of pytest-xdist share the cores, so each gets one thread unless the user says otherwise. Libraries
# read this when they are imported: it stands before any import of them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("tests", deadline=None)  # a busy machine answers late
settings.load_profile("tests")


@pytest.fixture(scope="session")
def text_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that makes images from text, in diffusers' layout; not to be changed."""
    from tiny_models import save_model  # diffusers takes seconds to import, and few tests need it

    return save_model(tmp_path_factory.mktemp("models") / "text2image", unet_channels=4)


@pytest.fixture(scope="session")
def inpainting_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that inpaints, in diffusers' layout; not to be changed."""
    from tiny_models import save_model

    return save_model(tmp_path_factory.mktemp("models") / "inpainting")
