"""One Snakemake job: execute one notebook with the profile's parameters."""

from pathlib import Path

from defaug_utils.book.batch import execute_notebook, hold_gpu, tell_job

job = snakemake  # noqa: F821 - Snakemake defines it
run, target = job.params.values["run_dir"], Path(job.output[0])
name = target.relative_to(Path(run) / "notebooks").with_suffix("").as_posix()
with hold_gpu(run, job.resources.get("gpu", 0)), tell_job(run, name):
    execute_notebook(job.input.notebook, target, dict(job.params.values), job.threads)
