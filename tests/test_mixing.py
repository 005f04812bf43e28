"""Training sets against counted tables, and every refusal."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from defaug_utils.core.files import write_json
from defaug_utils.core.manifest import (
    ManifestError,
    make_manifest,
    rebase_manifest,
    validate_manifest,
    write_manifest,
)
from defaug_utils.core.origins import (
    ORIGINS,
    SCENARIOS,
    MixingError,
    Run,
    arm_shares,
    generates_images,
    list_arms,
    parse_run_name,
    planned_runs,
    pool_name,
    run_name,
)
from defaug_utils.data.datasets import choose_positives
from defaug_utils.protocol.mixing import (
    Mix,
    compose_training_set,
    count_by_origin,
    count_reviews,
    count_rows,
    take_part,
    usable_rows,
)
from defaug_utils.protocol.run_folder import RunPools, find_pool, read_data, read_pools

COUNTS = {
    ("train", "negative"): 30,
    ("train", "positive"): 8,
    ("val", "negative"): 6,
    ("val", "positive"): 2,
    ("test", "negative"): 12,
    ("test", "positive"): 4,
}


def make_data(counts: dict = COUNTS) -> pd.DataFrame:
    """A data set's manifest as `data/manifest.csv` holds it."""
    rows = [
        {"image": f"images/{split}-{label}-{i}.png", "label": label, "split": split, "origin": "real"}
        for (split, label), count in counts.items()
        for i in range(count)
    ]
    return make_manifest(row | {"mask": row["image"].replace("images", "masks")} for row in rows)


def make_pool(origin: str, count: int, accepted: dict | None = None, **fields) -> pd.DataFrame:
    """A pool rebased to the run's folder; `accepted` says what the review said of which index."""
    return make_manifest(
        {
            "image": f"{origin}/images/{i:06d}.png",
            "label": "positive",
            "split": "train",
            "origin": origin,
            "source_image": f"images/train-negative-{i % 30}.png",
            "seed": 1000 + i,
            "recipe": "0123456789ab",
            "accepted": (accepted or {}).get(i),
        }
        | fields
        for i in range(count)
    )


DATA = rebase_manifest(make_data(), "run/data", "run")
POOLS = {"memseg": make_pool("memseg", 120), "ddpm": make_pool("ddpm", 120)}


def compose(
    pools: dict, scenario: str, arm: str, n_aug: int, seed: int, learned: dict | None = None,
    data: pd.DataFrame = DATA, **options: object,
) -> pd.DataFrame:  # fmt: skip
    run = Run(scenario, arm, n_aug, seed)
    return compose_training_set(data, RunPools(pools, learned), run, Mix(**options))


def count(training_set: pd.DataFrame, **fields) -> int:
    return int((training_set[list(fields)] == list(fields.values())).all(axis=1).sum())


@pytest.mark.parametrize(
    ("scenario", "real_positives", "validation_positives"),
    [("zero-shot", 0, 0), ("few-shot", 5, 0), ("full-shot", 8, 2)],
)
def test_parts_of_a_training_set(scenario, real_positives, validation_positives):
    training_set = compose(POOLS, scenario, "in_and_out", 40, seed=0)
    validate_manifest(training_set, "run/train-x.csv")
    assert count(training_set, split="train", label="negative") == 30
    assert count(training_set, split="train", label="positive", origin="real") == real_positives
    assert count(training_set, split="train", origin="ddpm") == 20
    assert count(training_set, split="train", origin="memseg") == 20
    assert count(training_set, split="val", label="negative") == 6
    assert count(training_set, split="val", label="positive") == validation_positives
    assert count(training_set, split="test", label="negative") == 12
    assert count(training_set, split="test", label="positive") == 4
    assert len(training_set) == 30 + real_positives + 40 + 6 + validation_positives + 16


def test_generated_rows_keep_their_history():
    training_set = compose(POOLS, "few-shot", "memseg", 10, seed=3)
    drawn = training_set[training_set["origin"] == "memseg"].set_index("image")
    expected = POOLS["memseg"].set_index("image").loc[drawn.index]
    pd.testing.assert_frame_equal(drawn, expected)
    assert str(training_set["seed"].dtype) == "Int64"


def test_arm_none_has_no_generated_row():
    training_set = compose({}, "full-shot", "none", 0, seed=0)
    assert set(training_set["origin"]) == {"real"}
    assert len(training_set) == sum(COUNTS.values())


