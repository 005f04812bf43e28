"""Build the CLIP tokenizer of the embedded model: byte-level BPE, learned from the world's own captions.

    python scripts/embedded/build_tokenizer.py --pool runs/embedded/pool --folder runs/embedded/tokenizer

Every word of the captions becomes one token; other words are split into pieces and single bytes, so that
nothing is lost.
"""

import argparse
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer
from worlds import caption_clean, caption_defect

VOCABULARY_SIZE = 1024
LENGTH = 32  # tokens of a prompt; with CLIP's 77, most would be padding
PAPER_PHRASES = [
    "skt background",
    "smooth, plain, black, dark, shadow",
    "white marks on the wall",
    "wooden texture",
]


def write_captions(pool: Path, count: int = 20000) -> list[str]:
    """Captions of drawn parts, half of them clean, plus the papers' phrases."""
    words = json.loads((pool / "words.json").read_text())
    rng = np.random.default_rng(0)
    writers = (caption_defect, caption_clean)
    return PAPER_PHRASES + [writers[i % 2](rng, words[i % len(words)]) for i in range(count)]


def build_tokenizer(captions: list[str]) -> CLIPTokenizer:
    """Learn the merges and wrap them in transformers' class."""
    base = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    base.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Punctuation(),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY_SIZE, min_frequency=1, end_of_word_suffix="</w>")
    counts = Counter(word for caption in captions for word in re.findall(r"\w+|[^\w\s]", caption))
    base.train_from_iterator(counts, trainer)
    merges = [tuple(merge) for merge in json.loads(base.to_str())["model"]["merges"]]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [
        *letters,
        *(letter + "</w>" for letter in letters),
        *dict.fromkeys("".join(merge) for merge in merges),
    ]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pool", type=Path, default=Path("runs/embedded/pool"))
    parser.add_argument("--folder", type=Path, default=Path("runs/embedded/tokenizer"))
    arguments = parser.parse_args()
    build_tokenizer(write_captions(arguments.pool)).save_pretrained(arguments.folder)
