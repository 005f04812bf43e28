"""Broken manifests, profiles, logs, reviews, recipes and journals."""

import functools
import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path

import nbformat
import numpy as np
from layouts import draw_part

from defaug_utils.book.profiles import read_profile
from defaug_utils.core.files import write_png
from defaug_utils.core.manifest import make_manifest, read_manifest, write_manifest
from defaug_utils.core.pools import GeneratedImage, PoolPlan, make_pool, read_recipe
from defaug_utils.protocol.review_store import PoolReview
from defaug_utils.protocol.scenarios import read_review
from fault_parts.judging import Case, Cases, Trial

COUNT = 4


def write_pool(folder: Path) -> str:
    """A small valid manifest with its images; its text."""
    rows = []
    for index in range(COUNT):
        label = ("negative", "positive")[index % 2]
        row = {"image": f"images/{index}.png", "label": label, "split": "train", "origin": "memseg"}
        row |= {"seed": index, "prompt": f"part {index}, grey", "recipe": "abc"}
        if label == "positive":
            row["mask"] = f"masks/{index}.png"
            write_png(folder / row["mask"], np.eye(8, dtype=bool))
        write_png(folder / row["image"], draw_part(index, (8, 8))[0])
        rows.append(row)
    write_manifest(make_manifest(rows), folder / "manifest.csv")
    return (folder / "manifest.csv").read_text(encoding="utf-8")


def change_manifest(
    change: Callable[[str], str | bytes], culprit: str = "manifest.csv", right: Callable | None = None
) -> Case:
    """A manifest's text replaced."""

    def case(folder: Path, rng: random.Random) -> Trial:
        changed = change(write_pool(folder))
        path = folder / "manifest.csv"
        path.write_bytes(changed if isinstance(changed, bytes) else changed.encode())
        return Trial(lambda: read_manifest(path, check_files=True), culprit, right)

    return case


def set_cell(name: str, value: str, row: int = 1) -> Callable[[str], str]:
    """One cell replaced, without quotes."""

    def change(text: str) -> str:
        lines = text.replace(", grey", " grey").replace('"', "").splitlines()
        cells = lines[1 + row].split(",")
        cells[lines[0].split(",").index(name)] = value
        lines[1 + row] = ",".join(cells)
        return "\n".join(lines) + "\n"

    return change


OUTSIDE = {
    "parent": "../x.png",
    "parent-inside": "images/../../x.png",
    "absolute": "/etc/hostname",
    "backslash": "..\\x.png",
    "backslash-inside": "images\\..\\..\\x.png",
    "drive": "C:\\x.png",
    "drive-relative": "C:x.png",
    "drive-slash": "c:/x.png",
    "share": "\\\\server\\share\\x.png",
    "share-slash": "//server/share/x.png",
    "digit-drive": "1:x.png",
    "device": "\\\\?\\C:\\x.png",
    "home": "~/x.png",
    "home-of": "~root/x.png",
    "percent": "%2e%2e/x.png",
    "percent-slash": "..%2fx.png",
    "address": "file:///etc/hostname",
    "web": "https://example.org/x.png",
    "variable": "$HOME/x.png",
    "back-and-forth": "images/../images/0.png",
    "only-parent": "..",
    "only-dot": ".",
    "folder": "images",
    "space-behind": "images/0.png ",
    "no-file": "images/9.png",
    "long": "a" * 5000,
    "deep": "a/" * 3000 + "x",
    "nul": "images/0\0.png",
    "overlong": "\u2025/x.png",
    "full-width": "．．/x.png",
    "stream": "images/0.png:x",
}


def is_same(manifest: object) -> bool:
    """The manifest of `write_pool`, unchanged."""
    return (
        manifest["image"].tolist() == [f"images/{index}.png" for index in range(COUNT)]
        and manifest["prompt"].tolist() == [f"part {index}, grey" for index in range(COUNT)]
        and manifest["seed"].tolist() == list(range(COUNT))
    )


