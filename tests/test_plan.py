"""What a profile makes, and what that will take: counts, measurements, forecast and warnings."""

import re
import runpy
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from layouts import write_mvtec
from plan_parts import bench, forecast, measuring
from plan_parts.bench import Bench
from plan_parts.expected_data import list_data
from plan_parts.forecast import (
    Machine,
    PricedJob,
    expect_hours,
    list_warnings,
    look_at_machine,
    price_jobs,
    tabulate_costs,
    tabulate_stages,
)
from plan_parts.measuring import MEASURES, Cost, measure
from plan_parts.workload import Task, Workload, count_steps, fill_in, make_labels

from defaug_utils.book.plan import Job, check_processes, list_pools, plan_book
from defaug_utils.book.profiles import read_profile
from defaug_utils.diffusion.autoencoder import AdaptationSettings
from defaug_utils.diffusion.controlnet import ControlNetSettings
from defaug_utils.diffusion.dreambooth_plan import DreamBoothSettings
from defaug_utils.diffusion.inpainting import InpaintSettings
from defaug_utils.diffusion.inpainting_lora import InpaintingLoraSettings
from defaug_utils.diffusion.loading import ModelError
from defaug_utils.diffusion.lora import LoraPlan
from defaug_utils.diffusion.stand_ins import make_networks, open_stand_in
from defaug_utils.diffusion.text2image import TextSettings
from defaug_utils.diffusion.training_images import BucketSettings
from defaug_utils.evaluation.destseg import HEAD_RECIPE, STUDENT_RECIPE
from defaug_utils.evaluation.detector import DETECTOR_RECIPE
from defaug_utils.evaluation.recipes import RECIPES, plan_batches
from defaug_utils.methods.blending import BlendSettings
from defaug_utils.methods.memseg import MemSegSettings
from defaug_utils.training.loop import StepDone

ROOT = Path(__file__).parents[1]
PROFILES = sorted(path.stem for path in (ROOT / "profiles").glob("*.yaml"))
LAPTOP = Machine(cores=2, gpus=0, asked_gpus=0, memory=8 * 10**9, free_disk=10**12)


def load_profile(name: str, run: str = "no run") -> Workload:
    profile = read_profile(ROOT / "profiles" / f"{name}.yaml", ROOT / "notebooks")
    given = fill_in(profile, ROOT / "notebooks")
    return Workload(plan_book(profile, ROOT / "notebooks"), given, list_data(given["01_data_prep"], run)[0])


def count_rules(jobs: Iterable[Job | PricedJob]) -> Counter[str]:
    return Counter(job.rule for job in jobs)


def test_processes_that_cannot_share_a_step_equally_are_refused():
    paper = read_profile(ROOT / "profiles" / "paper.yaml", ROOT / "notebooks")
    for processes in (1, 2, 4):
        check_processes(paper, processes)
    with pytest.raises(
        ValueError, match=r"6 processes: .*2 problem.*\n.*05_adabldm's training_batch 4 can't"
    ):
        check_processes(paper, 6)
    with pytest.raises(
        ValueError, match=r"(?s)3 problem.*03_lora_finetune's batch_size 12 .*training_batch 4"
    ):
        check_processes(paper, 8)


