from pathlib import Path

import numpy as np
import pytest
import torch

from fedface.vertical.alignment import intersection
from simulations.vertical_build import (
    CALIBRATION,
    ENROLLED_TEST,
    TEST,
    TRAIN,
    alignment_key,
    build_active,
    build_client,
    build_records,
    channels,
    held_rows,
    secret_of,
)
from tests.simulations.tiny_vertical import tiny_vertical

CPU = torch.device("cpu")


def test_records_are_split_by_person_and_named_once(tmp_path: Path) -> None:
    records = build_records(tiny_vertical(tmp_path, data={"split": {"public": 3}}))
    people = {
        group: {
            name.split("/")[0]
            for name, g in zip(records.ids, records.groups, strict=True)
            if g == group
        }
        for group in (TRAIN, ENROLLED_TEST, CALIBRATION, TEST)
    }
    assert people[TRAIN] == people[ENROLLED_TEST] and records.n_enrolled == 6
    assert [len(people[g]) for g in (TRAIN, CALIBRATION, TEST)] == [6, 4, 5]
    public = set(records.public.names) if records.public else set()
    assert len(public) == 3
    for group in (TRAIN, CALIBRATION, TEST):
        assert not public & people[group]
    assert not people[TRAIN] & people[TEST] and not people[TRAIN] & people[CALIBRATION]
    assert len(set(records.ids)) == len(records) == 15 * 6
    assert (records.groups == ENROLLED_TEST).sum() == 6 * 2  # a third of six
    assert set(records.views) == {"top_left", "top_right", "bottom_left"}
    labels = records.identities[records.groups == TRAIN]
    assert sorted(set(labels.tolist())) == list(range(6))


def test_the_same_seed_gives_the_same_records_and_another_seed_others(tmp_path: Path) -> None:
    first, same, other = (build_records(tiny_vertical(tmp_path, seed=seed)) for seed in (0, 0, 1))
    assert first.ids == same.ids and np.array_equal(first.groups, same.groups)
    assert np.array_equal(first.views["top_right"], same.views["top_right"])
    assert first.ids != other.ids


def test_each_party_lacks_other_records_and_has_an_order_of_its_own(tmp_path: Path) -> None:
    config = tiny_vertical(tmp_path)
    records = build_records(config)
    n = len(records)
    held = [held_rows(config, n, party) for party in (0, 1)]
    assert [len(rows) for rows in held] == [n - int(0.1 * n)] * 2
    assert set(held[0]) != set(held[1]) and list(held[0]) != sorted(held[0])
    parties = [build_client(config, records, k, CPU) for k in (0, 1)]
    for party, rows, view in zip(parties, held, config.parties.passive, strict=True):
        assert np.array_equal(party.images, records.views[view][rows])
    shared = intersection({party.name: party.tokens for party in parties})
    assert len(shared) == len(set(held[0]) & set(held[1]))


def test_secrets_and_keys_differ(tmp_path: Path) -> None:
    secrets = {secret_of(seed, party) for seed in (0, 1) for party in (0, 1)}
    assert len(secrets) == 4 and all(0 <= s < 2**63 for s in secrets)
    keys = {alignment_key(tiny_vertical(tmp_path, seed=seed)) for seed in (0, 1)}
    assert len(keys) == 2


def test_channels_say_what_is_public(tmp_path: Path) -> None:
    config = tiny_vertical(tmp_path)
    found = channels(config)
    assert [c.party for c in found] == ["top_right", "bottom_left"]
    assert {(c.dim, c.bound, c.sigma) for c in found} == {
        (8, config.passive.release.bound, config.passive.release.noise)
    }


def test_an_own_view_is_pretrained_like_the_others(tmp_path: Path) -> None:
    settings = {
        "data": {"split": {"public": 3}},
        "training": {"pretraining": {"epochs": 1, "batch_size": 6}},
    }
    config = tiny_vertical(tmp_path, **settings)
    records = build_records(config)
    plain = config.training.model_copy(update={"pretraining": None})
    trained = build_active(config, records, len(records), CPU).tensors()
    fresh = build_active(
        config.model_copy(update={"training": plain}), records, len(records), CPU
    ).tensors()
    changed = {name for name in fresh if not torch.equal(fresh[name], trained[name])}
    assert changed and all(name.startswith("model.own.") for name in changed)


@pytest.mark.parametrize(
    ("overrides", "error"),
    [
        ({"data": {"split": {"test": 16}}}, "split needs n_identities"),
        ({"data": {"split": {"public": 8}}}, "data.split.public=8"),
        ({"data": {"views": {"size": None}}}, "positive multiple of 16"),
        (
            {"data": {"faces": {"images_per_identity": 1}, "split": {"enrolled_test": 0.0}}},
            "one of them with two records",
        ),
        (
            {
                "data": {"views": {"name": "left_right"}},
                "parties": {"active": "left", "passive": ["right"]},
                "passive": {"release": {"n_parties": 1}},
            },
            "one square",
        ),
    ],
)
def test_what_cannot_be_built_is_refused(tmp_path: Path, overrides, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        build_records(tiny_vertical(tmp_path, **overrides))


def test_there_is_no_party_beyond_the_last(tmp_path: Path) -> None:
    config = tiny_vertical(tmp_path)
    with pytest.raises(ValueError, match=r"party needs to be in 0\.\.1, got 2"):
        build_client(config, build_records(config), 2, CPU)
