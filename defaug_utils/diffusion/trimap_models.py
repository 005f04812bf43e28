"""Several trimap ControlNets for one text-to-image model: AdaBLDM's code trains one for each defect type."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from defaug_utils.core.guards import raise_problems
from defaug_utils.diffusion.autoencoder import Denoise
from defaug_utils.diffusion.controlnet import TrimapModel, load_trimap_model
from defaug_utils.diffusion.text2image import TextToImage
from defaug_utils.masks.trimaps import TripleSet


@dataclass
class TrimapModels:
    """ControlNets by the prompt of the defect type that each has learned."""

    by_prompt: Mapping[str, TrimapModel]  #: all with the same text-to-image model

    @property
    def model(self) -> TextToImage:
        """The text-to-image model."""
        return next(iter(self.by_prompt.values())).model

    @property
    def controlnet(self) -> nn.ModuleList:
        """All ControlNets."""
        return nn.ModuleList(one.controlnet for one in self.by_prompt.values())

    @property
    def training(self) -> dict:
        """The images that they learned from, together."""
        parts = [one.training.get("trained_on", {}) for one in self.by_prompt.values()]
        kinds = dict.fromkeys(kind for part in parts for kind in part)
        return {
            "trained_on": {kind: sorted({n for part in parts for n in part.get(kind, [])}) for kind in kinds}
        }

    def describe(self) -> dict:
        """Both kinds of models for a pool's recipe."""
        described = {prompt: one.describe() for prompt, one in self.by_prompt.items()}
        (first, *_) = described.values()
        return first | {"controlnet": {prompt: one["controlnet"] for prompt, one in described.items()}}

    def make_denoiser(
        self,
        trimaps_u8: Sequence[np.ndarray],
        prompts: Sequence[str],
        negative_prompts: Sequence[str],
        guidance: float,
    ) -> Denoise:
        """See `TrimapModel.make_denoiser`; each image is denoised by the ControlNet of its prompt.

        Raises a ValueError for prompts that none has learned.
        """
        unknown = sorted(set(prompts) - set(self.by_prompt))
        raise_problems("prompts without a ControlNet", [f"{prompt!r}" for prompt in unknown])
        parts = []
        for prompt, one in self.by_prompt.items():
            places = [place for place, asked in enumerate(prompts) if asked == prompt]
            if places:
                own = [
                    [values[place] for place in places] for values in (trimaps_u8, prompts, negative_prompts)
                ]
                parts.append((torch.tensor(places), one.make_denoiser(*own, guidance)))

        def denoise(latents: Tensor, time: Tensor) -> Tensor:
            predicted = [(places, part(latents[places], time)) for places, part in parts]
            joined = torch.empty_like(latents, dtype=predicted[0][1].dtype)
            for places, values in predicted:
                joined[places] = values
            return joined

        return denoise


def load_trimap_models(
    folder: Path | str,
    sets: Mapping[str, TripleSet],
    model: TextToImage,
    dtype: torch.dtype = torch.float32,
) -> TrimapModel | TrimapModels:
    """Read what was trained on some sets of triples, each in its subfolder (see `load_trimap_model`).

    Args:
        sets: subfolder → its triples; a single set gives a `TrimapModel` for all prompts.

    Raises a ValueError if two sets have the same prompt, which could not be told apart.
    """
    models = {name: load_trimap_model(Path(folder) / name / "controlnet", model, dtype) for name in sets}
    if len(models) == 1:
        return next(iter(models.values()))
    names: dict[str, list[str]] = {}
    for name, triples in sets.items():
        names.setdefault(triples[0].prompt, []).append(name)
    shared = [f"{prompt!r}: {', '.join(same)}" for prompt, same in names.items() if len(same) > 1]
    raise_problems("defect types with the same prompt (name {defect_type} in the template)", shared)
    return TrimapModels({prompt: models[name] for prompt, (name,) in names.items()})
