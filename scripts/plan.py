"""Forecast a run: `make plan PROFILE=workshop` prints its jobs, images, hours, disk and memory."""

import argparse
import sys
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import torch
from plan_parts import forecast, measuring
from plan_parts.bench import open_bench
from plan_parts.expected_data import list_data
from plan_parts.measuring import Cost
from plan_parts.workload import Task, Workload, fill_in

from defaug_utils.book.batch import check_options
from defaug_utils.book.categories import adapt_parameters, find_categories
from defaug_utils.book.plan import check_processes, plan_book
from defaug_utils.book.profiles import read_profile


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("profile", help="a name in profiles/")
    parser.add_argument("--data", default="", help="folder of your own data set")
    parser.add_argument("--cores", type=int, default=0, help="processor cores to use, 0 for all")
    parser.add_argument("--gpus", default="", help="GPUs to use; if empty, all")
    parser.add_argument("--shards", default="1", help="jobs that each pool is cut into")
    parser.add_argument("--processes", default="1", help="processes of each training of a diffusion model")
    return parser.parse_args()


def read_workload(profile: dict, data: str, run: str, shards: int, processes: int) -> tuple[Workload, str]:
    """The work of a run, and where the number of its images comes from."""
    values = fill_in(profile)
    values["01_data_prep"] |= {"data_root": data} if data else {}
    rows, told = list_data(values["01_data_prep"], run)
    return Workload(plan_book(profile), values, rows, shards, processes), told


def read_workloads(given: argparse.Namespace, run: str) -> tuple[dict[str, Workload], str]:
    """The work of each category by its name, or that of a single run under the name "", and where from."""
    check_options({"shards": given.shards, "processes": given.processes})
    shards, processes = int(given.shards), int(given.processes)
    profile = read_profile(f"profiles/{given.profile}.yaml")
    check_processes(profile, processes)
    categories = find_categories(given.data) if given.data else []
    if not categories:
        load, told = read_workload(profile, given.data, run, shards, processes)
        return {"": load}, told
    loads = {}
    for one in categories:
        place = (f"{folder}/{one.name}" for folder in (given.data, run))
        loads[one.name], _ = read_workload(adapt_parameters(profile, one), *place, shards=1, processes=1)
    return loads, f"{len(loads)} categories of {given.data}"


def price_jobs(
    loads: dict[str, Workload], measure: Callable[[Task], Cost], target: str
) -> tuple[list[forecast.PricedJob], dict[Task, Cost]]:
    """Price the jobs of a single run's target, or one job for each category."""
    jobs, costs = [], {}
    for category, load in loads.items():
        own, used = forecast.price_jobs(load, measure, target)
        jobs += [forecast.join_jobs(category, own)] if category else own
        costs |= used
    return jobs, costs


def main() -> None:
    """Count, measure and print."""
    given = read_options()
    run = f"runs/{given.profile}" + (f"-{Path(given.data).resolve().name}" if given.data else "")
    torch.set_num_threads(1)  # as every job has
    if given.gpus and not given.gpus.isdecimal():
        sys.exit(f"\nGPUS is {given.gpus!r}: expected a whole number\n")
    try:
        loads, told = read_workloads(given, run)
    except (ValueError, OSError) as error:
        sys.exit(f"\n{error}\n")
    machine = forecast.look_at_machine(run, given.cores, int(given.gpus) if given.gpus else None)
    targets = {"make book": "book"} if "" in loads else {}
    targets |= {"make pixels": "pixel_level"}
    with tempfile.TemporaryDirectory() as folder:
        bench = open_bench(folder)
        measure = cache(partial(measuring.measure, bench))
        priced = {command: price_jobs(loads, measure, target) for command, target in targets.items()}
    jobs, costs = next(iter(priced.values()))
    count = sum(len(load.data) for load in loads.values())
    where = torch.cuda.get_device_name() if bench.device != "cpu" else "the processor, one thread a job"
    print(f"{given.profile}: {count} images, {told}; measured on {where}\n")
    stages = forecast.tabulate_stages(jobs, "stage" if "" in loads else "category")
    for table, texts in ((stages, 1), (forecast.tabulate_costs(costs), 2)):
        sides = [*["left"] * texts, *["right"] * (len(table.columns) - texts)]
        print(table.to_markdown(index=False, tablefmt="simple", disable_numparse=True, colalign=sides), "\n")
    used = f"{machine.cores} cores and {min(machine.gpus, machine.asked_gpus)} GPUs"
    for command, (asked_for, _) in priced.items():
        hours = forecast.expect_hours(asked_for, machine)
        print(f"{command}: {len(asked_for)} jobs, {hours:.2f} hours from first to last with {used}")
    for warning in forecast.list_warnings(jobs, machine, run):
        print(f"warning: {warning}")


if __name__ == "__main__":
    main()