@pytest.fixture(scope="module")
def smoke() -> Workload:
    return load_profile("smoke")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("profile", "target", "shards", "processes"),
    [
        *(("smoke", "book", 1, 1), ("workshop", "book", 3, 1), ("workshop", "book", 1, 2)),
        *(("workshop", "pixel_level", 1, 1), ("workshop", "pixel_level", 2, 2)),
    ],
)
def test_the_jobs_are_those_that_snakemake_would_run(
    profile: str, target: str, shards: int, processes: int, tmp_path: Path
):
    options = ["--dry-run", "--quiet", "host", "--cores", "1"]
    command = [sys.executable, "-m", "snakemake", target, *options]
    command += ["--config", f"profile={profile}", f"run={tmp_path}"]
    command += [f"shards={shards}", f"processes={processes}"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    rules = re.findall(r"(?m)^(?:local)?rule (\w+):$", finished.stdout + finished.stderr)
    jobs = plan_book(
        read_profile(ROOT / "profiles" / f"{profile}.yaml", ROOT / "notebooks"), ROOT / "notebooks"
    ).list_jobs(target, shards, processes)
    assert count_rules(jobs) == Counter(rules)


def test_a_stage_takes_its_counts_times_what_was_measured(smoke: Workload):
    jobs, costs = price_jobs(smoke, lambda task: Cost(2.0, 10.0, 5, 100, 7000))
    priced = {job.stage: job for job in jobs if job.rule == "pool"}
    assert priced["02_memseg"].seconds == 10 + 8 * 10  # the job's start, and its images
    assert priced["02_memseg"].disk == 100 + 8 * 100
    # one, six of the sweep, a board of 2 × 2, a pool of 6 in groups of 3, and one group made again
    assert priced["04_diag_inpainting"].images == 1 + 6 + 4 + 6 + 3
    assert priced["04_diag_inpainting"].seconds == 10 + 20 * 10 + 20 * int(2 * 0.99) * 2
    # one training of two steps; blended: the pools' 4, 2 again, 2 × 1 samples, 4 of the stages, 2 compared
    blended = 4 + 2 + 2 + 4 + 2
    assert priced["05_adabldm"].steps == 2
    assert priced["05_adabldm"].images == blended + 4 + 2  # pasted, and refined
    assert priced["05_adabldm"].seconds == pytest.approx(
        10 + 2 * 2 + blended * (10 + 3 * 2) + (4 + 2 + 1 + 2) * (10 + 2 * 2) + 4 * 10 + 2 * (10 + 1 * 2)
    )
    # four stored drawings, and two trainings of 2 epochs: 2 + 4 positives and as many negatives, 8 a step
    own = next(job for job in jobs if job.rule == "own_defect")
    assert (own.images, own.steps, own.gpus) == (4, 2 * 2 * 2, 1)
    (explained,) = [job for job in jobs if job.rule == "diffusion"]
    assert (explained.stage, explained.seconds) == ("00_diffusion", 10 + 10 * 10 + 10 * 2 * 2)
    trained = [job for job in jobs if job.rule == "detectors"]
    assert [job.disk for job in trained] == [100 + 3 * 40 * 100 + 3 * 7000]  # 3 detectors, 40 test images
    assert set(costs) == {one.task for job in smoke.book.list_jobs() for one in smoke.list_work(job)}
    table = tabulate_stages(jobs).set_index("stage")
    assert table.loc["all", "jobs"] == str(len(jobs)) == "18"
    assert table.loc["04_diag_inpainting", "hours"] == f"{priced['04_diag_inpainting'].seconds / 3600:.2f}"


def test_the_steps_of_a_fine_tuning_are_counted_by_its_own_plan(smoke: Workload):
    steps = {
        job.name: sum(one.steps for one in smoke.list_work(job) if one.trainings)
        for job in smoke.book.list_jobs()
    }
    # few-shot: 2 positives and as many regularisation images, 2 a step; zero-shot: 3 negatives and 3
    assert (steps["03_lora_finetune/few-shot-seed0"], steps["03_lora_finetune/zero-shot"]) == (2, 3)
    longer = replace(smoke, given=smoke.given | {"03_lora_finetune": smoke.given["03_lora_finetune"] | {}})
    longer.given["03_lora_finetune"]["epochs"] = {"zero-shot": 1, "few-shot": 7, "full-shot": 1}
    job = Job("pool", "03_lora_finetune/few-shot-seed0")
    assert sum(one.steps for one in longer.list_work(job) if one.trainings) == 14


def test_a_fine_tuning_makes_no_image_twice(smoke: Workload):
    images = {
        job.name: sum(one.images for one in smoke.list_work(job)[1:] if not one.trainings)
        for job in smoke.book.list_jobs()
    }
    # one before the training, one in it, one at half the weight, one of each prompt at the weight, one to
    # search for copies; a pool of 4, one group of 2 again; the first job also makes 2 of the class word
    assert images["03_lora_finetune/zero-shot"] == 1 + 1 + 1 + 2 + 1 + 4 + 2 + 2
    assert images["03_lora_finetune/few-shot-seed0"] == 1 + 1 + 1 + 1 + 1 + 4 + 2


def test_chapter_10_waits_for_the_pool_that_its_images_are_added_to():
    profile = read_profile(ROOT / "profiles" / "smoke.yaml", ROOT / "notebooks")
    assert list(list_pools(plan_book(profile, ROOT / "notebooks").own)) == ["02_memseg"]
    profile["10_own_defect"] |= {"beside": "cut_paste", "training_seed": 3}
    changed = plan_book(profile, ROOT / "notebooks")
    assert list(list_pools(changed.own)) == ["05_adabldm/few-shot-seed3"]
    assert "05_adabldm/few-shot-seed3" in {job.name for job in changed.list_jobs()}
    profile["10_own_defect"] |= {"beside": "none", "n_aug": 0}
    assert not list_pools(plan_book(profile, ROOT / "notebooks").own)


@pytest.mark.parametrize("name", ["workshop", "in_and_out", "segdecnet", "diag"])
@pytest.mark.parametrize(("negatives", "positives"), [(20, 3), (9, 8), (30, 4)])
def test_the_steps_of_a_network_are_those_that_its_training_plans(name: str, negatives: int, positives: int):
    labels, recipe = make_labels(negatives, positives), replace(RECIPES[name], epochs=3)
    assert count_steps(labels.tobytes(), recipe) == len(plan_batches(labels, recipe, seed=5))


def test_equal_training_is_as_long_as_the_arms_beside_it_and_baselines_train_nothing():
    load = load_profile("workshop")
    work = load.list_work(Job("classifiers", "few-shot-seed1"))[1:]
    steps = {
        run.arm: one.steps
        for run, one in zip(load.book.trained["classifier"]["few-shot-seed1"], work, strict=True)
    }
    # 16 epochs of 5 + 40 positives and as many negatives, 8 a step, or of 5 and 5
    assert steps["memseg"] == steps["diag"] == 16 * 12
    assert steps["none"] == 16 * 2
    assert steps["none_equal"] == 16 * 9 * 2, "as many images, in epochs of 10"
    assert steps["linear"] == steps["patch_memory"] == 0


def test_each_defect_type_may_have_its_own_controlnet():
    load, job = load_profile("mvtec_paper"), Job("pool", "05_adabldm/full-shot")
    given = {per: load.given["05_adabldm"] | {"controlnet_per": per} for per in ("type", "all")}
    trained = {
        per: next(
            one
            for one in replace(load, given=load.given | {"05_adabldm": values}).list_work(job)
            if one.trainings
        )
        for per, values in given.items()
    }
    assert (trained["type"].steps, trained["type"].trainings) == (5 * 50000, 5)
    assert (trained["all"].steps, trained["all"].trainings) == (50000, 1)


def test_destseg_is_forecast_with_its_student():
    load = load_profile("mvtec_paper")
    work = load.list_work(Job("detectors", "full-shot-seed0"))[1:]
    students, heads = work[::2], work[1::2]
    assert {one.task.kind for one in students} == {"student step"}
    assert {one.task.kind for one in heads} == {"head step"}
    assert len(heads) == len(load.book.trained["segmenter"]["full-shot-seed0"]) == 5
    for student, head in list(zip(students, heads, strict=True))[1:]:  # of 50 positives, batches are smaller
        assert head.steps == pytest.approx(128000 / 32, rel=0.05), "as the published code"
        assert student.steps == pytest.approx(32000 / 32, rel=0.05)
        assert (student.images, head.images) == (0, load.count("test")), "the head scores the test images"


def test_a_category_is_one_job_with_one_gpu():
    own = [price("data_prep", 100), price("pool", 200, disk=3.0, memory=7), price("detectors", 300, memory=9)]
    own.append(own[1]._replace(problems=("no model",), images=4))
    joined = forecast.join_jobs("grid", own)
    assert joined == PricedJob("category", "grid", 4, 0, 800, 6.0, 9, ("no model",)) and joined.gpus == 1
    machine = replace(LAPTOP, cores=8, gpus=2, asked_gpus=2)
    assert expect_hours([joined] * 4, machine) == pytest.approx(2 * 800 / 3600)
    assert expect_hours([joined] * 3, LAPTOP) == pytest.approx(1.5 * 800 / 3600)
    two = [joined._replace(memory=5 * 10**9)] * 2
    assert not list_warnings(
        [one._replace(problems=()) for one in two], replace(machine, memory=6 * 10**9), "x"
    )


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_has_a_forecast(profile: str):
    load = load_profile(profile)
    jobs, costs = price_jobs(load, lambda task: Cost(0.5, 0.1, 10**9, 10**5, 10**6))
    assert count_rules(jobs) == count_rules(load.book.list_jobs())
    assert {task.kind for task in costs} <= set(MEASURES)
    counted = {job.stage for job in jobs if job.seconds > 0.1}  # more than their start
    assert counted == set(load.given) - {"06_in_and_out", "08_results"}
    assert expect_hours(jobs, LAPTOP) > 0
    assert not list_warnings(jobs, LAPTOP, "runs/x")


def test_data_is_counted_where_it_is_known(tmp_path: Path):
    given = load_profile("paper").given["01_data_prep"]
    published, told = list_data(given | {"validation_share": 0.0}, tmp_path)
    assert published.groupby(["split", "label"]).size().to_dict() == {
        ("train", "negative"): 2085,
        ("train", "positive"): 246,
        ("test", "negative"): 894,
        ("test", "positive"): 110,
    }
    assert told == "as published of KSDD2: data/KolektorSDD2 is not there"
    Bench(tmp_path, "cpu").place_parts((16, 48)).rename(tmp_path / "data")
    prepared, told = list_data(given, tmp_path)
    assert (len(prepared), told) == (4, f"as {tmp_path} has prepared them")
    with pytest.raises(FileNotFoundError, match="no data set at no/such/parts"):
        list_data(given | {"data_root": "no/such/parts"}, "no run")
    grid, _ = list_data(load_profile("mvtec").given["01_data_prep"], "no run")
    assert (grid.query("split == 'train'")["label"] == "positive").sum() == 5 * 10
    assert len(list_data(given | {"fit": "three_crops"}, "no run")[0]) == 3 * 3335


def price(rule: str, seconds: float, **values) -> PricedJob:
    stage = "04_diag_inpainting" if rule in ("training", "pool") else "01_data_prep"
    return PricedJob(rule, stage, 0, 0, seconds, **{"disk": 0.0, "memory": 0, "problems": ()} | values)


def test_hours_end_to_end_follow_the_phases_the_cores_and_the_gpus():
    jobs = [price("data_prep", 360), *[price("pool", 3600)] * 3, price("classifiers", 720)]
    assert expect_hours(jobs, LAPTOP) == pytest.approx(0.1 + 1.5 + 0.2)
    assert expect_hours(jobs, replace(LAPTOP, cores=8)) == pytest.approx(0.1 + 1 + 0.2)
    assert expect_hours(jobs, replace(LAPTOP, cores=8, gpus=1, asked_gpus=1)) == pytest.approx(0.1 + 3 + 0.2)
    only_one = replace(LAPTOP, cores=8, gpus=1, asked_gpus=4)
    assert expect_hours(jobs, only_one) == pytest.approx(0.1 + 3 + 0.2)


def test_shards_and_processes_divide_what_their_jobs_do(smoke: Workload):
    whole, _ = price_jobs(smoke, lambda task: Cost(1.0, 1.0))
    parts, _ = price_jobs(replace(smoke, shards=2, processes=2), lambda task: Cost(1.0, 1.0))
    (before,) = (job for job in whole if job.stage == "05_adabldm")
    training, *shards, pool = (job for job in parts if job.stage == "05_adabldm")
    assert [job.rule for job in (training, *shards, pool)] == ["training", "shard", "shard", "pool"]
    assert before.steps == 2 and (training.steps, training.images, training.gpus) == (1, 0, 2)
    assert (pool.seconds, pool.steps, pool.images) == (1, 0, 0), "its start: everything is made"
    assert sum(job.images for job in shards) == before.images and shards[0].gpus == 1
    (memseg,) = (job for job in parts if job.stage == "02_memseg")
    assert (memseg.rule, memseg.images, memseg.gpus) == ("pool", 8, 0), "not made in shards"


def test_a_training_holds_as_many_cores_and_gpus_as_it_has_processes():
    jobs = [price("training", 3600.0, processes=2)] * 2
    machine = replace(LAPTOP, cores=8, gpus=2, asked_gpus=2)
    assert expect_hours(jobs, machine) == 2, "one after the other"
    assert expect_hours(jobs, replace(machine, gpus=4, asked_gpus=4)) == 1
    assert expect_hours(jobs, LAPTOP) == 2
    heavy = [price("training", 1.0, memory=5 * 10**9, processes=2)]
    (told,) = list_warnings(heavy, LAPTOP, "runs/x")
    assert told.startswith("10.0 GB of memory are needed")


def test_what_a_machine_lacks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=2 * 10**9))
    monkeypatch.setattr(forecast, "list_gpus", list)
    machine = look_at_machine(tmp_path / "runs" / "x", cores=2, gpus=3)
    assert (machine.gpus, machine.asked_gpus, machine.free_disk) == (0, 3, 2 * 10**9)
    jobs = [price("pool", 1.0, disk=1.5e9, memory=5 * 10**9)] * 2
    jobs.append(price("pool", 1.0, problems=("no model: a/b is not on this machine",)))
    told = list_warnings(jobs, replace(machine, memory=8 * 10**9), "runs/x")
    assert told == [
        "3.0 GB of disk are needed for runs/x, 2.0 GB are free: make room, or run from another disk",
        "3 GPUs are requested, 0 are available",
        "10.0 GB of memory are needed for 2 jobs at the same time, there are 8.0 GB: ask for smaller "
        "batches, or fewer CORES",
        "not measured: no model: a/b is not on this machine (in 04_diag_inpainting)",
    ]
    assert not list_warnings(jobs[:2], replace(LAPTOP, cores=1), "runs/x")
    on_gpu = replace(LAPTOP, gpus=1, asked_gpus=1, memory=4 * 10**9)
    assert list_warnings(jobs[:1], on_gpu, "runs/x")[0].startswith("5.0 GB of memory are needed for a GPU")


