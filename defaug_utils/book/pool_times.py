"""How long generators and pools took to make, from the executed notebooks that made them."""

import re
from math import nan
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd

from defaug_utils.core.manifest import read_manifest
from defaug_utils.core.origins import ORIGINS
from defaug_utils.core.pools import find_failed
from defaug_utils.protocol.run_folder import list_pools

TRAINS = re.compile(r"\bdiffusion\.train_\w+\(")  # in the source of a notebook's cell
MAKES = re.compile(r"\bcore\.make_pools?\(")
COLUMNS = ("origin", "pool", "images", "failed", "training_seconds", "pool_seconds")


def measure_pool_times(run_folder: Path | str) -> pd.DataFrame:
    """One row per pool of a run: its origin and name, images, those that failed their checks, seconds.

    `training_seconds` is the time of the cell that fine-tuned the pool's generator (0 for a method without
    fine-tuning), `pool_seconds` that of the cell that made the pool. A cell that made several pools in turn
    is divided at the times of their last image files; if these don't fit the cell, as after a copy, the
    pools have NaN there. Only the last execution counts, so a resumed pool looks faster than it was.
    Pools without an executed notebook are omitted.
    """
    run_folder = Path(run_folder)
    cells = {name: _read_cells(run_folder, name) for name in list_pools(run_folder)}
    cells = {name: found for name, found in cells.items() if found is not None}
    rows = []
    for name, found in cells.items():
        origin = name.partition("/")[0]
        pool = read_manifest(run_folder / name / "manifest.csv")
        together = [other for other in cells if _find_notebook(other) == _find_notebook(name)]
        rows.append(
            {"origin": origin, "pool": name, "images": len(pool), "failed": int(find_failed(pool).sum())}
            | {
                "training_seconds": found[0] if ORIGINS[origin].diffusion == "fine-tuned" else 0.0,
                "pool_seconds": _divide(run_folder, together, found[1])[name],
            }
        )
    return pd.DataFrame(rows, columns=COLUMNS).round(1)


def _find_notebook(pool: str) -> str:
    """Path of a pool's executed notebook in the folder of notebooks."""
    origin, *name = pool.split("/")
    return "/".join([ORIGINS[origin].notebook, *name]) + ".ipynb"


def _read_cells(run_folder: Path, pool: str) -> tuple[float, float] | None:
    """Seconds of the cells that fine-tuned, and of the last one that made pools; None without a notebook."""
    path = run_folder / "notebooks" / _find_notebook(pool)
    if not path.is_file():
        return None
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    seconds = [cell.metadata.get("papermill", {}).get("duration") or 0.0 for cell in cells]
    training = [time for cell, time in zip(cells, seconds, strict=True) if TRAINS.search(cell.source)]
    making = [time for cell, time in zip(cells, seconds, strict=True) if MAKES.search(cell.source)]
    return sum(training), making[-1] if making else nan


def _divide(run_folder: Path, pools: list[str], seconds: float) -> dict[str, float]:
    """Divide a cell's seconds among the pools that it made one after the other."""
    if len(pools) == 1:
        return {pools[0]: seconds}
    files = {name: (run_folder / name / "images").glob("*.png") for name in pools}
    ends = {name: max((path.stat().st_mtime for path in found), default=nan) for name, found in files.items()}
    ordered = sorted(ends, key=ends.__getitem__)
    parts = np.diff([ends[name] for name in ordered])
    first = seconds - parts.sum()
    if not (first > 0 and (parts > 0).all()):
        return dict.fromkeys(pools, nan)
    return dict(zip(ordered, [first, *parts.tolist()], strict=True))
