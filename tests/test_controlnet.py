"""The trimap ControlNet: fresh it changes nothing, training resumes exactly, wrong files are told."""

import json
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import DDIMScheduler, StableDiffusionControlNetPipeline, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from defaug_utils.core.files import lock_file
from defaug_utils.diffusion import controlnet as controlnets
from defaug_utils.diffusion.controlnet import (
    PAPER_PLAN,
    ControlNetSettings,
    TrimapModel,
    load_controlnet,
    load_trimap_model,
    make_controlnet,
    save_controlnet,
    to_conditioning,
    train_controlnet,
)
from defaug_utils.diffusion.loading import ModelError
from defaug_utils.diffusion.text2image import TextToImage, load_text2image, make_ddim
from defaug_utils.masks.patches import cut_defect
from defaug_utils.masks.trimaps import GoodImage, TripleSet
from defaug_utils.methods.blending import BlendSettings, blend_latents
from defaug_utils.training.loop import StepDone, StepPlan

SEEDS, STEPS = (3, 4), 4
PLAIN = BlendSettings((16, 16), STEPS, latent_editing=None, image_editing=None)
SETTINGS = ControlNetSettings(batch_size=2, learning_rate=1e-3)


@pytest.fixture(scope="module")
def model(text_model_folder: Path) -> TextToImage:
    return load_text2image(text_model_folder, clip_skip=1)


@pytest.fixture(scope="module")
def triples() -> TripleSet:
    pixels = np.random.default_rng(0).integers(0, 255, (2, 16, 16, 3), dtype=np.uint8)
    mask = np.zeros((16, 16), bool)
    mask[4:8, 5:7] = True
    good = GoodImage(pixels[0], np.ones((16, 16), bool), "nut", "good.png")
    return TripleSet([cut_defect(pixels[1], mask, "nut", "hole", "bad.png")], [good], count=5)


@pytest.fixture(scope="module")
def trained(model: TextToImage):
    """A ControlNet whose last layers are no zeros any more."""
    controlnet = make_controlnet(model)
    with torch.no_grad():
        for parameter in controlnet.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    return controlnet


def draw(model: TextToImage, controlnet, trimaps_u8, prompts, guidance: float) -> torch.Tensor:
    images, masks = torch.zeros(2, 3, 16, 16), torch.ones(2, 1, 16, 16, dtype=torch.bool)
    denoise = TrimapModel(model, controlnet).make_denoiser(trimaps_u8, prompts, ["", ""], guidance)
    return blend_latents(images, masks, SEEDS, denoise, model.pipeline.vae, make_ddim(model), PLAIN)


def draw_by_diffusers(pipeline_class: type, model: TextToImage, guidance: float, **inputs) -> torch.Tensor:
    parts = {**model.pipeline.components, "scheduler": make_ddim(model), **inputs.pop("parts", {})}
    pipeline = pipeline_class(**parts, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        width=16,
        height=16,
        num_inference_steps=STEPS,
        guidance_scale=guidance,
        negative_prompt=["", ""],
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        output_type="latent",
        **inputs,
    ).images


@pytest.mark.parametrize("guidance", [1.0, 9.0])
def test_a_fresh_controlnet_changes_nothing(model: TextToImage, triples: TripleSet, guidance: float):
    prompts = ["a hole", "crack"]
    own = draw(model, make_controlnet(model), [triples[0].trimap_u8] * 2, prompts, guidance)
    expected = draw_by_diffusers(StableDiffusionPipeline, model, guidance, prompt=prompts)
    assert torch.allclose(own, expected, atol=1e-5)


def test_a_trained_one_is_that_of_diffusers(model: TextToImage, triples: TripleSet, trained):
    trimaps_u8 = [triples[0].trimap_u8, triples[1].trimap_u8]
    own = draw(model, trained, trimaps_u8, ["", ""], 9.0)
    expected = draw_by_diffusers(
        StableDiffusionControlNetPipeline,
        model,
        9.0,
        parts={"controlnet": trained},
        prompt=["", ""],
        image=to_conditioning(trimaps_u8),
    )
    assert torch.allclose(own, expected, atol=1e-4)
    assert not torch.allclose(own, draw(model, make_controlnet(model), trimaps_u8, ["", ""], 9.0), atol=1e-2)


