"""One Snakemake job: run all jobs of a category, one after the other, up to its pixel-level chapter."""

import subprocess
import sys

from defaug_utils.book.batch import NotebookError, hold_gpu, tell_job

HERE = ("--executor", "local", "--profile", "none")  # even if this job itself runs on a cluster

job = snakemake  # noqa: F821 - Snakemake defines it
run, category = job.params.run, job.wildcards.category
command = [sys.executable, "-m", "snakemake", "pixel_level", "--cores", str(job.threads), *HERE]
command += ["--config", *(f"{name}={value}" for name, value in job.params.config.items())]
with hold_gpu(run, job.resources.get("gpu", 0)), tell_job(run, category):
    if subprocess.run(command, check=False).returncode:  # noqa: S603
        raise NotebookError(f"a job of this category failed, see above and {run}/{category}/errors")
