"""One Snakemake job: run a category's notebooks one after the other, up to its detectors of defect pixels."""

from pathlib import Path

from defaug_utils.book.batch import execute_notebook, hold_gpu, tell_job
from defaug_utils.book.categories import is_executed

job = snakemake  # noqa: F821 - Snakemake defines it
run, category, is_stale = job.params.run, job.wildcards.category, False
with hold_gpu(run, job.resources.get("gpu", 0)):
    for name, values in job.params.notebooks.items():
        source = Path("notebooks", f"{name.split('/')[0]}.ipynb")
        target = Path(values["run_dir"], "notebooks", f"{name}.ipynb")
        is_stale = is_stale or not is_executed(source, target, values)
        if is_stale:  # and so is whatever comes after it
            with tell_job(run, f"{category}/{name}"):
                execute_notebook(source, target, values, job.threads)
