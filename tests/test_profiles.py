"""Profiles reach the notebooks that declare a parameter, and every slip is named."""

import ast
import re
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from papermill import inspect_notebook

from defaug_utils.book.profiles import ProfileError, read_defaults, read_profile
from defaug_utils.data.datasets import FEW_SHOT_COUNT
from defaug_utils.diffusion.autoencoder import AdaptationSettings
from defaug_utils.diffusion.controlnet import PAPER_PLAN, ControlNetSettings
from defaug_utils.diffusion.inpainting import InpaintSettings
from defaug_utils.evaluation.destseg import HEAD_RECIPE, STUDENT_RECIPE
from defaug_utils.evaluation.detector import DETECTOR_RECIPE
from defaug_utils.evaluation.recipes import RECIPES
from defaug_utils.masks.trimaps import SCALE_RANGE, TEMPLATE, TRIPLES
from defaug_utils.methods import diag
from defaug_utils.methods.blending import BlendSettings

ROOT = Path(__file__).parents[1]
DECLARED = {
    "01_data_prep": 'run_dir: str = "runs/workshop"\nseed: int = 0\ndata_root: str = ""',
    "02_memseg": 'run_dir: str = "runs/workshop"\nseed: int = 0\nimage_count: int = 40  # images',
}


@pytest.fixture
def notebooks(tmp_path: Path) -> Path:
    """A folder with two small notebooks and one file that is none of the book's."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    for name, source in {**DECLARED, "scratch": "speed: int = 1"}.items():
        cell = new_code_cell(source, metadata={"tags": ["parameters"]})
        notebook = new_notebook(cells=[cell])
        notebook.metadata["kernelspec"] = {
            "name": "python3",
            "display_name": "Python 3",
            "language": "python",
        }
        nbformat.write(notebook, folder / f"{name}.ipynb")
    return folder


@pytest.fixture
def read(tmp_path: Path, notebooks: Path):
    """Write a profile's text and read it."""

    def write_and_read(text: str | bytes) -> dict[str, dict]:
        path = tmp_path / "mine.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_profile(path, notebooks)

    return write_and_read


def test_shared_values_reach_those_that_declare_them_and_sections_win(read):
    text = """
    shared: {run_dir: runs/mine, seed: 1, data_root: parts}
    02_memseg: {image_count: 8, seed: 2}
    """
    assert read(text) == {
        "01_data_prep": {"run_dir": "runs/mine", "seed": 1, "data_root": "parts"},
        "02_memseg": {"run_dir": "runs/mine", "seed": 2, "image_count": 8},
    }


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "shared:\n02_memseg:\n"])
def test_an_empty_profile_leaves_the_notebooks_defaults(read, text: str):
    assert read(text) == {"01_data_prep": {}, "02_memseg": {}}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("shared: {sede: 1}", "shared: unknown parameter 'sede' (did you mean 'seed'?)"),
        ("shared: {seed : 1, qqq: 1}", "shared: unknown parameter 'qqq'"),
        (
            "02_memseg: {image_cuont: 8}",
            "02_memseg: unknown parameter 'image_cuont' (did you mean 'image_count'?)",
        ),
        ("01_data_prep: {image_count: 8}", "01_data_prep: unknown parameter 'image_count'"),
        ("02_memsge: {seed: 8}", "unknown section '02_memsge' (did you mean '02_memseg'?)"),
        ("scratch: {speed: 8}", "unknown section 'scratch'"),
        ("share: {seed: 8}", "unknown section 'share' (did you mean 'shared'?)"),
        ("shared: {1: 8}", "shared: unknown parameter 1"),
    ],
)
def test_unknown_keys_are_named_with_the_nearest_known_one(read, text: str, told: str):
    with pytest.raises(ProfileError) as caught:
        read(text)
    assert "mine.yaml" in str(caught.value)
    assert f"- {told}\n" in f"{caught.value}\n"


def test_every_slip_is_in_one_error(read):
    with pytest.raises(ProfileError) as caught:
        read("shared: {sede: 1}\n02_memseg: {image_cuont: 8}\n09_more: {}")
    assert str(caught.value).count("\n  - ") == 3


@pytest.mark.parametrize(
    "text",
    ["shared: {seed: 1", "shared:\n\tseed: 1", "a: b: c", "shared: [}", b"shared: {run_dir: \xff\xfe}"],
)
def test_broken_yaml_is_told_with_its_file(read, text: str | bytes):
    with pytest.raises(ProfileError, match=r"mine\.yaml is not valid YAML"):
        read(text)


