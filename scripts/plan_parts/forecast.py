"""The forecast of a run: the counts of a profile times the measured cost of each kind of work."""

import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

from defaug_utils.book.batch import list_gpus
from defaug_utils.book.plan import Job
from defaug_utils.core.origins import ORIGINS
from plan_parts.measuring import Cost
from plan_parts.workload import Task, Work, Workload

STAGES = {"classifiers": "07_classifier", "classifier": "07_classifier", "detectors": "09_pixel_level"}
PHASES = (  # rules whose jobs can run at the same time; each phase waits for the one before
    *(("data_prep",), ("training",), ("shard",), ("pool", "diffusion"), ("in_and_out",)),
    *(("classifiers", "detectors", "own_defect"), ("classifier", "results", "pixel_level"), ("book",)),
    ("category",),
)
PICTURES = (
    *("prepared image", "MemSeg image", "pasted image"),
    *("text-to-image step", "inpainting step", "blending step"),
)
NETWORKS = ("classifier step", "detector step", "student step", "head step")
NOTHING, UNKNOWN = "–", "not measured"
GB = 1e9


@dataclass(frozen=True)
class Machine:
    """The resources of a run."""

    cores: int
    gpus: int  #: available ones
    asked_gpus: int  #: that the run should use
    memory: int  #: bytes, of a GPU if there is one
    free_disk: int  #: bytes, on the disk of the run's folder


def look_at_machine(run: Path | str, cores: int = 0, gpus: int | None = None) -> Machine:
    """This machine; `cores` 0 means all, `gpus` None all that are available."""
    found = len(list_gpus()) if torch.cuda.is_available() else 0
    folder = next(path for path in (Path(run).resolve(), *Path(run).resolve().parents) if path.is_dir())
    return Machine(
        cores or os.cpu_count() or 1,
        found,
        found if gpus is None else gpus,
        torch.cuda.mem_get_info()[1] if found else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        shutil.disk_usage(folder).free,
    )


class PricedJob(NamedTuple):
    """A job and its cost."""

    rule: str
    stage: str  #: its chapter, or a category
    images: int  #: made
    steps: int  #: of trainings
    seconds: float
    disk: float  #: bytes
    memory: int  #: peak bytes
    problems: tuple[str, ...]  #: why parts were not measured; seconds and disk are then too small
    processes: int = 1  #: each with a core, and with a GPU if the job wants one

    @property
    def gpus(self) -> int:
        """GPUs that the Snakefile reserves for it."""
        rows = (row.wants_gpu for row in ORIGINS.values() if row.notebook == self.stage)
        is_pool = self.rule in ("training", "shard", "pool")
        wants = any(rows) if is_pool else self.rule in ("classifiers", "detectors", "own_defect", "category")
        return self.processes * wants


def price_jobs(
    workload: Workload, measure: Callable[[Task], Cost], target: str = "book"
) -> tuple[list[PricedJob], dict[Task, Cost]]:
    """Price every job of a target; each task is measured once."""
    work_of = {job: workload.list_work(job) for job in workload.list_jobs(target)}
    costs = {
        task: measure(task) for task in dict.fromkeys(one.task for work in work_of.values() for one in work)
    }
    priced = [_price(job, work, costs, len(workload.data)) for job, work in work_of.items()]
    several = workload.processes
    return [job._replace(processes=several) if job.rule == "training" else job for job in priced], costs


def _price(job: Job, work: list[Work], costs: Mapping[Task, Cost], loaded: int) -> PricedJob:
    priced = [(one, costs[one.task]) for one in work]
    return PricedJob(
        job.rule,
        STAGES.get(job.rule, job.name.partition("/")[0]),
        images=sum(one.images for one in work if one.task.kind in PICTURES),
        steps=sum(one.steps for one in work if one.trainings),
        seconds=sum(one.images * cost.image + one.steps * cost.step for one, cost in priced),
        disk=sum(one.images * cost.image_bytes + one.trainings * cost.training_bytes for one, cost in priced),
        memory=max(cost.memory + _count_loaded(one.task, loaded) for one, cost in priced),
        problems=tuple(dict.fromkeys(cost.problem for _, cost in priced if cost.problem)),
    )


def join_jobs(category: str, jobs: Iterable[PricedJob]) -> PricedJob:
    """A category's one job, which does all of these one after another."""
    jobs = list(jobs)
    images, steps, seconds, disk = (
        sum(getattr(job, name) for job in jobs) for name in ("images", "steps", "seconds", "disk")
    )
    problems = tuple(dict.fromkeys(problem for job in jobs for problem in job.problems))
    memory = max(job.memory for job in jobs)
    return PricedJob("category", category, images, steps, seconds, disk, memory, problems)


