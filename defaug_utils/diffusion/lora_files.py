"""Adapter files: reading and writing kohya's and diffusers' formats, without ignoring any key.

Kohya's keys are `lora_unet_<path with underscores>.lora_down.weight`, diffusers' `unet.<path>.lora_A.weight`
with alphas in the file's metadata. Diffusers' reader drops keys that it can't use and stops at the first
missing matrix, and its writer for kohya's format sets every alpha to the rank, so we do both ourselves.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from defaug_utils.core.files import write_atomically
from defaug_utils.core.guards import raise_problems
from defaug_utils.diffusion.lora import (
    ADAPTER,
    LayerPlan,
    LoraCounts,
    LoraError,
    adapted_layers,
    attach_layers,
    find_layers,
)
from defaug_utils.training.weights import list_broken

KOHYA_PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"}
ENDINGS = {  # of a layer's keys, by layout
    "kohya": {"down": ("lora_down.weight",), "up": ("lora_up.weight",), "alpha": ("alpha",)},
    "diffusers": {  # the current ones first, then those of earlier versions
        "down": ("lora_A.weight", "lora.down.weight", "lora_linear_layer.down.weight"),
        "up": ("lora_B.weight", "lora.up.weight", "lora_linear_layer.up.weight"),
    },
}
DIFFUSERS_METADATA = "lora_adapter_metadata"  # diffusers' name; JSON in the file's header


class StoredLayer(NamedTuple):
    """One layer's adapter in a file: matrices, and alpha (the rank if the file has none)."""

    down: Tensor
    up: Tensor
    alpha: float


def save_lora(
    path: Path | str,
    unet: nn.Module,
    text_encoder: nn.Module,
    metadata: Mapping[str, str] | None = None,
    layout: str = "kohya",
) -> None:
    """Write the adapter of one or both networks to one safetensors file; equal adapters give equal bytes.

    `metadata` are additional texts for the file's header, such as base model and prompts. The layout is
    "kohya" (read by image-generation tools and diffusers) or "diffusers". Raises a LoraError for any other
    layout, or if there is no adapter.
    """
    if layout not in ENDINGS:
        raise LoraError(f"layout {layout!r} is not one of {', '.join(ENDINGS)}")
    networks = {"unet": adapted_layers(unet), "text_encoder": adapted_layers(text_encoder)}
    if not any(networks.values()):
        raise LoraError("there is no adapter to save: attach or load one first")
    tensors = {}
    for network, layers in networks.items():
        for layer_path, layer in layers.items():
            name = _name_layer(layout, network, layer_path)
            alpha = torch.tensor(float(layer.lora_alpha[ADAPTER]))
            parts = {"down": layer.lora_A[ADAPTER].weight, "up": layer.lora_B[ADAPTER].weight, "alpha": alpha}
            for part, endings in ENDINGS[layout].items():
                tensors[f"{name}.{endings[0]}"] = parts[part].detach().cpu().contiguous()
    header = {"ss_network_module": "networks.lora"} if layout == "kohya" else _make_header(networks)
    with write_atomically(path) as temporary:
        temporary.write_bytes(sort_metadata(save(tensors, {"format": "pt", **header, **(metadata or {})})))


