"""DreamBooth's plan: settings, the order of images, and the weights of noise levels."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from defaug_utils.core.guards import check_demands, describe_settings
from defaug_utils.diffusion.training_images import BucketSettings, DreamBoothError, TrainingImages
from defaug_utils.training.loop import PRECISIONS

OPTIMISERS = ("adamw", "adamw8bit")
CLASS_IMAGES = ("prior", "captioned")


@dataclass(frozen=True)
class DreamBoothSettings:
    """How a model is fine-tuned; the defaults are In&Out's few-shot (Capogrosso et al. 2024, section 4)."""

    identifier: str = "skt"  #: the new word for these images
    instance_prompt: str = "skt background"  #: prompt of every training image; contains the identifier
    class_prompt: str = "background"  #: prompt of every regularisation image; does not contain it
    epochs: int = 49  #: passes over the instance images
    repeats: int = 10  #: of every instance image per epoch
    batch_size: int = 12  #: images per step, all processes together
    learning_rate: float = 1e-5  #: at the start of every cosine
    restarts: int = 3  #: number of cosines from the learning rate down to 0
    warmup_steps: int = 0  #: during which the rate rises from 0
    gamma: float = 5.0  #: of min-SNR-γ; 0 weights all noise levels equally
    noise_offset: float = 0.0  #: deviation of a shift of each channel's noise, as for the base model
    prior_weight: float = 1.0  #: weight of regularisation images; 0 omits them
    #: how an epoch shows them: "prior", as many as instances, in turns (the paper); or "captioned", each of
    #: them `repeats` times, as further images with a caption (what In&Out's configuration does)
    class_images: str = "prior"
    schedule_epochs: int = 0  #: that the cosines span, of which only `epochs` are trained; 0: just these
    optimiser: str = "adamw8bit"  #: "adamw8bit" (plain AdamW if bitsandbytes is missing) or "adamw"
    weight_decay: float = 0.01  #: of the optimiser
    max_gradient_norm: float = 1.0  #: gradients are clipped to it; 0 for no clipping
    precision: str = "fp16"  #: of the forward pass on a GPU: "fp16" or "bf16"; "no" on a CPU
    gradient_checkpointing: bool = True  #: recompute activations to save memory
    seed: int = 1234  #: of the adapter, the order of images, noise and noise levels
    save_every: int = 100  #: steps between checkpoints
    buckets: BucketSettings = field(default_factory=BucketSettings)  #: sizes of training images

    def __post_init__(self) -> None:
        word, instance_prompt, class_prompt = self.identifier.strip(), self.instance_prompt, self.class_prompt
        class_words = class_prompt.split()
        demands = {
            "the identifier is empty: choose a rare word such as 'skt'": bool(word),
            f"the instance prompt {instance_prompt!r} lacks the identifier {word!r}: without it, "
            "fine-tuning changes the meaning of the class word": not word or word in instance_prompt.split(),
            f"the class prompt {class_prompt!r} must not contain {word!r}": word not in class_words,
            "the class prompt is empty: name the kind of object, such as 'background'": bool(class_words),
        }
        for name in ("epochs", "repeats", "batch_size", "restarts", "save_every"):
            value = getattr(self, name)
            demands[f"{name} {value} must be 1 or more"] = value >= 1
        schedule = self.schedule_epochs
        demands[f"schedule_epochs {schedule} must be 0, or at least epochs ({self.epochs})"] = (
            schedule == 0 or schedule >= self.epochs
        )
        demands[
            f"captioned class images count like all others: prior_weight {self.prior_weight} must be 1"
        ] = self.class_images != "captioned" or self.prior_weight in (0, 1)
        weights = ("gamma", "noise_offset", "prior_weight", "weight_decay", "max_gradient_norm")
        for name in ("warmup_steps", *weights, "seed"):
            value = getattr(self, name)
            demands[f"{name} {value} must be 0 or more"] = 0 <= value < float("inf")
        rate = self.learning_rate
        demands[f"learning_rate {rate} must be above 0"] = 0 < rate < float("inf")
        choices = {"optimiser": OPTIMISERS, "precision": PRECISIONS, "class_images": CLASS_IMAGES}
        for name, words in choices.items():
            value = getattr(self, name)
            demands[f"{name} {value!r} is not one of {', '.join(words)}"] = value in words
        check_demands("DreamBooth settings", demands, DreamBoothError)

    def describe(self) -> dict:
        """For a checkpoint."""
        return describe_settings(self, "schedule_epochs", "class_images")


