"""The start and the end of every notebook: seeds, folders, plot style, progress, and what it ran on."""

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

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from IPython.display import Markdown, clear_output, display
from tqdm.auto import tqdm

from defaug_utils import __version__
from defaug_utils.core.pools import PoolUnfinished
from defaug_utils.core.texts import escape_markdown
from defaug_utils.training.loop import StepDone

WATERMARK_TYPE = "application/vnd.defaug.watermark+json"  # of its values in an executed notebook
REPORTED_PACKAGES = ("torch", "transformers", "diffusers", "numpy", "scikit-learn", "scikit-image")
_remembered: dict[str, object] | None = None  # parameters of the one notebook that this process runs


def find_project_root(start: Path | str = ".") -> Path:
    """The nearest folder at or above `start` that holds `_toc.yml` and `defaug_utils`."""
    start = Path(start).resolve()
    for folder in (start, *start.parents):
        if (folder / "_toc.yml").is_file() and (folder / "defaug_utils").is_dir():
            return folder
    raise FileNotFoundError(f"no project at or above {start}: open the notebook from inside the repository")


def start_notebook(run_dir: str, seed: int) -> Path:
    """Seed Python, NumPy and PyTorch, set the plot style, move to the project's root, note the parameters.

    The parameters are the annotated names of the notebook (the cell of parameters holds nothing else) with
    the values that they have now, those injected by papermill included.

    Returns:
        The run's folder `run_dir`, relative to the project's root; made when missing.
    """
    global _remembered
    os.chdir(find_project_root())
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - libraries that still draw from the global generator
    torch.manual_seed(seed)
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind")
    pd.options.display.max_rows = 200  # the watermark names every parameter
    pd.options.display.html.use_mathjax = False  # a $ in a cell begins no formula
    names = vars(sys.modules["__main__"])
    annotated = names.get("__annotations__", {})
    _remembered = {name: deepcopy(names[name]) for name in annotated if name in names}
    run = Path(run_dir)
    run.mkdir(parents=True, exist_ok=True)
    return run


class Bar(tqdm):
    """A progress bar that can follow a training."""

    def follow(self, done: StepDone) -> None:
        """Move to the step that is finished, and show its loss; for `on_step` of a training.

        The time left is told by the steps of this call alone, not by those of an earlier one.
        """
        if self.total != done.steps:  # known from now on
            self.reset(done.steps)
            self.initial = self.n = self.last_print_n = done.step
            self.refresh()
        self.set_postfix(loss=f"{done.loss:.3f}", refresh=False)
        self.update(done.step - self.n)


@contextmanager
def progress(total: int | None = None) -> Iterator[Bar]:
    """Show a bar while a block runs: `with progress(count) as bar:`, then hand `bar.update` on as callback.

    At the block's end the bar goes, with all other output of its cell so far. Where a shard of a pool waits
    for others, a SystemExit ends the notebook, which papermill takes for a success.
    """
    try:
        with Bar(total=total, leave=False) as bar:
            yield bar
    except PoolUnfinished as shard:
        clear_output()
        display(Markdown("\n".join(map(escape_markdown, str(shard).splitlines()))))
        raise SystemExit(0) from None
    clear_output()


@dataclass(frozen=True)
class Watermark:
    """What a notebook ran on and with; a notebook shows it as a table and keeps its values as JSON."""

    versions: dict[str, str]  #: of Python and the packages, with system and device
    commit: str  #: of the project, with "-dirty" where files had changed
    parameters: dict[str, object]  #: as `start_notebook` found them

    def to_table(self) -> pd.DataFrame:
        """One row each, with the columns `what` and `value`."""
        written = [(name, repr(value)) for name, value in self.parameters.items()]
        rows = [*self.versions.items(), ("commit", self.commit), *written]
        return pd.DataFrame(rows, columns=["what", "value"])

    def _repr_mimebundle_(self, **_: object) -> dict[str, object]:
        table = self.to_table()
        return {"text/plain": repr(table), "text/html": table._repr_html_(), WATERMARK_TYPE: asdict(self)}


def watermark() -> Watermark:
    """What this notebook ran on and with; a RuntimeError where `start_notebook` was not called before."""
    if _remembered is None:
        raise RuntimeError("no parameters are known: call start_notebook(run_dir, seed) at the start")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    versions = {"Python": platform.python_version(), "system": platform.system(), "device": device}
    versions |= {"defaug_utils": __version__} | {package: version(package) for package in REPORTED_PACKAGES}
    return Watermark(versions, _commit(), deepcopy(_remembered))


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return "not in a git checkout"
    return found.stdout.strip()
