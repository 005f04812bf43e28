"""A memory of good patches: patches far from all of them are defects (PatchCore: Roth et al. 2022).

Nothing is trained, and no known defects are needed. Section numbers refer to the paper.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from scipy.ndimage import gaussian_filter
from scipy.special import softmax
from sklearn.neighbors import NearestNeighbors
from sklearn.random_projection import SparseRandomProjection
from torch.nn.functional import avg_pool2d, interpolate

from defaug_utils.core.files import write_atomically
from defaug_utils.core.guards import check_demands, list_differences
from defaug_utils.data.samples import Samples, list_scored
from defaug_utils.training.backbones import FeatureNetwork, read_in_batches
from defaug_utils.training.weights import list_broken

LAYERS = ("eighth", "sixteenth")  # of the side; Roth et al. also use the second and third stage
POOLED = 3  # positions per side that a patch averages (section 3.1)
SMOOTHING = 4.0  # pixels, standard deviation of the Gaussian over score maps (section 3.3)


@dataclass(frozen=True)
class MemoryPlan:
    """What a memory contains, and how images are compared with it."""

    layers: tuple[str, ...] = LAYERS  #: of the backbone, joined at the finest one's resolution
    share: float = 0.01  #: share of all patches to keep, in (0, 1]
    neighbours: int = 9  #: of the nearest kept patch, for weighting an image's score; 1: no weighting
    projected: int = 128  #: channels for comparing patches while choosing them
    seed: int = 0  #: of the projection and the first patch

    def __post_init__(self) -> None:
        """Refuse invalid values, all in one message."""
        demands = {
            "layers must name at least one layer": len(self.layers) > 0,
            f"share {self.share} must be in (0, 1]": 0 < self.share <= 1,
            f"neighbours {self.neighbours} must be 1 or more": self.neighbours >= 1,
            f"projected {self.projected} must be 1 or more": self.projected >= 1,
        }
        check_demands("patch memory", demands)


@dataclass(frozen=True)
class PatchMemory:
    """Patches of good images."""

    patches: np.ndarray  #: shape (patches, channels), float32
    plan: MemoryPlan
    network: dict  #: `FeatureNetwork.describe` of their backbone
    size: tuple[int, int]  #: (width, height) of the images


class PatchScores(NamedTuple):
    """Distances of an image from the memory; higher is more likely a defect."""

    image: float  #: of its farthest patch, weighted
    patches: np.ndarray  #: distance to the nearest kept patch, shape (rows, columns), float32


def fit_memory(samples: Samples, network: FeatureNetwork, plan: MemoryPlan | None = None) -> PatchMemory:
    """Keep a share of the patches of all negatives of the train split; positives are not used.

    All these patches are in memory at once, four bytes per channel; nothing grows with their squared number.

    Raises:
        ValueError: there are fewer good images, or fewer kept patches, than neighbours; an unknown layer; or
            features that are not finite.
    """
    plan = plan or MemoryPlan()
    is_good = (samples.table["split"] == "train") & (samples.table["label"] == "negative")
    good = samples.images_u8[np.flatnonzero(is_good)].numpy()
    demand = f"{plan.neighbours} neighbours are requested, there are {len(good)} good training images"
    check_demands("patch memory", {demand: len(good) >= plan.neighbours})
    patches = np.concatenate([maps.reshape(-1, maps.shape[-1]) for maps in read_patches(network, good, plan)])
    count = max(1, round(plan.share * len(patches)))
    kept = f"{plan.neighbours} neighbours are requested, but a share of {plan.share} keeps {count} patch(es)"
    check_demands("patch memory", {f"{kept} of {len(patches)}": count >= plan.neighbours})
    chosen = choose_patches(_project(patches, plan), count, plan.seed)
    return PatchMemory(patches[chosen], plan, network.describe(), _size_of(good))


def read_patches(
    network: FeatureNetwork, images_u8: Iterable[np.ndarray], plan: MemoryPlan
) -> Iterator[np.ndarray]:
    """Patches of images (height, width, 3), uint8, batch by batch: (batch, rows, columns, channels), float32.

    Each joins the layers' outputs, averaged over 3 × 3 positions (fewer at the border).
    """
    for maps in read_in_batches(network, images_u8, plan.layers):
        pooled = [
            avg_pool2d(maps[layer], POOLED, stride=1, padding=POOLED // 2, count_include_pad=False)
            for layer in plan.layers
        ]
        finest = max((one.shape[2:] for one in pooled), key=np.prod)
        raised = [interpolate(one, finest, mode="bilinear", align_corners=False) for one in pooled]
        yield torch.cat(raised, dim=1).permute(0, 2, 3, 1).cpu().numpy()


def _project(patches: np.ndarray, plan: MemoryPlan) -> np.ndarray:
    """Fewer channels with about the same distances (section 3.2); unchanged if there are already few."""
    if patches.shape[1] <= plan.projected:
        return patches
    projection = SparseRandomProjection(plan.projected, dense_output=True, random_state=plan.seed)
    return projection.fit_transform(patches).astype(np.float32)


def choose_patches(patches: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Positions of `count` patches that are close to all others: greedy k-center (section 3.2).

    The first is random; each further one is the farthest from all previous ones. Patches have shape (patches,
    channels); one distance per patch is kept.
    """
    squares = np.einsum("ij,ij->i", patches, patches)
    nearest = np.full(len(patches), np.inf, patches.dtype)
    chosen = [int(np.random.default_rng(seed).integers(len(patches)))]
    while len(chosen) < count:
        last = chosen[-1]
        np.minimum(nearest, squares - 2 * (patches @ patches[last]) + squares[last], out=nearest)
        nearest[last] = -np.inf  # never again, even if all patches are equal
        chosen.append(int(nearest.argmax()))
    return np.array(chosen)


