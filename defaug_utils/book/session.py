"""Start and end of every notebook: seeds, folders, plot style, progress, and the watermark."""

import os
import platform
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

import numpy as np
import pandas as pd
import psutil
import seaborn as sns
import torch
from IPython.display import Markdown, clear_output, display
from tqdm.auto import tqdm

from defaug_utils import __version__
from defaug_utils.core.pools import PoolUnfinished
from defaug_utils.core.texts import escape_markdown
from defaug_utils.training.loop import StepDone

WATERMARK_TYPE = "application/vnd.defaug.watermark+json"  # MIME type of its values in an executed notebook
REPORTED_PACKAGES = ("torch", "transformers", "diffusers", "numpy", "scikit-learn", "scikit-image")
_remembered: dict[str, object] | None = None  # parameters of the notebook that this process runs


def find_project_root(start: Path | str = ".") -> Path:
    """The nearest folder at or above `start` that contains `_toc.yml` and `defaug_utils`."""
    start = Path(start).resolve()
    for folder in (start, *start.parents):
        if (folder / "_toc.yml").is_file() and (folder / "defaug_utils").is_dir():
            return folder
    raise FileNotFoundError(f"no project at or above {start}: open the notebook from inside the repository")


def start_notebook(run_dir: str, seed: int) -> Path:
    """Seed Python, NumPy and PyTorch, set the plot style, change to the project's root, record parameters.

    The parameters are the notebook's annotated names (the parameters cell contains nothing else) with their
    current values, including those injected by papermill.

    Returns:
        The run's folder `run_dir`, relative to the project's root; created if missing.
    """
    global _remembered
    os.chdir(find_project_root())
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - libraries that still draw from the global generator
    torch.manual_seed(seed)
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind")
    pd.options.display.max_rows = 200  # the watermark lists every parameter
    pd.options.display.html.use_mathjax = False  # a $ in a cell starts no formula
    names = vars(sys.modules["__main__"])
    annotated = names.get("__annotations__", {})
    _remembered = {name: deepcopy(names[name]) for name in annotated if name in names}
    run = Path(run_dir)
    run.mkdir(parents=True, exist_ok=True)
    return run


class Bar(tqdm):
    """A progress bar that can follow a training."""

    def follow(self, done: StepDone) -> None:
        """Move to the finished step and show its loss; for `on_step` of a training.

        The remaining time is computed from the steps of this call alone.
        """
        if self.total != done.steps:  # known from now on
            self.reset(done.steps)
            self.initial = self.n = self.last_print_n = done.step
            self.refresh()
        self.set_postfix(loss=f"{done.loss:.3f}", refresh=False)
        self.update(done.step - self.n)


@contextmanager
def progress(total: int | None = None) -> Iterator[Bar]:
    """Show a progress bar during a block: `with progress(count) as bar:`, with `bar.update` as callback.

    At the end of the block, the bar and all previous output of its cell are cleared. If a shard of a pool is
    waiting for others, a SystemExit ends the notebook, which papermill counts as success.
    """
    try:
        with Bar(total=total, leave=False) as bar:
            yield bar
    except PoolUnfinished as shard:
        clear_output()
        display(Markdown("\n".join(map(escape_markdown, str(shard).splitlines()))))
        raise SystemExit(0) from None
    clear_output()


class Pause(Exception):
    """Raised by `pause`; a notebook shows its message and no traceback."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


def pause(message: str) -> NoReturn:
    """Stop "Run All" at this cell, with a message that says what to do now and how to continue."""
    raise Pause(message)


@dataclass(frozen=True)
class Watermark:
    """Versions, commit and parameters of a run; a notebook shows them as a table and stores them as JSON."""

    versions: dict[str, str]  #: of Python and the packages, with system and device
    commit: str  #: of the project, with "-dirty" if files were changed
    parameters: dict[str, object]  #: as recorded by `start_notebook`

    def to_table(self) -> pd.DataFrame:
        """One row each, with the columns `what` and `value`."""
        written = [(name, repr(value)) for name, value in self.parameters.items()]
        rows = [*self.versions.items(), ("commit", self.commit), *written]
        return pd.DataFrame(rows, columns=["what", "value"])

    def _repr_mimebundle_(self, **_: object) -> dict[str, object]:
        table = self.to_table()
        return {"text/plain": repr(table), "text/html": table._repr_html_(), WATERMARK_TYPE: asdict(self)}


def watermark() -> Watermark:
    """Versions, commit and parameters of this notebook; a RuntimeError if `start_notebook` was not called."""
    if _remembered is None:
        raise RuntimeError("the parameters are unknown: call start_notebook(run_dir, seed) at the start")
    versions = {"Python": platform.python_version(), "system": platform.system()} | describe_machine()
    versions |= {"defaug_utils": __version__} | {package: version(package) for package in REPORTED_PACKAGES}
    return Watermark(versions, _commit(), deepcopy(_remembered))


def describe_machine() -> dict[str, str]:
    """Device (a GPU, otherwise the number of cores), processor, and memory of this machine."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    memory = f"{psutil.virtual_memory().total / 2**30:.0f} GiB"
    return {"device": device, "processor": _name_processor(), "memory": memory}


def _name_processor() -> str:
    """Its model's name where Linux tells it; elsewhere what Python knows."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text(encoding="utf-8", errors="replace").splitlines() if told.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return "not in a git checkout"
    return found.stdout.strip()