def test_the_real_prompt_reaches_the_unet_alone(model: TextToImage, triples: TripleSet, trained, monkeypatch):
    read = []
    hook = trained.register_forward_pre_hook(lambda module, inputs: read.append(inputs[2]))
    trimaps_u8 = [triples[0].trimap_u8] * 2
    holes, cracks = (draw(model, trained, trimaps_u8, [word] * 2, 9.0) for word in ("hole", "crack"))
    hook.remove()
    assert not torch.allclose(holes, cracks, atol=1e-4)
    assert len(read) == 2 * STEPS and all(torch.equal(texts, read[0]) for texts in read)


def run(model: TextToImage, triples: TripleSet, folder: Path, steps: int, settings=SETTINGS, **kwargs):
    losses = []
    done = train_controlnet(
        model,
        triples,
        folder,
        settings,
        StepPlan(steps, save_every=3),
        on_step=lambda done: losses.append((done.step, done.loss)),
        **kwargs,
    )
    return done, losses


def test_a_resumed_training_has_the_losses_of_an_uninterrupted_one(model, triples, tmp_path: Path):
    before = {name: value.clone() for name, value in model.pipeline.unet.state_dict().items()}
    whole, losses = run(model, triples, tmp_path / "whole", 7)
    first, first_losses = run(model, triples, tmp_path / "parts", 3)
    second, second_losses = run(model, triples, tmp_path / "parts", 7)
    assert [step for step, _ in losses] == list(range(1, 8))
    assert first_losses + second_losses == losses
    assert (first.resumed_steps, second.resumed_steps) == (0, 3)
    assert whole.history[["step", "loss"]].equals(second.history[["step", "loss"]])
    assert whole.history["step"].tolist() == [3, 6, 7]
    expected = whole.controlnet.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in second.controlnet.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in model.pipeline.unet.state_dict().items())


def test_a_training_killed_between_checkpoints_goes_on_from_the_last(model, triples, tmp_path: Path):
    _, losses = run(model, triples, tmp_path / "whole", 7)

    def kill(done: StepDone) -> None:
        if done.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_controlnet(model, triples, tmp_path / "killed", SETTINGS, StepPlan(7, 3), on_step=kill)
    done, further = run(model, triples, tmp_path / "killed", 7)
    assert done.resumed_steps == 3 and further == losses[3:]


def test_a_step_that_does_not_fit_in_memory_is_computed_in_parts(model, triples, tmp_path, monkeypatch):
    _, losses = run(model, triples, tmp_path / "whole", 4)
    measure, counts = controlnets.measure_loss, []

    def fit_one(model, controlnet, scheduler, batch, seeds) -> torch.Tensor:
        counts.append(len(batch))
        if len(batch) > limit:
            raise torch.OutOfMemoryError
        return measure(model, controlnet, scheduler, batch, seeds)

    monkeypatch.setattr(controlnets, "measure_loss", fit_one)
    limit = 1
    _, further = run(model, triples, tmp_path / "parts", 4)
    assert counts == [2, *[1] * 8], "what fitted is remembered"
    assert dict(further) == pytest.approx(dict(losses), rel=1e-3), "the same batch"
    limit = 0
    with pytest.raises(MemoryError, match="a training step does not fit in the memory of cpu: choose a smal"):
        run(model, triples, tmp_path / "none", 4)


