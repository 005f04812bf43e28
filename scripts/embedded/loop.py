"""The training loop of all parts of the embedded model: constant rate, averaged weights, exact restart."""

import argparse
import csv
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from defaug_utils.core.files import write_atomically

LOG_EVERY = 20  # steps
SAVE_SECONDS = 240
HAS_BFLOAT16 = any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16"))


def choose_precision() -> torch.autocast:
    """Compute in bfloat16 where the CPU has it; emulated, it is ten times slower than float32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=HAS_BFLOAT16)


def read_options(description: str, folder: str, steps: int) -> argparse.Namespace:
    """The command line of a training on the drawn pool."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--pool", type=Path, default=Path("runs/embedded/pool"))
    parser.add_argument("--folder", type=Path, default=Path("runs/embedded") / folder)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--minutes", type=float, default=1e6)
    return parser.parse_args()


def seed_step(seed: int, step: int) -> tuple[np.random.Generator, torch.Generator]:
    """Generators of one step, so that its random numbers don't depend on interruptions."""
    rng = np.random.default_rng([seed, step])
    return rng, torch.Generator().manual_seed(int(rng.integers(2**62)))


def average_weights(average: dict[str, torch.Tensor], model: torch.nn.Module, step: int) -> None:
    """Move the running average towards the weights; the first steps have less weight."""
    decay = min(0.999, (1 + step) / (10 + step))
    with torch.no_grad():
        values = model.state_dict()
        floats = [name for name, value in values.items() if value.is_floating_point()]
        torch._foreach_lerp_([average[name] for name in floats], [values[name] for name in floats], 1 - decay)
        for name in values.keys() - set(floats):
            average[name].copy_(values[name])


def load_average(model: torch.nn.Module, folder: Path) -> torch.nn.Module:
    """Load the averaged weights of a training run's checkpoint."""
    tensors = load_file(folder / "checkpoint.safetensors")
    prefix = "average/"
    model.load_state_dict(
        {name.removeprefix(prefix): v for name, v in tensors.items() if name.startswith(prefix)}
    )
    return model.eval()


class Run:
    """One training run in one folder: model, averaged weights, optimizer state and step."""

    def __init__(self, folder: Path, model: torch.nn.Module, rate: float, seed: int = 0, warmup: int = 100):
        """Start the run, or resume it from its checkpoint."""
        self.folder, self.model, self.rate, self.seed, self.warmup = folder, model, rate, seed, warmup
        self.step, self.stopped = 0, False
        self.optimizer = torch.optim.AdamW(
            model.parameters(), rate, betas=(0.9, 0.99), weight_decay=1e-3, fused=True
        )
        self.average = {name: value.clone() for name, value in model.state_dict().items()}
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "checkpoint.safetensors").exists():
            self._restore(load_file(folder / "checkpoint.safetensors"))
        signal.signal(signal.SIGTERM, self._stop)

    def _stop(self, *_: object) -> None:
        self.stopped = True

    def _restore(self, tensors: dict[str, torch.Tensor]) -> None:
        self.step = int(tensors.pop("step"))
        parts: dict[str, dict[str, torch.Tensor]] = {"model": {}, "average": {}, "adam": {}}
        for name, value in tensors.items():
            part, _, key = name.partition("/")
            parts[part][key] = value
        self.model.load_state_dict(parts["model"])
        self.average = parts["average"]
        state = self.optimizer.state_dict()
        for key, value in parts["adam"].items():
            index, _, field = key.partition("/")
            state["state"].setdefault(int(index), {})[field] = value
        self.optimizer.load_state_dict(state)

    def save(self) -> None:
        """Write the checkpoint."""
        tensors = {"step": torch.tensor(self.step)}
        tensors |= {f"model/{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"average/{name}": value for name, value in self.average.items()}
        for index, fields in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam/{index}/{field}": torch.as_tensor(value) for field, value in fields.items()}
        with write_atomically(self.folder / "checkpoint.safetensors") as temporary:
            save_file({name: value.contiguous().clone() for name, value in tensors.items()}, temporary)

    def log(self, row: dict[str, float]) -> None:
        """Append a row to history.csv."""
        path = self.folder / "history.csv"
        is_new = not path.exists()
        with path.open("a", newline="") as stream:
            writer = csv.DictWriter(stream, list(row))
            if is_new:
                writer.writeheader()
            writer.writerow(row)

    def train(
        self,
        compute_losses: Callable[[np.random.Generator, torch.Generator], dict[str, torch.Tensor]],
        steps: int,
        minutes: float,
        on_save: Callable[[], None] | None = None,
    ) -> None:
        """Train until `steps` in total are done, or for `minutes`, or until a stop signal."""
        start = saved = time.monotonic()
        sums: dict[str, float] = {}
        while self.step < steps and time.monotonic() - start < 60 * minutes and not self.stopped:
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate * min(1, (self.step + 1) / self.warmup)
            losses = compute_losses(*seed_step(self.seed, self.step))
            self.optimizer.zero_grad(set_to_none=True)
            losses["loss"].backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.step += 1
            average_weights(self.average, self.model, self.step)
            sums = {name: sums.get(name, 0) + float(value.detach()) for name, value in losses.items()}
            if self.step % LOG_EVERY == 0:
                means = {name: round(value / LOG_EVERY, 5) for name, value in sums.items()}
                self.log({"step": self.step, "seconds": round(time.monotonic() - start, 1), **means})
                sums = {}
            if time.monotonic() - saved > SAVE_SECONDS:
                self.save()
                if on_save:
                    on_save()
                saved = time.monotonic()
        self.save()
        if on_save:
            on_save()
