"""Keep the tables of a finished run, with their provenance and figures, in book/stored/NAME.

python scripts/store_results.py runs/long long
"""

import argparse
import sys
from pathlib import Path

from defaug_utils.book.stored_results import RUNS, StoreError, read_stored, store_results
from defaug_utils.core.origins import EQUAL
from defaug_utils.report.curves import plot_augmentation_curves
from defaug_utils.report.decision import measure_gains
from defaug_utils.report.decision_plots import plot_gains, plot_shares, tabulate_shares
from defaug_utils.report.results import ResultsError

FIGURES = {"ap.png": ["ap"], "precision_recall.png": ["paper_precision", "paper_recall"]}
GAINS, SHARES = "gains.png", "shares.png"  # of a run with arms for them
ROOT = Path(__file__).parents[1]


def main(arguments: list[str] | None = None) -> None:
    """Store a run's results, or say why they can't be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run_folder", type=Path, help="a finished run, such as runs/long")
    parser.add_argument("name", help="folder in book/stored, such as long")
    parser.add_argument("--command", help="default: make book PROFILE=<the run's folder>")
    parser.add_argument("--book", type=Path, default=ROOT / "book", help="folder of the book's prose")
    given = parser.parse_args(arguments)
    shelf = given.book / "stored"
    target = shelf / given.name
    try:
        command = given.command or f"make book PROFILE={given.run_folder.resolve().name}"
        provenance = store_results(given.run_folder, shelf, given.name, command)
    except (StoreError, ResultsError, FileNotFoundError) as error:
        sys.exit(str(error))
    runs = read_stored(target)[0][RUNS]
    figures = {name: plot_augmentation_curves(runs, metrics) for name, metrics in FIGURES.items()}
    figures |= {} if measure_gains(runs, EQUAL).empty else {GAINS: plot_gains(runs)}
    shares = tabulate_shares(runs)
    figures |= {} if shares.empty else {SHARES: plot_shares(shares)}
    for name, figure in figures.items():
        figure.savefig(target / name, dpi=80, bbox_inches="tight")
    sys.stdout.write(f"{len(runs)} runs from {provenance['notebooks']} notebooks were stored in {target}\n")


if __name__ == "__main__":
    main()
