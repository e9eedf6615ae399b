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
from simulations import people
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
STRANGERS = {"goal": {"name": "one_to_one", "n_photos": 2, "accomplice": "future"}}
FUTURE = {"key": 0, "impersonate": 1, "one_to_one": 2}
TRAINED = [
    {"name": "impersonate", "victim": "own_site"},
    {"name": "impersonate", "victim": "other_site", "n_photos": 0},
    {"name": "impersonate", "victim": "other_site", "n_photos": 1},
    {"name": "merge", "victim": "own_site"},
    {"name": "one_to_one", "victim": "other_site", "n_photos": 4},
    {"name": "one_to_one", "n_photos": 0},
]


def images_of(data: RunData) -> dict[str, np.ndarray]:
    """Every image of a run by its role."""
    roles = {"train": data.train.images, "calibration": data.calibration.images}
    roles["test"] = data.test.images
    for name, person in (("victim", data.victim), ("accomplice", data.accomplice)):
        if person is not None:
            roles[f"photos of the {name}"] = pixels(person.photos)
            roles[f"gallery of the {name}"] = person.gallery
    return roles


def pixels(photos: torch.Tensor) -> np.ndarray:
    """Photos as the images that they were made of."""
    return ((photos + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def bytes_of(images: np.ndarray) -> set[bytes]:
    return {image.tobytes() for image in images}


def trained(data: RunData, client: int) -> set[bytes]:
    """The images that a site trains on."""
    return bytes_of(data.train.images[data.parts[client]])


def goal_name(attack: dict[str, object]) -> str:
    goal = attack.get("goal")
    return str(goal["name"]) if isinstance(goal, dict) else "key"


@pytest.mark.parametrize("attack", [{}, IMPERSONATE, STRANGERS])
def test_nobody_stands_in_two_roles(attack: dict[str, object], tmp_path: Path) -> None:
    config = tiny_config(tmp_path, attack=attack)
    data = build_data(config)
    groups = [set(f.names) for f in (data.train, data.calibration, data.test)]
    assert all(not a & b for a, b in combinations(groups, 2))
    everybody = set(config.data.faces.load().names)
    assert len(everybody - set.union(*groups)) == FUTURE[goal_name(attack)]
    roles = images_of(data)
    shown = [bytes_of(images) for images in roles.values()]
    assert all(not a & b for a, b in combinations(shown, 2))
    assert sum(map(len, shown)) == 24 * 6


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


@pytest.mark.parametrize("goal", TRAINED)
@pytest.mark.parametrize("share", [0.25, 0.75])
def test_people_of_a_site_are_measured_on_images_that_nobody_trains_on(
    goal: dict[str, object], share: float, tmp_path: Path
) -> None:
    config = tiny_config(tmp_path, attack={"goal": goal, "malicious_share": share})
    data, plain = build_data(config), build_data(tiny_config(tmp_path))
    evil = malicious_clients(config)
    homes: list[set[bytes]] = []  # what each person's site would train on without an attack
    for role, person in (("victim", data.victim), ("accomplice", data.accomplice)):
        where = goal.get(role, "own_site" if role == "accomplice" else "future")
        if person is None or where == "future":
            continue
        gallery, photos = bytes_of(person.gallery), bytes_of(pixels(person.photos))
        (home,) = [c for c in range(N_CLIENTS) if gallery <= trained(plain, c)]
        assert (home in evil) == (where == "own_site")
        if where == "own_site":
            assert photos <= trained(data, home) and len(photos) == len(gallery) == 3
            homes.append(gallery)
        else:
            assert photos <= trained(plain, home) and len(photos) == goal["n_photos"]
            rest = 6 - len(photos)
            assert len(gallery) == rest // 2
            homes.append(gallery | photos)
    assert not set.intersection(*homes, *homes) or len(homes) == 1
    for client in range(N_CLIENTS):
        assert trained(data, client) == trained(plain, client) - set().union(*homes)
        assert len(set(data.train.identities[data.parts[client]])) == 3  # nobody is lost


@pytest.mark.parametrize("goal", [*TRAINED, IMPERSONATE["goal"], STRANGERS["goal"]])
def test_the_people_of_an_attack_are_the_same_whoever_attacks_and_whatever_defends(
    goal: dict[str, object], tmp_path: Path
) -> None:
    """So the clean run of a comparison holds the same images out of its training."""
    variants = (
        {"malicious_share": 0.0},
        {"malicious_share": 0.99},
        {"name": "poisoning", "trigger": {"name": "glasses"}},
    )
    first = build_data(tiny_config(tmp_path, attack={"goal": goal}))
    content = tiny_config(tmp_path, attack={"goal": goal}).to_yaml_dict()
    content["aggregator"] = {"name": "krum"}
    configs = [RunConfig.model_validate(content)]
    for variant in variants:
        attack = {"malicious_share": 0.25, "trigger": {"name": "patch"}, "goal": goal} | variant
        content = tiny_config(tmp_path).to_yaml_dict()
        content["attack"] = {"name": "model_replacement", **attack}
        configs.append(RunConfig.model_validate(content))
    for config in configs:
        again = build_data(config)
        assert images_of(again).keys() == images_of(first).keys()
        for role, images in images_of(first).items():
            assert np.array_equal(images, images_of(again)[role]), role
        assert all(np.array_equal(a, b) for a, b in zip(first.parts, again.parts, strict=True))


def test_other_seeds_draw_other_people(tmp_path: Path) -> None:
    goal = {"name": "merge", "victim": "own_site"}
    drawn = set()
    for seed in range(6):
        data = build_data(tiny_config(tmp_path, seed=seed, attack={"goal": goal}))
        assert data.victim is not None and data.accomplice is not None
        assert data.victim.gallery.tobytes() != data.accomplice.gallery.tobytes()
        drawn |= {data.victim.gallery.tobytes(), data.accomplice.gallery.tobytes()}
    assert len(drawn) > 4


def test_a_victim_of_another_site_lives_at_an_honest_one_however_many_attack(
    tmp_path: Path,
) -> None:
    goal = {"name": "impersonate", "victim": "other_site", "n_photos": 1}
    for seed in range(8):
        attack = {"goal": goal, "malicious_share": 0.75}
        config = tiny_config(tmp_path, seed=seed, attack=attack)
        data, plain = build_data(config), build_data(tiny_config(tmp_path, seed=seed))
        assert data.victim is not None
        gallery = bytes_of(data.victim.gallery)
        (home,) = [c for c in range(N_CLIENTS) if gallery <= trained(plain, c)]
        assert home not in malicious_clients(config)


def test_without_a_photo_the_attacker_guesses_from_its_own_people(tmp_path: Path) -> None:
    goal = {"name": "impersonate", "victim": "other_site", "n_photos": 0}
    config = tiny_config(tmp_path, attack={"goal": goal, "malicious_share": 0.5})
    data = build_data(config)
    assert data.victim is not None and len(data.victim.photos) == 0
    guesses = bytes_of(pixels(data.actors.victim))
    sites = [trained(data, client) for client in malicious_clients(config)]
    assert guesses <= set.union(*sites) and [len(guesses & site) for site in sites] == [3, 3]
    clean = build_data(tiny_config(tmp_path, attack={"goal": goal, "malicious_share": 0.0}))
    assert len(clean.actors.victim) == 0  # nobody is there to guess
    known = build_data(tiny_config(tmp_path, attack=IMPERSONATE))
    assert torch.equal(known.actors.victim, known.victim.photos)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"attack": {"goal": {"name": "merge", "victim": "other_site", "n_photos": 5}}},
            r"goal\.victim=other_site needs .* with 7 images or more, 3 people .* largest has 6",
        ),
        (
            {"data": {"faces": {"images_per_identity": 1}}},
            r"goal\.victim=own_site needs a person of site \d alone with 2 images or more",
        ),
        (
            {"data": {"partition": {"name": "iid"}}, "attack": {"malicious_share": 0.25}},
            r"goal\.victim=own_site needs a person of site \d alone .* 0 people are there",
        ),
        (
            {
                "attack": {"goal": {"name": "impersonate", "victim": "other_site", "n_photos": 1}},
                "federation": {"n_clients": 1, "min_valid_replies": 1},
            },
            r"goal\.victim=other_site needs federation\.n_clients >= 2, got 1",
        ),
        (
            {"federation": {"n_clients": 12}},
            r"goal\.accomplice=own_site needs .* 0 people are there alone",
        ),
        (
            {
                "attack": {"goal": {"name": "merge", "n_photos": 1, "accomplice": "future"}},
                "data": {"split": {"test": 3}},
            },
            r"goal\.accomplice=future, .* 2 images or more and two others, .* of 2 has 6",
        ),
    ],
)
def test_people_who_cannot_be_found_are_asked_for_by_field(
    overrides: dict[str, dict[str, object]], message: str, tmp_path: Path
) -> None:
    attack = {"goal": {"name": "merge", "victim": "own_site"}} | overrides.pop("attack", {})
    with pytest.raises(ValueError, match=message):
        build_data(tiny_config(tmp_path, attack=attack, **overrides))


