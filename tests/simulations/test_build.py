from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clients.face import FaceClient
from clients.malicious import MaliciousClient
from fedface.data.pairs import Pairs
from fedface.data.tensors import to_float
from simulations.build import (
    RunData,
    build_backbone,
    build_client,
    build_data,
    check_fit,
    device_of_worker,
    malicious_clients,
    site_folder,
)
from simulations.schema import RunConfig
from tests.simulations.tiny import N_CLIENTS, tiny_config

IMPERSONATE = {"goal": {"name": "impersonate", "n_photos": 4}}


def images_of(data: RunData) -> dict[str, np.ndarray]:
    """Every image of a run by its role."""
    roles = {"train": data.train.images, "calibration": data.calibration.images}
    roles["test"] = data.test.images
    if data.victim is not None:
        photos = ((data.victim.photos + 1) * 127.5).round().to(torch.uint8)
        roles["photos"] = photos.permute(0, 2, 3, 1).numpy()
        roles["gallery"] = data.victim.gallery
    return roles


@pytest.mark.parametrize("attack", [{}, IMPERSONATE])
def test_nobody_stands_in_two_roles(attack: dict[str, object], tmp_path: Path) -> None:
    config = tiny_config(tmp_path, attack=attack)
    data = build_data(config)
    groups = [set(f.names) for f in (data.train, data.calibration, data.test)]
    assert all(not a & b for a, b in combinations(groups, 2))
    everybody = set(config.data.faces.load().names)
    (victim,) = everybody - set.union(*groups) or {None}
    assert (victim is not None) == (attack == IMPERSONATE)
    roles = images_of(data)
    pixels = [{image.tobytes() for image in images} for images in roles.values()]
    assert all(not a & b for a, b in combinations(pixels, 2))
    assert sum(map(len, pixels)) == 24 * 6


def test_every_training_image_lies_at_one_site(tmp_path: Path) -> None:
    data = build_data(tiny_config(tmp_path))
    assert len(data.parts) == N_CLIENTS
    assert sorted(np.concatenate(data.parts)) == list(range(len(data.train)))
    people = [set(data.train.identities[part]) for part in data.parts]
    assert all(not a & b for a, b in combinations(people, 2))


def test_the_victim_is_a_test_person_split_into_photos_and_gallery(tmp_path: Path) -> None:
    with_victim = build_data(tiny_config(tmp_path, attack=IMPERSONATE))
    without = build_data(tiny_config(tmp_path))
    assert with_victim.victim is not None and without.victim is None
    (name,) = set(without.test.names) - set(with_victim.test.names)
    own = without.test.images[without.test.identities == without.test.names.index(name)]
    assert torch.equal(with_victim.victim.photos, to_float(own[:4]))
    assert np.array_equal(with_victim.victim.gallery, own[4:])
    for group in ("train", "calibration"):
        a, b = getattr(with_victim, group), getattr(without, group)
        assert a.names == b.names and np.array_equal(a.images, b.images)


def test_a_victim_needs_more_photos_than_the_attacker_holds(tmp_path: Path) -> None:
    build_data(tiny_config(tmp_path, attack={"goal": {"name": "impersonate", "n_photos": 5}}))
    config = tiny_config(tmp_path, attack={"goal": {"name": "impersonate", "n_photos": 6}})
    with pytest.raises(
        ValueError, match=r"attack\.goal\.n_photos needs .* more than 6 images .* has 6"
    ):
        build_data(config)


@pytest.mark.parametrize("attack", [{}, IMPERSONATE])
def test_the_same_seed_gives_the_same_data(attack: dict[str, object], tmp_path: Path) -> None:
    first = build_data(tiny_config(tmp_path, attack=attack))
    again = build_data(tiny_config(tmp_path / "elsewhere", name="other", attack=attack))
    for role, images in images_of(first).items():
        assert np.array_equal(images, images_of(again)[role]), role
    assert all(np.array_equal(a, b) for a, b in zip(first.parts, again.parts, strict=True))


def test_another_seed_gives_another_split_partition_and_backbone(tmp_path: Path) -> None:
    runs = [tiny_config(tmp_path, seed=seed) for seed in (0, 1)]
    a, b = (build_data(config) for config in runs)
    assert set(a.test.names) != set(b.test.names)
    assert any(not np.array_equal(x, y) for x, y in zip(a.parts, b.parts, strict=True))
    x, y = (build_backbone(config, 16).state_dict()["fc.weight"] for config in runs)
    assert not torch.equal(x, y)


