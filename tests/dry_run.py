"""A paper profile from data to its tables in minutes: `.venv/bin/python tests/dry_run.py paper`.

Data set, models and profile are written to a folder, and the batch engine is started as `make book` starts
it. The data set has the real layout, the models are of the real families and found under their published ids,
and the profile is the real one except for `SIZES`. The numbers mean nothing.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import yaml
from layouts import write_ksdd2, write_mvtec
from published_models import PUBLISHED, fill_cache

from defaug_utils.book.plan import plan_book
from defaug_utils.book.profiles import read_defaults, read_profile

PROJECT = Path(__file__).parents[1]
STEPS = 5  # of denoising, at most
CELL = 64  # a side of what Stable Diffusion draws must be a multiple of this, pixels


def limit(largest: int) -> Callable[[object, Mapping], object]:
    """Numbers, by name or on their own, that are at most so large."""

    def apply(value: object, _: Mapping) -> object:
        if isinstance(value, dict):
            return {name: min(number, largest) for name, number in value.items()}
        return min(value, largest)

    return apply


def shrink_side(value: int, _: Mapping) -> int:
    """A quarter of an image's side."""
    return value // 4


def shrink_working(value: object, _: Mapping) -> object:
    """About a quarter of the sides that a model works at."""
    if isinstance(value, list):
        return [shrink_working(side, _) for side in value]
    return min(value, max(CELL, round(value / 4 / CELL) * CELL))


def shrink_stage(borders: list, given: Mapping) -> list:
    """The same part of fewer steps."""
    return [round(border * min(1, STEPS / given["steps"])) for border in borders]


SIZES: dict[str, Callable[[object, Mapping], object]] = {  # parameter → its value, if larger
    **dict.fromkeys(("image_width", "image_height", "input_width", "input_height"), shrink_side),
    **dict.fromkeys(("working_width", "working_height", "refined_size"), shrink_working),
    **dict.fromkeys(("bucket_smallest", "bucket_largest"), shrink_side),
    "bucket_area": lambda value, _: value // 16,
    **dict.fromkeys(("latent_editing", "image_editing"), shrink_stage),
    "steps": limit(STEPS),
    "epochs": lambda value, _: limit(2)(value, _) if isinstance(value, dict) else 1,  # 0: the recipe's many
    **dict.fromkeys(("pool_count", "plain_count", "refined_count"), limit(8)),
    **dict.fromkeys(("batch_size", "group_size", "training_steps", "sample_every"), limit(4)),
    **dict.fromkeys(("training_batch", "save_every", "adaptation_steps", "compared_count"), limit(2)),
    **dict.fromkeys(("repeats", "sample_count", "kept_times", "warmup_steps"), limit(1)),
    **dict.fromkeys(("instances", "few_shot_per_type", "regularisation_count"), limit(3)),
    **dict.fromkeys(("training_images", "triple_count"), limit(8)),
    "n_aug": lambda value, _: [4] if isinstance(value, list) else min(value, 4),
    "seeds": lambda value, _: value[:1],
}


def shrink_profile(profile: str) -> dict[str, dict]:
    """The parameters of a profile, by notebook, with smaller `SIZES`."""
    derived = {}
    for notebook, values in read_profile(
        PROJECT / "profiles" / f"{profile}.yaml", PROJECT / "notebooks"
    ).items():
        given = read_defaults(notebook, PROJECT / "notebooks") | values
        smaller = {name: shrink(given[name], given) for name, shrink in SIZES.items() if name in given}
        derived[notebook] = values | {name: value for name, value in smaller.items() if value != given[name]}
    return derived


def write_data(folder: Path, parameters: Mapping[str, dict]) -> Path:
    """A data set in the layout that a profile is for: one category of MVTec AD, or KSDD2."""
    if parameters["01_data_prep"].get("few_shot_per_type"):
        # The memory keeps a share of 0.002 of all patches, and needs nine of them.
        write_mvtec(folder / "grid", train=144, per_type=6, size=(60, 60))
        return folder / "grid"
    write_ksdd2(folder / "KolektorSDD2", train=(18, 10), test=(8, 4), size=(58, 158))
    return folder / "KolektorSDD2"


def list_models(parameters: Mapping[str, dict]) -> set[str]:
    """The published ids among a profile's parameters."""
    values = (value for given in parameters.values() for value in given.values())
    return {value for value in values if isinstance(value, str) and value in PUBLISHED}


def make_command(folder: Path, profile: str, cores: int = 2) -> tuple[list[str], dict[str, str]]:
    """Write data, models and profile; returns the engine's command and environment (run: `folder/run`)."""
    parameters, run = shrink_profile(profile), folder / "run"
    (folder / f"{profile}.yaml").write_text(yaml.safe_dump(parameters), encoding="utf-8")
    data = write_data(folder / "data", parameters)
    cache = fill_cache(folder / "hub", list_models(parameters))
    shown = plan_book(parameters, PROJECT / "notebooks").chapters["07_classifier"]
    targets = ["results", "pixel_level", "own_defect", f"{run}/notebooks/{shown}.ipynb"]
    config = [
        f"profile={os.path.relpath(folder / profile, PROJECT / 'profiles')}",
        f"data={data}",
        f"run={run}",
    ]
    command = [sys.executable, "-m", "snakemake", *targets, "--cores", str(cores), "--config", *config]
    return command, os.environ | cache


def main() -> None:
    """Run, and say where the results are."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("profile", help="a name in profiles/")
    parser.add_argument("--folder", type=Path, help="a new one, for everything that is made")
    parser.add_argument("--cores", type=int, default=2)
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="dry-run-"))
    folder.mkdir(parents=True, exist_ok=True)
    command, environment = make_command(folder.resolve(), given.profile, given.cores)
    finished = subprocess.run(command, cwd=PROJECT, env=environment, check=False)
    print(f"executed notebooks and tables: {folder}/run")
    sys.exit(finished.returncode)


if __name__ == "__main__":
    main()