def settle_settings(settings: DreamBoothSettings, device: str) -> tuple[DreamBoothSettings, list[str]]:
    """Replace what this machine lacks (half precision on a CPU, bitsandbytes); return notices about it."""
    notices = []
    if settings.precision != "no" and not device.startswith("cuda"):
        settings = replace(settings, precision="no")
        notices.append("CPUs train in float32, not in half precision")
    if settings.optimiser == "adamw8bit" and not (device.startswith("cuda") and find_spec("bitsandbytes")):
        settings = replace(settings, optimiser="adamw")
        notices.append("Plain AdamW is used instead of the 8-bit one, which needs bitsandbytes and a GPU")
    return settings, notices


def tell_images(images: TrainingImages, settings: DreamBoothSettings) -> list[str]:
    """Notices about the number of images."""
    notices = []
    if len(images.sizes(is_class=False)) == 1:
        notices.append("There is only one instance image: the adapter will memorise it")
    if not images.sizes(is_class=True):
        notices.append(
            f"Prior preservation is off (prior_weight {settings.prior_weight}, no regularisation image): the "
            "class word drifts towards the instance images"
        )
    return notices


def tell_identifier(tokenizer: Any, identifier: str) -> list[str]:
    """Notices if CLIP's tokenizer does not read the identifier as one token."""
    ids = tokenizer(identifier, add_special_tokens=False).input_ids
    pieces = tokenizer.convert_ids_to_tokens(ids)
    if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
        return []
    return [
        f"The tokenizer splits the identifier {identifier!r} into {len(pieces)} pieces ({', '.join(pieces)}"
        "), which it shares with other words; a rare word of one piece has fewer side effects"
    ]


class Step(NamedTuple):
    """One training step: its epoch (from 1) and the positions of its images."""

    epoch: int
    images: tuple[int, ...]


def plan_steps(
    instance_buckets: Sequence[tuple[int, int]],
    class_buckets: Sequence[tuple[int, int]],
    settings: DreamBoothSettings,
) -> list[Step]:
    """The images of every step, a function of buckets and settings only.

    An epoch shows every instance `repeats` times and as many regularisation images, which take turns over the
    epochs; if these are captioned, all of them as often as instances. A step's images come from one bucket;
    instances have the first positions.
    """
    buckets = [*instance_buckets, *class_buckets]
    are_captioned = settings.class_images == "captioned"
    shown = np.repeat(np.arange(len(buckets) if are_captioned else len(instance_buckets)), settings.repeats)
    steps = []
    for epoch in range(settings.epochs):
        generator = np.random.default_rng([settings.seed, epoch])
        turns = np.arange(epoch * len(shown), (epoch + 1) * len(shown))
        turns = turns if class_buckets and not are_captioned else turns[:0]
        taken = len(instance_buckets) + turns % max(1, len(class_buckets))
        by_bucket: dict[tuple[int, int], list[int]] = {}
        for image in generator.permutation(np.concatenate([shown, taken])):
            by_bucket.setdefault(buckets[image], []).append(int(image))
        batches = [
            images[start : start + settings.batch_size]
            for _, images in sorted(by_bucket.items())
            for start in range(0, len(images), settings.batch_size)
        ]
        steps += [Step(epoch + 1, tuple(batches[number])) for number in generator.permutation(len(batches))]
    return steps


def weigh_noise_levels(alphas_cumprod: Tensor, gamma: float, prediction: str) -> Tensor:
    """Weights of the noise levels' squared errors by min-SNR-γ (Hang et al. 2023, section 3.4).

    The error of the predicted image has weight min(SNR, γ). The errors of noise ε and velocity v are SNR and
    SNR + 1 times that error, so their weights are min(SNR, γ) / SNR and min(SNR, γ) / (SNR + 1). ᾱ has shape
    (levels,); γ = 0 weights all levels equally.
    """
    if gamma == 0:
        return torch.ones(len(alphas_cumprod))
    alphas = alphas_cumprod.double()
    snr = alphas / (1 - alphas)
    if prediction == "epsilon":
        return (gamma / snr).clamp(max=1).float()
    return (snr.clamp(max=gamma) / (snr + 1)).float()
