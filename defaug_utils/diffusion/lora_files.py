"""Adapters in files: kohya's key format and diffusers' own, both ways.

Kohya: `lora_unet_<path with underscores>.lora_down.weight`, `.lora_up.weight`, `.alpha`, and
`lora_te_text_model_…` for the text encoder. Diffusers: `unet.<path>.lora_A.weight`, `.lora_B.weight`, with
alphas in the file's metadata.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from defaug_utils.core.files import write_atomically
from defaug_utils.diffusion.lora import (
    ADAPTER,
    LayerPlan,
    LoraCounts,
    LoraError,
    adapted_layers,
    attach_layers,
    find_layers,
    look_up_pattern,
    raise_lora_problems,
    read_lora,
    write_lora,
)

LAYOUTS = ("kohya", "diffusers")
KOHYA_PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"}
DIFFUSERS_METADATA = "lora_adapter_metadata"  # diffusers' name, JSON in the header of the file
_DIFFUSERS_KEY = re.compile(
    r"(unet|text_encoder)\.(.+?)\.(lora_A|lora_B|lora\.down|lora\.up|lora_linear_layer\.down"
    r"|lora_linear_layer\.up)\.weight"
)


class StoredLayer(NamedTuple):
    """One layer's adapter in a file: matrices, and alpha (the rank where the file gives none)."""

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
    """Write an adapter to one safetensors file.

    Args:
        path: the file.
        unet: with an adapter.
        text_encoder: with an adapter.
        metadata: further texts for the file's header, such as base model and prompts.
        layout: "kohya" (image-generation tools and diffusers read it) or "diffusers".

    Raises:
        LoraError: unknown layout, or there is no adapter.
    """
    if layout not in LAYOUTS:
        raise LoraError(f"layout {layout!r} is none of {', '.join(LAYOUTS)}")
    weights = read_lora(unet, text_encoder)
    if not weights:
        raise LoraError("there is no adapter to save: attach or load one first")
    networks = {"unet": unet, "text_encoder": text_encoder}
    write = _write_kohya if layout == "kohya" else _write_diffusers
    tensors, header = write(networks)
    with write_atomically(Path(path)) as temporary:
        save_file(
            {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()},
            temporary,
            {"format": "pt", **header, **(metadata or {})},
        )


def _kohya_name(network: str, path: str) -> str:
    return KOHYA_PREFIXES[network] + path.removeprefix("text_model.").replace(".", "_")


def _diffusers_path(network: str, path: str) -> str:
    """With `text_model` in the text encoder's paths, whatever transformers calls its modules."""
    return f"text_model.{path.removeprefix('text_model.')}" if network == "text_encoder" else path


def _write_kohya(networks: Mapping[str, nn.Module]) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors = {}
    for network, module in networks.items():
        for path, layer in adapted_layers(module).items():
            name = _kohya_name(network, path)
            tensors[f"{name}.lora_down.weight"] = layer.lora_A[ADAPTER].weight
            tensors[f"{name}.lora_up.weight"] = layer.lora_B[ADAPTER].weight
            tensors[f"{name}.alpha"] = torch.tensor(float(layer.lora_alpha[ADAPTER]))
    return tensors, {"ss_network_module": "networks.lora"}


def _write_diffusers(networks: Mapping[str, nn.Module]) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors, header = {}, {}
    for network, module in networks.items():
        layers = {path.removeprefix("text_model."): layer for path, layer in adapted_layers(module).items()}
        for path, layer in layers.items():
            key = f"{network}.{_diffusers_path(network, path)}"
            tensors[f"{key}.lora_A.weight"] = layer.lora_A[ADAPTER].weight
            tensors[f"{key}.lora_B.weight"] = layer.lora_B[ADAPTER].weight
        if layers:  # peft matches the ends of paths: without `text_model` they fit every version
            first = next(iter(layers.values()))
            header[f"{network}.r"] = first.r[ADAPTER]
            header[f"{network}.lora_alpha"] = first.lora_alpha[ADAPTER]
            header[f"{network}.target_modules"] = sorted(layers)
            header[f"{network}.rank_pattern"] = {path: layer.r[ADAPTER] for path, layer in layers.items()}
            header[f"{network}.alpha_pattern"] = {p: layer.lora_alpha[ADAPTER] for p, layer in layers.items()}
    return tensors, {DIFFUSERS_METADATA: json.dumps(header, sort_keys=True)}


