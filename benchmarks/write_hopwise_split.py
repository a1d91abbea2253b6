"""Writes hopwise's own split of a data set as NAME.{train,valid,test}.inter, beside .kg and .link.

Run it where hopwise is installed: ``python -m benchmarks.write_hopwise_split --out FOLDER``.
Nothing of kgrec_fast is needed there. ``kgrec-fast train FOLDER --recbole-items`` trains on it.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

PARTS = ("train", "valid", "test")


def write_part(path: Path, pairs: Iterable[tuple[str, str]]) -> int:
    """Writes (user, item) tokens as an atomic file; returns how many."""
    lines = [f"{user}\t{item}" for user, item in pairs]
    path.write_text("\n".join(["user_id:token\titem_id:token", *lines]) + "\n", encoding="utf-8")
    return len(lines)


def hopwise_split(name: str, seed: int) -> tuple[dict[str, list[tuple[str, str]]], Path]:
    """The pairs of each part, as hopwise splits them before it trains, and its data folder.

    Raises:
        SystemExit: hopwise is not installed.
    """
    try:
        from hopwise.config import Config
        from hopwise.data import create_dataset
        from hopwise.model.abstract_recommender import KnowledgeRecommender
        from hopwise.utils import InputType, init_seed
    except ImportError as error:
        raise SystemExit(
            f"this script needs hopwise ({error}): run it in an environment of its own, after "
            "`pip install hopwise`"
        ) from None

    # The name of the class decides which defaults are read. Naming the model by a string would
    # import all models, and what they depend on.
    model = type("KGRec", (KnowledgeRecommender,), {"input_type": InputType.PAIRWISE})
    sys.argv = sys.argv[:1]  # hopwise reads the command line as well
    config = Config(model=model, dataset=name, config_dict={"seed": seed, "reproducibility": True})
    init_seed(config["seed"], config["reproducibility"])
    dataset = create_dataset(config)
    pairs = {}
    for part, built in zip(PARTS, dataset.build(), strict=True):
        columns = [
            dataset.id2token(field, built.inter_feat[field].numpy())
            for field in (dataset.uid_field, dataset.iid_field)
        ]
        pairs[part] = list(zip(*columns, strict=True))
    return pairs, Path(dataset.dataset_path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Splits and writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dataset", default="ml-100k", help="name (default ml-100k)")
    parser.add_argument("--seed", type=int, default=2024, help="of the split (default 2024)")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    options = parser.parse_args(arguments)
    pairs, source = hopwise_split(options.dataset, options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        path = options.out / f"{options.dataset}.{part}.inter"
        print(f"{path}: {write_part(path, pairs[part]):,} interactions")
    for suffix in (".kg", ".link"):
        shutil.copyfile(
            source / f"{options.dataset}{suffix}", options.out / f"{options.dataset}{suffix}"
        )


if __name__ == "__main__":
    main()
