"""How hard the workshop data set is: AP of the workshop classifier without augmentation.

Run `python benchmarks/surfaces_difficulty.py` from the repository's root; options: `--help`. The surfaces
should leave room for augmentation: full-shot AP between 0.6 and 0.9, few-shot clearly below.

Everything is done as in the notebooks: surfaces in KSDD2's layout, loader, validation part, training set of
the arm "none", training, scores of the test part. The output is one line per run, then mean and spread by
scenario, and the recall of every defect type by severity (at the paper protocol's threshold) over all
full-shot runs.
"""

import argparse
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch

from defaug_utils.core.origins import Run
from defaug_utils.data.datasets import draw_validation, load_dataset
from defaug_utils.data.samples import load_samples
from defaug_utils.data.surfaces import write_surfaces
from defaug_utils.evaluation.classifier import score_samples, train_classifier
from defaug_utils.evaluation.metrics import measure_scores
from defaug_utils.evaluation.recipes import Recipe, choose_recipe
from defaug_utils.protocol.mixing import compose_training_set
from defaug_utils.protocol.run_folder import RunPools

WEIGHTS = "models/backbones/resnet10_quarter.safetensors"
SEVERITY_BINS = (0, 1 / 3, 2 / 3, 1)


def read_options() -> argparse.Namespace:
    """The command line; 0 keeps the recipe's value."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=int, default=600, help="drawn training images")
    parser.add_argument("--test", type=int, default=400, help="drawn test images")
    parser.add_argument("--validation", type=float, default=0.2, help="share of the training images")
    parser.add_argument("--data-seed", type=int, default=0, help="seed of the drawn surfaces")
    parser.add_argument("--scenarios", nargs="+", default=["full-shot", "few-shot"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--backbone", default="resnet10_quarter")
    parser.add_argument("--weights", default=WEIGHTS, help="initial weights; empty for random ones")
    parser.add_argument("--recipe", default="workshop")
    parser.add_argument("--epochs", type=int, default=0)
    parser.add_argument("--optimiser", default="", help="sgd or adam")
    parser.add_argument("--learning-rate", type=float, default=0)
    parser.add_argument("--momentum", type=float, default=0)
    parser.add_argument("--batch-size", type=int, default=0)
    parser.add_argument("--balanced", action="store_true")
    parser.add_argument("--flips", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def recipe_of(options: argparse.Namespace) -> Recipe:
    """The named recipe with the options' values."""
    names = ("epochs", "optimiser", "learning_rate", "momentum", "batch_size", "balanced", "flips")
    return choose_recipe(options.recipe, **{name: getattr(options, name) for name in names})


def run_once(data: pd.DataFrame, folder: Path, scenario: str, seed: int, options: argparse.Namespace) -> dict:
    """Train and score one run; prints its line."""
    training_set = compose_training_set(data, RunPools({}), Run(scenario, "none", 0, seed))
    samples, recipe = load_samples(training_set, folder), recipe_of(options)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as run_folder:
        trained = train_classifier(samples, run_folder, recipe, options.backbone, seed, options.weights)
    seconds = time.perf_counter() - start
    scores = score_samples(trained.model, samples, recipe.normalisation)
    numbers = measure_scores(scores)
    row = {"scenario": scenario, "seed": seed, "ap": numbers["ap"], "auroc": numbers["auroc"]}
    row |= {"seconds": seconds}
    loss = trained.history["loss"].iloc[-1]
    print(
        f"{scenario} seed {seed}: AP {row['ap']:.3f}, AUROC {row['auroc']:.3f}, last loss {loss:.3f}, "
        f"{seconds:.0f} s",
        flush=True,
    )
    scores = scores[scores["split"] == "test"]
    found = scores["score"] >= numbers["paper_threshold"]
    return row | {"found": pd.Series(found.to_numpy(), scores["image"])}


def tabulate_recall(rows: list[dict], folder: Path) -> pd.DataFrame:
    """Share of the test positives found, by defect type (rows) and severity (columns)."""
    drawn = pd.read_csv(folder / "surfaces.csv").dropna(subset="defect_type").set_index("image")
    parts = [drawn.assign(found=row["found"].reindex(drawn.index)).dropna(subset="found") for row in rows]
    found = pd.concat(parts)
    labels = ["hard", "middling", "obvious"]
    severity = pd.cut(found["severity"], SEVERITY_BINS, labels=labels, include_lowest=True)
    found = found.assign(severity=severity, found=found["found"].astype(float))
    return found.pivot_table("found", "defect_type", "severity", observed=False, margins=True)


def main() -> None:
    """Measure and print."""
    options = read_options()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder, start = Path(temporary), time.perf_counter()
        write_surfaces(folder, options.train, options.test, options.data_seed)
        print(f"{options.train} + {options.test} surfaces drawn in {time.perf_counter() - start:.1f} s")
        data = draw_validation(load_dataset(folder), options.validation, options.data_seed)
        print(data.groupby(["split", "label"]).size().to_string(), recipe_of(options), sep="\n")
        runs = [(scenario, seed) for scenario in options.scenarios for seed in options.seeds]
        rows = [run_once(data, folder, scenario, seed, options) for scenario, seed in runs]
        table = pd.DataFrame(rows).groupby("scenario", sort=False)[["ap", "auroc", "seconds"]]
        print(table.agg(["mean", "std"]).round(3).to_string())
        full_shot = [row for row in rows if row["scenario"] == "full-shot"]
        if full_shot:
            print(tabulate_recall(full_shot, folder).round(2).to_string())


if __name__ == "__main__":
    main()
