"""One Snakemake job: train and measure the classifiers of some runs for notebook 08."""

from dataclasses import fields
from pathlib import Path

import torch

from defaug_utils.book.batch import StepTeller, hold_gpu, tell_job
from defaug_utils.core.manifest import read_manifest
from defaug_utils.core.origins import parse_run_name
from defaug_utils.data.samples import load_samples
from defaug_utils.evaluation.classifier import ClassifierPlan, finish_classifier
from defaug_utils.protocol.mixing import list_needed

job = snakemake  # noqa: F821 - Snakemake defines it
torch.set_num_threads(job.threads)
given = job.params.values
run, size = Path(given["run_dir"]), (given["input_width"], given["input_height"])
plan = ClassifierPlan(**{field.name: given[field.name] for field in fields(ClassifierPlan)})
with hold_gpu(run, job.resources.get("gpu", 0)):
    for name in job.params.names:
        with tell_job(run, f"classifier/{name}"):
            known = list_needed(parse_run_name(name).arm)
            samples = load_samples(read_manifest(run / f"train-{name}.csv"), run, size, known)
            finish_classifier(run, name, samples, plan, StepTeller(f"classifier/{name}"))
