"""One Snakemake job: one table of all categories, `categories.csv` and, to look at, `categories.html`."""

import sys
from pathlib import Path

from defaug_utils.core.files import write_atomically, write_csv
from defaug_utils.core.sources import read_dataset
from defaug_utils.data.datasets import list_untested
from defaug_utils.evaluation.detector import DetectorPlan
from defaug_utils.report.categories import (
    describe_categories,
    layout_categories,
    read_category_runs,
    summarise_categories,
)
from defaug_utils.report.tables import name_weights, style_table

job = snakemake  # noqa: F821 - Snakemake defines it
run, given = Path(job.params.run), job.params["values"]
detector = DetectorPlan(given["backbone"], kind=given["detector"]).label
kept = "restored outside the mask" if job.params.paste_back else "the decoder's whole output (paste_back off)"
setup = f"{detector}, {name_weights(given['weights'])}, AdaBLDM's images {kept}"
runs = read_category_runs(run, job.params.names)
untested = {name: list_untested(read_dataset(run / name / "data")) for name in job.params.names}
summary = summarise_categories(runs)
write_csv(summary, job.output.table)
caption = describe_categories(runs, untested, setup)
table = layout_categories(summary, runs)
with write_atomically(job.output.page) as temporary:
    page = f'<!doctype html><meta charset="utf-8">{style_table(table, caption).to_html()}'
    temporary.write_text(page, encoding="utf-8")
sys.stderr.write(f"\n{table.to_string()}\n\n{caption}\nThe table: {job.output.page}\n")
