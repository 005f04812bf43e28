"""One Snakemake job: execute one notebook with the profile's parameters."""

import sys

from defaug_utils.book.batch import NotebookError, execute_notebook

job = snakemake  # noqa: F821 - Snakemake defines it
try:
    execute_notebook(job.input.notebook, job.output[0], dict(job.params.values), job.threads)
except NotebookError as error:
    sys.exit(f"\n{error}\n")
