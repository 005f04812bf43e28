"""A trimap ControlNet (Zhang et al. 2023) beside a frozen U-Net (AdaBLDM: Li et al. 2024, section 3.2)."""

import copy
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from defaug_utils.core.files import stage_folder, write_json
from defaug_utils.core.guards import check_demands, list_differences, raise_problems
from defaug_utils.core.manifest import image_seed
from defaug_utils.diffusion.autoencoder import Denoise, draw_noise, encode_images, to_floats
from defaug_utils.diffusion.loading import ModelError, fingerprint, quiet_libraries, tell_pickles
from defaug_utils.diffusion.text2image import TextToImage, choose_target, embed_prompts, make_ddim
from defaug_utils.masks.trimaps import TRIPLES, Triple, TripleSet
from defaug_utils.training.loop import (
    OnStep,
    StepDone,
    StepPlan,
    Training,
    open_accelerator,
    run_steps,
    share_batches,
)
from defaug_utils.training.weights import list_broken

if TYPE_CHECKING:
    from diffusers import ControlNetModel

CONDITIONING_CHANNELS = (16, 32, 96, 256)  # from pixels to cells of 8 × 8 (ControlNet, Zhang et al. 2023)
TRAINING = "training.json"
TRIMAP_CHANNELS = 3  # the trimap is repeated, so that the weights fit Stable Diffusion's ControlNets
BATCH_SIZE = 4  # AdaBLDM, section 4.1
PAPER_PLAN = StepPlan(TRIPLES * 10 // BATCH_SIZE)  # 10 epochs (AdaBLDM, section 4.1)


@dataclass
class TrimapModel:
    """A text-to-image model and the ControlNet that reads trimaps for it."""

    model: TextToImage  #: from `load_text2image`; stays frozen
    controlnet: "ControlNetModel"  #: from `make_controlnet` or a training
    training: dict = field(default_factory=dict)  #: what `train_controlnet` recorded, if known

    def describe(self) -> dict:
        """Both models for a pool's recipe, with the real defects that the ControlNet learned from."""
        controlnet = {
            "fingerprint": fingerprint({"controlnet": self.controlnet}),
            "steps": self.training.get("steps"),
            "trained_on": self.training.get("trained_on", {}).get("defects", "unknown"),
        }
        return self.model.describe() | {"sampler": "DDIMScheduler", "controlnet": controlnet}

    def make_denoiser(
        self,
        trimaps_u8: Sequence[np.ndarray],
        prompts: Sequence[str],
        negative_prompts: Sequence[str],
        guidance: float,
    ) -> Denoise:
        """The network for `blend_latents`; trimaps (height, width), uint8, and prompts: one per image."""
        model, controlnet = self.model, self.controlnet
        conditioning = to_conditioning(trimaps_u8).to(model.device, controlnet.dtype)
        controlnet, conditioning = read_once(controlnet, conditioning)
        empty = embed_prompts(model, [""] * len(prompts)).to(controlnet.dtype)
        asked = [negative_prompts, prompts] if guidance > 1 else [prompts]
        texts = [embed_prompts(model, of_images) for of_images in asked]

        def denoise(latents: Tensor, time: Tensor) -> Tensor:
            inputs = latents.to(controlnet.dtype)
            first, *rest = predict(model, controlnet, inputs, time, conditioning, empty, texts)
            return first + guidance * (rest[0] - first) if rest else first

        return denoise


def make_controlnet(model: TextToImage, seed: int = 0) -> "ControlNetModel":
    """A float32 ControlNet, initialised from the U-Net's encoder; the seed draws its trimap layers."""
    from diffusers import ControlNetModel

    count = math.log2(model.cell) + 1
    if not count.is_integer() or count > len(CONDITIONING_CHANNELS):
        raise ModelError(f"{model.model}: latent cells have {model.cell} pixels, expected 1, 2, 4 or 8")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        controlnet = ControlNetModel.from_unet(
            model.pipeline.unet,
            conditioning_embedding_out_channels=CONDITIONING_CHANNELS[: int(count)],
            conditioning_channels=TRIMAP_CHANNELS,
        )
    return controlnet.to(model.device).eval()


def save_controlnet(controlnet: "ControlNetModel", folder: Path | str, training: dict | None = None) -> None:
    """Write a ControlNet in diffusers' layout as safetensors, and `training.json`: how it was trained.

    The folder replaces an earlier one only when it is complete.
    """
    with stage_folder(folder) as staging:
        with quiet_libraries():
            controlnet.save_pretrained(staging, safe_serialization=True)
        write_json(staging / TRAINING, training or {})


def load_trimap_model(
    folder: Path | str, model: TextToImage, dtype: torch.dtype = torch.float32
) -> TrimapModel:
    """Read a ControlNet in diffusers' layout, and what is known of its training, for its text-to-image model.

    Raises a ModelError if it is missing, does not fit the model, or was trained with another one.
    """
    controlnet, path = load_controlnet(folder, model, dtype), Path(folder) / TRAINING
    try:
        training = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ModelError(f"{path} can't be read ({error}): copy the model again") from error
    base = model.describe().get("fingerprint")
    if training and training["base"] != base:
        raise ModelError(
            f"{folder} was trained with the model {training['base']}, but {model.model} is {base}: load the "
            "model that it belongs to"
        )
    return TrimapModel(model, controlnet, training)


def load_controlnet(
    folder: Path | str, model: TextToImage, dtype: torch.dtype = torch.float32
) -> "ControlNetModel":
    """Read a ControlNet from safetensors that fits the model; a ModelError says why it can't be read."""
    from diffusers import ControlNetModel

    folder = Path(folder)
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        found = tell_pickles(folder) or "none: train one first"
        raise ModelError(f"{folder}: expected config.json and weights (*.safetensors), found {found}")
    try:
        with quiet_libraries():
            problems = [
                line for path in sorted(folder.glob("*.safetensors")) for line in list_broken(load_file(path))
            ]
            options = {"dtype": dtype, "use_safetensors": True, "output_loading_info": True}
            controlnet, told = ControlNetModel.from_pretrained(folder, **options)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{folder} can't be loaded as a ControlNet: {error}") from error
    problems += [f"{key} is missing" for key in told["missing_keys"]]
    problems += [f"{key} is unknown to a ControlNet" for key in told["unexpected_keys"]]
    raise_problems(f"{folder}: its weights are not a ControlNet's", problems, ModelError)
    names = ("block_out_channels", "layers_per_block", "cross_attention_dim", "in_channels")
    wanted = {name: model.pipeline.unet.config[name] for name in names}
    wanted["conditioning_channels"] = TRIMAP_CHANNELS  # those of trimaps
    differing = list_differences({name: controlnet.config[name] for name in wanted}, wanted)
    if differing:
        raise ModelError(f"{folder} does not fit {model.model}: {'; '.join(differing)}")
    return controlnet.to(model.device).eval()


def to_conditioning(trimaps_u8: Sequence[np.ndarray]) -> Tensor:
    """Trimaps (height, width), uint8, as input of the ControlNet: (batch, 3, height, width) in [0, 1]."""
    stacked = torch.from_numpy(np.stack(trimaps_u8))[:, None].float() / 255
    return stacked.repeat(1, TRIMAP_CHANNELS, 1, 1)


@torch.no_grad()
def read_once(controlnet: "ControlNetModel", conditioning: Tensor) -> tuple["ControlNetModel", Tensor]:
    """A view of the ControlNet (with shared weights) for embedded trimaps, and these embeddings.

    In a small model, embedding the trimaps takes as long as the rest of a step.
    """
    view = copy.copy(controlnet)
    view._modules = dict(controlnet._modules, controlnet_cond_embedding=nn.Identity())
    view.__dict__.pop("forward", None)  # in mixed precision, accelerate binds it to the original
    return view, controlnet.controlnet_cond_embedding(conditioning)


def predict(
    model: TextToImage,
    controlnet: "ControlNetModel",
    latents: Tensor,
    times: Tensor,
    conditioning: Tensor,
    empty: Tensor,
    texts: Sequence[Tensor],
) -> list[Tensor]:
    """The U-Net's predictions for noisy latents under the ControlNet's guidance, one for each prompt.

    The ControlNet reads the empty prompt, so its single output serves all prompts. Times: one, or one per
    image.
    """
    down, middle = controlnet(latents, times, empty, conditioning, return_dict=False)
    copies, dtype = len(texts), model.pipeline.unet.dtype
    repeat = (copies, 1, 1, 1)
    predicted = model.pipeline.unet(
        latents.to(dtype).repeat(repeat),
        times if times.dim() == 0 else times.repeat(copies),
        torch.cat(list(texts)),
        down_block_additional_residuals=[residual.to(dtype).repeat(repeat) for residual in down],
        mid_block_additional_residual=middle.to(dtype).repeat(repeat),
    ).sample
    return list(predicted.chunk(copies))


@dataclass(frozen=True)
class ControlNetSettings:
    """How a ControlNet is trained; the defaults are AdaBLDM's (section 4.1)."""

    batch_size: int = BATCH_SIZE  #: triples per step, shared by all processes
    learning_rate: float = 1e-5  #: of AdamW
    seed: int = 0  #: of the new layers, the times and the noise

    def __post_init__(self) -> None:
        demands = {
            f"batch_size {self.batch_size} must be 1 or more": self.batch_size >= 1,
            f"learning_rate {self.learning_rate} must be above 0": self.learning_rate > 0,
            f"seed {self.seed} must not be negative": self.seed >= 0,
        }
        check_demands("training of the ControlNet", demands)


@dataclass
class ControlNetRun:
    """A finished training: the network, ready for use, and the history from `run_steps`."""

    controlnet: nn.Module
    history: pd.DataFrame
    resumed_steps: int


def train_controlnet(
    model: TextToImage,
    triples: TripleSet,
    folder: Path | str,
    settings: ControlNetSettings | None = None,
    plan: StepPlan = PAPER_PLAN,
    on_step: OnStep | None = None,
    on_samples: Callable[[int, nn.Module], None] | None = None,
) -> ControlNetRun:
    """Train a ControlNet beside the frozen model, or resume an earlier run.

    Triple p of the run, its time and its noise depend only on the seed and p. On one CPU the result is
    exactly reproducible, interrupted or not, for the same number of threads and versions. Raises a ValueError
    if size or prompts don't suit the model, or if the batch can't be divided among the processes; see also
    `run_steps`.

    Args:
        folder: for the checkpoint, `history.csv` and, at the end, `controlnet/` in diffusers' layout.
        settings: None for the paper's.
        on_samples: called after each checkpoint with the step and the ControlNet, for example to draw
            samples.
    """
    settings, folder = settings or ControlNetSettings(), Path(folder)
    accelerator = open_accelerator(plan.precision, model.device)
    place_batch = share_batches(settings.batch_size, "triples", accelerator)
    controlnet = make_controlnet(model, settings.seed)
    for part in (model.pipeline.unet, model.pipeline.vae, model.pipeline.text_encoder):
        part.requires_grad_(False).eval()
    scheduler = make_ddim(model)

    def compute_loss(trained: nn.Module, step: int, part: slice) -> Tensor:
        whole = place_batch(step)
        positions = whole[part]
        batch = [triples[position % len(triples)] for position in positions]
        seeds = [image_seed(settings.seed, position) for position in positions]
        return measure_loss(model, trained, scheduler, batch, seeds) * (len(batch) / len(whole))

    def tell(done: StepDone) -> None:
        if on_step:
            on_step(done)
        if on_samples and done.is_saved and accelerator.is_main_process:
            on_samples(done.step, controlnet.eval())

    optimiser = torch.optim.AdamW(controlnet.parameters(), settings.learning_rate)
    described = asdict(settings) | {"model": model.describe(), "triples": triples.describe()}
    demanded = described | {"precision": plan.precision, "processes": 1}  # any number trains the same
    training = Training(controlnet, optimiser, compute_loss, accelerator, divisible=len(place_batch(0)))
    run = run_steps(training, plan, folder, demanded, tell)
    if accelerator.is_main_process and _read_steps(folder / "controlnet") != plan.steps:
        metadata = {"base": model.describe()["fingerprint"], "steps": plan.steps} | described
        save_controlnet(controlnet, folder / "controlnet", metadata | {"trained_on": triples.list_names()})
    accelerator.wait_for_everyone()
    return ControlNetRun(controlnet.eval(), run.history, run.resumed_steps)


def _read_steps(folder: Path) -> int | None:
    """Steps of a stored ControlNet; None if there is none."""
    try:
        return json.loads((folder / TRAINING).read_text(encoding="utf-8"))["steps"]
    except (OSError, ValueError, KeyError):
        return None


def measure_loss(
    model: TextToImage, controlnet: nn.Module, scheduler: Any, triples: list[Triple], seeds: list[int]
) -> Tensor:
    """Mean squared error of the predicted noise or velocity; each triple's seed draws its time and noise."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    count = scheduler.config.num_train_timesteps
    with torch.no_grad():
        images = to_floats([triple.image_u8 for triple in triples]).to(model.device)
        clean = encode_images(model.pipeline.vae, images)
        noise = draw_noise(generators, clean)
        times = torch.cat([torch.randint(count, (1,), generator=one) for one in generators]).to(model.device)
        target = choose_target(scheduler, clean, noise, times)
        texts = embed_prompts(model, [triple.prompt for triple in triples])
        empty = embed_prompts(model, [""] * len(triples))
    conditioning = to_conditioning([triple.trimap_u8 for triple in triples]).to(clean)
    noised = scheduler.add_noise(clean, noise, times)
    (predicted,) = predict(model, controlnet, noised, times, conditioning, empty.to(clean), [texts])
    return mse_loss(predicted.float(), target)