def load_lora(path: Path | str, unet: nn.Module, text_encoder: nn.Module) -> LoraCounts:
    """Attach the adapter of a file, of kohya's or diffusers' format, to a base model.

    Args:
        path: a `.safetensors` file.
        unet: without an adapter.
        text_encoder: without an adapter.

    Returns:
        What was adapted.

    Raises:
        FileNotFoundError: there is no such file.
        LoraError: it can't be read, is pickled, or a key or shape does not fit this model (all are listed).
    """
    tensors, header = _read_file(Path(path))
    networks = {"unet": unet, "text_encoder": text_encoder}
    is_kohya = any(key.startswith("lora_") for key in tensors)
    stored = (_parse_kohya if is_kohya else _parse_diffusers)(tensors, header, networks)
    raise_lora_problems(
        problem
        for network, layers in stored.items()
        for path_, layer in layers.items()
        for problem in _shape_problems(network, path_, layer, find_layers(networks[network])[path_])
    )
    counts = LoraCounts(
        *(
            attach_layers(
                module,
                {p: LayerPlan(len(layer.down), layer.alpha) for p, layer in stored[network].items()},
            )
            for network, module in networks.items()
        )
    )
    weights = {
        f"{network}.{p}.{part}": getattr(layer, part)
        for network, layers in stored.items()
        for p, layer in layers.items()
        for part in ("down", "up")
    }
    write_lora(unet, text_encoder, weights)
    return counts


def _read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        raise FileNotFoundError(f"no adapter at {path}: train one with notebook 03, or name another file")
    if path.suffix != ".safetensors":
        raise LoraError(f"{path.name}: only .safetensors files are loaded, other formats can run code")
    try:
        with safe_open(path, "pt") as opened:
            return {key: opened.get_tensor(key) for key in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise LoraError(f"{path.name} is no whole safetensors file: {error}") from error


def _parse_kohya(
    tensors: dict[str, Tensor], _: Mapping[str, str], networks: Mapping[str, nn.Module]
) -> dict[str, dict[str, StoredLayer]]:
    names = {
        _kohya_name(network, path): (network, path)
        for network, module in networks.items()
        for path in find_layers(module)
    }
    parts: dict[tuple[str, str], dict[str, Tensor]] = {}
    problems = []
    for key, tensor in tensors.items():
        name, _, part = key.partition(".")
        if name not in names or part not in ("lora_down.weight", "lora_up.weight", "alpha"):
            problems.append(f"{key} is unknown to this model")
        else:
            parts.setdefault(names[name], {})[part.removeprefix("lora_").removesuffix(".weight")] = tensor
    return _collect(parts, problems)


def _parse_diffusers(
    tensors: dict[str, Tensor], header: Mapping[str, str], networks: Mapping[str, nn.Module]
) -> dict[str, dict[str, StoredLayer]]:
    known = json.loads(header.get(DIFFUSERS_METADATA, "{}"))
    paths = {
        (network, _diffusers_path(network, path)): path
        for network, module in networks.items()
        for path in find_layers(module)
    }
    parts: dict[tuple[str, str], dict[str, Tensor]] = {}
    problems = []
    for key, tensor in tensors.items():
        match = _DIFFUSERS_KEY.fullmatch(key)
        if not match or (match[1], match[2]) not in paths:
            problems.append(f"{key} is unknown to this model")
            continue
        network, path = match[1], match[2]
        entry = parts.setdefault((network, paths[network, path]), {})
        entry["down" if match[3].endswith(("A", "down")) else "up"] = tensor
        pattern = known.get(f"{network}.alpha_pattern") or {}
        alpha = look_up_pattern(pattern, path.removeprefix("text_model."), known.get(f"{network}.lora_alpha"))
        if alpha is not None:
            entry["alpha"] = torch.tensor(float(alpha))
    return _collect(parts, problems)


def _collect(
    parts: Mapping[tuple[str, str], Mapping[str, Tensor]], problems: list[str]
) -> dict[str, dict[str, StoredLayer]]:
    """Layers by network and path, once nothing is missing."""
    stored: dict[str, dict[str, StoredLayer]] = {"unet": {}, "text_encoder": {}}
    for (network, path), entry in parts.items():
        missing = [part for part in ("down", "up") if part not in entry]
        problems += [f"{network}.{path} has no {part} matrix" for part in missing]
        if not missing:
            alpha = float(entry["alpha"]) if "alpha" in entry else float(len(entry["down"]))
            stored[network][path] = StoredLayer(entry["down"], entry["up"], alpha)
    if not parts and not problems:
        problems.append("the file holds no adapter")
    raise_lora_problems(problems)
    return stored


def _shape_problems(network: str, path: str, layer: StoredLayer, module: nn.Module) -> list[str]:
    weight = getattr(module, "base_layer", module).weight
    rank, _, *kernel = layer.down.shape
    wanted_down, wanted_up = (rank, *weight.shape[1:]), (weight.shape[0], rank, *(1 for _ in kernel))
    return [
        f"{network}.{path}.{part} is {tuple(tensor.shape)}, expected {wanted}"
        for part, tensor, wanted in (("down", layer.down, wanted_down), ("up", layer.up, wanted_up))
        if tuple(tensor.shape) != tuple(wanted)
    ]