def test_a_stage_that_was_not_measured_shows_its_counts_only(smoke: Workload):
    missing = "no model: far/away is not on this machine"
    jobs, costs = price_jobs(
        smoke, lambda task: Cost(problem=missing) if task.kind == "inpainting step" else Cost(1.0, 1.0)
    )
    table = tabulate_stages(jobs).set_index("stage")
    assert table.loc["04_diag_inpainting", ["images", "hours"]].tolist() == ["20", "not measured"]
    assert table.loc["all", "hours"].startswith("more than ")
    assert table.loc["02_memseg", "hours"] != "not measured"
    assert "not measured" in set(tabulate_costs(costs)["seconds a step"])


SIZE, SMALL = (32, 96), BucketSettings(32 * 96, 32, 96, 32)
TEXT = {"size": SIZE, "batch": 2}
DREAMBOOTH = (DreamBoothSettings(buckets=SMALL, gradient_checkpointing=False), LoraPlan(2, 2.0, 2, 2.0))
TUNING = InpaintingLoraSettings(SIZE, batch_size=2)
TASKS = [
    Task("prepared image", True, size=SIZE),
    Task("prepared image", False, size=SIZE),
    Task("MemSeg image", MemSegSettings(), size=SIZE),
    Task("pasted image", size=SIZE),
    Task("text-to-image step", TextSettings(SIZE, 1, 2.0), "text", **TEXT),
    Task("DreamBooth step", DREAMBOOTH, "text", **TEXT),
    Task("inpainting step", InpaintSettings(SIZE, 1, 2.0, 1.0, None), "inpainting", **TEXT),
    Task("inpainting LoRA step", (TUNING, LoraPlan(2, 2.0, 2, 2.0), "no"), "inpainting", **TEXT),
    Task("ControlNet step", (ControlNetSettings(2), "no", SIZE), "text", **TEXT),
    Task("blending step", BlendSettings(SIZE, 3, 2.0, (1, 2), (2, 3)), "text", **TEXT),
    Task("decoder adaptation step", (AdaptationSettings(steps=1), SIZE), "text", **TEXT),
    Task("classifier step", RECIPES["workshop"], "resnet10_quarter", SIZE, 8),
    Task("detector step", DETECTOR_RECIPE, "resnet10_quarter", SIZE, 8),
    Task("student step", replace(STUDENT_RECIPE, epochs=1), "resnet10_quarter", SIZE, 8),
    Task("head step", replace(HEAD_RECIPE, epochs=1), "resnet10_quarter", SIZE, 8),
]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)
def test_every_kind_of_work_can_be_measured(
    task: Task, tmp_path: Path, text_model_folder: Path, inpainting_folder: Path
):
    folders = {"text": str(text_model_folder), "inpainting": str(inpainting_folder)}
    cost = measure(Bench(tmp_path, "cpu"), task._replace(model=folders.get(task.model, task.model)))
    assert not cost.problem
    assert cost.step + cost.image > 0
    assert cost.memory > 10**7
    kinds = ("DreamBooth", "inpainting LoRA", "ControlNet", "classifier", "detector", "student", "head")
    trains = task.kind.startswith(kinds)
    assert (cost.training_bytes > 0) == trains
    assert cost.image_bytes > 0 or trains


