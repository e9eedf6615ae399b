"""Splits faces by identity: who trains never calibrates, and neither is ever tested on.

A threshold is chosen on the calibration identities and judged on the test identities; a figure
measured on identities that trained the model says nothing about strangers.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from pydantic import PositiveInt

from fedface.config import Config
from fedface.data.faces import Faces


class SplitByIdentity(Config):
    """How many identities are held out; all others train.

    Attributes:
        test: Number of identities for the final figures.
        calibration: Number of identities on which thresholds are chosen.
    """

    test: PositiveInt
    calibration: PositiveInt


@dataclass(frozen=True)
class Split:
    """Three groups of faces that have no identity name in common."""

    train: Faces
    calibration: Faces
    test: Faces

    def __post_init__(self) -> None:
        """Checks that the groups are disjoint by name."""
        require_disjoint(
            {
                "train": self.train.names,
                "calibration": self.calibration.names,
                "test": self.test.names,
            }
        )


def split_by_identity(faces: Faces, split: SplitByIdentity, rng: np.random.Generator) -> Split:
    """Returns ``faces`` split by a uniformly random permutation of its identities.

    Images keep their order. Each image is copied once, into its group: together the groups take
    the memory of one copy of ``faces``.

    Args:
        faces: At least ``split.test + split.calibration + 1`` identities.
        split: The numbers of held-out identities.
        rng: Draws the permutation: the same generator state and names give the same split.

    Raises:
        ValueError: If there are too few identities, or if two identities of different groups have
            the same name.
    """
    n_held_out = split.test + split.calibration
    if faces.n_identities <= n_held_out:
        raise ValueError(
            f"split needs n_identities >= test + calibration + 1 = {n_held_out + 1}, "
            f"got n_identities={faces.n_identities}, test={split.test}, "
            f"calibration={split.calibration}"
        )
    order = rng.permutation(faces.n_identities)
    groups = np.split(order, [split.test, n_held_out])
    test, calibration, train = (
        faces.select(np.flatnonzero(np.isin(faces.identities, group))) for group in groups
    )
    return Split(train=train, calibration=calibration, test=test)


def require_disjoint(groups: Mapping[str, Collection[str]]) -> None:
    """Checks that no identity name occurs in two of the named ``groups``.

    Raises:
        ValueError: If one does; names the two groups, how many names they share, and the first.
    """
    for (first, names), (second, others) in combinations(groups.items(), 2):
        shared = sorted(set(names) & set(others))
        if shared:
            raise ValueError(
                f"{first} and {second} need to have no identity in common, "
                f"got {len(shared)} shared, the first is {shared[0]!r}"
            )
