"""Parts of a notebook as jobs of their own: its training in several processes, and shards of its pools.

Both run the notebook's own cells, those tagged `part`, so that no setting is written twice: a training up to
the cell that is also tagged `training`, a shard up to the last of them, which makes the pools. The notebook
itself then finds everything made.
"""

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from subprocess import run

import nbformat
from nbformat import NotebookNode

from defaug_utils.book.batch import NotebookError

PART, TRAINING = "part", "training"  # tags of cells
LAUNCHED = Path("scripts/run_training.py")


def cut_notebook(path: Path | str, until: str = "") -> NotebookNode:
    """The cells of a notebook that a part of it needs: the parameters cell and those tagged `part`, in order.

    With `until`, the cell with this tag is the last. A NotebookError says that the notebook has no such cell.
    """
    notebook = nbformat.read(path, as_version=4)
    tags = [cell["metadata"].get("tags", []) for cell in notebook.cells]
    chosen = [number for number, own in enumerate(tags) if {PART, "parameters"} & set(own)]
    last = max((number for number in chosen if (until or PART) in tags[number]), default=None)
    if last is None:
        raise NotebookError(f"{path} has no cell tagged {until or PART!r}: it can't be run in parts")
    notebook.cells = [notebook.cells[number] for number in chosen if number <= last]
    return notebook


def launch_training(source: Path | str, values: Mapping, processes: int, threads: int = 1) -> None:
    """Run a notebook's training by `accelerate launch`, from the project's root.

    Args:
        values: for the notebook's parameters, as JSON values.
        processes: each takes its share of a step's images, on a GPU of its own if there are GPUs.
        threads: of the numerical libraries of each process.

    Raises:
        NotebookError: says what stopped the training.
    """
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "error.txt"
        command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(processes)]
        command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        if processes > 1:  # torchrun, which starts them on CPUs, too; port 0 is any free one
            command += ["--multi_gpu", "--main_process_port", "0"]
        command += [str(LAUNCHED), str(source), "--values", json.dumps(values), "--error", str(told)]
        limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
        status = run(command, env=os.environ | limits | {"TQDM_DISABLE": "1"}, check=False).returncode  # noqa: S603
        if status:
            found = told.read_text(encoding="utf-8") if told.is_file() else f"it ended with status {status}"
            raise NotebookError(f"{source}: its training in {processes} processes failed: {found}")
