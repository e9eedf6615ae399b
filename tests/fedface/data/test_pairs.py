from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedface.data.pairs import Pairs, cached_pairs

PEOPLE = (("ann", "ann"), ("bob", "bob"), ("ann", "bob"), ("cid", "bob"), ("cid", "dan"))


def pairs(people: tuple[tuple[str, str], ...] | None = PEOPLE) -> Pairs:
    return Pairs(
        images=np.arange(6 * 12, dtype=np.uint8).reshape(6, 2, 2, 3),
        left=np.array([0, 2, 1, 4, 4]),
        right=np.array([1, 3, 2, 3, 5]),
        same=np.array([True, True, False, False, False]),
        fold=np.array([0, 0, 1, 1, 2]),
        people=people,
    )


def test_without_keeps_exactly_the_pairs_that_show_no_named_person() -> None:
    names = ["ann", "bob", "cid", "dan"]
    everyone = pairs()
    for excluded in (["ann"], ["dan"], ["cid", "dan"], {"ann", "bob"}, (), ["zoe"]):
        kept = [i for i, pair in enumerate(PEOPLE) if not any(p in excluded for p in pair)]
        found = everyone.without(excluded)
        assert found.people == tuple(PEOPLE[i] for i in kept)
        for field in ("left", "right", "same", "fold"):
            assert np.array_equal(getattr(found, field), getattr(everyone, field)[kept])
        assert found.images is everyone.images
    assert len(everyone) == 5
    with pytest.raises(ValueError, match="got 5 pairs that all show one of 4 names"):
        everyone.without(names)


def test_without_refuses_when_the_people_are_unknown() -> None:
    with pytest.raises(ValueError, match="got people=None"):
        pairs(None).without([])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((6, 2, 2), np.uint8)}, "images need shape"),
        ({"images": np.zeros((6, 2, 2, 3))}, "images need shape"),
        ({"right": np.array([0])}, r"right needs shape \(5,\)"),
        ({"left": np.zeros(5, np.int32)}, "left needs .* dtype int64"),
        ({"same": np.zeros(5, np.int64)}, "same needs .* dtype bool"),
        ({"fold": np.zeros(5)}, "fold needs .* dtype int64"),
        ({"fold": np.array([0, 0, 0, 0, -1])}, "fold needs values >= 0, got -1"),
        ({"left": np.array([0, 2, 1, 4, 6])}, r"left needs indices in 0..5, got 0..6"),
        ({"right": np.array([-1, 3, 2, 3, 5])}, r"right needs indices in 0..5, got -1..5"),
        ({"people": PEOPLE[:4]}, "people needs length 5, got 4"),
        ({"people": (*PEOPLE[:4], ("cid", "cid"))}, "pair 4 needs same=True for cid and cid"),
        ({"people": (("ann", "zoe"), *PEOPLE[1:])}, "pair 0 needs same=False for ann and zoe"),
    ],
)
def test_pairs_that_contradict_themselves_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(pairs(), **change)


@pytest.mark.parametrize("people", [PEOPLE, None])
def test_cached_pairs_come_back_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, people
) -> None:
    monkeypatch.setenv("FEDFACE_CACHE", str(tmp_path))
    built = []
    for _ in range(2):
        found = cached_pairs({"a": 1}, lambda: built.append(1) or pairs(people))
        assert found.people == people
        for field in ("images", "left", "right", "same", "fold"):
            assert np.array_equal(getattr(found, field), getattr(pairs(), field))
        assert isinstance(found.images, np.memmap)
    assert built == [1]