@settings(max_examples=15)
@given(
    small=st.integers(1, 50),
    large=st.integers(50, 100),
    seed=st.integers(0, 2**32),
    share=st.floats(0, 1),
    scenario=st.sampled_from(["zero-shot", "few-shot", "full-shot"]),
)
def test_draws_are_nested_and_repeat(small, large, seed, share, scenario):
    def draw(pools: dict, n_aug: int) -> pd.DataFrame:
        return compose(pools, scenario, "in_and_out", n_aug, seed, share=share)

    few, many = draw(POOLS, small), draw(POOLS, large)
    assert set(few["image"]) <= set(many["image"])
    assert (few["origin"] != "real").sum() == small
    assert abs((few["origin"] == "ddpm").sum() - small * share) <= 0.5 + 1e-6
    shuffled = {origin: pool.sample(frac=1, random_state=seed % 99) for origin, pool in POOLS.items()}
    again = draw(shuffled, small)
    pd.testing.assert_frame_equal(few, again)


def test_seeds_draw_differently():
    images = [frozenset(compose(POOLS, "few-shot", "memseg", 40, seed)["image"]) for seed in range(4)]
    assert len(set(images)) == 4
    chosen = [frozenset(choose_positives(DATA, "few-shot", seed)["image"]) for seed in range(4)]
    assert len(set(chosen)) == 4


def test_every_positive_is_drawn_about_equally_often():
    seeds = 300
    drawn = pd.concat([choose_positives(DATA, "few-shot", seed, 2) for seed in range(seeds)])
    frequencies = drawn["image"].value_counts() / seeds
    assert len(frequencies) == 8
    assert frequencies.between(0.15, 0.35).all()  # 2 of 8, standard deviation 0.025


def test_generators_choose_the_same_positives_from_the_data_folder():
    rebased = choose_positives(DATA, "few-shot", 7)["image"].str.removeprefix("data/")
    assert list(rebased) == list(choose_positives(make_data(), "few-shot", 7)["image"])


@pytest.mark.parametrize(
    ("n_aug", "share", "ddpm", "memseg"),
    [(4, 0.5, 2, 2), (5, 0.5, 3, 2), (1, 0.5, 1, 0), (10, 0.3, 3, 7), (3, 1.0, 3, 0), (3, 0.0, 0, 3)],
)
def test_rounding_of_shares(n_aug, share, ddpm, memseg):
    counts = count_by_origin(n_aug, arm_shares("in_and_out", share))
    assert counts.get("ddpm", 0) == ddpm
    assert counts.get("memseg", 0) == memseg


@settings(max_examples=50)
@given(weights=st.lists(st.integers(1, 20), min_size=1, max_size=4), n_aug=st.integers(0, 60))
def test_counts_add_up_and_never_shrink(weights, n_aug):
    shares = {str(i): weight / sum(weights) for i, weight in enumerate(weights)}
    counts, more = count_by_origin(n_aug, shares), count_by_origin(n_aug + 1, shares)
    assert sum(counts.values()) == n_aug
    assert all(more[origin] >= counts[origin] for origin in shares)


def test_an_arm_from_a_profile():
    own = {"three": {"ddpm": 0.25, "memseg": 0.5, "diag": 0.25}}
    pools = POOLS | {"diag": make_pool("diag", 10)}
    training_set = compose(pools, "zero-shot", "three", 40, 0, extra_arms=own)
    assert dict(training_set[training_set["origin"] != "real"]["origin"].value_counts()) == {
        "memseg": 20,
        "ddpm": 10,
        "diag": 10,
    }
    assert planned_runs(["zero-shot"], ["three"], [40], [0], own) == [Run("zero-shot", "three", 40, 0)]