def sort_metadata(written: bytes) -> bytes:
    """A safetensors file with sorted metadata in its header; the library's order is random."""
    length = int.from_bytes(written[:8], "little")
    header = json.loads(written[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    padded = text.ljust(-(-len(text) // 8) * 8)
    return len(padded).to_bytes(8, "little") + padded + written[8 + length :]


def _name_layer(layout: str, network: str, path: str) -> str:
    """A layer's name in a file, the same with and without transformers' `text_model` in its path."""
    path = path.removeprefix("text_model.")
    if layout == "kohya":
        return KOHYA_PREFIXES[network] + path.replace(".", "_")
    return f"text_encoder.text_model.{path}" if network == "text_encoder" else f"{network}.{path}"


def _list_keys(network: str, path: str) -> dict[str, str]:
    """Every key that a layer may have in a file → its meaning: "down", "up" or "alpha"."""
    return {
        f"{_name_layer(layout, network, path)}.{ending}": part
        for layout, parts in ENDINGS.items()
        for part, endings in parts.items()
        for ending in endings
    }


def _make_header(networks: Mapping[str, Mapping[str, nn.Module]]) -> dict[str, str]:
    """Diffusers' metadata: ranks and alphas in the form of peft's configuration."""
    header = {}
    for network, layers in networks.items():
        if layers:  # peft matches the ends of paths: without `text_model` they fit every version
            ends = {path.removeprefix("text_model."): layer for path, layer in layers.items()}
            first = next(iter(layers.values()))
            header[f"{network}.r"] = first.r[ADAPTER]
            header[f"{network}.lora_alpha"] = first.lora_alpha[ADAPTER]
            header[f"{network}.target_modules"] = sorted(ends)
            header[f"{network}.rank_pattern"] = {end: layer.r[ADAPTER] for end, layer in ends.items()}
            header[f"{network}.alpha_pattern"] = {e: layer.lora_alpha[ADAPTER] for e, layer in ends.items()}
    return {DIFFUSERS_METADATA: json.dumps(header, sort_keys=True)}


def load_lora(path: Path | str, unet: nn.Module, text_encoder: nn.Module) -> LoraCounts:
    """Attach an adapter from a file in kohya's or diffusers' format to base networks without one.

    Raises:
        FileNotFoundError: there is no such file.
        LoraError: it can't be read, is pickled, or has keys or shapes that don't fit (all are listed).
    """
    tensors, header = read_lora(Path(path))
    networks = {"unet": unet, "text_encoder": text_encoder}
    try:
        known = dict(json.loads(header.get(DIFFUSERS_METADATA, "{}")))
    except (ValueError, TypeError, RecursionError) as error:
        raise LoraError(f"{path}: its {DIFFUSERS_METADATA} can't be read: {error}") from error
    raise_problems(str(path), list_broken(tensors), LoraError)
    stored = _match_keys(tensors, known, networks, str(path))
    counts = []
    for network, module in networks.items():
        layers = stored[network]
        planned = {path: LayerPlan(len(layer.down), layer.alpha) for path, layer in layers.items()}
        counts.append(attach_layers(module, planned))
        for path, adapted in adapted_layers(module).items():
            adapted.lora_A[ADAPTER].weight.data.copy_(layers[path].down)
            adapted.lora_B[ADAPTER].weight.data.copy_(layers[path].up)
    return LoraCounts(*counts)


def read_lora(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file; raises as `load_lora`, but looks at no key."""
    if not path.is_file():
        raise FileNotFoundError(f"no adapter at {path}: train one with notebook 03, or give another file")
    if path.suffix != ".safetensors":
        raise LoraError(f"{path.name}: only .safetensors files are loaded, as other formats can run code")
    try:
        with safe_open(path, "pt") as opened:
            return {key: opened.get_tensor(key) for key in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise LoraError(f"{path.name} is not a complete safetensors file: {error}") from error


def _match_keys(
    tensors: Mapping[str, Tensor], known: Mapping, networks: Mapping[str, nn.Module], what: str
) -> dict[str, dict[str, StoredLayer]]:
    """The layers of a file by network and path, checked; `known` is diffusers' metadata or empty."""
    rest, problems = dict(tensors), [] if tensors else ["the file contains no adapter"]
    stored: dict[str, dict[str, StoredLayer]] = {network: {} for network in networks}
    for network, module in networks.items():
        for path, layer in find_layers(module).items():
            found = {part: rest.pop(key) for key, part in _list_keys(network, path).items() if key in rest}
            missing = [part for part in ("down", "up") if found and part not in found]
            problems += [f"{network}.{path} has no {part} matrix" for part in missing]
            if found and not missing:
                problems += _list_shape_problems(f"{network}.{path}", found, layer)
                alpha = float(found.get("alpha", _look_up_alpha(known, network, path, len(found["down"]))))
                stored[network][path] = StoredLayer(found["down"], found["up"], alpha)
    problems += [f"{key} is unknown to this model" for key in rest]
    unfit = f"{what}: the adapter doesn't fit this model (different base, rank or kind of adapter)"
    raise_problems(unfit, sorted(problems), LoraError)
    return stored


def _look_up_alpha(known: Mapping, network: str, path: str, rank: int) -> float:
    """A layer's alpha from diffusers' metadata; the rank if there is none."""
    from peft.utils.other import get_pattern_key

    pattern = known.get(f"{network}.alpha_pattern") or {}
    key = get_pattern_key(list(pattern), path.removeprefix("text_model."))
    alpha = pattern.get(key, known.get(f"{network}.lora_alpha"))
    return rank if alpha is None else alpha


def _list_shape_problems(name: str, entry: Mapping[str, Tensor], module: nn.Module) -> list[str]:
    weight = getattr(module, "base_layer", module).weight
    rank, kernel = len(entry["down"]), weight.shape[2:]
    wanted = {"down": (rank, *weight.shape[1:]), "up": (weight.shape[0], rank, *(1 for _ in kernel))}
    return [
        f"{name}.{part} is {tuple(entry[part].shape)}, expected {shape}"
        for part, shape in wanted.items()
        if tuple(entry[part].shape) != shape
    ]
