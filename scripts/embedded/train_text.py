"""Train the text encoder on the world's words, before a U-Net uses it.

    python scripts/embedded/train_text.py

From scratch, a U-Net learns to ignore a text encoder whose output means nothing yet. The encoder is therefore
first trained to predict, at every position, what the caption describes: defect or none, material, colour,
shade, size, place.
"""

import json

import numpy as np
import torch
import torch.nn.functional as functional
from loop import Run, read_options
from parts import TEXT_WIDTH, build_text_encoder
from torch import nn
from transformers import CLIPTokenizer
from worlds import caption_clean, caption_defect

BATCH = 64
TOPICS = ("defect", "material", "color", "shade", "size", "place", "tone")


def list_labels(words: list[dict[str, str]]) -> list[tuple[str, str]]:
    """Everything that a caption can describe, as (topic, word)."""
    said = {(topic, entry[topic]) for entry in words for topic in TOPICS if entry[topic]}
    return [*sorted(said), ("defect", "none")]


class TextReader(nn.Module):
    """The text encoder with a linear layer on each of its positions."""

    def __init__(self, tokenizer: CLIPTokenizer, labels: int):
        super().__init__()
        self.text_encoder = build_text_encoder(tokenizer)
        self.head = nn.Linear(TEXT_WIDTH, labels)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits of shape (batch, position, label)."""
        return self.head(self.text_encoder(tokens)[0])


def compute_losses(
    model: TextReader,
    tokenizer: CLIPTokenizer,
    words: list[dict[str, str]],
    labels: list[tuple[str, str]],
    rng: np.random.Generator,
) -> dict[str, torch.Tensor]:
    """Binary cross-entropy of every label at every position of a batch of captions."""
    captions, targets = [], []
    for index in rng.integers(0, len(words), BATCH):
        is_clean = rng.random() < 0.3
        captions.append((caption_clean if is_clean else caption_defect)(rng, words[index]))
        entry = (
            {**words[index], "defect": "none", "shade": "", "size": "", "place": ""}
            if is_clean
            else words[index]
        )
        targets.append([float(entry[topic] == word) for topic, word in labels])
    tokens = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
    logits = model(tokens.input_ids)
    goal = torch.tensor(targets)[:, None].expand(logits.shape)
    defects = [number for number, (topic, _) in enumerate(labels) if topic == "defect"]
    said, true = logits[:, -1, defects].argmax(1), goal[:, -1, defects].argmax(1)
    return {
        "loss": functional.binary_cross_entropy_with_logits(logits, goal) * len(labels),
        "defect_right": (said == true).float().mean(),
    }


def main() -> None:
    arguments = read_options(__doc__, "text", 418)
    torch.manual_seed(0)
    words = json.loads((arguments.pool / "words.json").read_text())
    labels = list_labels(words)
    tokenizer = CLIPTokenizer.from_pretrained(arguments.folder.with_name("tokenizer"))
    run = Run(arguments.folder, TextReader(tokenizer, len(labels)), 1e-3)
    run.train(
        lambda rng, _: compute_losses(run.model, tokenizer, words, labels, rng),
        arguments.steps,
        arguments.minutes,
    )


if __name__ == "__main__":
    main()
