"""Numbers of a weights file that no network can work with."""

from collections.abc import Mapping

from torch import Tensor


def list_broken(tensors: Mapping[str, Tensor]) -> list[str]:
    """Tensors that aren't of floating point, or hold values that are no numbers, and what is wrong."""
    problems = []
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            problems.append(f"{name} is {str(tensor.dtype).removeprefix('torch.')}, expected floating point")
        elif not tensor.isfinite().all():
            problems.append(f"{name} holds values that are no numbers")
    return problems
