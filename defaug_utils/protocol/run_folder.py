"""Where a run's folder holds its data set and its pools of generated images."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from defaug_utils.core.manifest import make_manifest, read_manifest, rebase_manifest
from defaug_utils.core.origins import ORIGINS
from defaug_utils.core.pools import read_recipe
from defaug_utils.core.runs import Arms, MixingError, Run, arm_shares
from defaug_utils.core.sources import DATA_FOLDER

STUDIO_FOLDER = "diag_studio"  # images that a person drew, generated and decided on, one by one


def read_data(run_dir: Path | str) -> pd.DataFrame:
    """The prepared data set's manifest, rebased to the run's folder; every file that it lists exists."""
    folder = Path(run_dir) / DATA_FOLDER
    return rebase_manifest(read_manifest(folder / "manifest.csv", check_files=True), folder, run_dir)


def find_pool(run_dir: Path | str, origin: str, run: Run) -> Path | None:
    """Folder of the pool that a run draws from, or None: the most special of three that has a manifest.

    A generator that was fine-tuned on the positives of one scenario, or of one seed, stores its pool in
    `<origin>/<scenario>-seed<seed>` or `<origin>/<scenario>`; one that suits every run in `<origin>`.
    """
    special = (f"{origin}/{run.scenario}-seed{run.seed}", f"{origin}/{run.scenario}", origin)
    folders = [Path(run_dir) / folder for folder in special]
    return next((folder for folder in folders if (folder / "manifest.csv").is_file()), None)


def read_pools(run_dir: Path | str, run: Run) -> dict[str, pd.DataFrame]:
    """Every pool that exists for a run, rebased to the run's folder.

    Images that a person accepted in the studio belong to the `diag` pool where there is one.
    """
    folders = {origin: find_pool(run_dir, origin, run) for origin in ORIGINS}
    pools = {origin: _read_rebased(folder, run_dir) for origin, folder in folders.items() if folder}
    studio = Path(run_dir) / STUDIO_FOLDER
    if "diag" in pools and (studio / "manifest.csv").is_file():
        drawn = _read_rebased(studio, run_dir)
        drawn = drawn[drawn["accepted"].fillna(False).astype(bool)]
        pools["diag"] = make_manifest([*pools["diag"].to_dict("records"), *drawn.to_dict("records")])
    return pools


def _read_rebased(folder: Path, run_dir: Path | str) -> pd.DataFrame:
    return rebase_manifest(read_manifest(folder / "manifest.csv"), folder, run_dir)


def read_learned(run_dir: Path | str, run: Run) -> dict[str, list[str]]:
    """The real images that the generator of every pool was trained on, for every pool of a run.

    They are read from the pools' recipes. A generator from elsewhere tells nothing, and its list is empty.

    Returns:
        Origin → names as `data/manifest.csv` has them.

    Raises:
        MixingError: the recipe of a method that learns does not say from what.
    """
    folders = {origin: find_pool(run_dir, origin, run) for origin in ORIGINS}
    return {origin: _list_learned(origin, folder) for origin, folder in folders.items() if folder}


def _list_learned(origin: str, folder: Path) -> list[str]:
    recipe = read_recipe(folder) if (folder / "recipe.json").is_file() else {}
    if recipe and ORIGINS[origin].learns and "learned_from" not in recipe:
        raise MixingError(
            f"the recipe of the pool {folder} does not say which images its generator learned from: make the "
            f"pool anew by notebook {ORIGINS[origin].notebook}"
        )
    return list(recipe.get("learned_from", []))


def list_waiting(
    run: Run, pools: Mapping[str, pd.DataFrame], share: float = 0.5, extra_arms: Arms | None = None
) -> list[str]:
    """Notebooks that have to make a pool before this run can be put together; empty when it can be now."""
    return [
        ORIGINS[origin].notebook for origin in arm_shares(run.arm, share, extra_arms) if origin not in pools
    ]


def list_pools(run_dir: Path | str) -> dict[str, Path]:
    """Folders of all pools that a run has, by their names in it, such as `memseg` or `ddpm/few-shot`."""
    run_dir = Path(run_dir)
    return {
        manifest.parent.relative_to(run_dir).as_posix(): manifest.parent
        for origin in ORIGINS
        for pattern in ("manifest.csv", "*-shot*/manifest.csv")
        for manifest in sorted((run_dir / origin).glob(pattern))
    }
