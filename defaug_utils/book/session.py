"""The start and the end of every notebook: seeds, folders, plot style, and what it ran on."""

import os
import platform
import random
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from IPython.display import clear_output
from tqdm.auto import tqdm

from defaug_utils.core.pools import PoolUnfinished

REPORTED_PACKAGES = (
    "defaug_utils",
    "torch",
    "transformers",
    "diffusers",
    "numpy",
    "scikit-learn",
    "scikit-image",
)


def find_project_root(start: Path | str = ".") -> Path:
    """The nearest folder at or above `start` that holds `_toc.yml` and `defaug_utils`."""
    start = Path(start).resolve()
    for folder in (start, *start.parents):
        if (folder / "_toc.yml").is_file() and (folder / "defaug_utils").is_dir():
            return folder
    raise FileNotFoundError(f"no project at or above {start}: open the notebook from inside the repository")


def start_notebook(run_dir: str, seed: int) -> Path:
    """Set seeds and plot style, and move to the project's root so that all paths are relative to it.

    Args:
        run_dir: folder of the run, relative to the project's root.
        seed: seeds Python, NumPy and PyTorch.

    Returns:
        The run's folder, made when missing.
    """
    os.chdir(find_project_root())
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - libraries that still draw from the global generator
    torch.manual_seed(seed)
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind")
    pd.options.display.max_rows = 200  # the watermark names every parameter
    run = Path(run_dir)
    run.mkdir(parents=True, exist_ok=True)
    return run


@contextmanager
def progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar that goes away when the block ends well; a shard that waits for others ends the notebook there.

    Args:
        total: of what the bar counts.

    Yields:
        What takes the number of things just finished.

    Raises:
        SystemExit: a shard is made and its pool is not; papermill takes that for a success.
    """
    waits = ""
    try:
        with tqdm(total=total, leave=False) as bar:
            yield bar.update
    except PoolUnfinished as shard:
        waits = str(shard)
    clear_output()
    if waits:
        print(waits)
        raise SystemExit(0)


def watermark(parameters: dict) -> pd.DataFrame:
    """What a notebook ran on and with: versions, device, commit and parameters, one row each.

    Args:
        parameters: name → value, as the parameters cell and papermill left them.

    Returns:
        A table with the columns `what` and `value`.
    """
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    rows = [("Python", platform.python_version()), ("system", platform.system()), ("device", device)]
    rows += [(package, found) for package in REPORTED_PACKAGES if (found := _installed_version(package))]
    rows += [("commit", _commit())]
    rows += [(name, repr(value)) for name, value in parameters.items()]
    return pd.DataFrame(rows, columns=["what", "value"])


def _installed_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return "not in a git checkout"
    return found.stdout.strip()
