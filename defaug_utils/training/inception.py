"""The first layers of Inception v3 (Szegedy et al. 2016), at which DIAG measured FID."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from defaug_utils.core.guards import raise_problems
from defaug_utils.training.weights import list_broken


class Convolution(nn.Module):
    """Convolution without bias, BatchNorm and ReLU, with torchvision's names."""

    def __init__(self, channels: tuple[int, int], side: int, **further: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(*channels, side, bias=False, **further)
        self.bn = nn.BatchNorm2d(channels[1], eps=0.001)

    def forward(self, state: Tensor) -> Tensor:
        """Maps (batch, channels, height, width), after ReLU."""
        return self.bn(self.conv(state)).relu_()


def build_inception(weights: Mapping[str, Tensor], path: Path | str) -> tuple[nn.Module, nn.Module]:
    """The network up to its first max-pooling (64 channels), and from there to its second one (192 channels).

    `weights`, read from `path`, have torchvision's key names, which those of the original FID have, too, if
    converted to PyTorch. A ValueError lists the keys that are missing, or don't fit; deeper layers are
    ignored.
    """
    layers = nn.ModuleDict(
        {
            "Conv2d_1a_3x3": Convolution((3, 32), 3, stride=2),
            "Conv2d_2a_3x3": Convolution((32, 32), 3),
            "Conv2d_2b_3x3": Convolution((32, 64), 3, padding=1),
            "Conv2d_3b_1x1": Convolution((64, 80), 1),
            "Conv2d_4a_3x3": Convolution((80, 192), 3),
        }
    )
    state = layers.state_dict()
    needed = [key for key in state if not key.endswith("num_batches_tracked")]
    problems = [f"{key} is missing" for key in needed if key not in weights]
    for key in needed:
        if key in weights and weights[key].shape != state[key].shape:
            problems.append(f"{key} is {tuple(weights[key].shape)}, expected {tuple(state[key].shape)}")
        elif key in weights:
            problems += list_broken({key: weights[key]})
    raise_problems(f"weights {path} are not Inception v3's", problems)
    layers.load_state_dict(state | {key: weights[key] for key in needed})
    first, second = list(layers.values())[:3], list(layers.values())[3:]
    return nn.Sequential(*first, nn.MaxPool2d(3, 2)), nn.Sequential(*second, nn.MaxPool2d(3, 2))