@pytest.mark.parametrize(
    ("arm", "options", "message"),
    [
        ("mixup", {}, "not one of patch_memory, linear, none, none_equal, augmented, memseg"),
        ("in_and_out", {"share": 1.5}, "not in"),
        ("own", {"extra_arms": {"own": {"memseg": 0.4}}}, "add up to 0.4"),
        ("own", {"extra_arms": {"own": {"gan": 1.0}}}, "'gan' is unknown"),
        ("own", {"extra_arms": {"own": {"real": 1.0}}}, "'real' is unknown"),
        ("memseg", {"extra_arms": {"memseg": {"ddpm": 1.0}}}, "built in"),
        ("diag+memseg", {"extra_arms": {"diag+memseg": {"ddpm": 1.0}}}, "a name without"),
        ("cut_paste:0.75+diag:0.5", {}, "add up to 1.25, expected 1"),
        ("cut_paste+mixup", {}, "origin 'mixup' is unknown"),
        ("cut_paste+none", {}, "origin 'none' is unknown"),
        ("diag:0.5+diag:0.5", {}, "origin 'diag' is named twice"),
        ("cut_paste:0.75+diag", {}, "1 of 2 origins have a share"),
        ("cut_paste:much+diag:nan", {}, r"'much' is not a number .*\n.*'nan' is not a number"),
        ("diag+", {}, "origin '' is unknown"),
    ],
)
def test_wrong_arms(arm, options, message):
    with pytest.raises(MixingError, match=message):
        arm_shares(arm, **options)


def test_a_mixture_is_an_arm_under_the_name_of_what_it_mixes():
    assert arm_shares("diag+memseg") == {"diag": 0.5, "memseg": 0.5}
    arm = "diag:0.25+memseg:0.75"
    (run,) = planned_runs(["zero-shot"], [arm], [40], [0])
    assert run.name == "zero-shot-diag=0.25+memseg=0.75-40-seed0", "no colon, which Windows refuses in files"
    assert parse_run_name(run.name) == run == Run("zero-shot", arm, 40, 0)
    training_set = compose(POOLS | {"diag": make_pool("diag", 10)}, *run)
    assert (training_set["origin"] == "diag").sum() == 10 and (training_set["origin"] == "memseg").sum() == 30
    with pytest.raises(MixingError, match="no run is left"):
        planned_runs(["zero-shot"], ["cut_paste+memseg"], [40], [0])  # zero-shot has nothing to cut out


def test_one_mixture_under_two_names_is_refused():
    with pytest.raises(MixingError, match=r"diag\+memseg and memseg:0.5\+diag:0.5 are the same mixture"):
        planned_runs(["zero-shot"], ["diag+memseg", "memseg:0.5+diag:0.5"], [40], [0])


def test_rejected_rows_are_never_drawn():
    review = {i: i % 2 == 0 for i in range(20)}
    pools = {"memseg": make_pool("memseg", 30, review)}
    training_set = compose(pools, "zero-shot", "memseg", 20, 0)
    assert not (training_set["accepted"] == False).any()  # noqa: E712
    strict = compose(pools, "zero-shot", "memseg", 10, 0, require_review=True)
    assert strict["accepted"][strict["origin"] == "memseg"].all()


def test_usable_rows():
    pool = make_pool("memseg", 3, {0: True, 1: False})
    assert list(usable_rows(pool).index) == [0, 2]
    assert list(usable_rows(pool, Mix(require_review=True)).index) == [0]


def test_images_that_failed_their_checks_are_left_out_unless_a_person_accepted_them():
    pool = make_pool("memseg", 5, {0: True, 1: False}).assign(check_passed=[False, False, False, True, True])
    assert list(usable_rows(pool).index) == [0, 3, 4]
    assert list(usable_rows(pool, Mix(use_failed=True)).index) == [0, 2, 3, 4]
    assert list(usable_rows(pool, Mix(require_review=True, use_failed=True)).index) == [0]


def test_failed_images_are_told_when_a_pool_is_too_small_and_drawn_when_asked_for():
    pools = {"memseg": make_pool("memseg", 6).assign(check_passed=[False] * 4 + [True] * 2)}
    with pytest.raises(MixingError, match=r"2 of 6 are usable .*4 failed their checks\); make more with"):
        compose(pools, "zero-shot", "memseg", 3, 0)
    drawn = compose(pools, "zero-shot", "memseg", 2, 0)
    assert drawn.loc[drawn["origin"] == "memseg", "check_passed"].all()
    every = compose(pools, "zero-shot", "memseg", 6, 0, use_failed=True)
    assert (every["origin"] == "memseg").sum() == 6


