"""The registry of origins: one row a method, with all that the rest of the house must know of it.

Arms, the Snakefile's rules, labels, colours, the order of results and the rules on leaks are derived from it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

REAL = "real"  # the origin of the data set's own images
Shares = Mapping[str, float]


@dataclass(frozen=True)
class Arm:
    """Where the generated positives of a run come from, and how results show it.

    Attributes:
        shares: origin → part, which add up to 1; empty for no augmentation.
        label: in words.
        colour: from Okabe and Ito's palette, or another that every kind of colour vision tells apart.
        marker: of matplotlib.
    """

    shares: Shares
    label: str
    colour: str
    marker: str


@dataclass(frozen=True)
class Origin:
    """A method's row. Its word is the origin in manifests, the folder of its pools, and its own arm.

    Attributes:
        label: see `Arm`.
        colour: see `Arm`.
        marker: see `Arm`.
        notebook: that makes its pool.
        gives_masks: whether its images have exact masks.
        needs_positives: whether it is made from real positives, of which zero-shot knows none.
        learns: whether what it is made from depends on scenario and seed, so that each has its own pool.
        wants_gpu: whether its notebook wants a GPU.
        mixes: further arms, word → arm, shown after its own.
    """

    label: str
    colour: str
    marker: str
    notebook: str
    gives_masks: bool = True
    needs_positives: bool = False
    learns: bool = False
    wants_gpu: bool = True
    mixes: tuple[tuple[str, Arm], ...] = ()


IN_AND_OUT = Arm({"ddpm": 0.5, "memseg": 0.5}, "In&Out", "#009E73", "d")
NO_AUGMENTATION = Arm({}, "no augmentation", "#000000", "X")

ORIGINS: dict[str, Origin] = {
    "memseg": Origin("MemSeg", "#0072B2", "o", "02_memseg", wants_gpu=False),
    "ddpm": Origin(
        *("DDPM", "#D55E00", "s", "03_lora_finetune"),
        gives_masks=False,
        learns=True,
        mixes=(("in_and_out", IN_AND_OUT),),
    ),
    "diag": Origin("DIAG", "#CC79A7", "^", "04_diag_inpainting"),
    "adabldm": Origin("AdaBLDM", "#56B4E9", "v", "05_adabldm", needs_positives=True, learns=True),
    "adabldm_plain": Origin(
        "AdaBLDM, decoder as it is", "#882255", "<", "05_adabldm", needs_positives=True, learns=True
    ),
    "cut_paste": Origin("cut and paste", "#E69F00", "8", "05_adabldm", needs_positives=True, learns=True),
}


def list_arms() -> dict[str, Arm]:
    """Every built-in arm by its word, in the order of results."""
    arms = {"none": NO_AUGMENTATION}
    for word, row in ORIGINS.items():
        arms[word] = Arm({word: 1.0}, row.label, row.colour, row.marker)
        arms |= dict(row.mixes)
    return arms


def list_notebooks() -> list[str]:
    """The notebooks that make pools, each once."""
    return list(dict.fromkeys(row.notebook for row in ORIGINS.values()))
