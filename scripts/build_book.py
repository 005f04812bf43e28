"""One Snakemake job: stage the executed notebooks and build the book."""

import sys

from defaug_utils.book.batch import build_book, stage_book

job = snakemake  # noqa: F821 - Snakemake defines it
stage_book(".", dict(job.params.executed), job.params.folder)
try:
    build_book(job.params.folder)
except RuntimeError as error:
    sys.exit(f"\n{error}\n")