@pytest.mark.parametrize("text", ["- seed", "seed", "42", "shared: [seed]", "seed: 1", "shared: 0"])
def test_yaml_of_another_shape_is_refused(read, text: str):
    with pytest.raises(ProfileError, match=r"mine\.yaml: expected sections"):
        read(text)


@pytest.mark.parametrize(
    "value",
    ["!!python/object/apply:os.mkdir [{}]", "!!python/name:os.system ''", "!!python/tuple [1, 2]"],
)
def test_yaml_that_would_run_python_is_refused(read, tmp_path: Path, value: str):
    with pytest.raises(ProfileError, match="not valid YAML"):
        read(f"shared: {{seed: {value.format(tmp_path / 'made')}}}")
    assert not (tmp_path / "made").exists()


def test_a_missing_profile_names_those_there_are(tmp_path: Path, notebooks: Path):
    for name in ("smoke", "paper"):
        (tmp_path / f"{name}.yaml").touch()
    with pytest.raises(ProfileError, match=r"no profile .*workshp\.yaml: .* has paper, smoke"):
        read_profile(tmp_path / "workshp.yaml", notebooks)
    with pytest.raises(ProfileError, match="has none"):
        read_profile(notebooks / "workshop.yaml", notebooks)


def test_the_projects_profiles_are_the_designs():
    assert {path.stem for path in (ROOT / "profiles").glob("*.yaml")} >= {"smoke", "workshop", "paper"}