def test_training_learns_and_shows_samples(model, triples, tmp_path: Path):
    drawn = []

    def draw_samples(step: int, controlnet) -> None:
        assert not controlnet.training
        drawn.append((step, draw(model, controlnet, [triples[0].trimap_u8] * 2, ["hole"] * 2, 1.0)))

    def measure(controlnet) -> float:
        scheduler, batch = make_ddim(model), [triples[place] for place in range(4)]
        with torch.no_grad():
            return float(controlnets.measure_loss(model, controlnet, scheduler, batch, [0, 1, 2, 3]))

    done, _ = run(model, triples, tmp_path, 15, on_samples=draw_samples)
    assert [step for step, _ in drawn] == [3, 6, 9, 12, 15]
    assert not torch.equal(drawn[0][1], drawn[-1][1])
    loaded = load_controlnet(tmp_path / "controlnet", model)
    expected = done.controlnet.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())
    training = load_trimap_model(tmp_path / "controlnet", model).training
    assert training["trained_on"] == {"defects": ["bad.png"], "goods": ["good.png"]}
    assert (training["steps"], training["batch_size"]) == (15, 2)
    assert measure(done.controlnet) < 0.999 * measure(make_controlnet(model, SETTINGS.seed))


@pytest.fixture
def fresh_accelerate():
    """accelerate keeps the first precision for the whole process, even of one test for the next."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("fresh_accelerate")
def test_samples_can_be_drawn_while_it_trains_in_mixed_precision(model, triples, tmp_path: Path):
    drawn = {}

    def draw_samples(step: int, controlnet) -> None:
        drawn[step] = draw(model, controlnet, [triples[0].trimap_u8] * 2, ["hole"] * 2, 1.0)

    plan = StepPlan(2, 1, "bf16")
    done = train_controlnet(model, triples, tmp_path, SETTINGS, plan, on_samples=draw_samples)
    after = draw(model, done.controlnet, [triples[0].trimap_u8] * 2, ["hole"] * 2, 1.0)
    assert len(drawn) == 2 and torch.equal(drawn[2], after)


def test_velocity_is_learned_where_the_model_predicts_it(model, triples, monkeypatch):
    asked = []
    scheduler = DDIMScheduler.from_config(make_ddim(model).config, prediction_type="v_prediction")
    monkeypatch.setattr(controlnets, "mse_loss", lambda found, target: asked.append(target) or target.mean())
    controlnet = make_controlnet(model)
    for chosen in (scheduler, make_ddim(model)):
        controlnets.measure_loss(model, controlnet, chosen, [triples[0]], [7])
    velocity, noise = asked
    assert not torch.allclose(velocity, noise)
    generator = torch.Generator().manual_seed(7)
    assert torch.equal(noise, torch.randn(noise.shape, generator=generator))


def test_more_processes_than_can_share_a_step_are_refused(model, triples, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(controlnets, "open_accelerator", lambda *_: SimpleNamespace(num_processes=4))
    told = (
        r"4 processes can't share the 6 triples of a step \(batch_size\) equally: use one of 1, 2, 3, 6 proc"
    )
    with pytest.raises(ValueError, match=told):
        train_controlnet(model, triples, tmp_path, ControlNetSettings(batch_size=6))


def test_a_finished_training_is_read_by_several_and_written_by_none(model, triples, tmp_path: Path):
    train_controlnet(model, triples, tmp_path, SETTINGS, StepPlan(2))
    stored = tmp_path / "controlnet"
    before = {path.name: path.stat().st_ino for path in stored.iterdir()}
    with lock_file(tmp_path / "checkpoint.safetensors"):
        assert train_controlnet(model, triples, tmp_path, SETTINGS, StepPlan(2)).resumed_steps == 2
    assert {path.name: path.stat().st_ino for path in stored.iterdir()} == before
    (stored / "training.json").write_text('{"steps": 1}')  # killed before the network of the last step
    train_controlnet(model, triples, tmp_path, SETTINGS, StepPlan(2))
    assert json.loads((stored / "training.json").read_text())["steps"] == 2


def test_other_settings_in_a_folder_are_refused_and_nothing_is_lost(model, triples, tmp_path: Path):
    run(model, triples, tmp_path, 3)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"other settings: learning_rate \(0.001, requested 0.0001\)"):
        run(model, triples, tmp_path, 3, ControlNetSettings(2, 1e-4))
    fewer = TripleSet(triples.defects, triples.goods, count=4)
    with pytest.raises(ValueError, match=r"other settings: triples"):
        run(model, fewer, tmp_path, 3)
    with pytest.raises(ValueError, match="contains a training of 3 steps, 2 are requested"):
        run(model, triples, tmp_path, 2)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before
    (tmp_path / "checkpoint.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"can't be read .*delete it"):
        run(model, triples, tmp_path, 3)


def test_a_loss_that_is_no_number_ends_the_training_and_keeps_the_checkpoint(
    model, triples, tmp_path: Path, monkeypatch
):
    measure = controlnets.measure_loss
    calls = []

    def break_fifth(*inputs) -> torch.Tensor:
        calls.append(inputs)
        return measure(*inputs) * (float("nan") if len(calls) == 5 else 1)

    monkeypatch.setattr(controlnets, "measure_loss", break_fifth)
    with pytest.raises(
        FloatingPointError, match=r"loss of step 5 is not finite \(nan\).*step 3's checkpoint is kept"
    ):
        run(model, triples, tmp_path, 7)
    monkeypatch.undo()
    assert run(model, triples, tmp_path, 7)[0].resumed_steps == 3


def test_a_controlnet_is_loaded_in_the_type_asked_for_without_a_deprecated_argument(model, tmp_path: Path):
    save_controlnet(make_controlnet(model), tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        assert load_controlnet(tmp_path, model, torch.bfloat16).dtype == torch.bfloat16


def test_half_of_a_controlnet_is_never_left_under_its_name(model, tmp_path: Path, monkeypatch):
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    save_controlnet(make_controlnet(model), tmp_path / "old", {"base": "abc", "steps": 1})
    before = {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()}
    monkeypatch.setattr(controlnets, "write_json", fail)  # killed before it says how it was trained
    for name in ("old", "new"):
        with pytest.raises(KeyboardInterrupt):
            save_controlnet(make_controlnet(model, seed=1), tmp_path / name, {"base": "abc", "steps": 2})
    assert {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_wrong_controlnets_are_told(model, tmp_path: Path):
    with pytest.raises(ModelError, match="found none: train one first"):
        load_controlnet(tmp_path / "nowhere", model)
    save_controlnet(make_controlnet(model), tmp_path / "pickled")
    (tmp_path / "pickled/diffusion_pytorch_model.safetensors").rename(tmp_path / "pickled/model.bin")
    with pytest.raises(ModelError, match=r"found only model.bin: pickled weights"):
        load_controlnet(tmp_path / "pickled", model)
    save_controlnet(make_controlnet(model), tmp_path / "foreign", {"base": "abc", "steps": 1})
    with pytest.raises(ModelError, match="was trained with the model abc"):
        load_trimap_model(tmp_path / "foreign", model)
    other = type(make_controlnet(model))(
        block_out_channels=(8, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=4,
        conditioning_embedding_out_channels=(16, 32),
    )
    save_controlnet(other, tmp_path / "other")
    with pytest.raises(ModelError, match=r"block_out_channels \(\[8, 32\], requested \[8, 16\]"):
        load_controlnet(tmp_path / "other", model)


def test_the_papers_settings_and_wrong_ones():
    assert (PAPER_PLAN.steps, ControlNetSettings().batch_size, ControlNetSettings().learning_rate) == (
        50_000,
        4,
        1e-5,
    )
    for wrong, said in (({"batch_size": 0}, "batch_size 0"), ({"learning_rate": -1.0}, "learning_rate")):
        with pytest.raises(ValueError, match=said):
            ControlNetSettings(**wrong)
    with pytest.raises(ValueError, match="precision half is not one of"):
        StepPlan(3, precision="half")


@pytest.mark.parametrize("kind", ["missing", "unknown", "no number"])
def test_weights_that_are_not_all_of_a_controlnet_are_refused(model, tmp_path: Path, kind: str):
    """Diffusers would draw what is missing at random, leave out what is unknown, and only print so."""
    save_controlnet(make_controlnet(model), tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    tensors = load_file(path)
    first = sorted(tensors)[0]
    if kind == "no number":
        tensors[first][0] = float("nan")
    elif kind == "missing":
        del tensors[first]
    else:
        tensors["unknown"] = torch.ones(1)
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(ModelError, match="weights are not a ControlNet's"):
        load_controlnet(tmp_path, model)
