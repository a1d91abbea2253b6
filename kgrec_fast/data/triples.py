"""What the readers do to triples: dropping duplicates, adding inverses."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def first_of_each(edge_index: NDArray[np.int64], edge_type: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions, ascending, of the first occurrence of each distinct triple. One sort."""
    # Stable, so that of equal triples the one given first comes first.
    order = np.lexsort((edge_index[1], edge_type, edge_index[0]))
    triples = np.stack([edge_index[0], edge_type, edge_index[1]])[:, order]
    new = np.ones(len(order), dtype=bool)
    new[1:] = (triples[:, 1:] != triples[:, :-1]).any(axis=0)
    return np.sort(order[new])


def with_inverse(
    edge_index: NDArray[np.int64], edge_type: NDArray[np.int64], num_relations: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Drops duplicate triples and appends the inverse of each that is left.

    Args:
        edge_index: int64 [2, T], heads and tails.
        edge_type: int64 [T], relations below `num_relations`.

    Returns:
        `(edge_index [2, 2 T'], edge_type [2 T'], dropped)`: the T' distinct triples in the order
        given, then their inverses (tail, relation + num_relations, head) in the same order, and the
        number of duplicates.
    """
    first = first_of_each(edge_index, edge_type)
    kept, kinds = edge_index[:, first], edge_type[first]
    return (
        np.concatenate([kept, kept[::-1]], axis=1),
        np.concatenate([kinds, kinds + num_relations]),
        len(edge_type) - len(first),
    )
