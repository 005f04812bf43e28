"""What can be chosen about inpainting; no diffusion library is needed to say it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class InpaintSettings:
    """How a defect is painted; the defaults are DIAG's (section 4 and its code).

    Attributes:
        size: working size (width, height); images are stretched to it.
        steps: of the whole noise schedule; `effective_steps` of them are run.
        guidance: weight of the prompt against the negative one; 1 is none.
        strength: how much of the original is drowned in noise, in (0, 1]; SDXL fails at 1.
        padding_mask_crop: pixels of the working size kept around the mask; 0 cuts right at the mask, None
            works on the whole image.
        feather: pixels inside the mask over which the original fades out.
        cover_cells: tell the model every latent cell that the mask touches, else thin cracks slip through;
            the finished image changes under the mask itself only.
    """

    size: tuple[int, int] = (1024, 1024)
    steps: int = 30
    guidance: float = 20.0
    strength: float = 0.99
    padding_mask_crop: int | None = 2
    feather: int = 0
    cover_cells: bool = True

    @property
    def effective_steps(self) -> int:
        """Steps that are really run: the whole part of steps × strength."""
        return min(int(self.steps * self.strength), self.steps)

    def __post_init__(self) -> None:
        """Refuse values that make no sense, all in one message."""
        crop = self.padding_mask_crop
        demands = {
            f"size {self.size} must be (width, height) of at least 8 × 8": min(self.size) >= 8,
            f"steps {self.steps} must be 1 or more": self.steps >= 1,
            f"guidance {self.guidance} must be in 1 … 100": 1 <= self.guidance <= 100,
            f"strength {self.strength} must be in 0 … 1, 0 excluded": 0 < self.strength <= 1,
            f"padding_mask_crop {crop} must be None or 0 or more": crop is None or crop >= 0,
            f"feather {self.feather} must be 0 or more": self.feather >= 0,
            f"{self.steps} steps × strength {self.strength} leave no step to run: raise one of them": (
                self.steps < 1 or not 0 < self.strength <= 1 or self.effective_steps >= 1
            ),
        }
        broken = [message for message, is_met in demands.items() if not is_met]
        if broken:
            raise ValueError("inpainting settings: " + "; ".join(broken))

    def check_size(self, cell: int) -> None:
        """Refuse a size that the autoencoder can't take, naming the nearest one that it can.

        Raises:
            ValueError: a side is not divisible by the pixels of a latent cell.
        """
        if any(side % cell for side in self.size):
            width, height = (max(cell, round(side / cell) * cell) for side in self.size)
            raise ValueError(
                f"size {self.size[0]} × {self.size[1]} is not divisible by the model's factor {cell}: use "
                f"{width} × {height}; images are stretched to it and back"
            )
