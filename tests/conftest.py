"""What all tests share: settings of the numerical libraries and of hypothesis."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import settings

PROJECT = Path(__file__).parents[1]
PATIENCE_SECONDS = 1800  # of a small book on a busy machine

# Workers of pytest-xdist share the cores, so each gets one thread unless the user says otherwise, and threads
# that wait don't keep a core busy. Libraries read this when they are imported: it stands before any import of
# them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

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


@pytest.fixture(scope="session")
def small_book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages of a small book whose engine was killed after the first notebook and started again."""
    folder = tmp_path_factory.mktemp("small")
    run = folder / "smoke"
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--config", "profile=smoke", f"run={run}"]

    def start(log: str) -> subprocess.Popen:
        with (folder / log).open("w") as output:
            streams = {"stdout": output, "stderr": subprocess.STDOUT}
            return subprocess.Popen(command, cwd=PROJECT, start_new_session=True, **streams)

    first, done = start("first.log"), run / "notebooks" / "01_data_prep.ipynb"
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not done.is_file():
        assert first.poll() is None, (folder / "first.log").read_text()
        assert time.monotonic() < deadline, "notebook 01 did not finish"
        time.sleep(0.2)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert not (run / "notebooks" / "08_results.ipynb").exists()
    finished_at = done.stat().st_mtime_ns
    assert start("second.log").wait(PATIENCE_SECONDS) == 0, (folder / "second.log").read_text()
    assert done.stat().st_mtime_ns == finished_at, "a finished notebook was run again"
    return run / "book" / "_build" / "html"


@pytest.fixture(scope="session")
def network():
    """The embedded backbone, to be looked into."""
    from defaug_utils.training.backbones import open_features

    weights = PROJECT / "models" / "backbones" / "resnet10_quarter.safetensors"
    return open_features("resnet10_quarter", str(weights))


@pytest.fixture(scope="session")
def samples():
    """Even noise, 64 × 96 pixels, in all splits; positives have a bright square from (24, 40) to (43, 59)."""
    import numpy as np
    import torch

    from defaug_utils.core.manifest import make_manifest
    from defaug_utils.data.samples import Samples

    rows, images, generator = [], [], np.random.default_rng(0)
    for split, (negatives, positives) in {"train": (20, 3), "val": (4, 0), "test": (6, 4)}.items():
        for index in range(negatives + positives):
            label = "positive" if index >= negatives else "negative"
            rows.append({"image": f"{split} {index}.png", "label": label, "split": split, "origin": "real"})
            images.append(generator.integers(90, 130, (96, 64, 3), dtype=np.uint8))
            if label == "positive":
                images[-1][40:60, 24:44] = 220
    labels = torch.tensor([float(row["label"] == "positive") for row in rows])
    return Samples(torch.from_numpy(np.stack(images)), labels, make_manifest(rows))
