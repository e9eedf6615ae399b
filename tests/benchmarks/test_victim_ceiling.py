"""How often somebody matches himself, counted by pairs of his photos."""

import numpy as np

from tests.benchmarks.by_path import script

matches = script("victim_ceiling").matches


def test_each_pair_of_photos_counts_once() -> None:
    units = np.array([[1, 0], [1, 0], [0.6, 0.8]], dtype=np.float32)
    assert matches(units, 0.9) == "1 of 3"
    assert matches(units, 0.5) == "3 of 3"


def test_one_photo_or_nobody_has_no_pairs() -> None:
    assert matches(None, 0.5) == matches(np.ones((1, 2), np.float32), 0.5) == "-"
