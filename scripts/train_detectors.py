"""One Snakemake job: train and measure the detectors of some runs for notebook 09."""

import torch

from defaug_utils.book.batch import StepTeller, hold_gpu, tell_job
from defaug_utils.core.origins import parse_run_name
from defaug_utils.evaluation.detector import DetectorPlan, compose_detector_set, finish_detector
from defaug_utils.protocol.mixing import Mix

job = snakemake  # noqa: F821 - Snakemake defines it
torch.set_num_threads(job.threads)
given = job.params.values
plan = DetectorPlan(
    *(given[key] for key in ("backbone", "weights", "training_images", "batch_size", "learning_rate")),
    (given["input_width"], given["input_height"]),
    given["detector"],
)
mix = Mix(given["few_shot_count"], extra_arms=given["extra_arms"])
with hold_gpu(given["run_dir"], job.resources.get("gpu", 0)):
    for name in job.params.names:
        with tell_job(given["run_dir"], f"segmenter/{name}"):
            rows = compose_detector_set(given["run_dir"], parse_run_name(name), mix)
            teller = StepTeller(f"segmenter/{name}")
            finish_detector(given["run_dir"], name, rows, plan, on_step=teller)
