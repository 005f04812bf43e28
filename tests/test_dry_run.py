"""The paper profiles from data to their tables: the same parameters, models and layouts, but small."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from dry_run import PROJECT, SIZES, make_command, shrink_profile

from defaug_utils.book.plan import plan_book
from defaug_utils.book.profiles import read_defaults, read_profile
from defaug_utils.core.files import read_csv
from defaug_utils.core.origins import find_judge
from defaug_utils.report.results import gather_results

PROFILES = ("paper", "paper_diag", "mvtec")
FAMILIES = {
    "ddpm": "StableDiffusionPipeline",
    "diag": "StableDiffusion{}InpaintPipeline",
    "diag_real_masks": "StableDiffusion{}InpaintPipeline",
    "adabldm": "StableDiffusionPipeline",
    "paste_refined": "StableDiffusion{}InpaintPipeline",
    "diag_tuned": "StableDiffusionInpaintPipeline",
}
OWN_EPOCHS = ("07_classifier", "10_own_defect")  # where 0 stands for the recipe's many epochs
PATIENCE_SECONDS = 3600


def are_smaller(value: object, given: object) -> bool:
    """Whether no number is larger than what the profile gives, and none became 0."""
    if isinstance(value, dict):
        return value.keys() == given.keys() and all(are_smaller(value[name], given[name]) for name in value)
    if isinstance(value, list):
        return 0 < len(value) <= len(given) and all(map(are_smaller, value, given))
    return type(value) is type(given) and (0 < value <= given or value == given == 0)


def read_given(parameters: dict[str, dict], notebook: str) -> dict:
    """A notebook's parameters: those of the profile, and defaults for the rest."""
    return read_defaults(notebook, PROJECT / "notebooks") | parameters[notebook]


@pytest.mark.parametrize("profile", PROFILES)
def test_a_dry_run_differs_from_its_profile_only_in_sizes(profile: str):
    notebooks = PROJECT / "notebooks"
    whole, derived = (
        read_profile(PROJECT / "profiles" / f"{profile}.yaml", notebooks),
        shrink_profile(profile),
    )
    assert derived.keys() == whole.keys()
    for notebook, values in derived.items():
        given = read_defaults(notebook, notebooks) | whole[notebook]
        changed = {name: value for name, value in values.items() if value != given[name]}
        assert changed.keys() <= SIZES.keys(), notebook
        if notebook in OWN_EPOCHS:
            assert changed.pop("epochs") == 1
        assert all(are_smaller(value, given[name]) for name, value in changed.items()), (notebook, changed)


def test_no_smaller_number_is_larger_or_nothing():
    assert are_smaller({"few-shot": [1, 2]}, {"few-shot": [3, 2, 1]})
    assert not are_smaller({"few-shot": 1}, {"zero-shot": 1})
    for value, given in ((2, 1), (0, 1), (1, 0), ([], [1]), (1, 1.5)):
        assert not are_smaller(value, given)


def list_recipes(run: Path) -> dict[str, set[str]]:
    """The classes of the models that made each pool, by its folder's first name."""
    found: dict[str, set[str]] = {}
    for path in run.rglob("recipe.json"):
        models = (recipe.get("model", {}) for recipe in json.loads(path.read_text(encoding="utf-8")).values())
        classes = {model["pipeline"] for model in models if "pipeline" in model}
        found.setdefault(path.relative_to(run).parts[0], set()).update(classes)
    return found


@pytest.mark.slow
@pytest.mark.dry_run
@pytest.mark.parametrize("profile", PROFILES)
def test_a_dry_run_ends_with_a_row_for_every_run(tmp_path: Path, profile: str):
    command, environment = make_command(tmp_path, profile)
    parameters, run = shrink_profile(profile), tmp_path / "run"
    book = plan_book(parameters, PROJECT / "notebooks")
    limits = {"cwd": PROJECT, "env": environment, "timeout": PATIENCE_SECONDS}
    try:
        finished = subprocess.run(command, capture_output=True, text=True, check=False, **limits)
        assert finished.returncode == 0, finished.stdout + finished.stderr
        results = gather_results(run)
        assert set(results[["scenario", "arm", "n_aug", "seed"]].itertuples(index=False, name=None)) == set(
            map(tuple, book.mixed)
        )
        trained = results[results["arm"].map(find_judge) == "network"]
        for name in ("backbone", "weights"):
            assert set(trained[name]) == {read_given(parameters, "07_classifier")[name]}
        pixels = read_csv(run / "pixel_summary.csv")
        rows = set(pixels[["scenario", "arm", "n_aug"]].itertuples(index=False, name=None))
        assert rows == {one[:3] for one in book.marked}
        models = {name: classes for name, classes in list_recipes(run).items() if name in FAMILIES}
        inpainter = "" if profile == "mvtec" else "XL"  # the embedded model
        expected = {name: {family.format(inpainter)} for name, family in FAMILIES.items()}
        assert models == {name: expected[name] for name in models} and {"ddpm", "diag", "adabldm"} <= set(
            models
        )
    finally:
        shutil.rmtree(tmp_path, ignore_errors=True)  # gigabytes of trained networks