def _count_loaded(task: Task, images: int) -> int:
    """Bytes of the data set that classifiers and detectors hold in memory (not in that of a GPU)."""
    is_held = task.kind in NETWORKS and not torch.cuda.is_available()
    return 3 * task.size[0] * task.size[1] * images if is_held else 0


def tabulate_stages(jobs: Iterable[PricedJob], name: str = "stage") -> pd.DataFrame:
    """One row per stage and one for all, as text: jobs, images, steps, hours, disk and memory.

    `name` is that of the first column.
    """
    table = pd.DataFrame(jobs)
    stages = dict(list(table.groupby("stage"))) | {"all": table}
    return pd.DataFrame([{name: stage} | _describe(stage, rows) for stage, rows in stages.items()])


def _describe(stage: str, rows: pd.DataFrame) -> dict[str, str]:
    is_known = not any(rows["problems"])
    more = "" if is_known else "more than "
    hours, disk, memory = rows["seconds"].sum() / 3600, rows["disk"].sum() / GB, rows["memory"].max() / GB
    told = {
        "hours": f"{more}{hours:.2f}",
        "disk, GB": f"{more}{disk:.2f}",
        "memory, GB": f"{more}{memory:.1f}",
    }
    if not is_known and stage != "all":
        told = dict.fromkeys(told, UNKNOWN)
    counts = {"jobs": len(rows), "images": rows["images"].sum(), "training steps": rows["steps"].sum()}
    return {name: str(count or NOTHING) for name, count in counts.items()} | told


def tabulate_costs(costs: Mapping[Task, Cost]) -> pd.DataFrame:
    """One row per task: what was measured."""
    rows = [
        {
            "measured": task.kind,
            "model": task.model or NOTHING,
            "at once": task.batch,
            "seconds a step": f"{cost.step:.3f}" if cost.step else UNKNOWN if cost.problem else NOTHING,
            "seconds an image": f"{cost.image:.3f}" if cost.image else NOTHING,
        }
        for task, cost in costs.items()
    ]
    return pd.DataFrame(rows)


def expect_hours(jobs: Iterable[PricedJob], machine: Machine) -> float:
    """Hours from the first job to the last, if all cores and GPUs are used."""
    jobs, gpus = list(jobs), min(machine.gpus, machine.asked_gpus)
    seconds = 0.0
    for rules in PHASES:
        phase = [job for job in jobs if job.rule in rules]
        on_gpu = sum(job.seconds * job.gpus for job in phase) / gpus if gpus else 0.0
        shared = sum(job.seconds * job.processes for job in phase) / machine.cores
        seconds += max([on_gpu, shared, *(job.seconds for job in phase)])
    return seconds / 3600


def list_warnings(jobs: Iterable[PricedJob], machine: Machine, run: Path | str) -> list[str]:
    """What this machine lacks for a run (disk, memory, GPUs), and what could not be measured."""
    jobs, warnings = list(jobs), []
    disk = sum(job.disk for job in jobs)
    if disk > machine.free_disk:
        free = machine.free_disk / GB
        warnings.append(
            f"{disk / GB:.1f} GB of disk are needed for {run}, {free:.1f} GB are free: make room, "
            "or run from another disk"
        )
    if machine.asked_gpus > machine.gpus:
        warnings.append(f"{machine.asked_gpus} GPUs are requested, {machine.gpus} are available")
    warnings += _check_memory(jobs, machine)
    missing: dict[str, list[str]] = {}
    for job in jobs:
        for problem in job.problems:
            missing.setdefault(problem, []).append(job.stage)
    warnings += [
        f"{UNKNOWN}: {problem} (in {', '.join(dict.fromkeys(stages))})" for problem, stages in missing.items()
    ]
    return warnings


def _check_memory(jobs: list[PricedJob], machine: Machine) -> list[str]:
    """A job has a GPU's memory to itself; on a CPU, jobs that run at the same time share memory."""
    largest = 0
    for rules in PHASES:
        needs = [need for job in jobs if job.rule in rules for need in [job.memory] * job.processes]
        needs.sort(reverse=True)
        largest = max(largest, sum(needs[: 1 if machine.gpus else machine.cores]))
    if largest <= machine.memory:
        return []
    where = "a GPU" if machine.gpus else f"{machine.cores} jobs at the same time"
    return [
        f"{largest / GB:.1f} GB of memory are needed for {where}, there are {machine.memory / GB:.1f} GB: "
        "ask for smaller batches" + ("" if machine.gpus else ", or fewer CORES")
    ]