def test_no_kind_of_work_is_left_unmeasured_by_these_tests():
    assert {task.kind for task in TASKS} == set(MEASURES) - {"start of a job", "own method"}


def test_a_method_of_a_users_own_is_told_and_not_forgotten(smoke: Workload, tmp_path: Path):
    _, work = smoke.list_work(Job("pool", "10_squares/few-shot-seed0"))
    cost = measure(Bench(tmp_path, "cpu"), work.task)
    assert cost.problem == "the forecast does not know the method of 10_squares"


def test_three_steps_are_taken_of_each_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []
    ticks = iter([0.0, 5.0, 10.0, 21.0])  # a call of one step takes 5 s, one of four 11 s
    monkeypatch.setattr(bench, "read_clock", lambda: next(ticks))
    assert bench.time_steps(asked.append, images=2) == (1.0, 1.5)
    assert asked == [1, 1, 4]
    stamps = bench.Stamps([1.0, 3.0, 5.5, 7.0, 99.0])  # the last step writes the files
    assert stamps.step == 2.0
    monkeypatch.setattr(bench, "read_clock", lambda: 7.0)
    for step in (1, 2):
        stamps(StepDone(step, 2, {}, is_saved=False))
    assert stamps.moments == [7.0, 7.0], "another training begins at step 1"