def list_manifests() -> Cases:
    """Other encodings, separators and shapes; wrong words; paths that leave the folder."""
    texts = {
        "empty": lambda text: "",
        "blank": lambda text: "\n\n \n",
        "one-column": lambda text: "image\nx.png\n",
        "binary": lambda text: b"\x89PNG\r\n\x1a\n\0\0\xff",
        "gzip": lambda text: gzip.compress(text.encode()),
        "utf-16": lambda text: text.encode("utf-16"),
        "utf-32": lambda text: text.encode("utf-32"),
        "latin-1": lambda text: text.replace("grey", "größe").encode("latin-1"),
        "half": lambda text: text[: len(text) * 2 // 3],
        "semicolon": lambda text: text.replace(",", ";"),
        "tab": lambda text: text.replace(",", "\t"),
        "pipe": lambda text: text.replace(",", "|"),
        "nul-in-head": lambda text: text.replace("image", "im\0age", 1),
        "nuls": lambda text: b"\0" * 2000,
        "unclosed": lambda text: text.replace("part 2", '"part 2"""', 1) + '"x',
        "longer-rows": lambda text: "\n".join(
            line + ",x" * bool(number) for number, line in enumerate(text.splitlines())
        ),
        "longer-row": lambda text: text + "images/9.png" + "," * 40 + "\n",
        "no-head": lambda text: text.split("\n", 1)[1],
        "head-twice": lambda text: text + text,
        "spaces-in-head": lambda text: text.replace(",", ", ", 3),
        "capitals-in-head": lambda text: text.replace("image", "Image", 1),
        "json": lambda text: json.dumps([{"image": "x.png"}]),
        "html": lambda text: "<html>404</html>",
        "column-twice": lambda text: text.replace("mask,", "image,", 1),
        "further-twice": lambda text: text.replace("recipe", "image", 1),
        "conflict": lambda text: "<<<<<<< HEAD\n" + text + "=======\n" + text + ">>>>>>> other\n",
    }
    for title, change in texts.items():
        yield f"manifest/text/{title}", change_manifest(change)
    same = {
        "bom": lambda text: b"\xef\xbb\xbf" + text.encode(),
        "windows-lines": lambda text: text.replace("\n", "\r\n").encode(),
        "old-lines": lambda text: text.replace("\n", "\r").encode(),
        "no-last-line": lambda text: text.rstrip("\n"),
        "blank-lines": lambda text: text.replace("\n", "\n\n"),
        "many-columns": lambda text: "\n".join(
            line + "".join(f",c{n}" if not number else ",1" for n in range(3000))
            for number, line in enumerate(text.splitlines())
        ),
        "other-order": lambda text: _reverse(text),
    }
    for title, change in same.items():
        yield f"manifest/same/{title}", change_manifest(change, right=is_same)
    head_only = change_manifest(lambda text: text.split("\n")[0] + "\n", right=lambda found: len(found) == 0)
    yield "manifest/same/no-rows", head_only
    for title, path in OUTSIDE.items():
        shown = path[:60].split("\0")[0]
        culprit = repr(shown)[1:-1] if "\\" in shown else shown
        yield f"manifest/path/{title}", change_manifest(set_cell("image", path), culprit)
        if title not in ("nul", "space-behind", "back-and-forth"):
            yield f"manifest/mask/{title}", change_manifest(set_cell("mask", path), culprit)
    words = {
        "label": ("Positive", "1", "", "positive "),
        "split": ("Train", "training", ""),
        "origin": ("gan", "", "REAL"),
        "seed": ("-1", "1.5", "1e30", str(2**63), "x", "0x10", "inf", "٣"),
        "accepted": ("maybe", "1", "wahr"),
        "image": ("", "images/0.png"),
    }
    for column, values in words.items():
        for value in values:
            case = change_manifest(set_cell(column, value), value or "row 1")
            if value == "٣":  # an Arabic three is a whole number as well
                case = change_manifest(set_cell(column, value), value, lambda m: m["seed"].tolist()[1] == 3)
            yield f"manifest/word/{column}-{value or 'none'}", case
    for value in ("NA", "nan", "None", "null", "'=1", "=1+1"):
        expected = "=1+1" if value == "'=1+1" else "=1" if value == "'=1" else value
        right = functools.partial(lambda wanted, found: found["prompt"].tolist()[1] == wanted, expected)
        yield f"manifest/cell/{value}", change_manifest(set_cell("prompt", value), right=right)
    yield (
        "manifest/missing",
        lambda folder, rng: Trial(lambda: read_manifest(folder / "manifest.csv"), "manifest.csv"),
    )
    yield "manifest/folder", _folder_case


def _folder_case(folder: Path, rng: random.Random) -> Trial:
    (folder / "manifest.csv").mkdir()
    return Trial(lambda: read_manifest(folder / "manifest.csv"), "manifest.csv")


def _reverse(text: str) -> str:
    import io

    import pandas as pd

    table = pd.read_csv(io.StringIO(text), dtype=str)
    return table[list(reversed(table.columns))].to_csv(index=False)


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{','.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(9)
)
PROFILES = {  # text, what is named
    "object": ("shared:\n  seed: !!python/object:os.system {}\n", "profile.yaml"),
    "apply": ('shared:\n  seed: !!python/object/apply:os.system ["true"]\n', "profile.yaml"),
    "name": ("shared:\n  seed: !!python/name:os.system\n", "profile.yaml"),
    "module": ("shared: !!python/module:os\n", "profile.yaml"),
    "tuple": ("shared:\n  seed: !!python/tuple [1]\n", "profile.yaml"),
    "own-tag": ("shared:\n  seed: !env HOME\n", "profile.yaml"),
    "anchor-bomb": (BOMB, "profile.yaml"),
    "anchor-bomb-as-value": (
        "01_data_prep:\n  data_root:\n" + "".join(f"    {line}\n" for line in BOMB.splitlines()),
        "profile.yaml",
    ),
    "anchor-to-itself": ("01_data_prep: &a\n  data_root: *a\n", "profile.yaml"),
    "anchor-unknown": ("shared:\n  seed: *nothing\n", "profile.yaml"),
    "list": ("- seed\n", "profile.yaml"),
    "text": ("seed\n", "profile.yaml"),
    "number": ("3\n", "profile.yaml"),
    "section-list": ("shared: [seed]\n", "profile.yaml"),
    "section-text": ("shared: seed\n", "profile.yaml"),
    "tabs": ("shared:\n\tseed: 1\n", "profile.yaml"),
    "unclosed": ("shared: {seed: 1\n", "profile.yaml"),
    "two-documents": ("shared:\n  seed: 1\n---\nshared:\n  seed: 2\n", "profile.yaml"),
    "deep": ("shared: " + "[" * 20_000, "profile.yaml"),
    "deep-maps": ("{a: " * 5_000, "profile.yaml"),
    "long-number": ("shared:\n  seed: " + "9" * 5000 + "\n", "profile.yaml"),
    "no-date": ("shared:\n  seed: 2024-13-45\n", "profile.yaml"),
    "list-as-key": ("? [a, b]\n: 1\n", "profile.yaml"),
    "nul": ("shared:\n  seed: \0\n", "profile.yaml"),
    "number-section": ("1:\n  seed: 1\n", "1"),
    "none-section": ("~:\n  seed: 1\n", "None"),
    "unknown-section": ("02_memseq:\n  seed: 1\n", "02_memseq"),
    "unknown": ("shared:\n  sed: 1\n", "sed"),
    "other-notebooks": ("02_memseg:\n  data_root: x\n", "data_root"),
    "true-key": ("shared:\n  yes: 1\n", "True"),
    "none-key": ("shared:\n  ~: 1\n", "None"),
    "key-twice": ("shared:\n  seed: 1\n  seed: 2\n", "seed"),
    "section-twice": ("shared:\n  seed: 1\nshared:\n  seed: 2\n", "shared"),
    "text-for-number": ("shared:\n  seed: abc\n", "seed"),
    "number-for-text": ("shared:\n  data_root: 3\n", "data_root"),
    "list-for-number": ("shared:\n  seed: [1]\n", "seed"),
    "part-for-whole": ("shared:\n  seed: 1.5\n", "seed"),
    "truth-for-number": ("shared:\n  seed: yes\n", "seed"),
    "none-for-number": ("shared:\n  seed:\n", "seed"),
    "date-for-text": ("shared:\n  data_root: 2024-01-02\n", "data_root"),
    "bytes-for-text": ("shared:\n  data_root: !!binary aGFsbG8=\n", "data_root"),
    "set-for-list": ("02_memseg:\n  sizes: !!set {1}\n", "sizes"),
    "no-number": ("02_memseg:\n  share: .nan\n", "share"),
    "number-for-list": ("02_memseg:\n  sizes: 3\n", "sizes"),
    "exponent": ("02_memseg:\n  share: 1e-4\n", "share"),  # which YAML 1.1 reads as text
}
RIGHT_PROFILES = {
    "bom": ("\ufeffshared:\n  seed: 3\n", 3),
    "windows-lines": ("shared:\r\n  seed: 3\r\n", 3),
    "comment": ("# nothing\nshared:\n  seed: 3 # three\n", 3),
    "merge": ("shared:\n  <<: {seed: 3}\n", 3),
    "octal": ("shared:\n  seed: 010\n", 8),
    "empty": ("", None),
    "empty-section": ("shared:\n", None),
}
DECLARED = {
    "01_data_prep": 'seed: int = 0\ndata_root: str = ""',
    "02_memseg": "seed: int = 0\nshare: float = 0.5\nsizes: list = [1]",
}


def write_notebooks(folder: Path) -> None:
    """Two notebooks with a parameters cell each."""
    folder.mkdir()
    for name, source in DECLARED.items():
        cell = nbformat.v4.new_code_cell(source, metadata={"tags": ["parameters"]})
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        book = nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": kernel})
        nbformat.write(book, folder / f"{name}.ipynb")


def _profile_case(
    content: bytes, culprit: str, right: Callable | None, folder: Path, rng: random.Random
) -> Trial:
    write_notebooks(folder / "notebooks")
    (folder / "profile.yaml").write_bytes(content)
    return Trial(lambda: read_profile(folder / "profile.yaml", folder / "notebooks"), culprit, right)


def list_profiles() -> Cases:
    """Profiles with tags, anchors, types and names that must be refused."""
    for title, (text, culprit) in PROFILES.items():
        yield f"profile/{title}", functools.partial(_profile_case, text.encode(), culprit, None)
    for title, (text, seed) in RIGHT_PROFILES.items():
        right = functools.partial(lambda wanted, found: found["01_data_prep"].get("seed") == wanted, seed)
        yield f"profile/{title}", functools.partial(_profile_case, text.encode(), "profile.yaml", right)
    for encoding in ("utf-16", "utf-32", "latin-1"):
        content = "shared:\n  data_root: Größe\n".encode(encoding)
        yield f"profile/{encoding}", functools.partial(_profile_case, content, "profile.yaml", None)
    yield "profile/binary", functools.partial(_profile_case, b"\x89PNG\xff\0", "profile.yaml", None)
    yield "profile/folder", lambda folder, rng: Trial(lambda: read_profile(folder, folder), folder.name)


HEAD = "reviewer,image,seed,recipe,accepted,note,time\n"
LINE = "ann,images/1.png,1,abc,true,good,2026-01-01T00:00:00+00:00\n"
LOGS = {  # text, what is named; None where it must be read as one accepted image
    "good": (HEAD + LINE, None),
    "bom": ("\ufeff" + HEAD + LINE, None),
    "torn": (HEAD + LINE + "ann,ima", None),
    "windows-lines": ((HEAD + LINE).replace("\n", "\r\n"), None),
    "capitals": (HEAD + LINE.replace("true", "TRUE"), None),
    "last-counts": (HEAD + LINE.replace("true", "false") + LINE, None),
    "further-column": (HEAD.strip() + ",x\n" + LINE.strip() + ",y\n", None),
    "empty": ("", "review-ann.csv"),
    "blank": ("\n\n", "review-ann.csv"),
    "no-head": (LINE, "review-ann.csv"),
    "semicolon": ((HEAD + LINE).replace(",", ";"), "review-ann.csv"),
    "word": (HEAD + LINE.replace("true", "maybe"), "maybe"),
    "column-missing": (HEAD.replace("seed,", "") + LINE, "seed"),
    "other-seed": (HEAD + LINE.replace(",1,", ",7,"), "images/1.png"),
    "other-recipe": (HEAD + LINE.replace("abc", "xyz"), "images/1.png"),
    "other-image": (HEAD + LINE.replace("images/1", "images/9"), "images/9.png"),
    "outside": (HEAD + LINE.replace("images/1", "../1"), "../1.png"),
    "utf-16": ((HEAD + LINE).encode("utf-16"), "review-ann.csv"),
    "binary": (b"\x89PNG\xff\0", "review-ann.csv"),
    "nuls": (b"\0" * 500, "review-ann.csv"),
    "nul-in-line": (HEAD + LINE.replace("good", "go\0od"), None),
    "long-note": (HEAD + LINE.replace("good", "x" * 200_000), "review-ann.csv"),
    "latin-1": ((HEAD + LINE.replace("good", "größe")).encode("latin-1"), "review-ann.csv"),
}


def _log_case(content: str | bytes, culprit: str | None, folder: Path, rng: random.Random) -> Trial:
    write_pool(folder)
    encoded = content if isinstance(content, bytes) else content.encode()
    (folder / "review-ann.csv").write_bytes(encoded)

    def is_right(decisions: dict) -> bool:
        return [decision.accepted for decision in decisions.values()] == [None, True, None, None]

    right = is_right if culprit is None else None
    return Trial(lambda: PoolReview(folder, "ann").decisions, culprit or "review-ann.csv", right)


REVIEWS = {
    "list": "- 1\n",
    "text": "x\n",
    "number": "3\n",
    "unknown": "pictures: []\n",
    "prompts-text": "prompts: x\n",
    "prompts-number": "prompts: 3\n",
    "entry-text": "prompts: [x]\n",
    "entry-list": "prompts: [[1]]\n",
    "entry-none": "prompts: [~]\n",
    "entry-empty": "images: [{}]\n",
    "object": "prompts: !!python/object:os.system {}\n",
    "deep": "prompts: " + "[" * 20_000,
    "long-number": "prompts: " + "9" * 5000,
    "number-keys": "prompts: [{1: 2}]\n",
    "decision": "prompts: [{prompt: a, decision: maybe, reworded: '', note: ''}]\n",
    "types": "prompts: [{prompt: 3, decision: [1], reworded: {}, note: ~}]\n",
    "no-date": "prompts: 2024-13-45\n",
    "binary": "\ufffd\0",
    "latin-1": b"prompts: [gr\xf6\xdfe]\n",
    "anchor": "prompts: &a [*a]\n",
    "image-types": "images: [{image: 3, accepted: 7, note: []}]\n",
}
RECIPES = {
    "empty": b"",
    "list": b"[]",
    "number": b"3",
    "null": b"null",
    "half": b'{"abc": {',
    "nul": b"\0" * 30,
    "binary": b"\xff\xfe",
    "deep": b"[" * 100_000,
    "no-recipe": b"{}",
    "two": b'{"a": {}, "b": {}}',
    "recipe-list": b'{"abc": []}',
    "recipe-number": b'{"abc": 3}',
    "other": b'{"abc": {"origin": "diag"}}',
}
ROWS = {
    "number": b"3\n",
    "list": b"[1]\n",
    "null": b"null\n",
    "no-row": b'{"index": 0}\n',
    "no-index": b'{"row": {}}\n',
    "row-list": b'{"index": 0, "row": [1]}\n',
    "index-text": b'{"index": "a", "row": {}}\n',
    "binary": b"\xff\xfe\n",
    "deep": b"[" * 100_000 + b"\n",
    "nuls": b"\0" * 500,
    "torn": b'{"index": 0, "ro',
    "row-of-nothing": b'{"index": 0, "row": {}}\n',
    "unhashable": b'{"index": [0], "row": {}}\n',
    "vanished": b'{"index": 0, "row": {"image": "images/000000.png", "label": "positive"}}\n',
}


class Grey:
    """A method whose images are its seeds."""

    origin, data, group = "memseg", None, 1

    def describe(self) -> dict:
        """Nothing to choose."""
        return {"method": "grey"}

    def make(self, indices: list[int], seeds: list[int]) -> list[GeneratedImage]:
        """Even grey images."""
        return [
            GeneratedImage(np.full((8, 8, 3), s % 256, np.uint8), np.eye(8, dtype=bool), {}) for s in seeds
        ]


def _review_case(content: str | bytes, folder: Path, rng: random.Random) -> Trial:
    path = folder / "review.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return Trial(lambda: read_review(path), "review.yaml")


def _recipe_case(content: bytes, read: Callable[[Path], object], folder: Path, rng: random.Random) -> Trial:
    (folder / "recipe.json").write_bytes(content)
    return Trial(lambda: read(folder), folder.name)


def _rows_case(content: bytes, folder: Path, rng: random.Random) -> Trial:
    whole = make_pool(folder / "whole", Grey(), PoolPlan(3))
    make_pool(folder / "pool", Grey(), PoolPlan(3))
    (folder / "pool" / "manifest.csv").unlink()
    (folder / "pool" / "images" / "000000.png").unlink()
    (folder / "pool" / "rows-0-of-1.jsonl").write_bytes(content)

    def is_right(pool: object) -> bool:
        names = [f"{kind}s/{index:06d}.png" for kind in ("image", "mask") for index in range(3)]
        files = ((folder / "whole" / name, folder / "pool" / name) for name in names)
        return pool.equals(whole) and all(one.read_bytes() == other.read_bytes() for one, other in files)

    return Trial(lambda: make_pool(folder / "pool", Grey(), PoolPlan(3)), "rows-0-of-1.jsonl", is_right)


def make_grey_pool(folder: Path) -> object:
    """Resume a pool of `Grey`."""
    return make_pool(folder, Grey(), PoolPlan(3))


def list_others() -> Cases:
    """Logs of decisions, reviews in YAML, recipes and journals of pools."""
    for title, (text, culprit) in LOGS.items():
        yield f"log/{title}", functools.partial(_log_case, text, culprit)
    for title, text in REVIEWS.items():
        yield f"review/{title}", functools.partial(_review_case, text)
    for title, content in RECIPES.items():
        if title not in ("other", "recipe-list", "recipe-number"):
            yield f"recipe/read-{title}", functools.partial(_recipe_case, content, read_recipe)
        yield f"recipe/go-on-{title}", functools.partial(_recipe_case, content, make_grey_pool)
    for title, content in ROWS.items():
        yield f"rows/{title}", functools.partial(_rows_case, content)


def list_cases() -> Cases:
    """All of this module."""
    for group in (list_manifests, list_profiles, list_others):
        yield from group()
