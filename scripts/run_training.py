"""One process of a training: run the cells of a notebook that train, up to the end of the training.

    accelerate launch --multi_gpu --num_processes 8 scripts/run_training.py notebooks/03_lora_finetune.ipynb \
        --values '{run_dir: runs/paper, scenario: few-shot}'

All processes train the same network and share the images of each step. The notebook itself then finds the
finished training. The batch engine starts this script with the values of a profile.
"""

import argparse
import sys
from contextlib import redirect_stdout, suppress
from io import StringIO
from pathlib import Path

import torch
import yaml
from accelerate import PartialState
from IPython.core.interactiveshell import InteractiveShell

from defaug_utils.book.parts import TRAINING, cut_notebook


def run_cells(path: Path, values: dict) -> None:
    """Run the training cells of a notebook in this process, without showing anything."""
    shell = InteractiveShell.instance()
    shell.showtraceback = lambda *_, **__: None  # the error is raised below
    for cell in cut_notebook(path, TRAINING).cells:
        shell.run_cell(cell.source, silent=True).raise_error()
        if "parameters" in cell.metadata.tags:
            shell.push(values)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--values", type=yaml.safe_load, default={}, help="of its parameters, as YAML")
    parser.add_argument("--error", type=Path, help="file for the message of the process that fails first")
    given = parser.parse_args()
    state = PartialState(cpu=not torch.cuda.is_available())  # gives each process its GPU, before any network
    try:
        with redirect_stdout(sys.stdout if state.is_main_process else StringIO()):
            run_cells(given.notebook, given.values)
    except Exception as error:
        if given.error:
            with suppress(FileExistsError), given.error.open("x", encoding="utf-8") as note:
                note.write(str(error) or type(error).__name__)
        raise
    state.destroy_process_group()