def compare_with_memory(
    memory: PatchMemory, network: FeatureNetwork, images_u8: np.ndarray
) -> Iterator[PatchScores]:
    """Scores of images (images, height, width, 3), uint8, one by one.

    An image's score is the distance of its farthest patch, times a weight that is smaller if many kept
    patches are as close as the nearest one (section 3.3, equation 7).

    Raises:
        ValueError: the memory has another backbone, other weights or another image size.
    """
    _refuse_other_features(memory, network, "patch memory")
    (width, height), (columns, rows) = memory.size, _size_of(images_u8)
    demand = f"images are {columns} × {rows}, but the memory was made from images of {width} × {height}"
    check_demands("patch memory", {demand: (columns, rows) == (width, height)})
    search = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(memory.patches)
    for maps in read_patches(network, images_u8, memory.plan):
        for patches in maps:
            flat = patches.reshape(-1, patches.shape[-1])
            distances, nearest = (found[:, 0] for found in search.kneighbors(flat))
            farthest = distances.argmax()
            around = _measure_around(memory, search, flat[farthest], nearest[farthest])
            weight = 1 - softmax(around).min() if memory.plan.neighbours > 1 else 1.0
            score_map = distances.reshape(patches.shape[:2]).astype(np.float32)
            yield PatchScores(float(weight * distances[farthest]), score_map)


def _measure_around(
    memory: PatchMemory, search: NearestNeighbors, patch: np.ndarray, nearest: int
) -> np.ndarray:
    """Distances of a patch to a kept patch and to its kept neighbours."""
    kept = memory.patches[nearest][None]
    (places,) = search.kneighbors(kept, memory.plan.neighbours, return_distance=False)
    return np.linalg.norm(memory.patches[places].astype(float) - patch, axis=1)


def score_by_memory(memory: PatchMemory, network: FeatureNetwork, samples: Samples) -> pd.DataFrame:
    """Score the val and test images: a table like `score_samples`, but with distances as scores."""
    indices, table = list_scored(samples)
    found = compare_with_memory(memory, network, samples.images_u8[indices].numpy())
    return table.assign(score=[scores.image for scores in found])


def spread_patches(patch_scores: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Upsample scores of patches (rows, columns) to smooth pixel scores (height, width), float32."""
    raised = interpolate(
        torch.from_numpy(patch_scores)[None, None], size[::-1], mode="bilinear", align_corners=False
    )
    return gaussian_filter(raised[0, 0].numpy(), SMOOTHING)


def _size_of(images_u8: np.ndarray) -> tuple[int, int]:
    return images_u8.shape[2], images_u8.shape[1]


def write_memory(memory: PatchMemory, path: Path | str) -> None:
    """Store a memory in one safetensors file, with its plan, backbone and image size."""
    settings = {"plan": asdict(memory.plan), "network": memory.network, "size": memory.size}
    with write_atomically(path) as temporary:
        save_file(
            {"patches": torch.from_numpy(memory.patches)}, temporary, {"settings": json.dumps(settings)}
        )


def read_memory(path: Path | str, network: FeatureNetwork) -> PatchMemory:
    """Read a stored memory, for use with the backbone that it was fitted with.

    Raises:
        ValueError: the file is damaged or not a patch memory, or the memory has another backbone.
        FileNotFoundError: there is no such file.
    """
    try:
        with safe_open(path, framework="pt") as opened:
            settings = json.loads(opened.metadata()["settings"])
            stored = opened.get_tensor("patches")
        if stored.ndim != 2 or not stored.numel() or list_broken({"patches": stored}):
            raise ValueError(f"patches of shape {tuple(stored.shape)}, {stored.dtype} aren't finite features")
        patches = stored.numpy()
        plan = MemoryPlan(**settings["plan"] | {"layers": tuple(settings["plan"]["layers"])})
        memory = PatchMemory(patches, plan, settings["network"], tuple(settings["size"]))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a readable patch memory ({error}): fit it again") from error
    _refuse_other_features(memory, network, f"patch memory {path}")
    return memory


def _refuse_other_features(memory: PatchMemory, network: FeatureNetwork, what: str) -> None:
    if differing := list_differences(memory.network, network.describe()):
        advice = "use the backbone and weights that it was fitted with, or fit it again"
        raise ValueError(f"{what} was made with other features: {'; '.join(differing)}: {advice}")
