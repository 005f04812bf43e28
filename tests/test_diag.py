"""DIAG pools: the same bytes whatever was interrupted, sources from train only, failures told."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from tiny_models import save_model

from defaug_utils.core.files import write_png
from defaug_utils.core.images import read_image, read_mask
from defaug_utils.core.manifest import image_seed, make_manifest, read_manifest, write_manifest
from defaug_utils.core.origins import SCENARIOS
from defaug_utils.core.pools import PoolPlan, find_failed, list_failures, make_pool, remake
from defaug_utils.core.prompts import Prompt, choose_prompt, make_prompts
from defaug_utils.diffusion import inpainting
from defaug_utils.diffusion.inpainting import Inpainter, InpaintSettings, load_inpainter
from defaug_utils.diffusion.jobs import InpaintedImage, InpaintJob
from defaug_utils.masks.sources import open_masks
from defaug_utils.methods import diag
from defaug_utils.methods.diag import DIAG
from defaug_utils.methods.painting import CheckLimits, attempt_seed, paint_until_passed
from defaug_utils.protocol.mixing import find_leaks

COUNT, SIZE = 7, (16, 48)
ANYTHING = CheckLimits(contrast=0, completeness=0)
MASKS = open_masks("procedural")
WISH = {
    "prompts": make_prompts(["white marks", "crack"], "dark"),
    "masks": MASKS,
    "settings": InpaintSettings(SIZE, steps=2),
    "limits": ANYTHING,
    "group": 3,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, generator, rows = tmp_path_factory.mktemp("data"), np.random.default_rng(0), []
    for number in range(8):
        split, label = (
            ("train", "train", "val", "test")[number % 4],
            "positive" if number == 4 else "negative",
        )
        row = {"image": f"images/{number}.png", "label": label, "split": split, "origin": "real"}
        write_png(folder / row["image"], generator.integers(60, 200, (48, 16, 3), dtype=np.uint8))
        if label == "positive":
            row["mask"] = f"masks/{number}.png"
            write_png(folder / row["mask"], np.eye(48, 16, dtype=bool))
        rows.append(row)
    write_manifest(make_manifest(rows), folder / "manifest.csv")
    return folder


@pytest.fixture(scope="module")
def inpainter(inpainting_folder: Path) -> Inpainter:
    return load_inpainter(inpainting_folder)


def read_all(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: Path, inpainter: Inpainter) -> Path:
    """A pool made in one undisturbed run."""
    folder = tmp_path_factory.mktemp("pools") / "diag"
    make_pool(folder, DIAG(data=data, inpainter=inpainter, **WISH), PoolPlan(COUNT, 3))
    return folder


def test_rows_say_how_each_image_was_made(whole: Path, data: Path):
    pool = read_manifest(whole / "manifest.csv", check_files=True)
    assert len(pool) == COUNT
    assert set(pool["source_image"]) <= {"images/0.png", "images/1.png", "images/5.png"}
    assert pool["prompt"].tolist() == (["white marks", "crack"] * 4)[:COUNT]
    assert set(pool["mask_source"]) == {"procedural"} and set(pool["origin"]) == {"diag"}
    assert (pool["check_outside"] == 0).all() and pool["check_passed"].all() and (pool["attempt"] == 0).all()
    assert (pool["latent_cells"] > 0).all()
    for row in pool.to_dict("records"):
        mask, source = read_mask(whole / row["mask"]), read_image(data / row["source_image"])
        finished = read_image(whole / row["image"])
        assert (finished[~mask] == source[~mask]).all()
        change = np.abs(finished.astype(int) - source).max(axis=2)[mask].mean()
        assert row["check_contrast"] == pytest.approx(change, abs=1e-3)


def test_the_recipe_holds_everything_else(whole: Path):
    (recipe,) = json.loads((whole / "recipe.json").read_text()).values()
    assert recipe["settings"] | {"steps": 2, "guidance": 20.0, "strength": 0.99} == recipe["settings"]
    assert recipe["settings"]["effective_steps"] == 1
    assert recipe["model"]["scheduler"]["class"] == "DDIMScheduler" and recipe["model"]["fingerprint"]
    assert {"torch", "diffusers", "defaug_utils"} <= set(recipe["versions"])
    assert (recipe["batch_size"], recipe["pool_seed"], recipe["mask_source"]) == (3, 3, "procedural")


def test_a_pool_in_colour_on_grey_negatives_is_not_gone_on_with(data: Path, inpainter, tmp_path: Path, whole):
    assert "stay_grey" not in json.dumps(list(json.loads((whole / "recipe.json").read_text()).values()))
    copied = shutil.copytree(data, tmp_path / "data")
    for path in (copied / "images").glob("*.png"):
        write_png(path, read_image(path)[..., :1].repeat(3, axis=2))
    method = DIAG(data=copied, inpainter=inpainter, **WISH)
    pool = make_pool(tmp_path / "pool", method, PoolPlan(3))
    for image in pool["image"]:
        image_u8 = read_image(tmp_path / "pool" / image)
        assert (image_u8 == image_u8[..., :1]).all()
    stored = tmp_path / "pool" / "recipe.json"
    (recipe,) = json.loads(stored.read_text()).values()
    assert recipe["sources"].pop("stay_grey") == 3
    stored.write_text(json.dumps({"of a pool in colour": recipe}))
    with pytest.raises(ValueError, match=r"sources\.stay_grey \(None, requested 3\)"):
        make_pool(tmp_path / "pool", method, PoolPlan(6))


def test_with_another_model_or_other_masks_nothing_is_made_again(
    whole: Path, data: Path, inpainter: Inpainter, tmp_path: Path
):
    other = load_inpainter(save_model(tmp_path, unet_channels=4))
    masks = open_masks("train_positives", data_folder=data)
    for changed, named in (({"inpainter": other}, r"model\.fingerprint"), ({"masks": masks}, "mask_source")):
        method = DIAG(**{"data": data, "inpainter": inpainter, **WISH, **changed})
        with pytest.raises(ValueError, match=f"{named} .* differ from the pool's recipe"):
            remake(whole, "images/000000.png", method)


def test_images_have_the_size_of_the_negatives_whatever_the_working_size(tmp_path: Path, inpainter):
    """DIAG's own: data prepared at 224 × 632, painted on a square."""
    rows = [{"image": "images/0.png", "label": "negative", "split": "train", "origin": "real"}]
    width, height = diag.OUTPUT_SIZE
    write_png(tmp_path / "data/images/0.png", np.full((height, width, 3), 128, np.uint8))
    write_manifest(make_manifest(rows), tmp_path / "data/manifest.csv")
    wish = WISH | {"settings": InpaintSettings((64, 64), steps=2), "group": 1}
    make_pool(tmp_path / "pool", DIAG(data=tmp_path / "data", inpainter=inpainter, **wish), PoolPlan(1))
    assert read_image(tmp_path / "pool/images/000000.png").shape == (height, width, 3)


