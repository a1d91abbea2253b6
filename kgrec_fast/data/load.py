"""Finding a data set by name or path, and reading it."""

from __future__ import annotations

import importlib.util
import math
import os
from pathlib import Path

from kgrec_fast.data.atomic import AtomicFields, load_atomic
from kgrec_fast.data.dataset import KGDataset
from kgrec_fast.data.kgat import load_kgat

# Distributions that ship small data sets in `PACKAGE/dataset_example`.
PACKAGES = ("recbole", "hopwise")
FORMATS = ("auto", "atomic", "kgat")


def _package_folders(name: str) -> list[Path]:
    """Where installed packages would keep the data set; none of them is imported."""
    folders = []
    for package in PACKAGES:
        try:
            spec = importlib.util.find_spec(package)
        except ValueError:  # a module of that name without a spec stands in sys.modules
            continue
        for location in (spec.submodule_search_locations or []) if spec else []:
            folders.append(Path(location) / "dataset_example" / name)
    return folders


def find_dataset(name_or_path: str | Path) -> Path:
    """Returns the folder of a data set.

    Looked for, in this order: the path itself; `dataset/NAME`; `dataset_example/NAME` inside an
    installed recbole or hopwise, which are not imported.

    Raises:
        FileNotFoundError: if there is none; says where it was looked for.
    """
    # Not Path.expanduser, which raises RuntimeError where there is no such user.
    path = Path(os.path.expanduser(name_or_path))
    candidates = [path]
    if len(path.parts) == 1 and path.parts[0] not in (".", ".."):
        candidates += [Path("dataset") / path, *_package_folders(str(path))]
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    looked = ", ".join(str(candidate) for candidate in candidates)
    raise FileNotFoundError(
        f"no data set {str(name_or_path)!r}; looked for the folders {looked}. ml-100k with its "
        "knowledge graph comes with recbole: pip install --no-deps recbole"
    )


def detect_format(directory: Path) -> str:
    """Returns "kgat" where there is a `kg_final.txt`, "atomic" where there is a `.kg` file.

    Raises:
        FileNotFoundError: if there is neither.
    """
    if (directory / "kg_final.txt").is_file():
        return "kgat"
    if any(directory.glob("*.kg")):
        return "atomic"
    raise FileNotFoundError(
        f"{directory}: found neither atomic files (NAME.inter, NAME.kg, NAME.link) nor the layout "
        "of train.txt, test.txt, kg_final.txt"
    )


def load_dataset(
    name_or_path: str | Path,
    *,
    format: str = "auto",
    min_rating: float | None = None,
    recbole_items: bool = False,
    inverse: bool | None = None,
    split: str = "auto",
    carve_valid: bool = True,
    fields: AtomicFields | None = None,
    seed: int = 2024,
) -> KGDataset:
    """Reads a data set, given by its name (`ml-100k`) or its folder.

    Args:
        name_or_path: see `find_dataset`.
        format: "atomic" for RecBole's files, "kgat" for the layout of the paper's code, "auto" for
            whichever is there.
        min_rating: least rating of a positive (atomic files).
        recbole_items: keep only items that are both rated and linked (atomic files).
        inverse: whether to add inverse relations; by default not for atomic files, and for the
            paper's layout.
        split: "auto"; "given" or "random" for atomic files, see `load_atomic`; "published" for the
            paper's layout, see `load_kgat`.
        carve_valid: whether to take the valid split out of train (paper's layout without a
            `valid.txt`).
        fields: names of the fields (atomic files).
        seed: of the random splits.

    Raises:
        FileNotFoundError: if the data set, or a file of it, is not there.
        DataFormatError: if a file is malformed.
        ValueError: for an unknown format, or an option that the format does not have.
    """
    if format not in FORMATS:
        raise ValueError(f"format: expected one of {', '.join(FORMATS)}, got {format!r}")
    if seed < 0:
        raise ValueError(f"seed: expected a number that is not negative, got {seed}")
    if min_rating is not None and math.isnan(min_rating):
        raise ValueError("min_rating: expected a number, got nan")
    directory = find_dataset(name_or_path)
    kind = detect_format(directory) if format == "auto" else format
    if kind == "atomic":
        if not carve_valid:
            raise ValueError(f"carve_valid: has no meaning for the atomic files of {directory}")
        if split == "published":
            raise ValueError(
                "split: got 'published', which the layout of kg_final.txt has, expected auto, "
                f"given or random for the atomic files of {directory}"
            )
        return load_atomic(
            directory,
            fields=fields,
            min_rating=min_rating,
            recbole_items=recbole_items,
            inverse=bool(inverse),
            split=split,
            seed=seed,
        )
    for option, used in (
        ("min_rating", min_rating is not None),
        ("recbole_items", recbole_items),
        ("fields", fields is not None),
        ("split", split not in ("auto", "published")),
    ):
        if used:
            raise ValueError(f"{option}: has no meaning for the layout of {directory}/kg_final.txt")
    return load_kgat(
        directory,
        inverse=inverse is not False,
        carve_valid=carve_valid,
        seed=seed,
        split=split,
    )