def test_a_processor_measures_few_images_of_a_large_batch_and_a_gpu_all(tmp_path: Path, monkeypatch):
    large = Task("classifier step", model="resnet50", batch=32)
    limits = [Bench(tmp_path, device).limit(large) for device in ("cpu", "cuda")]
    assert limits == [2, 32]
    monkeypatch.setitem(MEASURES, "MemSeg image", lambda bench, task: Cost(1.0))
    peaks = iter([100, 150, 100, 150])  # before and after
    monkeypatch.setattr(measuring, "read_peak", lambda: next(peaks))
    task = Task("MemSeg image", batch=32)
    assert measure(Bench(tmp_path, "cpu"), task).memory == 100 + 4 * 50
    assert measure(Bench(tmp_path, "cuda"), task).memory == 150


def test_a_model_that_would_have_to_be_fetched_is_not_measured_on_a_processor(tmp_path: Path):
    task = Task("inpainting step", InpaintSettings(SIZE), "diffusers/no-such-model", **TEXT)
    cost = measure(Bench(tmp_path, "cpu"), task)
    assert cost.problem.startswith("no model: diffusers/no-such-model is not on this machine")
    assert cost.step == 0


@pytest.mark.parametrize("error", [MemoryError("too small"), torch.OutOfMemoryError("too small")])
def test_a_batch_that_does_not_fit_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception):
    def fail(bench: Bench, task: Task) -> Cost:
        raise error

    monkeypatch.setitem(MEASURES, "MemSeg image", fail)
    cost = measure(Bench(tmp_path, "cpu"), Task("MemSeg image", batch=64))
    assert cost.problem == "a batch of 64 does not fit in memory"


