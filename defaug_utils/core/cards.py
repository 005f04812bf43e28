"""Cards: the README.md of a data set or an adapter in the Hugging Face hub's format."""

import re
from pathlib import Path

from huggingface_hub import CardData, RepoCard

from defaug_utils.core.files import write_atomically
from defaug_utils.core.licences import NOT_STATED

CARD = "README.md"
HUB_LICENCES = (  # the hub's names of licences that are common for data sets
    *("mit", "apache-2.0", "cc0-1.0", "pddl", "odbl"),
    *("cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0"),
)


def name_licence(licence: str) -> dict[str, str]:
    """A licence in the hub's terms: `license`, and `license_name` if the hub has no name for it."""
    word = re.sub(r"[^a-z0-9.]+", "-", licence.lower()).strip("-.")
    if licence == NOT_STATED:
        return {"license": "unknown"}
    return (
        {"license": word} if word in HUB_LICENCES else {"license": "other", "license_name": word or "other"}
    )


def write_card(folder: Path | str, data: CardData, text: str) -> None:
    """Write a folder's card: `data` becomes its YAML header, `text` is Markdown."""
    card = RepoCard(f"---\n{data.to_yaml()}\n---\n\n{text.strip()}\n")
    with write_atomically(Path(folder) / CARD) as temporary:
        temporary.write_text(str(card), encoding="utf-8")