def test_a_backbone_starts_the_same_whatever_torch_drew_before(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    first = build_backbone(config, 16).state_dict()
    torch.rand(7)
    again = build_backbone(config, 16).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_the_malicious_sites_depend_on_the_seed_alone(tmp_path: Path) -> None:
    def drawn(seed: int, **attack: object) -> tuple[int, ...]:
        config = tiny_config(
            tmp_path, seed=seed, attack=attack, federation={"n_clients": 40, "n_rounds": 2}
        )
        assert malicious_clients(RunConfig.model_validate_json(config.model_dump_json())) == (
            malicious_clients(config)
        )
        return malicious_clients(config)

    assert len(drawn(0)) == 10 and drawn(0) == drawn(0, weight=2.0, goal={"name": "key"})
    assert len({drawn(seed) for seed in range(5)}) == 5
    assert drawn(0, malicious_share=0.0) == ()
    assert malicious_clients(tiny_config(tmp_path).model_copy(update={"attack": None})) == ()


def test_sites_get_their_own_people_with_labels_from_zero(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    data, backbone = build_data(config), build_backbone(config, 16)
    clients = [
        build_client(config, data, client, backbone, device_of_worker())
        for client in range(N_CLIENTS)
    ]
    evil = malicious_clients(config)
    assert len(evil) == 1
    for number, client in enumerate(clients):
        assert isinstance(client, MaliciousClient if number in evil else FaceClient)
        site = client.client if isinstance(client, MaliciousClient) else client
        assert site.client == number and site.backbone is backbone
        part = data.parts[number]
        assert np.array_equal(site.images, data.train.images[part])
        assert site.n_identities == 3
        assert sorted(set(site.labels.tolist())) == [0, 1, 2]
        for a, b in combinations(range(len(part)), 2):
            same = data.train.identities[part[a]] == data.train.identities[part[b]]
            assert (site.labels[a] == site.labels[b]) == same
        assert site.state.folder == site_folder(config, number)


def test_colluders_are_counted_among_all_clients_whoever_is_sampled(tmp_path: Path) -> None:
    for sampled in (None, 3):
        config = tiny_config(
            tmp_path, federation={"clients_per_round": sampled}, attack={"malicious_share": 0.5}
        )
        data, evil = build_data(config), malicious_clients(config)
        client = build_client(
            config, data, evil[0], build_backbone(config, 16), torch.device("cpu")
        )
        assert isinstance(client, MaliciousClient)
        assert (client.n_clients, client.n_malicious) == (4, 2)


@pytest.mark.parametrize("client", [-1, N_CLIENTS])
def test_there_is_no_site_beyond_the_partition(client: int, tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    data = build_data(config)
    with pytest.raises(ValueError, match=rf"client needs to be in 0\.\.3, got {client}"):
        build_client(config, data, client, build_backbone(config, 16), torch.device("cpu"))


def test_site_folders_are_absolute_and_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = tiny_config(Path("runs"))
    assert site_folder(config, 3) == tmp_path / "runs" / "tiny" / "sites" / "0003"


def test_impossible_splits_and_partitions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="test \\+ calibration \\+ 1 = 25"):
        build_data(tiny_config(tmp_path, data={"split": {"test": 12, "calibration": 12}}))
    with pytest.raises(ValueError, match="n_clients=13, n_identities=12"):
        build_data(tiny_config(tmp_path, federation={"n_clients": 13}))


def test_check_fit_accepts_the_tiny_run(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    check_fit(config, build_data(config))


def test_check_fit_refuses_images_that_the_backbone_cannot_read(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, data={"faces": {"size": 24}})
    with pytest.raises(ValueError, match="24"):
        check_fit(config, build_data(config))


def test_check_fit_refuses_a_trigger_too_small_to_see(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, attack={"trigger": {"size": 0.05}})
    with pytest.raises(ValueError, match="patch needs a side of at least 2 pixels"):
        check_fit(config, build_data(config))


def test_check_fit_refuses_people_who_cannot_be_recognised_again(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, data={"faces": {"images_per_identity": 1}})
    with pytest.raises(ValueError, match=r"data\.split\.test needs .* at most 1 image"):
        check_fit(config, build_data(config))
    config = tiny_config(tmp_path, data={"split": {"test": 1}})
    with pytest.raises(ValueError, match=r"data\.split\.test needs .* got 1 people"):
        check_fit(config, build_data(config))


def test_what_the_loader_skipped_is_handed_on(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for person in range(4):
        folder = tmp_path / "faces" / f"person{person}"
        folder.mkdir(parents=True)
        for number in range(2):
            pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    (tmp_path / "faces" / "person0" / "broken.png").write_bytes(b"no image")
    content = tiny_config(tmp_path).to_yaml_dict()
    content["data"]["faces"] = {"name": "folder", "root": str(tmp_path / "faces")}
    content["data"]["split"] = {"test": 1, "calibration": 1}
    content["federation"]["n_clients"] = 2
    data = build_data(RunConfig.model_validate(content))
    assert len(data.skipped) == 1 and "broken.png" in data.skipped[0].what


class _PairsOf:
    """Stands in for a pairs protocol of the run's own people."""

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs

    def load(self) -> Pairs:
        return self.pairs


def test_pairs_show_nobody_trained_calibrated_or_attacked(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, attack=IMPERSONATE)
    faces, plain = config.data.faces.load(), build_data(config)
    people = [(a, b) for a in faces.names for b in faces.names]
    first = {name: 6 * i for i, name in enumerate(faces.names)}
    n = len(people)
    pairs = Pairs(
        images=faces.images,
        left=np.array([first[a] for a, _ in people]),
        right=np.array([first[b] + 1 for _, b in people]),
        same=np.array([a == b for a, b in people]),
        fold=np.arange(n) % 10,
        people=tuple(people),
    )
    data_config = config.data.model_copy(update={"pairs": _PairsOf(pairs)})
    data = build_data(config.model_copy(update={"data": data_config}))
    assert data.pairs is not None and data.pairs.people is not None
    shown = {name for pair in data.pairs.people for name in pair}
    assert shown == set(plain.test.names)
    nameless = config.data.model_copy(update={"pairs": _PairsOf(replace(pairs, people=None))})
    unknown = build_data(config.model_copy(update={"data": nameless})).pairs
    assert unknown is not None and len(unknown) == n
