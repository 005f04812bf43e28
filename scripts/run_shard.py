"""One Snakemake job: make one shard of the pools of a notebook, by those of its cells that do."""

from pathlib import Path

import nbformat

from defaug_utils.book.batch import execute_notebook, hold_gpu, tell_job
from defaug_utils.book.parts import cut_notebook

job = snakemake  # noqa: F821 - Snakemake defines it
run, target = job.params.values["run_dir"], Path(job.output[0])
source = target.with_suffix(".cells.ipynb")
name = target.relative_to(run).with_suffix("").as_posix()
with hold_gpu(run, job.resources.get("gpu", 0)), tell_job(run, name):
    nbformat.write(cut_notebook(job.input.notebook), source)
    execute_notebook(source, target, dict(job.params.values), job.threads)
    source.unlink()
