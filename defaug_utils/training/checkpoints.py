"""Training state on disk: one safetensors file, replaced whole, from which training goes on exactly."""

import json
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from defaug_utils.core.files import write_atomically


class Checkpoint(NamedTuple):
    """What a checkpoint file holds.

    Attributes:
        tensors: `model.<key>` and `optimiser.<parameter index>.<name>`.
        settings: everything that the training depends on, as JSON values.
        history: its rows, in order.
        scaler: state of the mixed-precision loss scaler, empty where there is none.
    """

    tensors: dict[str, Tensor]
    settings: dict
    history: list[dict]
    scaler: dict


def save_checkpoint(
    path: Path | str,
    model: nn.Module,
    optimiser: Optimizer,
    settings: dict,
    history: list[dict],
    scaler: dict | None = None,
) -> None:
    """Write model, optimiser and history; a kill or a full disk leaves the former file."""
    tensors = {f"model.{key}": value for key, value in model.state_dict().items()}
    for index, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{key}": torch.as_tensor(value) for key, value in state.items()}
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    content = {"settings": settings, "history": history, "scaler": scaler or {}}
    metadata = {key: json.dumps(value) for key, value in content.items()}
    with write_atomically(path) as temporary:
        save_file(tensors, temporary, metadata)


def read_checkpoint(path: Path | str) -> Checkpoint | None:
    """Read a checkpoint; None when there is none or it can't be read."""
    try:
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata()
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - no mapping
        return Checkpoint(tensors, *(json.loads(metadata[key]) for key in ("settings", "history", "scaler")))
    except (FileNotFoundError, SafetensorError, KeyError, TypeError, json.JSONDecodeError):
        return None


def restore_checkpoint(checkpoint: Checkpoint, model: nn.Module, optimiser: Optimizer) -> None:
    """Bring a model and its optimiser, in place, to the state that was saved."""
    prefix = "model."
    model.load_state_dict(
        {k.removeprefix(prefix): v for k, v in checkpoint.tensors.items() if k.startswith(prefix)}
    )
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in checkpoint.tensors.items():
        if not key.startswith(prefix):
            _, index, name = key.split(".", 2)
            state.setdefault(int(index), {})[name] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
