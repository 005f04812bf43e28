"""Work that may not fit into a device's memory: split into halves if it doesn't."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from defaug_utils.core.guards import hold_threads

Job = TypeVar("Job")
Result = TypeVar("Result")


@hold_threads()
def run_in_parts(
    jobs: Sequence[Job],
    make: Callable[[Sequence[Job]], Sequence[Result]],
    model: Any,
    size: tuple[int, int],
    on_images: Callable[[int], None] | None = None,
) -> list[Result]:
    """Do all jobs at once, or in halves if memory runs out.

    The model's `batch_limit` remembers what fitted. `size` (width, height) is used in the message of the
    MemoryError if not even one image fits. `on_images` is called with the number of images just made.
    """
    results: list[Result] = []
    while len(results) < len(jobs):
        part = jobs[len(results) : len(results) + (model.batch_limit or len(jobs))]
        try:
            results += make(part)
        except torch.OutOfMemoryError as error:
            if len(part) == 1:
                raise MemoryError(
                    f"not even one image of {size[0]} × {size[1]} fits in the memory of "
                    f"{model.device}: choose a smaller size, half precision or a smaller model"
                ) from error
            model.batch_limit = len(part) // 2
        else:
            if on_images:
                on_images(len(part))
            continue
        torch.cuda.empty_cache()  # only here, after the failed batch has been released
    return results


def pick_device() -> torch.device:
    """The GPU if there is one, otherwise the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