@pytest.mark.parametrize("path", sorted((ROOT / "profiles").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_profile_of_the_project_is_valid(path: Path):
    parameters = read_profile(path, ROOT / "notebooks")
    names = {notebook.stem for notebook in (ROOT / "notebooks").glob("*.ipynb")}
    assert set(parameters) == names
    assert not any("run_dir" in values for values in parameters.values()), "the batch engine sets the folder"


def test_by_hand_a_notebook_does_what_the_workshop_profile_does():
    differing = []
    for notebook, values in read_profile(ROOT / "profiles" / "workshop.yaml", ROOT / "notebooks").items():
        declared = inspect_notebook(str(ROOT / "notebooks" / f"{notebook}.ipynb"))
        for name, value in values.items():
            if ast.literal_eval(declared[name]["default"]) != value:
                differing.append(f"{notebook}: {name} is {value!r}, by hand {declared[name]['default']}")
    assert not differing


@pytest.mark.parametrize("path", sorted((ROOT / "profiles").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_pool_is_large_enough_for_the_training_sets(path: Path):
    parameters = read_profile(path, ROOT / "notebooks")
    largest = max(parameters["06_in_and_out"]["n_aug"] + parameters["09_pixel_level"]["n_aug"])
    assert all(values["pool_count"] >= largest for values in parameters.values() if "pool_count" in values)
    if "adabldm_plain" in parameters["09_pixel_level"]["arms"]:
        declared = inspect_notebook(str(ROOT / "notebooks" / "05_adabldm.ipynb"))["plain_count"]["default"]
        plain_count = parameters["05_adabldm"].get("plain_count", int(declared))
        assert plain_count >= max(parameters["09_pixel_level"]["n_aug"])
    for chapter in ("06_in_and_out", "09_pixel_level"):
        if "paste_refined" in parameters[chapter]["arms"]:
            assert parameters["05_adabldm"]["refined_count"] >= max(parameters[chapter]["n_aug"])
        if "diag_real_masks" in parameters[chapter]["arms"]:
            assert parameters["04_diag_inpainting"]["real_mask_count"] >= max(parameters[chapter]["n_aug"])


@pytest.mark.parametrize("name", ["paper", "paper_diag"])
def test_the_papers_pools_have_images_of_its_own_for_every_seed(name: str):
    parameters = read_profile(ROOT / "profiles" / f"{name}.yaml", ROOT / "notebooks")
    mixed = parameters["06_in_and_out"]
    assert mixed["fresh_per_seed"]
    each = max(mixed["n_aug"])
    counts = {key: values["pool_count"] for key, values in parameters.items() if "pool_count" in values}
    counts |= {"refined": parameters["05_adabldm"].get("refined_count", len(mixed["seeds"]) * each)}
    counts |= {"real": parameters["04_diag_inpainting"].get("real_mask_count", len(mixed["seeds"]) * each)}
    assert set(counts.values()) == {len(mixed["seeds"]) * each}
    assert (
        "fresh_per_seed"
        not in read_profile(ROOT / "profiles" / "workshop.yaml", ROOT / "notebooks")["06_in_and_out"]
    )


@pytest.mark.parametrize("name", ["paper", "paper_diag"])
def test_diags_numbers_are_the_papers(name: str):
    values = read_profile(ROOT / "profiles" / f"{name}.yaml", ROOT / "notebooks")["04_diag_inpainting"]
    settings = InpaintSettings(
        (values["working_width"], values["working_height"]),
        values["steps"],
        values["guidance"],
        values["strength"],
        values["padding_mask_crop"],
    )
    assert settings == diag.PAPER_SETTINGS
    assert values.get("keep_detail", 0.0) == settings.keep_detail == 0, "DIAG has no such step"
    assert (values["model"], values["prompts"]) == (diag.MODEL, list(diag.PROMPTS))
    assert values["negative_prompt"] == diag.NEGATIVE_PROMPT
    assert values["pool_count"] >= len(diag.PROMPTS) * diag.IMAGES_PER_PROMPT


@pytest.mark.parametrize("name", ["paper", "paper_diag", "mvtec_paper"])
def test_adabldms_numbers_are_the_papers(name: str):
    values = read_profile(ROOT / "profiles" / f"{name}.yaml", ROOT / "notebooks")["05_adabldm"]
    size = (values["working_width"], values["working_height"])
    editing = (tuple(values["latent_editing"]), tuple(values["image_editing"]))
    sampling = (values["steps"], values["guidance"], *editing, values["dilation"])
    assert BlendSettings(size, *sampling) == BlendSettings(size)
    names = ("adapted_parameters", "adaptation_steps", "adaptation_rate", "background_weight")
    assert AdaptationSettings(*(values[name] for name in names)) == AdaptationSettings()
    training = ControlNetSettings(values["training_batch"], values["learning_rate"])
    assert (training, values["training_steps"]) == (ControlNetSettings(), PAPER_PLAN.steps)
    assert (values["triple_count"], values["scale_range"]) == (TRIPLES, SCALE_RANGE)


@pytest.mark.parametrize("name", ["paper", "paper_diag"])
def test_no_network_of_the_papers_scale_starts_from_random_weights(name: str):
    parameters = read_profile(ROOT / "profiles" / f"{name}.yaml", ROOT / "notebooks")
    for notebook in ("07_classifier", "09_pixel_level"):
        assert parameters[notebook]["weights"] == "microsoft/resnet-50"
    detector, workshop = parameters["09_pixel_level"], DETECTOR_RECIPE
    assert 0 < detector["learning_rate"] == RECIPES["diag"].learning_rate < workshop.learning_rate


def test_diags_own_protocol_prepares_the_data_at_the_papers_size():
    parameters = read_profile(ROOT / "profiles" / "paper_diag.yaml", ROOT / "notebooks")
    values = parameters["01_data_prep"]
    assert (values["image_width"], values["image_height"]) == diag.OUTPUT_SIZE
    assert values["fit"] == "resize"
    assert {"diag", "diag_real_masks"} <= set(parameters["06_in_and_out"]["arms"]), (
        "its masks, and clean ones"
    )
    assert parameters["07_classifier"]["recipe"] == "diag"


def test_the_table_of_all_categories_has_the_papers_protocol():
    parameters = read_profile(ROOT / "profiles" / "mvtec_paper.yaml", ROOT / "notebooks")
    data, adabldm, pixels = (parameters[name] for name in ("01_data_prep", "05_adabldm", "09_pixel_level"))
    assert (data["image_width"], data["image_height"], data["few_shot_takes_all"]) == (256, 256, True)
    assert (adabldm["working_width"], adabldm["working_height"]) == (256, 256)
    assert adabldm["model"] == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert (adabldm["template"], adabldm["controlnet_per"]) == (TEMPLATE, "type")
    assert (pixels["detector"], pixels["backbone"]) == ("destseg", "resnet18")
    assert pixels["training_images"] == 4000 * pixels["batch_size"] == 4000 * HEAD_RECIPE.batch_size
    assert (pixels["learning_rate"], HEAD_RECIPE.learning_rate, STUDENT_RECIPE.learning_rate) == (0, 0.1, 0.4)
    assert adabldm["paste_back"] is True


@pytest.mark.parametrize(
    ("name", "sections"),
    [
        *(("paper", ""), ("paper_diag", "")),
        ("mvtec_paper", "01_data_prep 05_adabldm 09_pixel_level"),  # those that its table is made by
    ],
)
def test_every_parameter_of_a_papers_profile_names_its_source(name: str, sections: str):
    known = "paper|code|ours|In&Out|DIAG|AdaBLDM|DeSTSeg|PatchCore|likewise|as |all |not |the recipe"
    text = (ROOT / "profiles" / f"{name}.yaml").read_text(encoding="utf-8")
    for section in sections.split() or re.findall(r"(?m)^(\w+):", text):
        lines = text.partition(f"\n{section}:")[2].partition("\n\n")[0].splitlines()[1:]
        assert lines, section
        unnamed = [line for line in lines if not re.match(rf"  \w+: .*  # ({known})", line)]
        assert not unnamed, f"{section}: {unnamed}"


@pytest.mark.parametrize("name", ["mvtec", "mvtec_paper"])
def test_mvtec_is_prepared_by_adabldms_protocol(name: str):
    parameters = read_profile(ROOT / "profiles" / f"{name}.yaml", ROOT / "notebooks")
    data = parameters["01_data_prep"]
    assert data["few_shot_per_type"] == FEW_SHOT_COUNT
    assert data["validation_share"] == 0, "all good training images are trained on"
    assert parameters["09_pixel_level"]["scenarios"] == ["full-shot"], "all that were drawn are known"
    others = ("03_lora_finetune", "04_diag_inpainting", "10_own_defect")  # not run by the paper's table
    for chapter in ("05_adabldm", *(others if name == "mvtec" else ())):
        sides = {parameters[chapter][f"working_{side}"] for side in ("width", "height")}
        assert sides == {data["image_width"]} == {data["image_height"]}, chapter


def test_defaults_are_the_values_of_the_parameters_cell():
    defaults = read_defaults("06_in_and_out", ROOT / "notebooks")
    assert defaults["seeds"] == [0, 1]
    assert defaults["run_dir"] == "runs/workshop"


@pytest.mark.parametrize("path", sorted((ROOT / "profiles").glob("*.yaml")), ids=lambda path: path.stem)
def test_pools_and_pixel_level_know_the_same_real_positives(path: Path):
    parameters = read_profile(path, ROOT / "notebooks")
    declared = [inspect_notebook(str(ROOT / "notebooks" / f"{name}.ipynb")) for name in parameters]
    counts = {
        values.get("few_shot_count", ast.literal_eval(known["few_shot_count"]["default"]))
        for values, known in zip(parameters.values(), declared, strict=True)
        if "few_shot_count" in known
    }
    assert len(counts) == 1


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("seed: abc", "seed 'abc' is not of type int"),
        ("seed: 1.5", "seed '1.5' is not of type int"),
        ("seed: yes", "seed 'True' is not of type int"),
        ("seed:", "seed 'None' is not of type int"),
        ("data_root: 3", "data_root '3' is not of type str"),
        ("data_root: 2024-01-02", "data_root '2024-01-02' is not of type str"),
        ("data_root: &a [*a]", "expand to more than"),
    ],
)
def test_a_value_of_another_type_is_named(read, line: str, told: str):
    with pytest.raises(ProfileError, match=told):
        read(f"shared:\n  {line}\n")


@pytest.mark.parametrize(
    "text",
    [
        "shared:\n  seed: 1\n  seed: 2\n",
        "shared:\n  seed: 1\nshared:\n  seed: 2\n",
        "shared:\n  seed: 2024-13-45\n",
        "shared:\n  seed: " + "9" * 5000,
        "shared: " + "[" * 20_000,
    ],
)
def test_yaml_that_its_reader_stumbles_over_is_told_with_its_file(read, text: str):
    with pytest.raises(ProfileError, match="is not valid YAML"):
        read(text)


def test_anchors_and_merges_may_be_used(read):
    text = "shared: &all\n  seed: 3\n01_data_prep:\n  <<: *all\n  data_root: x\n"
    assert read(text)["01_data_prep"] == {"seed": 3, "data_root": "x"}
