"""Which files of a folder are images and masks: KSDD2, MVTec AD, BTAD, or an engineer's own parts.

Only file names are used here; `datasets` opens the files. In addition to `EXPECTED`: a table `surfaces.csv`
(columns `image`, `defect_type`) next to KSDD2's folders may name the defects. In an engineer's own parts,
`negative` has no masks; each image in `positive`, and in `images` if the masks decide, has a mask with the
same name in `masks`. Subfolders are defect types. Any names and all common image formats are allowed.
"""

import os
import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from defaug_utils.core.files import read_csv
from defaug_utils.core.manifest import SPLITS

KSDD2_NAME = re.compile(r"(\d+)(_GT)?\.png", re.ASCII)
IMAGE_SUFFIXES = (".png", ".bmp", ".jpg", ".jpeg", ".tif", ".tiff", ".webp")
FOLDER_GROUPS = ("negative", "positive", "images")
GOOD_FOLDERS = {"mvtec": "good", "btad": "ok"}  # the layouts with categories
LAYOUTS = ("ksdd2", *GOOD_FOLDERS, "folder")
EXPECTED = """\
  - ksdd2: train/10000.png with train/10000_GT.png, test/20000.png with test/20000_GT.png
  - mvtec: [<category>/]train/good, test/<defect type>, ground_truth/<defect type>
  - btad: [<product>/]train/ok, test/ok, test/ko, ground_truth/ko
  - folder: negative, positive and masks (or images and masks), optionally inside train and test"""


class DatasetError(ValueError):
    """A data set's folder or files don't match its layout."""


@dataclass
class Listing:
    """The content of a data set's folder, by file names."""

    root: Path
    leave_out: frozenset[str] = frozenset()  #: names of images or masks, in Unicode's composed form
    layout: str = ""  #: one of `LAYOUTS`
    rows: list[dict] = field(default_factory=list)  #: of the manifest; without `label` if the mask decides
    skipped: list[str] = field(default_factory=list)  #: files that don't belong to the layout
    problems: list[str] = field(default_factory=list)  #: files that are missing, ambiguous or duplicated
    left_out: dict[str, str] = field(default_factory=dict)  #: name of `leave_out` → its image

    def name(self, path: Path) -> str:
        """A path relative to the root, with slashes."""
        return path.relative_to(self.root).as_posix()

    def leaves_out(self, *paths: Path | None) -> bool:
        """Whether one of an image's files is to be left out, which is recorded; pass the image first."""
        names = [self.name(path) for path in paths if path]
        given = {unicodedata.normalize("NFC", name) for name in names} & self.leave_out
        self.left_out |= dict.fromkeys(given, names[0])
        return bool(given)

    def add(self, image: Path, mask: Path | None = None, **columns: str) -> None:
        """Add a manifest row, unless it is to be left out."""
        if self.leaves_out(image, mask):
            return
        mask_name = self.name(mask) if mask else ""
        self.rows.append({"image": self.name(image), "mask": mask_name, "origin": "real", **columns})

    def index(self, paths: Iterable[Path], key_of: Callable[[Path], object]) -> dict:
        """Paths by key; two files with the same key are a problem, unless one of them is left out."""
        path_of: dict = {}
        for path in paths:
            key = key_of(path)
            other = path_of.setdefault(key, path)
            if other != path and self.leaves_out(other):
                path_of[key] = path
            elif other != path and not self.leaves_out(path):
                self.problems.append(f"{self.name(path)}: has the same id as {self.name(other)}: rename one")
        return path_of

    def pair(self, images: dict, masks: dict, describe: Callable[[object], dict]) -> None:
        """Add a row for every image with its mask; files without a partner are problems."""
        for key in {**images, **masks}:
            image, mask = images.get(key), masks.get(key)
            if image and mask:
                self.add(image, mask, **describe(key))
            elif not self.leaves_out(image or mask):
                found = "image without mask: add a mask" if image else "mask without image: add the image"
                self.problems.append(f"{self.name(image or mask)}: {found}")


