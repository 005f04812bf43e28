"""Lying, foreign and broken weights: classifiers, adapters, ControlNets, patch memories, checkpoints."""

import functools
import json
import pickle
import random
import struct
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load, save, save_file
from tiny_models import make_parts, save_model

from defaug_utils.core.manifest import make_manifest
from defaug_utils.diffusion.controlnet import load_controlnet
from defaug_utils.diffusion.lora import LoraPlan, attach_lora
from defaug_utils.diffusion.lora_files import load_lora, save_lora
from defaug_utils.diffusion.text2image import load_text2image
from defaug_utils.evaluation.patch_memory import MemoryPlan, PatchMemory, read_memory, write_memory
from defaug_utils.methods.ddpm import open_adapter
from defaug_utils.training.backbones import build_classifier, open_features
from defaug_utils.training.loop import check_training
from fault_parts.judging import Cases, Trial

BACKBONE = "resnet10_quarter"
OWN = Path(__file__).parents[2] / "models" / "backbones" / f"{BACKBONE}.safetensors"


@cache
def open_model() -> object:
    """The tiny model that adapters and ControlNets belong to."""
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    return load_text2image(save_model(folder, unet_channels=4), clip_skip=1)


@cache
def make_good() -> dict[str, bytes]:
    """A valid file of every kind."""
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    parts = make_parts(4)
    attach_lora(parts["unet"], parts["text_encoder"], LoraPlan(linear_rank=2, linear_alpha=1, conv_rank=1))
    save_lora(folder / "lora.safetensors", parts["unet"], parts["text_encoder"])
    network = open_features(BACKBONE, str(OWN))
    patches = np.random.default_rng(0).normal(size=(6, 96)).astype(np.float32)
    write_memory(
        PatchMemory(patches, MemoryPlan(), network.describe(), (64, 96)), folder / "memory.safetensors"
    )
    control_net().save_pretrained(folder / "control")
    metadata = {
        name: json.dumps(value) for name, value in (("settings", {"a": 1}), ("history", []), ("scaler", {}))
    }
    save_file({"model.w": torch.ones(2)}, folder / "checkpoint.safetensors", metadata)
    control = folder / "control" / "diffusion_pytorch_model.safetensors"
    return {
        "classifier": OWN.read_bytes(),
        "lora": (folder / "lora.safetensors").read_bytes(),
        "adapter": (folder / "lora.safetensors").read_bytes(),
        "memory": (folder / "memory.safetensors").read_bytes(),
        "controlnet": control.read_bytes(),
        "checkpoint": (folder / "checkpoint.safetensors").read_bytes(),
    }


def control_net() -> object:
    """A ControlNet for the tiny model's U-Net."""
    from diffusers import ControlNetModel

    return ControlNetModel.from_unet(open_model().pipeline.unet, conditioning_channels=3)


def read(kind: str, path: Path) -> object:
    """Read a kind of file as a user would."""
    if kind == "classifier":
        return build_classifier(BACKBONE, str(path))
    if kind == "lora":
        parts = make_parts(4)
        return load_lora(path, parts["unet"], parts["text_encoder"])
    if kind == "adapter":
        return open_adapter(path, open_model(), make_manifest([]))
    if kind == "memory":
        return read_memory(path, open_features(BACKBONE, str(OWN)))
    if kind == "checkpoint":
        return check_training(path.parent, {"a": 1})
    return load_controlnet(path.parent, open_model())


NAMES = {"checkpoint": "checkpoint.safetensors", "controlnet": "diffusion_pytorch_model.safetensors"}


def split(content: bytes) -> tuple[dict, bytes]:
    """Header and body of a safetensors file."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join(header: object, body: bytes) -> bytes:
    """A safetensors file of a header and a body."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def change_header(change: Callable[[dict, str], object]) -> Callable[[bytes], bytes]:
    """A change of the header, which gets the first tensor's name."""

    def changed(content: bytes) -> bytes:
        header, body = split(content)
        first = next(name for name in header if name != "__metadata__")
        return join(change(header, first) or header, body)

    return changed


def change_tensors(change: Callable[[str, torch.Tensor], torch.Tensor]) -> Callable[[bytes], bytes]:
    """The first floating-point tensor of several numbers changed, the metadata kept."""

    def changed(content: bytes) -> bytes:
        tensors, header = load(content), split(content)[0]
        name = next(
            name for name, value in sorted(tensors.items()) if value.is_floating_point() and value.numel() > 1
        )
        tensors[name] = change(name, tensors[name].clone()).contiguous()
        return save(tensors, header.get("__metadata__"))

    return changed


