"""Where a run's folder keeps its data set and its pools of generated images."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from defaug_utils.core.licences import RECIPE_FILE
from defaug_utils.core.manifest import make_manifest, read_manifest, rebase_manifest
from defaug_utils.core.origins import ORIGINS, MixingError, Run
from defaug_utils.core.pools import read_recipe
from defaug_utils.data.datasets import DATA_FOLDER

STUDIO_FOLDER = "diag_studio"  # images that a user drew, generated and decided on, one by one


class RunPools(dict[str, pd.DataFrame]):
    """The pools of a run: origin → its manifest, rebased to the run's folder."""

    learned: Mapping[str, Sequence[str]]  #: origin → images of the data set that its generator learned from
    folders: Mapping[str, str]  #: origin → the pool's folder in the run, such as "ddpm/few-shot"

    def __init__(
        self, pools: Mapping, learned: Mapping | None = None, folders: Mapping | None = None
    ) -> None:
        super().__init__(pools)
        self.learned, self.folders = learned or {}, folders or {}


def read_data(run_dir: Path | str) -> pd.DataFrame:
    """The prepared data set's manifest, rebased to the run's folder, with all its files checked to exist."""
    return read_rebased(Path(run_dir) / DATA_FOLDER, run_dir, check_files=True)


def read_rebased(folder: Path, run_dir: Path | str, check_files: bool = False) -> pd.DataFrame:
    """The manifest in a folder, with paths relative to the run's folder."""
    return rebase_manifest(read_manifest(folder / "manifest.csv", check_files=check_files), folder, run_dir)


def find_pool(run_dir: Path | str, origin: str, run: Run) -> Path | None:
    """Folder of the pool that a run draws from, or None: the most specific of three that has a manifest.

    A generator that was fine-tuned for one scenario, or one seed, stores its pool in `<origin>/<scenario>` or
    `<origin>/<scenario>-seed<seed>`; one for all runs in `<origin>`.
    """
    special = (f"{origin}/{run.scenario}-seed{run.seed}", f"{origin}/{run.scenario}", origin)
    folders = [Path(run_dir) / folder for folder in special]
    return next((folder for folder in folders if (folder / "manifest.csv").is_file()), None)


def read_pools(run_dir: Path | str, run: Run) -> RunPools:
    """Every pool that exists for a run, and what their generators learned from.

    Images that were accepted in the studio are added to the `diag` pool, if there is one. Raises a
    MixingError if the recipe of a method that learns doesn't say what from.
    """
    found = {origin: find_pool(run_dir, origin, run) for origin in ORIGINS}
    folders = {origin: folder for origin, folder in found.items() if folder}
    pools = {origin: read_rebased(folder, run_dir) for origin, folder in folders.items()}
    studio = Path(run_dir) / STUDIO_FOLDER
    if "diag" in pools and (studio / "manifest.csv").is_file():
        drawn = read_rebased(studio, run_dir)
        drawn = drawn[drawn["accepted"].fillna(False).astype(bool)]
        pools["diag"] = make_manifest([*pools["diag"].to_dict("records"), *drawn.to_dict("records")])
    learned = {origin: _list_learned(origin, folder) for origin, folder in folders.items()}
    names = {origin: folder.relative_to(run_dir).as_posix() for origin, folder in folders.items()}
    return RunPools(pools, learned, names)


def _list_learned(origin: str, folder: Path) -> list[str]:
    """From the pool's recipe; empty for a generator from elsewhere, about which nothing is known."""
    recipe = read_recipe(folder) if (folder / RECIPE_FILE).is_file() else {}
    if recipe and ORIGINS[origin].learns and "learned_from" not in recipe:
        raise MixingError(
            f"the recipe of the pool {folder} does not say which images its generator learned from: make the "
            f"pool again with notebook {ORIGINS[origin].notebook}"
        )
    compared = recipe.get("likeness", {}).get("known", [])  # its images were chosen by these
    return list(dict.fromkeys([*recipe.get("learned_from", []), *compared]))


def list_pools(run_dir: Path | str) -> dict[str, Path]:
    """Folders of all pools of a run, by name, such as `memseg` or `ddpm/few-shot`."""
    patterns = [f"{origin}/{rest}" for origin in ORIGINS for rest in ("manifest.csv", "*-shot*/manifest.csv")]
    folders = [path.parent for pattern in patterns for path in sorted(Path(run_dir).glob(pattern))]
    return {folder.relative_to(run_dir).as_posix(): folder for folder in folders}