def test_a_rejection_replaces_one_image_only():
    before = compose(POOLS, "zero-shot", "memseg", 40, 0)
    drawn = before[before["origin"] == "memseg"]["image"]
    index = int(drawn.iloc[5][-10:-4])
    pools = {"memseg": make_pool("memseg", 120, {index: False})}
    after = compose(pools, "zero-shot", "memseg", 40, 0)
    assert set(drawn) - set(after["image"]) == {drawn.iloc[5]}
    assert (after["origin"] == "memseg").sum() == 40


def test_pools_missing_and_too_small_are_told_together():
    pools = {"memseg": make_pool("memseg", 30, {0: True, 1: False})}
    with pytest.raises(MixingError) as error:
        compose(pools, "few-shot", "in_and_out", 80, 0)
    message = str(error.value)
    assert "few-shot-in_and_out-80-seed0" in message
    assert "there is no ddpm pool: run notebook 03_lora_finetune first" in message
    assert "40 images are requested, 29 of 30 are usable (1 rejected, 28 not reviewed)" in message
    assert "notebook 02_memseg" in message


def test_an_unreviewed_pool_is_too_small_when_review_is_required():
    with pytest.raises(MixingError, match=r"0 of 120 are usable \(0 rejected, 120 not reviewed\)"):
        compose(POOLS, "few-shot", "memseg", 1, 0, require_review=True)


@pytest.mark.parametrize(
    "source", ["images/test-negative-1.png", "images/val-negative-1.png", "images/x.png"]
)
def test_sources_outside_train_are_refused(source):
    with pytest.raises(ManifestError, match="only train images may be sources"):
        compose({"memseg": make_pool("memseg", 5, source_image=source)}, "few-shot", "memseg", 2, 0)


def test_zero_shot_refuses_images_made_from_real_positives():
    pools = {"memseg": make_pool("memseg", 5, source_image="images/train-positive-1.png")}
    with pytest.raises(MixingError, match="real positive that this scenario does not know"):
        compose(pools, "zero-shot", "memseg", 2, 0)
    compose(pools, "full-shot", "memseg", 2, 0)


@pytest.mark.parametrize("field", [{"split": "test"}, {"label": "negative"}, {"origin": "ddpm"}])
def test_rows_of_another_kind_in_a_pool_are_refused(field):
    pools = {"memseg": make_pool("memseg", 5).assign(**field)}
    with pytest.raises(MixingError, match="5 rows that are not memseg training positives"):
        compose(pools, "few-shot", "memseg", 2, 0)


@pytest.mark.parametrize(
    ("scenario", "arm", "n_aug"),
    [
        ("few-shot", "memseg", -1),
        ("few-shot", "memseg", 0),
        ("few-shot", "none", 4),
        ("few-shot", "linear", 4),
    ],
)
def test_wrong_n_aug(scenario, arm, n_aug):
    with pytest.raises(MixingError, match="n_aug must be 0 for the arms none, linear and patch_memory"):
        compose(POOLS, scenario, arm, n_aug, 0)


def test_unknown_scenario():
    with pytest.raises(MixingError, match="'one-shot' is not one of zero-shot, few-shot, full-shot"):
        compose(POOLS, "one-shot", "memseg", 4, 0)


@pytest.mark.parametrize("few_shot_count", [0, 9])
def test_wrong_few_shot_count(few_shot_count):
    with pytest.raises(MixingError, match=f"few_shot_count is {few_shot_count}, expected 1 … 8"):
        compose(POOLS, "few-shot", "memseg", 4, 0, few_shot_count=few_shot_count)


@pytest.mark.parametrize("missing", [("train", "negative"), ("test", "negative"), ("test", "positive")])
def test_a_class_without_sample(missing):
    data = make_data({part: count for part, count in COUNTS.items() if part != missing})
    pools = {"memseg": make_pool("memseg", 40, source_image="")}
    with pytest.raises(MixingError, match=f"the {missing[0]} part has no {missing[1]}"):
        compose(pools, "few-shot", "memseg", 4, 0, data=data)


def test_zero_shot_without_augmentation_has_no_positive():
    with pytest.raises(MixingError, match="the train part has no positive"):
        compose({}, "zero-shot", "none", 0, 0)


def test_generated_rows_in_the_data_set_are_refused():
    data = pd.concat([DATA, make_pool("ddpm", 1)], ignore_index=True)
    with pytest.raises(MixingError, match=r"ddpm/images/000000.png of the data set is not real"):
        compose(POOLS, "full-shot", "none", 0, 0, data=data)