def put(value: float) -> Callable[[bytes], bytes]:
    """One number replaced."""

    def change(name: str, tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(-1)[-1] = value
        return tensor

    return change_tensors(change)


CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "seven-bytes": lambda content: content[:7],
    "only-length": lambda content: content[:8],
    "cut-header": lambda content: content[:40],
    "cut-body": lambda content: content[:-5],
    "more-behind": lambda content: content + bytes(64),
    "endless-header": lambda content: b"\xff" * 8 + content[8:],
    "header-of-4-gb": lambda content: struct.pack("<Q", 2**32) + content[8:],
    "no-json": lambda content: join(b"{" * 64, split(content)[1]),
    "list": lambda content: join([1], split(content)[1]),
    "null": lambda content: join(b"null", split(content)[1]),
    "deep": lambda content: join(b'{"a":' * 50_000, b""),
    "nothing": lambda content: join({}, b""),
    "zeros": lambda content: bytes(4096),
    "pickle": lambda content: pickle.dumps({"w": 1}),
    "huge-shape": change_header(lambda h, n: h[n].update(shape=[2**40, 2**20])),
    "overflow": change_header(lambda h, n: h[n].update(shape=[2**63, 2])),
    "below-zero": change_header(lambda h, n: h[n].update(shape=[-1, 4])),
    "other-shape": change_header(lambda h, n: h[n].update(shape=[3, 5, 7])),
    "other-kind": change_header(lambda h, n: h[n].update(dtype="F64")),
    "no-kind": change_header(lambda h, n: h[n].update(dtype="F7")),
    "beyond": change_header(lambda h, n: h[n].update(data_offsets=[0, 2**40])),
    "backwards": change_header(lambda h, n: h[n].update(data_offsets=[64, 0])),
    "overlapping": change_header(lambda h, n: h.update(again=h[n])),
    "numbers-as-metadata": change_header(lambda h, n: h.update(__metadata__={"settings": 3})),
    "renamed": change_header(lambda h, n: h.update(unknown=h.pop(n))),
    "nan": put(float("nan")),
    "infinite": put(float("inf")),
    "minus-infinite": put(float("-inf")),
    "whole-numbers": change_tensors(lambda name, tensor: tensor.to(torch.int64)),
    "complex": change_tensors(lambda name, tensor: tensor.to(torch.complex64)),
    "one-longer": change_tensors(lambda name, tensor: torch.cat([tensor, tensor[:1]])),
    "no-number": change_tensors(lambda name, tensor: tensor[:0]),
}
# What a reader that looks at tensors' bytes alone can't know; others refuse it.
PASSING = {
    "classifier": ("other-kind",),  # of a counter that is not used
    "memory": ("one-longer",),
    "adapter": (
        "renamed",
        "whole-numbers",
        "complex",
        "one-longer",
        "no-number",
        "nothing",
        "null",
        "numbers-as-metadata",
        "nan",
        "infinite",
        "minus-infinite",
    ),  # `load_lora` refuses them
    "checkpoint": (
        "renamed",
        "nan",
        "infinite",
        "minus-infinite",
        "whole-numbers",
        "complex",
        "one-longer",
        "no-number",
    ),
}


def _case(
    kind: str, change: Callable[[bytes], bytes], is_good: bool, folder: Path, rng: random.Random
) -> Trial:
    path = folder / NAMES.get(kind, f"{kind}.safetensors")
    path.write_bytes(change(make_good()[kind]))
    if kind == "controlnet":
        control_net().save_config(folder)
    culprit = folder.name if kind == "controlnet" else path.name
    return Trial(lambda: read(kind, path), culprit, (lambda found: found is not None) if is_good else None)


def list_cases() -> Cases:
    """Every change of every kind of file, and each kind in the place of each other."""
    for kind in make_good():
        yield f"weights/{kind}/good", functools.partial(_case, kind, lambda content: content, True)
        for title, change in CHANGES.items():
            if title not in PASSING.get(kind, ()):
                yield f"weights/{kind}/{title}", functools.partial(_case, kind, change, False)
        for other, content in make_good().items():
            if (
                content != make_good()[kind]
                and (kind, other) not in (("adapter", "memory"),)
                and kind != "adapter"
            ):
                foreign = functools.partial(lambda wanted, content: wanted, content)
                yield f"weights/{kind}/of-{other}", functools.partial(_case, kind, foreign, False)
