"""One Snakemake job: stage the executed notebooks and build the book."""

from pathlib import Path

from defaug_utils.book.batch import build_book, stage_book, tell_job

job = snakemake  # noqa: F821 - Snakemake defines it
with tell_job(Path(job.params.folder).parent, "book"):
    stage_book(".", dict(job.params.executed), job.params.folder)
    build_book(job.params.folder)