def test_a_prompt_with_a_shape_is_painted_into_such_masks_only(data: Path, inpainter):
    board = make_prompts(["scratch", "stain"], shapes={"stain": "blob"})
    method = DIAG(data=data, inpainter=inpainter, **WISH | {"prompts": board})
    plain = DIAG(data=data, inpainter=inpainter, **WISH | {"prompts": make_prompts(["scratch", "stain"])})
    rows = [method.plan_image(index, index)[1] for index in range(40)]
    assert {row["mask_name"] for row in rows if row["prompt"] == "stain"} == {"blob"}
    others = [row for row in rows if row["prompt"] == "scratch"]
    assert others == [plain.plan_image(index, index)[1] for index in range(0, 40, 2)]
    assert {row["mask_name"] for row in others} == {"scratch", "crack", "blob"}
    drawn = DIAG(
        data=data,
        inpainter=inpainter,
        **WISH | {"prompts": board, "masks": open_masks("train_positives", data_folder=data)},
    )
    assert drawn.plan_image(1, 1)[1]["prompt"] == "stain", "masks from files keep their own shapes"


def test_a_prompt_may_demand_a_stronger_contrast_than_the_pool(data: Path, inpainter):
    board = [Prompt("scratch"), Prompt("stain", contrast=255.0)]
    method = DIAG(
        data=data, inpainter=inpainter, **WISH | {"prompts": board, "limits": CheckLimits(0.5, 0.0, 0.0)}
    )
    assert method.find_limits("scratch").contrast == 0 and method.find_limits("stain").contrast == 255
    _, stain = method.make([0, 1], [0, 1])
    assert not stain.row["check_passed"] and "contrast" in stain.row["check_reason"]
    assert (
        method.describe()["prompts"][1]["contrast"] == 255
        and "contrast" not in method.describe()["prompts"][0]
    )


def test_a_pool_that_never_passes_stops_growing(tmp_path: Path, data: Path, inpainter):
    strict = WISH | {"limits": CheckLimits(contrast=255), "group": 1, "max_attempts": 1}
    pool = make_pool(tmp_path, DIAG(data=data, inpainter=inpainter, **strict), PoolPlan(2, passing=2))
    assert len(pool) == 4 and find_failed(pool).all()


def test_wrong_wishes_are_refused(data: Path, inpainter):
    for wrong, said in (
        ({"settings": InpaintSettings((15, 48), 2)}, "needs multiples of 2"),
        ({"prompts": [Prompt("a" * 70)]}, "tokens"),
        ({"prompts": [Prompt("stain", shape="stain")]}, "must name some of scratch, crack, blob"),
        ({"max_attempts": 0}, "max_attempts"),
    ):
        with pytest.raises(ValueError, match=said):
            DIAG(data=data, inpainter=inpainter, **WISH | wrong)


