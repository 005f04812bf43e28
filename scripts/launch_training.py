"""One Snakemake job: the training of one notebook, in several processes."""

from pathlib import Path

from defaug_utils.book.batch import hold_gpu, tell_job
from defaug_utils.book.parts import launch_training

job = snakemake  # noqa: F821 - Snakemake defines it
run, processes = job.params.values["run_dir"], job.params.processes
name = Path(job.output[0]).relative_to(run).with_suffix("").as_posix()
threads = max(1, job.threads // processes)
with hold_gpu(run, job.resources.get("gpu", 0)), tell_job(run, name):
    launch_training(job.input.notebook, dict(job.params.values), processes, threads)