@given(
    scenario=st.sampled_from(["zero-shot", "few-shot", "full-shot"]),
    arm=st.from_regex(r"[a-z0-9_]{1,12}", fullmatch=True),
    n_aug=st.integers(0, 10**6),
    seed=st.integers(0, 2**63),
)
def test_run_names_there_and_back(scenario, arm, n_aug, seed):
    assert parse_run_name(run_name(scenario, arm, n_aug, seed)) == Run(scenario, arm, n_aug, seed)


def test_run_name_is_as_documented():
    assert run_name("few-shot", "memseg", 40, 0) == "few-shot-memseg-40-seed0"


@pytest.mark.parametrize(
    "name", ["few-shot-memseg-40", "few-shot-memseg-040-seed0", "../x", "few-shot-a/b-4-seed0"]
)
def test_other_names_are_no_run_names(name):
    with pytest.raises(MixingError, match="is not a run name"):
        parse_run_name(name)


def test_arms_that_make_no_run_name_are_refused():
    with pytest.raises(MixingError, match="lower-case letters"):
        run_name("few-shot", "My-Arm", 4, 0)


def test_planned_runs_of_the_paper():
    runs = planned_runs(
        ["zero-shot", "few-shot", "full-shot"],
        ["none", "memseg", "ddpm", "in_and_out"],
        [80, 100, 120],
        range(4),
    )
    assert len(runs) == len(set(runs)) == 3 * 3 * 3 * 4 + 2 * 4
    assert not any(run.scenario == "zero-shot" and run.arm == "none" for run in runs)
    assert {run.n_aug for run in runs if run.arm == "none"} == {0}
    assert runs[0] == Run("zero-shot", "memseg", 80, 0)


def test_planned_runs_pass_over_zero_and_repeats():
    runs = planned_runs(["few-shot"], ["none", "memseg"], [0, 40, 40], [1])
    assert runs == [Run("few-shot", "none", 0, 1), Run("few-shot", "memseg", 40, 1)]


def test_zero_shot_is_not_planned_with_what_is_made_from_real_positives():
    own = {"half_pasted": {"cut_paste": 0.5, "memseg": 0.5}}
    arms = ["memseg", "adabldm", "cut_paste", "half_pasted"]
    runs = planned_runs(["zero-shot", "few-shot"], arms, [4], [0], own)
    assert [run.arm for run in runs if run.scenario == "zero-shot"] == ["memseg"]
    assert [run.arm for run in runs if run.scenario == "few-shot"] == arms


def test_arms_are_left_out_by_scenario():
    arms = ["none", "memseg", "ddpm"]
    runs = planned_runs(["few-shot", "full-shot"], arms, [4], [0], left_out={"full-shot": ["ddpm"]})
    assert [(run.scenario, run.arm) for run in runs] == [
        ("few-shot", "none"),
        ("few-shot", "memseg"),
        ("few-shot", "ddpm"),
        ("full-shot", "none"),
        ("full-shot", "memseg"),
    ]
    with pytest.raises(MixingError, match="left_out names 'diag' in 'full-shot', which is not planned"):
        planned_runs(["full-shot"], arms, [4], [0], left_out={"full-shot": ["diag"]})


def test_only_few_shot_has_a_pool_for_each_seed():
    names = [pool_name(scenario, 3) for scenario in SCENARIOS]
    assert names == ["zero-shot", "few-shot-seed3", "full-shot"]


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ((["one-shot"], ["none"], [1], [0]), "'one-shot' is not one of"),
        ((["few-shot"], ["mixup"], [1], [0]), "'mixup' is not one of"),
        (("few-shot", ["none"], [1], [0]), "scenarios is 'few-shot', expected a list"),
        ((["few-shot"], ["none"], 40, [0]), "n_aug is 40, expected a list"),
        ((["few-shot"], ["memseg"], ["40"], [0]), "'40' is not a whole number"),
        ((["few-shot"], ["memseg"], [40], [-1]), "-1 is not a whole number"),
        ((["zero-shot"], ["none"], [40], [0]), "no run is left"),
        ((["few-shot"], ["memseg"], [0], [0]), "no run is left"),
    ],
)
def test_wrong_plans(lists, message):
    with pytest.raises(MixingError, match=message):
        planned_runs(*lists)