def paint_by_seed(monkeypatch: pytest.MonkeyPatch, shift: dict[int, int]) -> list[list[int]]:
    """Let painting shift the image by grey levels that depend on the seed; the seeds asked for."""
    asked = []

    def inpaint(_: object, jobs: Sequence[InpaintJob], settings: InpaintSettings) -> list[InpaintedImage]:
        asked.append([job.seed for job in jobs])
        made = [np.where(j.mask[..., None], j.image_u8 + np.uint8(shift[j.seed]), j.image_u8) for j in jobs]
        return [InpaintedImage(image_u8, image_u8, True, 9) for image_u8 in made]

    monkeypatch.setattr(inpainting, "inpaint_batch", inpaint)
    return asked


def test_failures_are_painted_again_with_their_next_seeds_and_the_best_is_kept(data, inpainter, monkeypatch):
    mask = np.zeros((12, 12), bool)
    mask[3:9, 3:9] = True
    image_u8 = np.random.default_rng(0).integers(50, 100, (12, 12, 3), dtype=np.uint8)
    jobs = [InpaintJob(image_u8, mask, "crack", "", seed) for seed in (1, 2, 3)]
    second, third = (lambda seed, k=k: attempt_seed(seed, k) for k in (1, 2))
    shift = {1: 50, 2: 0, 3: 0, second(2): 50, second(3): 3, third(3): 2}
    asked = paint_by_seed(monkeypatch, shift)
    method = DIAG(data=data, inpainter=inpainter, **WISH | {"limits": CheckLimits()})
    results = paint_until_passed(method, jobs)
    assert asked == [[1, 2, 3], [second(2), second(3)], [third(3)]]
    assert [result.attempt for result in results] == [0, 1, 1]
    assert [result.check.passed for result in results] == [True, True, False]
    assert results[2].check.contrast == 3, "the strongest of those that failed"


def test_images_that_never_pass_stay_and_are_told(tmp_path: Path, data: Path, inpainter):
    strict = WISH | {"limits": CheckLimits(contrast=255), "group": 2, "max_attempts": 2}
    pool = make_pool(tmp_path, DIAG(data=data, inpainter=inpainter, **strict), PoolPlan(2))
    failures = list_failures(pool)
    assert len(failures) == 2 and failures["check_reason"].str.contains("contrast").all()
    assert len(list_failures(read_manifest(tmp_path / "manifest.csv"))) == 2


def test_seeds_of_attempts():
    assert attempt_seed(5, 0) == 5
    assert attempt_seed(5, 1) == image_seed(5, 1) != attempt_seed(5, 2)
    assert attempt_seed(2**63 - 1, 3) < 2**63


def test_prompts_take_turns_by_their_weights():
    board = make_prompts([{"text": "scratch", "weight": 3}, "crack"], "dark")
    chosen = [choose_prompt(board, index).text for index in range(40)]
    assert chosen.count("scratch") == 30
    assert all(abs(chosen[:n].count("scratch") - 0.75 * n) <= 1 for n in range(1, 41))
    paper = [choose_prompt(make_prompts(diag.PROMPTS), i).text for i in range(2 * diag.IMAGES_PER_PROMPT)]
    assert [paper.count(prompt) for prompt in diag.PROMPTS] == [50, 50]


@pytest.mark.parametrize(
    ("board", "said"),
    [
        ([], "there is no prompt"),
        ([""], "line 0: the prompt is empty"),
        (["a", {"text": "b", "weight": 0}], "line 1: weight 0 must be above 0"),
        (["a", "a"], "line 1: 'a' is already on the board"),
        ([{"text": "a", "colour": "red"}], "unknown colour"),
    ],
)
def test_boards_that_make_no_sense_are_refused(board, said):
    with pytest.raises(ValueError, match=said):
        make_prompts(board)


def test_the_papers_settings():
    settings = diag.PAPER_SETTINGS
    assert (settings.steps, settings.guidance, settings.strength) == (30, 20.0, 0.99)
    assert (settings.padding_mask_crop, settings.size, diag.OUTPUT_SIZE) == (2, (1024, 1024), (224, 632))
    assert diag.NEGATIVE_PROMPT == "smooth, plain, black, dark, shadow"


def test_the_pool_with_real_masks_is_an_arm_of_its_own(tmp_path: Path, data: Path, inpainter: Inpainter):
    real = open_masks("train_positives", data_folder=data)
    method = DIAG(data=data, inpainter=inpainter, origin="diag_real_masks", **WISH | {"masks": real})
    pool = make_pool(tmp_path, method, PoolPlan(3))
    assert set(pool["origin"]) == {"diag_real_masks"} and set(pool["mask_source"]) == {"train_positives"}
    leaks = [find_leaks(pool, scenario) for scenario in SCENARIOS]
    assert leaks == ["train_positives", "train_positives", ""]