def list_files(
    root: Path | str, layout: str = "auto", category: str = "", leave_out: Iterable[str] = ()
) -> Listing:
    """List a data set's images with their masks, without opening them; see `load_dataset`."""
    root = Path(root)
    if layout != "auto" and layout not in LAYOUTS:
        raise DatasetError(f"layout {layout!r} is not one of auto, {', '.join(LAYOUTS)}")
    try:
        layout = find_layout(root) if layout == "auto" else layout
        _check_root(root)
        listing = Listing(root, frozenset(leave_out), layout)
        if layout in GOOD_FOLDERS:
            _list_parts(listing, category, layout)
        elif category:
            raise DatasetError(
                f"{root} has layout {layout}, which has no categories: omit category {category!r}"
            )
        elif layout == "ksdd2":
            _list_ksdd2(listing)
        else:
            _list_folder(listing)
    except FileNotFoundError:
        raise
    except OSError as error:
        place = error.filename or root
        raise DatasetError(f"{place} can't be read ({error.strerror}): check its access rights") from error
    if not listing.rows and not listing.problems and not listing.left_out:
        raise DatasetError(f"{root} contains no images in layout {layout}. The layouts are:\n{EXPECTED}")
    splits = {row["split"] for row in listing.rows}
    wanted = ("train",) if layout == "folder" else ("train", "test")
    listing.problems += [
        f"{split}: contains no images: put its images there" for split in wanted if split not in splits
    ]
    return listing


def find_layout(root: Path | str) -> str:
    """Detect a data set's layout from its folders; a DatasetError lists what was expected and found."""
    root = Path(root)
    _check_root(root)
    if found := _guess_layout(root):
        return found
    entries = sorted(path.name + "/" * path.is_dir() for path in root.iterdir())
    inner = [path for path in root.iterdir() if path.is_dir() and _guess_layout(path)]
    hint = f" Did you mean {inner[0]}?" if inner else ""
    shown = ", ".join(entries[:10]) + (", …" if len(entries) > 10 else "")
    raise DatasetError(f"{root} has no known layout. Expected one of:\n{EXPECTED}\nFound: {shown}.{hint}")


def _guess_layout(root: Path) -> str | None:
    for split in ("train", "test"):
        if (root / split).is_dir() and any(KSDD2_NAME.fullmatch(name) for name in os.listdir(root / split)):
            return "ksdd2"
    for layout, good in GOOD_FOLDERS.items():
        if _find_parts(root, good):
            return layout
    bases = (root, *(root / split for split in SPLITS))
    return "folder" if any(_has_groups(base) for base in bases) else None


def _check_root(root: Path) -> None:
    if root.is_file():
        raise DatasetError(f"{root} is a file, expected a folder: unpack it first")
    if not root.exists():
        raise FileNotFoundError(f"no data set at {root}: check the path, or download the data set first")
    if not any(root.iterdir()):
        raise DatasetError(f"{root} is empty. The layouts are:\n{EXPECTED}")


def _files(listing: Listing, folder: Path, required: bool = True) -> list[Path]:
    """Image files in a folder and its subfolders, sorted; all other files are skipped."""
    if not folder.is_dir():
        if required:
            listing.problems.append(f"{listing.name(folder)}: no such folder: add it")
        return []
    paths = []
    for parent, inner, names in os.walk(folder, onerror=_raise, followlinks=True):
        circles = [name for name in inner if _leads_up(Path(parent, name))]
        listing.problems += [
            f"{listing.name(Path(parent, name))}: is a link to a parent folder: remove this link"
            for name in circles
        ]
        inner[:] = [name for name in inner if name not in circles]
        for path in (Path(parent, name) for name in names):
            if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."):
                paths.append(path)
            else:
                listing.skipped.append(listing.name(path))
    return sorted(paths)


def _leads_up(folder: Path) -> bool:
    return folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve())


def _raise(error: OSError) -> None:
    raise error


def _list_ksdd2(listing: Listing) -> None:
    path_of: dict[int, Path] = {}
    types = _read_defect_types(listing.root / "surfaces.csv")
    for split in ("train", "test"):
        folder, found = listing.root / split, {"": [], "_GT": []}
        for path in _files(listing, folder):
            match = KSDD2_NAME.fullmatch(path.name)
            if match and path.parent == folder:
                found[match[2] or ""].append(path)
            else:
                listing.skipped.append(listing.name(path))
        images, masks = (listing.index(paths, _number) for paths in found.values())
        kinds = {number: types.get(listing.name(path), "") for number, path in images.items()}
        of_split = {number: {"split": split, "defect_type": kind} for number, kind in kinds.items()}
        listing.pair(images, masks, of_split.get)
        listing.index([*path_of.values(), *images.values()], _number)
        path_of |= images


