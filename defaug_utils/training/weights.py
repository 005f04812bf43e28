"""Values in a weights file that no network can use."""

from collections.abc import Mapping

from torch import Tensor


def list_broken(tensors: Mapping[str, Tensor]) -> list[str]:
    """Tensors that are not floating point or contain non-finite values, with what is wrong."""
    problems = []
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            problems.append(f"{name} is {str(tensor.dtype).removeprefix('torch.')}, expected floating point")
        elif not tensor.isfinite().all():
            problems.append(f"{name} contains non-finite values")
    return problems