def test_pools_are_found_from_special_to_general(tmp_path):
    run = Run("few-shot", "ddpm", 4, 1)
    assert find_pool(tmp_path, "ddpm", run) is None
    assert read_pools(tmp_path, run) == {}
    for folder in ("ddpm", "ddpm/few-shot", "ddpm/few-shot-seed1"):
        pool = make_manifest(
            [{"image": "images/0.png", "label": "positive", "split": "train", "origin": "ddpm"}]
        )
        write_manifest(pool, tmp_path / folder / "manifest.csv")
        assert find_pool(tmp_path, "ddpm", run) == tmp_path / folder
        assert list(read_pools(tmp_path, run)["ddpm"]["image"]) == [f"{folder}/images/0.png"]
    assert find_pool(tmp_path, "ddpm", Run("few-shot", "ddpm", 4, 2)) == tmp_path / "ddpm/few-shot"
    assert find_pool(tmp_path, "ddpm", Run("zero-shot", "ddpm", 4, 1)) == tmp_path / "ddpm"


def test_runs_wait_for_the_notebooks_of_missing_pools():
    run = Run("few-shot", "in_and_out", 4, 0)
    assert Mix().list_waiting(run, {}) == ["03_lora_finetune", "02_memseg"]
    assert Mix().list_waiting(run, {"memseg": POOLS["memseg"]}) == ["03_lora_finetune"]
    assert Mix(share=0.0).list_waiting(run, {}) == ["02_memseg"]
    assert Mix().list_waiting(run, POOLS) == Mix().list_waiting(run._replace(arm="none"), {}) == []
    own = Mix(extra_arms={"own": {"diag": 1.0}})
    assert own.list_waiting(run._replace(arm="own"), {}) == ["04_diag_inpainting"]


def test_data_are_read_relative_to_the_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="run the notebook that makes it first"):
        read_data(tmp_path)
    manifest = make_data({("train", "negative"): 2})
    write_manifest(manifest.assign(mask=""), tmp_path / "data/manifest.csv")
    with pytest.raises(ManifestError, match="does not exist"):
        read_data(tmp_path)
    for image in manifest["image"]:
        (tmp_path / "data" / image).parent.mkdir(exist_ok=True)
        (tmp_path / "data" / image).touch()
    assert list(read_data(tmp_path)["image"]) == [f"data/{image}" for image in manifest["image"]]


def test_counts_of_reviews():
    pools = {
        "memseg": make_pool("memseg", 4, {0: True, 1: False, 2: False}).assign(mask=["m.png", "", "", ""])
    }
    counted = count_reviews(pools).loc["memseg"]
    expected = {"images": 4, "with mask": 1, "failed checks": 0}
    assert counted.to_dict() == expected | {"accepted": 1, "rejected": 2, "not reviewed": 1}
    checked = pools["memseg"].assign(check_passed=["True", "False", "False", "True"])
    assert count_reviews({"memseg": checked}).loc["memseg", "failed checks"] == 2


def test_counts_of_rows():
    sets = {
        "a": compose(POOLS, "few-shot", "in_and_out", 5, 0),
        "b": compose(POOLS, "full-shot", "none", 0, 0),
    }
    counted = count_rows(sets)
    assert counted.loc["a"].to_dict() == {
        "train negative": 30,
        "train positive": 5,
        "train ddpm": 3,
        "train memseg": 2,
        "val negative": 6,
        "val positive": 0,
        "test negative": 12,
        "test positive": 4,
    }
    assert list(counted)[:4] == ["train negative", "train positive", "train memseg", "train ddpm"]
    assert counted.loc["b", "val positive"] == 2
    assert list(counted.sum(axis=1)) == [len(sets["a"]), len(sets["b"])]


def test_every_origin_of_an_arm_has_a_notebook():
    assert {origin for arm in list_arms().values() for origin in arm.shares} == set(ORIGINS)


def test_planning_needs_no_torch():
    code = "import sys, defaug_utils.protocol.mixing; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def write_learning_pool(run_dir: Path, origin: str, recipe: dict) -> None:
    """A pool without files of its images, whose recipe says what its generator learned from."""
    pool = make_pool(origin, 6)
    write_manifest(pool.assign(image=pool["image"].str.split("/").str[-1]), run_dir / origin / "manifest.csv")
    write_json(run_dir / origin / "recipe.json", {"key": recipe})