@pytest.mark.parametrize(
    ("name", "channels", "weights"), [("sd15", 4, 859_520_964), ("sdxl", 9, 2_567_478_084)]
)
def test_stand_ins_are_of_the_published_sizes(name: str, channels: int, weights: int):
    unet = make_networks(name, channels)["unet"]
    assert sum(weight.numel() for weight in unet.parameters()) == weights


@pytest.mark.parametrize(
    ("model", "purpose"),
    [
        ("Qwen/Qwen-Image", "inpainting"),
        ("diffusers/stable-diffusion-xl-1.0-inpainting-0.1", "text to image"),
    ],
)
def test_a_model_without_a_stand_in_is_told(model: str, purpose: str):
    with pytest.raises(ModelError, match=f"{model} has no stand-in for {purpose}"):
        open_stand_in(model, purpose, "cpu", torch.float32)


def run_script(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["plan.py", *arguments])
    threads = torch.get_num_threads()
    try:
        runpy.run_path(str(ROOT / "scripts" / "plan.py"), run_name="__main__")
    finally:
        torch.set_num_threads(threads)


def test_the_command_prints_stages_measurements_and_warnings(monkeypatch, capsys):
    monkeypatch.setattr(measuring, "measure", lambda bench, task: Cost(1.0, 1.0, 10**9, 10**12, 10))
    run_script(monkeypatch, "paper", "--cores", "4", "--gpus", "64")
    told = capsys.readouterr().out
    assert told.startswith("paper: 3335 images, as published of KSDD2")
    jobs = count_rules(plan_book(read_profile("profiles/paper.yaml")).list_jobs())
    assert f"make book: {sum(jobs.values())} jobs, " in told
    for stage in ("03_lora_finetune", "07_classifier", "all"):
        assert re.search(rf"(?m)^{stage} +\d", told), stage
    for kind in ("DreamBooth step", "decoder adaptation step", "detector step"):
        assert kind in told
    assert "GB of disk are needed for runs/paper" in told
    assert "warning: 64 GPUs are requested" in told


