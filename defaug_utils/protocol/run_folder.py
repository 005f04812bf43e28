"""Where a run's folder holds its data set and its pools of generated images."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from defaug_utils.core.manifest import make_manifest, read_manifest, rebase_manifest
from defaug_utils.core.runs import NOTEBOOK_OF, Run
from defaug_utils.core.sources import DATA_FOLDER

LEARNED_FROM = (  # where a pool's recipe names real images that its generator was trained on
    ("adapter", "training", "trained_on", "instances"),
    ("model", "controlnet", "trained_on"),
)
STUDIO_FOLDER = "diag_studio"  # images that a person drew, generated and decided on, one by one


class RunPools(dict[str, pd.DataFrame]):
    """The pools of a run: origin → its manifest, rebased to the run's folder.

    Attributes:
        learned: origin → the real images that its generator was trained on, as `data/manifest.csv` has them.
        folders: origin → the pool's folder in the run's, such as "ddpm/few-shot".
    """

    def __init__(
        self,
        pools: Mapping[str, pd.DataFrame],
        learned: Mapping[str, Sequence[str]] | None = None,
        folders: Mapping[str, str] | None = None,
    ) -> None:
        """Keep pools and what is known of them."""
        super().__init__(pools)
        self.learned, self.folders = dict(learned or {}), dict(folders or {})


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


def read_pools(run_dir: Path | str, run: Run) -> RunPools:
    """Every pool that exists for a run, and what their generators learned from.

    Images that a person accepted in the studio belong to the `diag` pool where there is one.
    """
    folders = {origin: find_pool(run_dir, origin, run) for origin in NOTEBOOK_OF}
    pools = {origin: _read_rebased(folder, run_dir) for origin, folder in folders.items() if folder}
    studio = Path(run_dir) / STUDIO_FOLDER
    if "diag" in pools and (studio / "manifest.csv").is_file():
        drawn = _read_rebased(studio, run_dir)
        drawn = drawn[drawn["accepted"].fillna(False).astype(bool)]
        pools["diag"] = make_manifest([*pools["diag"].to_dict("records"), *drawn.to_dict("records")])
    names = {origin: folder.relative_to(run_dir).as_posix() for origin, folder in folders.items() if folder}
    return RunPools(pools, read_learned(run_dir, run), names)


def _read_rebased(folder: Path, run_dir: Path | str) -> pd.DataFrame:
    return rebase_manifest(read_manifest(folder / "manifest.csv"), folder, run_dir)


def read_learned(run_dir: Path | str, run: Run) -> dict[str, list[str]]:
    """The real images that the generator of every pool was trained on, for every pool of a run.

    They are read from the pools' recipes: an adapter's instances, a ControlNet's defects. A generator from
    elsewhere tells nothing, and its list is empty.

    Returns:
        Origin → names as `data/manifest.csv` has them.
    """
    folders = {origin: find_pool(run_dir, origin, run) for origin in NOTEBOOK_OF}
    return {origin: _list_learned(folder) for origin, folder in folders.items() if folder}


def _list_learned(folder: Path) -> list[str]:
    path = folder / "recipe.json"
    if not path.is_file():
        return []
    (recipe,) = json.loads(path.read_text(encoding="utf-8")).values()
    lists = [_look_up(recipe, *keys) for keys in LEARNED_FROM]
    return [name for names in lists if isinstance(names, list) for name in names]


def _look_up(content: object, *keys: str) -> object:
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    return content


def list_pools(run_dir: Path | str) -> dict[str, Path]:
    """Folders of all pools that a run has, by their names in it, such as `memseg` or `ddpm/few-shot`."""
    run_dir = Path(run_dir)
    return {
        manifest.parent.relative_to(run_dir).as_posix(): manifest.parent
        for origin in NOTEBOOK_OF
        for pattern in ("manifest.csv", "*-shot*/manifest.csv")
        for manifest in sorted((run_dir / origin).glob(pattern))
    }