@pytest.mark.parametrize("origin", ["ddpm", "adabldm"])
def test_a_generator_that_learned_from_unknown_positives_is_refused(tmp_path: Path, origin: str):
    few = {seed: choose_positives(DATA, "few-shot", seed)["image"].tolist() for seed in (0, 1)}
    names = [name.removeprefix("data/") for name in few[1]]
    write_learning_pool(tmp_path, origin, {"learned_from": names})
    learned = {seed: read_pools(tmp_path, Run("few-shot", origin, 4, seed)).learned for seed in (0, 1)}
    assert learned[0] == {origin: names}
    pools = {origin: make_pool(origin, 6)}
    assert len(compose(pools, "few-shot", origin, 4, 1, learned=learned[1]))
    assert len(compose(pools, "full-shot", origin, 4, 0, learned=learned[0]))
    with pytest.raises(MixingError, match="learned from images that it must not know") as caught:
        compose(pools, "few-shot", origin, 4, 0, learned=learned[0])
    hidden = set(few[1]) - set(few[0])
    assert hidden and all(name.removeprefix("data/") in str(caught.value) for name in hidden)


@pytest.mark.parametrize(
    "name", ["images/test-negative-0.png", "images/val-positive-0.png", "images/other.png"]
)
def test_a_generator_that_learned_from_no_training_image_is_refused(name: str):
    with pytest.raises(MixingError, match=name):
        compose({"ddpm": make_pool("ddpm", 6)}, "full-shot", "ddpm", 4, 0, learned={"ddpm": [name]})


def test_a_generator_from_elsewhere_tells_nothing_but_its_recipe_must_say_so(tmp_path: Path):
    run = Run("zero-shot", "ddpm", 4, 0)
    write_learning_pool(tmp_path, "ddpm", {"adapter": {"training": "unknown"}, "learned_from": []})
    assert read_pools(tmp_path, run).learned == {"ddpm": []}
    write_learning_pool(tmp_path, "ddpm", {"adapter": "none"})
    with pytest.raises(MixingError, match=r"does not say which images .* again with notebook 03_lora"):
        read_pools(tmp_path, run)


def test_no_augmentation_trained_as_long_is_planned_for_every_number():
    runs = planned_runs(["zero-shot", "few-shot"], ["none", "none_equal", "augmented"], [20, 40], [0])
    assert [run.name for run in runs] == [
        "few-shot-none-0-seed0",
        "few-shot-none_equal-20-seed0",
        "few-shot-none_equal-40-seed0",
        "few-shot-augmented-20-seed0",
        "few-shot-augmented-40-seed0",
    ]
    assert count_by_origin(40, arm_shares("none_equal")) == {}
    assert not any(map(generates_images, ["none", "linear", "none_equal", "augmented"]))
    assert all(map(generates_images, ["diag", "in_and_out", "diag+memseg", "own"]))
    with pytest.raises(MixingError, match="add up to 0"):
        arm_shares("nothing", extra_arms={"nothing": {}})


def test_what_trains_no_network_is_planned_without_generated_images_and_a_memory_without_any_defect():
    arms = ["patch_memory", "linear", "memseg"]
    runs = planned_runs(["zero-shot", "few-shot"], arms, [40], [0])
    assert [run.name for run in runs] == [
        "zero-shot-patch_memory-0-seed0",
        "zero-shot-memseg-40-seed0",
        "few-shot-patch_memory-0-seed0",
        "few-shot-linear-0-seed0",
        "few-shot-memseg-40-seed0",
    ]


def test_a_memory_of_good_parts_needs_no_positive_where_a_line_does():
    rows = compose(POOLS, "zero-shot", "patch_memory", 0, 0)
    assert not len(rows.query("split == 'train' and label == 'positive'"))
    with pytest.raises(MixingError, match="the train part has no positive"):
        compose(POOLS, "zero-shot", "linear", 0, 0)


