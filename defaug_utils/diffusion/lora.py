"""LoRA-C3Lier on peft: low-rank updates of linear and 3 × 3 convolution layers, merged with any weight.

Hu et al. 2022 (LoRA); In&Out, section 3.2. A 3 × 3 update is a 3 × 3 convolution (down) and a 1 × 1 one (up).
"""

import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

ADAPTER = "default"  # peft's name of the adapter
OWN_LAYERS = re.compile(r"\.(base_layer|lora_\w+)(\.|$)")  # the adapter's own layers, in paths
BLOCKS = ("Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D", "CLIPAttention", "CLIPMLP")


class LoraError(ValueError):
    """Adapter and model don't match, or a merge weight is out of range."""


@dataclass(frozen=True)
class LoraPlan:
    """Ranks and scales; an update is multiplied by alpha / rank (In&Out, section 4.1)."""

    linear_rank: int = 32  #: of linear layers and 1 × 1 convolutions
    linear_alpha: float = 16  #: of the same
    conv_rank: int = 4  #: of 3 × 3 convolutions; 0 omits them ("linear only")
    conv_alpha: float = 1  #: of the same

    def __post_init__(self) -> None:
        if self.linear_rank < 1 or self.conv_rank < 0 or self.linear_alpha <= 0 or self.conv_alpha <= 0:
            raise LoraError(
                f"{self}: expected linear_rank of 1 or more, conv_rank of 0 or more, and alphas above 0"
            )


class LayerPlan(NamedTuple):
    """Rank and alpha of one layer."""

    rank: int
    alpha: float


class LoraCount(NamedTuple):
    """Number of adapted layers of one network, by kind, and of their trainable parameters."""

    linear: int
    conv_1x1: int
    conv_3x3: int
    parameters: int


class LoraCounts(NamedTuple):
    """Counts for U-Net and text encoder."""

    unet: LoraCount
    text_encoder: LoraCount


def find_layers(network: nn.Module) -> dict[str, nn.Module]:
    """Linear and convolution layers in `BLOCKS` of U-Net or text encoder, by path, adapted or not."""
    blocks = tuple(f"{path}." for path, module in network.named_modules() if type(module).__name__ in BLOCKS)
    return {
        path: module
        for path, module in network.named_modules()
        if path.startswith(blocks)
        and not OWN_LAYERS.search(path)
        and isinstance(_base(module), nn.Linear | nn.Conv2d)
    }


def _base(module: nn.Module) -> nn.Module:
    return getattr(module, "base_layer", module)


def plan_layers(network: nn.Module, plan: LoraPlan) -> dict[str, LayerPlan]:
    """Rank and alpha of every layer to be adapted, by its path."""
    planned = {}
    for path, module in find_layers(network).items():
        if _base(module).weight.shape[2:] in ((), (1, 1)):
            planned[path] = LayerPlan(plan.linear_rank, plan.linear_alpha)
        elif plan.conv_rank:
            planned[path] = LayerPlan(plan.conv_rank, plan.conv_alpha)
    return planned


def attach_lora(unet: nn.Module, text_encoder: nn.Module, plan: LoraPlan | None = None) -> LoraCounts:
    """Add new adapters (None: the paper's plan), which change no output, and freeze everything else."""
    plan, networks = plan or LoraPlan(), (unet, text_encoder)
    return LoraCounts(*(attach_layers(network, plan_layers(network, plan)) for network in networks))


def attach_layers(network: nn.Module, planned: Mapping[str, LayerPlan]) -> LoraCount:
    """Add a new adapter to the planned layers of one network, which must not have one yet."""
    from peft import LoraConfig, inject_adapter_in_model

    if adapted_layers(network):
        raise LoraError(f"{type(network).__name__} already has an adapter: load the base model again")
    network.requires_grad_(False)
    if planned:
        first = next(iter(planned.values()))
        config = LoraConfig(
            r=first.rank,
            lora_alpha=first.alpha,
            target_modules=f"({'|'.join(map(re.escape, planned))})",
            rank_pattern={path: layer.rank for path, layer in planned.items()},
            alpha_pattern={path: layer.alpha for path, layer in planned.items()},
        )
        inject_adapter_in_model(config, network, adapter_name=ADAPTER)
    return _count((_base(layer).weight, layer.r[ADAPTER]) for layer in adapted_layers(network).values())


def count_planned(unet: nn.Module, text_encoder: nn.Module, plan: LoraPlan) -> LoraCounts:
    """Count what `attach_lora` would adapt, without adding it."""
    counts = []
    for network in (unet, text_encoder):
        layers, planned = find_layers(network), plan_layers(network, plan)
        counts.append(_count((_base(layers[path]).weight, layer.rank) for path, layer in planned.items()))
    return LoraCounts(*counts)


def _count(adapted: Iterable[tuple[Tensor, int]]) -> LoraCount:
    """Count layers by kind, and parameters, from their weights and ranks."""
    kinds, parameters = {"linear": 0, "conv_1x1": 0, "conv_3x3": 0}, 0
    for weight, rank in adapted:
        is_small = weight.shape[2:] == (1, 1)
        kinds["linear" if weight.ndim == 2 else "conv_1x1" if is_small else "conv_3x3"] += 1
        parameters += rank * (weight[0].numel() + weight.shape[0])
    return LoraCount(**kinds, parameters=parameters)


def adapted_layers(network: nn.Module) -> dict[str, nn.Module]:
    """The adapted layers of a network, by path."""
    return {path: layer for path, layer in network.named_modules() if ADAPTER in getattr(layer, "lora_A", {})}


def lora_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """The adapter's parameters by `<path>.down` and `<path>.up`, for an optimiser."""
    return {
        f"{path}.{part}": matrices[ADAPTER].weight
        for path, module in adapted_layers(network).items()
        for part, matrices in (("down", module.lora_A), ("up", module.lora_B))
    }


@torch.no_grad()
def merge_lora(unet: nn.Module, text_encoder: nn.Module, share: float) -> None:
    """Merge the adapters: W ← W + share · (alpha / rank) · up · down, always from the base weights.

    The base weights are kept, so that `unmerge_lora` restores them bit for bit and a second merge replaces
    the first. The share is the paper's α (0.6 to 0.95 there); 0 is the base model, above 1 gives a warning.
    """
    if not 0 <= share < float("inf"):
        raise LoraError(f"merge weight {share} must be 0 or more")
    if share > 1:
        warnings.warn(f"merge weight {share} is above 1: the adapter is amplified", stacklevel=2)
    layers = [module for network in (unet, text_encoder) for module in adapted_layers(network).values()]
    if not layers:
        raise LoraError("there is no adapter to merge: attach or load one first")
    unmerge_lora(unet, text_encoder)
    for module in layers:
        base = module.base_layer
        module.unmerged_weight = base.weight.detach().clone()
        if share:
            base.weight += (share * module.get_delta_weight(ADAPTER)).to(base.weight.dtype)
        module.enable_adapters(False)


@torch.no_grad()
def unmerge_lora(unet: nn.Module, text_encoder: nn.Module) -> None:
    """Restore the base weights bit for bit and apply the adapters separately again."""
    for network in (unet, text_encoder):
        for module in adapted_layers(network).values():
            if hasattr(module, "unmerged_weight"):
                module.base_layer.weight.copy_(module.unmerged_weight)
                del module.unmerged_weight
                module.enable_adapters(True)