def _number(path: Path) -> int:
    return int(path.stem.removesuffix("_GT"))


def _read_defect_types(path: Path) -> dict[str, str]:
    """Defect type by image, from a table that may be missing."""
    if not path.is_file():
        return {}
    try:
        table = read_csv(path, dtype=str, keep_default_na=False)
    except ValueError as error:
        raise DatasetError(f"{path} is not a readable table ({error}): fix or remove the file") from error
    if not {"image", "defect_type"} <= set(table.columns):
        raise DatasetError(f"{path}: lacks the columns image and defect_type: add them, or remove the file")
    return dict(zip(table["image"], table["defect_type"], strict=True))


def _find_parts(root: Path, good: str) -> list[Path]:
    """The root, or those of its subfolders that have a `train/<good>`."""
    if (root / "train" / good).is_dir():
        return [root]
    return sorted(path for path in root.iterdir() if (path / "train" / good).is_dir())


def _list_parts(listing: Listing, category: str, layout: str) -> None:
    """MVTec AD and BTAD: good images for training; the test folder's name is the defect type."""
    good = GOOD_FOLDERS[layout]
    folder_of = {part.resolve().name: part for part in _find_parts(listing.root, good)}
    if category and category not in folder_of:
        known = ", ".join(folder_of) or "none"
        raise DatasetError(f"{listing.root} has no category {category!r} in layout {layout}; it has {known}")
    if not folder_of:
        raise DatasetError(f"{listing.root} does not have layout {layout}. The layouts are:\n{EXPECTED}")
    for name, part in folder_of.items():
        if category in ("", name):
            _list_part(listing, part, name, good)


def _list_part(listing: Listing, part: Path, category: str, good: str) -> None:
    for path in _files(listing, part / "train"):
        if (part / "train" / good) in path.parents:
            listing.add(path, split="train", category=category, label="negative")
        else:
            listing.skipped.append(listing.name(path))
    images, masks = (_index_under(listing, part / folder) for folder in ("test", "ground_truth"))
    for key in [key for key in images if key[0] == good]:
        listing.add(images.pop(key), split="test", category=category, label="negative")
    shared = {"split": "test", "category": category, "label": "positive"}
    listing.pair(images, masks, lambda key: {**shared, "defect_type": key[0]})


def _index_under(listing: Listing, folder: Path, required: bool = True) -> dict:
    """Files of a folder by subfolder and name, without suffix and `_mask`, in normalised Unicode."""

    def key_of(path: Path) -> tuple[str, str]:
        subfolder = path.parent.relative_to(folder).as_posix()
        names = ("" if subfolder == "." else subfolder, path.stem.removesuffix("_mask"))
        return tuple(unicodedata.normalize("NFC", name) for name in names)

    return listing.index(_files(listing, folder, required), key_of)


def _list_folder(listing: Listing) -> None:
    root = listing.root
    bases = [root / split for split in SPLITS if _has_groups(root / split)]
    if bases and _has_groups(root):
        listing.problems.append(
            "there are images both next to and inside train, val or test: choose one of the two"
        )
    for base in bases or [root]:
        _list_folder_split(listing, base, base.name if bases else "train")


def _has_groups(base: Path) -> bool:
    return any((base / group).is_dir() for group in FOLDER_GROUPS)


def _list_folder_split(listing: Listing, base: Path, split: str) -> None:
    negatives, masks = (_index_under(listing, base / group, False) for group in ("negative", "masks"))
    for path in negatives.values():
        listing.add(path, split=split, label="negative")
    images, label_of = {}, {}
    for group, label in (("positive", {"label": "positive"}), ("images", {})):
        found = _index_under(listing, base / group, required=False)
        for key in sorted(found.keys() & images.keys()):
            if listing.leaves_out(found[key]):
                del found[key]
            elif not listing.leaves_out(images[key]):
                name = listing.name(found[key])
                listing.problems.append(f"{name}: is also in positive: keep one of the two")
        images |= found
        label_of |= dict.fromkeys(found, label)
    listing.pair(images, masks, lambda key: {"split": split, "defect_type": key[0], **label_of[key]})