def test_seeds_draw_none_of_each_others_images_where_that_is_asked_for():
    seeds = (0, 3, 7)
    drawn = {}
    for seed in seeds:
        rows = compose(POOLS, "zero-shot", "in_and_out", 80, seed, fresh_seeds=seeds)
        drawn[seed] = rows[rows["origin"] != "real"]
        validate_manifest(rows, "run/train-x.csv")
        assert count(rows, split="train", origin="ddpm") == count(rows, split="train", origin="memseg") == 40
        assert set(drawn[seed]["pool_part"]) == {f"{seeds.index(seed) + 1} of 3"}
        smaller = compose(POOLS, "zero-shot", "in_and_out", 30, seed, fresh_seeds=seeds)
        assert set(smaller["image"]) <= set(rows["image"]), "smaller draws are parts of larger ones"
    assert len(set(pd.concat(drawn.values())["image"])) == 3 * 80
    shared = [compose(POOLS, "zero-shot", "memseg", 80, seed) for seed in seeds]
    assert len(set(pd.concat(shared).query("origin == 'memseg'")["image"])) < 3 * 80
    assert all("pool_part" not in rows for rows in shared)


def test_parts_take_turns_by_chance_so_that_none_misses_a_prompt():
    pool = make_pool("memseg", 120)
    places = [int(image[-10:-4]) for image in take_part(pool, 1, (0, 1))["image"]]
    assert len(places) == 60
    assert {place // 2 for place in places} == set(range(60)), "one of every two"
    assert 15 < sum(place % 2 for place in places) < 45, "prompts take turns, too: not always the same place"


def test_a_rejected_image_is_replaced_from_its_own_seeds_part_and_moves_no_other():
    seeds, checks = (0, 1, 2), ["true"] * 120
    checks[4] = checks[50] = "false"
    pool = make_pool("memseg", 120).assign(check_passed=checks)

    def draw(accepted: dict) -> dict[int, set]:
        judged = pool.assign(accepted=make_pool("memseg", 120, accepted)["accepted"])
        sets = {
            seed: compose({"memseg": judged}, "full-shot", "memseg", 30, seed, fresh_seeds=seeds)
            for seed in seeds
        }
        return {seed: set(rows.query("origin == 'memseg'")["image"]) for seed, rows in sets.items()}

    before = draw({})
    rejected = sorted(before[1])[:5]
    after = draw({int(image[-10:-4]): False for image in rejected})
    assert after[0] == before[0] and after[2] == before[2]
    assert before[1] - after[1] == set(rejected) and len(after[1]) == 30
    assert not after[1] & (after[0] | after[2])
    mended = draw({4: True})  # one that failed its checks, and that a person accepted
    assert sum(len(mended[seed] - before[seed]) for seed in seeds) <= 1


def test_a_pool_of_a_seeds_own_is_not_dealt_out():
    run, pools = Run("few-shot", "ddpm", 100, 1), {"ddpm": make_pool("ddpm", 120)}
    own = RunPools(pools, folders={"ddpm": "ddpm/few-shot-seed1"})
    rows = compose_training_set(DATA, own, run, Mix(fresh_seeds=(0, 1)))
    assert count(rows, origin="ddpm") == 100
    for folder in ("ddpm/few-shot-seed11", "ddpm/few-shot", "ddpm"):
        with pytest.raises(MixingError, match="100 images are requested, 60 of 60 are usable"):
            compose_training_set(
                DATA, RunPools(pools, folders={"ddpm": folder}), run, Mix(fresh_seeds=(0, 1))
            )


def test_a_pool_too_small_for_fresh_images_says_how_many_are_needed_and_what_to_raise():
    accepted = dict.fromkeys(range(40), False)
    pools = {"memseg": make_pool("memseg", 120, accepted)}
    with pytest.raises(MixingError) as caught:
        compose(pools, "full-shot", "memseg", 100, seed=0, fresh_seeds=(0, 1))
    rejected = 20  # one of every two
    assert f"100 images are requested, 40 of 60 are usable ({rejected} rejected" in str(caught.value)
    assert f"of part 1 of 2, its seed's own: {2 * (100 + rejected)} images" in str(caught.value)
    assert "raise pool_count to that; make more with notebook 02_memseg" in str(caught.value)
    with pytest.raises(MixingError, match="raise plain_count to that"):
        compose(
            {"adabldm_plain": make_pool("adabldm_plain", 8)},
            "full-shot",
            "adabldm_plain",
            8,
            1,
            fresh_seeds=(1, 2),
        )


def test_a_seed_without_a_part_is_refused():
    with pytest.raises(
        MixingError, match=r"seed 5 has no part of the pools, which are for the seeds \(0, 1\)"
    ):
        compose(POOLS, "zero-shot", "memseg", 10, seed=5, fresh_seeds=(0, 1))
