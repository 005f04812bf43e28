"""`accelerate launch` with two processes trains what one does, within the tolerance stated in book/gpu.md."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file
from tiny_models import save_model

from defaug_utils.book.batch import NotebookError
from defaug_utils.book.parts import launch_training
from defaug_utils.core.files import write_png
from defaug_utils.core.manifest import make_manifest, write_manifest

TOLERANCE = 1e-5  # of the distance of two trained networks, relative to their norm
NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
CONTROLNET = "controlnet/few-shot-seed0/controlnet/diffusion_pytorch_model.safetensors"
SMALL = {"scenario": "few-shot", "working_width": 16, "working_height": 48, "steps": 2, "clip_skip": 2}
LORA = {
    "instances": {"few-shot": 3, "zero-shot": 3, "full-shot": 0},
    "epochs": {"few-shot": 4, "zero-shot": 1, "full-shot": 1},
    **{"repeats": 2, "batch_size": 3, "prior_weight": 1.0, "regularisation_count": 2, "group_size": 2},
    **{"bucket_area": 768, "bucket_smallest": 8, "bucket_largest": 96, "bucket_step": 4},
    **{"kept_times": 1, "sample_count": 1, "linear_rank": 2, "conv_rank": 1},
}
TRIPLES = {
    **{"few_shot_count": 2, "training_steps": 8, "training_batch": 4, "save_every": 4, "sample_every": 8},
    **{"latent_editing": [], "image_editing": []},
}
pytestmark = pytest.mark.slow  # each process imports PyTorch and diffusers


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose text encoder has a layer that clip_skip 2 leaves out."""
    return save_model(tmp_path_factory.mktemp("models") / "text2image", unet_channels=4, text_layers=2)


def train(run: Path, model: Path, notebook: str, values: dict, processes: int) -> None:
    """Train in a run's folder by `accelerate launch`, on a data set of twelve training images."""
    generator, rows = np.random.default_rng(0), []
    for number in range(16):
        split, label = ("train", "train", "train", "test")[number % 4], ("negative", "positive")[number % 2]
        row = {"image": f"images/{number}.png", "label": label, "split": split, "origin": "real"}
        write_png(run / "data" / row["image"], generator.integers(60, 200, (48, 16, 3), dtype=np.uint8))
        if label == "positive":
            row["mask"] = f"masks/{number}.png"
            write_png(run / "data" / row["mask"], np.pad(np.ones((6, 3), bool), ((20, 22), (5, 8))))
        rows.append(row)
    write_manifest(make_manifest(rows), run / "data" / "manifest.csv")
    given = {"run_dir": str(run), "model": str(model), **SMALL, **values}
    launch_training(NOTEBOOKS / f"{notebook}.ipynb", given, processes)


def measure_distance(one: Path, other: Path) -> float:
    """Euclidean distance of two networks, relative to the norm of the first."""
    (first, second) = (load_file(path) for path in (one, other))
    assert first.keys() == second.keys()
    weights, changed = (np.concatenate([net[name].ravel() for name in first]) for net in (first, second))
    return float(np.linalg.norm(changed - weights) / np.linalg.norm(weights))


@pytest.mark.parametrize(
    ("notebook", "values", "folder", "trained"),
    [
        ("03_lora_finetune", LORA, "lora/few-shot-seed0", "lora/few-shot-seed0/lora.safetensors"),
        ("05_adabldm", TRIPLES, "controlnet/few-shot-seed0", CONTROLNET),
    ],
)
def test_two_processes_train_what_one_does(
    tmp_path: Path, model: Path, notebook: str, values: dict, folder: str, trained: str
):
    runs = [tmp_path / "one", tmp_path / "two"]
    for processes, run in enumerate(runs, 1):
        train(run, model, notebook, values, processes)
    one, two = (
        pd.read_csv(run / folder / "history.csv").drop(columns="seconds", errors="ignore") for run in runs
    )
    pd.testing.assert_frame_equal(one, two, rtol=TOLERANCE)
    assert measure_distance(*(run / trained for run in runs)) < TOLERANCE
    longer = values | {"training_steps": 10, "sample_every": 10, "save_every": 2}
    if notebook == "05_adabldm":  # one process goes on where two stopped
        for run in runs:
            train(run, model, notebook, longer, 1)
        assert len(pd.read_csv(runs[1] / folder / "history.csv")) == 3
        assert measure_distance(*(run / trained for run in runs)) < TOLERANCE


def test_what_stops_a_process_is_told(tmp_path: Path, model: Path):
    with pytest.raises(
        NotebookError, match="in 2 processes failed: 2 processes share the 1 images of a step"
    ):
        train(tmp_path, model, "03_lora_finetune", LORA | {"batch_size": 1}, 2)