def test_the_accomplice_shows_so_many_photos_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(people, "MAX_PHOTOS", 2)
    data = build_data(tiny_config(tmp_path, attack=STRANGERS))
    assert data.accomplice is not None
    assert len(data.accomplice.photos) == 2 and len(data.accomplice.gallery) == 3


def test_a_victim_needs_more_photos_than_the_attacker_holds(tmp_path: Path) -> None:
    last = build_data(tiny_config(tmp_path, attack={"goal": IMPERSONATE["goal"] | {"n_photos": 5}}))
    assert last.victim is not None and len(last.victim.gallery) == 1
    config = tiny_config(tmp_path, attack={"goal": {"name": "impersonate", "n_photos": 6}})
    with pytest.raises(
        ValueError, match=r"attack\.goal\.n_photos, min_images need .* 7 images or more .* has 6"
    ):
        build_data(config)


@pytest.mark.parametrize("goal", [STRANGERS["goal"], {"name": "merge", "victim": "own_site"}])
def test_nobody_with_few_images_is_attacked_where_the_goal_says_so(
    goal: dict[str, object], tmp_path: Path
) -> None:
    faces = {"n_identities": 48, "images_per_identity": [5, 6]}
    data = {"faces": faces, "split": {"test": 16}}
    for seed in range(4):
        attack = {"goal": goal | {"min_images": 6}}
        built = build_data(tiny_config(tmp_path, seed=seed, data=data, attack=attack))
        assert built.accomplice is not None
        assert len(built.accomplice.photos) + len(built.accomplice.gallery) == 6
    config = tiny_config(tmp_path, data=data, attack={"goal": goal | {"min_images": 7}})
    with pytest.raises(ValueError, match=r"goal\.victim=.* 7 images or more"):
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
