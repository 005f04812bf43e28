"""The scenarios table as data: read, refused, drawn from; the paper's numbers to the letter."""

import ast
from pathlib import Path

import pytest
from papermill import inspect_notebook
from test_mixing import DATA

from defaug_utils.book.profiles import read_profile
from defaug_utils.core.origins import SCENARIOS
from defaug_utils.core.prompts import Prompt
from defaug_utils.data.datasets import choose_positives
from defaug_utils.diffusion.dreambooth_plan import DreamBoothSettings
from defaug_utils.diffusion.lora import LoraPlan
from defaug_utils.diffusion.training_images import BucketSettings, DreamBoothError
from defaug_utils.protocol.scenarios import choose_instances, read_scenarios

ROOT = Path(__file__).parents[1]
TABLE = {
    "instances": {"zero-shot": 6, "few-shot": 3, "full-shot": 0},
    "epochs": {"zero-shot": 5, "few-shot": 49, "full-shot": 25},
    "shares": {"zero-shot": 0.6, "few-shot": 1, "full-shot": 0.8},
    "prompts": {"zero-shot": ["skt background cracked", {"text": "skt stain", "weight": 2}]},
}
PROMPT = "skt background"


def read_section(name: str) -> dict:
    return read_profile(ROOT / f"profiles/{name}.yaml", ROOT / "notebooks")["03_lora_finetune"]


def test_the_paper_profile_holds_the_papers_table():
    section = read_section("paper")
    plans = read_scenarios(*(section[name] for name in TABLE), PROMPT)
    numbers = {name: (plan.instances, plan.epochs, plan.share) for name, plan in plans.items()}
    assert numbers == {"zero-shot": (50, 5, 0.6), "few-shot": (5, 49, 0.95), "full-shot": (0, 25, 0.8)}
    texts = {name: [prompt.text for prompt in plan.prompts] for name, plan in plans.items()}
    assert texts["zero-shot"] == ["skt background cracked", "skt background scratched"]
    assert texts["few-shot"] == texts["full-shot"] == ["skt background"]


def test_the_paper_profile_trains_by_the_papers_recipe():
    names = ["identifier", "class_prompt", "repeats", "batch_size", "learning_rate", "restarts"]
    names += [
        "warmup_steps",
        "min_snr_gamma",
        "noise_offset",
        "prior_weight",
        "training_precision",
        "training_seed",
    ]
    section, paper = read_section("paper"), DreamBoothSettings()
    fields = {"min_snr_gamma": "gamma", "training_precision": "precision", "training_seed": "seed"}
    assert {name: section[name] for name in names} == {
        name: getattr(paper, fields.get(name, name)) for name in names
    }
    lora = LoraPlan(*(section[name] for name in ("linear_rank", "linear_alpha", "conv_rank", "conv_alpha")))
    assert lora == LoraPlan() and section["clip_skip"] == 2
    assert (section["class_images"], section["schedule_epochs"]) == ("captioned", 50), "its configuration"
    assert (section["steps"], section["guidance"]) == (50, 7.5), "its script's defaults"
    buckets = [section[f"bucket_{name}"] for name in ("area", "smallest", "largest", "step")]
    assert BucketSettings(*buckets) == BucketSettings()


@pytest.mark.parametrize("name", ["paper", "workshop", "smoke", "long"])
def test_generator_and_training_sets_know_as_many_positives(name: str):
    mixing = read_profile(ROOT / f"profiles/{name}.yaml", ROOT / "notebooks")["06_in_and_out"]
    defaults = inspect_notebook(str(ROOT / "notebooks/03_lora_finetune.ipynb"))
    given = read_section(name).get("instances") or ast.literal_eval(defaults["instances"]["default"])
    assert given["few-shot"] == mixing["few_shot_count"]


def test_prompts_take_the_negative_one_and_their_weight():
    plans = read_scenarios(**TABLE, instance_prompt=PROMPT, negative="blurred")
    assert plans["zero-shot"].prompts[1] == Prompt("skt stain", "blurred", 2)
    assert plans["few-shot"].prompts == (Prompt(PROMPT, "blurred", 1.0),)
    assert plans["few-shot"].share == 1.0 and isinstance(plans["few-shot"].share, float)


def test_instances_are_those_that_training_sets_know():
    plans = read_scenarios(**TABLE, instance_prompt=PROMPT)
    few = choose_instances(DATA, "few-shot", plans["few-shot"], pool_of_seed=1, seed=0)
    assert few["image"].tolist() == choose_positives(DATA, "few-shot", 1, 3)["image"].tolist()
    draws = {
        scenario: [choose_instances(DATA, scenario, plan, number)["image"].tolist() for number in (0, 1)]
        for scenario, plan in plans.items()
    }
    assert draws["zero-shot"][0] == draws["zero-shot"][1] and len(draws["zero-shot"][0]) == 6
    assert draws["full-shot"][0] == draws["full-shot"][1] and len(draws["full-shot"][0]) == 8
    assert set(draws["few-shot"][0]) != set(draws["few-shot"][1])
    assert all("train-negative" in name for name in draws["zero-shot"][0])


@pytest.mark.parametrize(
    ("column", "change", "message"),
    [
        ("epochs", {"one-shot": 5}, "epochs: 'one-shot' is not one of zero-shot"),
        ("instances", {"few-shot": 0}, "instances of few-shot: 0 must be 1 or more"),
        ("instances", {"full-shot": 9}, "instances of full-shot: 9 must be 0"),
        ("epochs", {"zero-shot": 0}, "epochs of zero-shot: 0 must be"),
        ("epochs", {"zero-shot": 1.5}, "epochs of zero-shot: 1.5 is not a whole number"),
        ("epochs", {"zero-shot": None}, "epochs of zero-shot: None is not a whole number"),
        ("shares", {"zero-shot": -0.1}, "shares of zero-shot: -0.1 must be"),
        ("shares", {"zero-shot": True}, "shares of zero-shot: True is not a number"),
        ("prompts", {"zero-shot": "skt background"}, "prompts of zero-shot: 'skt background' is not a list"),
    ],
)
def test_a_wrong_value_is_told(column: str, change: dict, message: str):
    with pytest.raises(DreamBoothError, match=message):
        read_scenarios(**TABLE | {column: TABLE[column] | change}, instance_prompt=PROMPT)


def test_all_wrong_values_are_told_at_once():
    with pytest.raises(DreamBoothError) as caught:
        read_scenarios(TABLE["instances"], {}, {}, {}, PROMPT)
    assert all(
        f"{name} of {s}: None" in str(caught.value) for name in ("epochs", "shares") for s in SCENARIOS
    )