def test_the_command_has_a_row_and_a_job_for_each_category(monkeypatch, capsys, tmp_path: Path):
    write_mvtec(tmp_path / "rail", ("bent",), per_type=11)
    write_mvtec(tmp_path / "plate", ("cut", "hole", "stain"), per_type=11)
    asked = []
    monkeypatch.setattr(
        measuring, "measure", lambda bench, task: asked.append(task) or Cost(1.0, 0.0, 10**9, 0, 10**9)
    )
    run_script(monkeypatch, "mvtec_paper", "--data", str(tmp_path), "--cores", "4")
    told = capsys.readouterr().out
    assert f"2 categories of {tmp_path}" in told and "make book" not in told
    assert "make pixels: 2 jobs, " in told
    rows = {
        line.split()[0]: line.split() for line in told.splitlines() if line.startswith(("rail ", "plate "))
    }
    steps = {name: int(row[3]) for name, row in rows.items()}
    assert rows["rail"][1] == rows["plate"][1] == "1"
    assert steps["plate"] - steps["rail"] == pytest.approx(2 * 50000, rel=0.1), "a ControlNet for each type"
    assert len(asked) == len(set(asked)), "each kind of work is measured once"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["workshp"], "no profile profiles/workshp.yaml"),
        (["paper", "--data", "no/such/parts"], "no data set at no/such/parts"),
        (["smoke", "--gpus", "two"], "GPUS is 'two': expected a whole number"),
    ],
)
def test_wrong_requests_are_told_without_a_traceback(monkeypatch, arguments: list[str], told: str):
    with pytest.raises(SystemExit, match=told):
        run_script(monkeypatch, *arguments)
