"""Forecast a run: `make plan PROFILE=workshop` prints its jobs, images, hours, disk and memory."""

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
from plan_parts import forecast, measuring, workload
from plan_parts.bench import open_bench
from plan_parts.expected_data import list_data

from defaug_utils.book.batch import check_options
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


def main() -> None:
    """Count, measure and print."""
    given = read_options()
    run = f"runs/{given.profile}" + (f"-{Path(given.data).resolve().name}" if given.data else "")
    torch.set_num_threads(1)  # as every job has
    if given.gpus and not given.gpus.isdecimal():
        sys.exit(f"\nGPUS is {given.gpus!r}: expected a whole number\n")
    asked = int(given.gpus) if given.gpus else None
    try:
        check_options({"shards": given.shards, "processes": given.processes})
        shards, processes = int(given.shards), int(given.processes)
        profile = read_profile(f"profiles/{given.profile}.yaml")
        check_processes(profile, processes)
        values = workload.fill_in(profile)
        values["01_data_prep"] |= {"data_root": given.data} if given.data else {}
        data, told = list_data(values["01_data_prep"], run)
        load = workload.Workload(plan_book(profile), values, data, shards, processes)
    except (ValueError, OSError) as error:
        sys.exit(f"\n{error}\n")
    machine = forecast.look_at_machine(run, given.cores, asked)
    with tempfile.TemporaryDirectory() as folder:
        bench = open_bench(folder)
        jobs, costs = forecast.price_jobs(load, partial(measuring.measure, bench))
    pixels, _ = forecast.price_jobs(load, costs.__getitem__, "pixel_level")
    where = torch.cuda.get_device_name() if bench.device != "cpu" else "the processor, one thread a job"
    print(f"{given.profile}: {len(data)} images, {told}; measured on {where}\n")
    for table, texts in ((forecast.tabulate_stages(jobs), 1), (forecast.tabulate_costs(costs), 2)):
        sides = [*["left"] * texts, *["right"] * (len(table.columns) - texts)]
        print(table.to_markdown(index=False, tablefmt="simple", disable_numparse=True, colalign=sides), "\n")
    used = f"{machine.cores} cores and {min(machine.gpus, machine.asked_gpus)} GPUs"
    for command, asked_for in {"make book": jobs, "make pixels": pixels}.items():
        hours = forecast.expect_hours(asked_for, machine)
        print(f"{command}: {len(asked_for)} jobs, {hours:.2f} hours from first to last with {used}")
    for warning in forecast.list_warnings(jobs, machine, run):
        print(f"warning: {warning}")


if __name__ == "__main__":
    main()
