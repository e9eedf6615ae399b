"""A person withdraws: nothing of the person stays, the others lose nothing, the verdict is true."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from clients.people import KEY, LINEAGE, ROSTERS, TOMBSTONES, Register
from clients.state import SiteState
from clients.withdrawal import Verdict, aligned, people_of, withdraw
from fedface.data.cache import cached_faces
from fedface.data.faces import Faces
from tests.clients.sites import context

NAMES = ("anna", "bert", "carla")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDFACE_CACHE", str(tmp_path / "cache"))


def head(people: int) -> dict[str, torch.Tensor]:
    rows = torch.arange(people * 4.0).reshape(people, 4)
    return {"weight": rows, "bias": rows[:, 0].clone(), "scale": torch.tensor(3.0)}


def site(folder: Path, names=NAMES, run: str = "demo") -> SiteState:
    register = Register(folder)
    return SiteState(folder / "state" / run, register.pseudonyms(names), register, run)


def data(root: Path) -> Path:
    for name in NAMES:
        (root / name).mkdir(parents=True)
        for number in range(2):
            (root / name / f"{number}.jpg").write_bytes(b"face of " + name.encode())
    return root


def test_pseudonyms_are_those_of_the_site_and_name_nobody(tmp_path):
    first, second = Register(tmp_path / "a"), Register(tmp_path / "b")
    names = first.pseudonyms(NAMES)
    assert len(set(names)) == 3 and names == Register(tmp_path / "a").pseudonyms(NAMES)
    assert set(names).isdisjoint(second.pseudonyms(NAMES))
    assert (tmp_path / "a" / KEY).stat().st_mode & 0o777 == 0o600
    (tmp_path / "a" / KEY).write_bytes(b"short")
    with pytest.raises(ValueError, match="32 bytes"):
        first.pseudonyms(NAMES)


def test_lineage_says_who_was_in_which_round(tmp_path):
    register = Register(tmp_path)
    anna, bert, carla = register.pseudonyms(NAMES)
    register.took_part("one", 1, (anna, bert))
    register.took_part("one", 2, (bert, anna))
    register.took_part("one", 3, (anna, bert, carla))
    register.took_part("two", 4, (carla,))
    assert register.rounds_of(anna) == {"one": (1, 2, 3)}
    assert register.rounds_of(carla) == {"one": (3,), "two": (4,)}
    assert register.rounds_of("nobody") == {} and register.runs() == ("one", "two")
    assert len(list((tmp_path / ROSTERS).iterdir())) == 3
    text = "".join(p.read_text() for p in tmp_path.rglob("*.json*"))
    assert not any(name in text for name in NAMES)


def test_a_torn_line_is_dropped_and_a_damaged_one_is_named(tmp_path):
    register = Register(tmp_path)
    register.took_part("one", 1, ("a",))
    with (tmp_path / LINEAGE).open("ab") as stream:
        stream.write(b'{"run":"one","rou')
    assert register.rounds_of("a") == {"one": (1,)}
    register.took_part("one", 2, ("a",))
    assert register.rounds_of("a") == {"one": (1, 2)}
    (roster,) = (tmp_path / ROSTERS).iterdir()
    roster.write_text('["b"]')
    with pytest.raises(ValueError, match="roster"):
        register.rounds_of("a")
    (tmp_path / TOMBSTONES).write_bytes(b"nonsense\n")
    with pytest.raises(ValueError, match="one JSON object a line"):
        register.remaining(["anna"])


def test_everything_of_the_person_goes_and_nothing_of_the_others(tmp_path):
    folder, root = tmp_path / "site", data(tmp_path / "faces")
    for server_round in (1, 2):
        site(folder).save(context(), server_round, head(3))
    faces = Faces(np.zeros((3, 4, 4, 3), np.uint8), np.arange(3), NAMES)
    others = Faces(np.zeros((1, 4, 4, 3), np.uint8), np.zeros(1, np.int64), ("dora",))
    for key, kept in (({"set": 1}, faces), ({"set": 2}, others)):
        cached_faces(key, lambda kept=kept: kept)
    (folder / "state" / "demo" / "released-000001.safetensors").write_bytes(b"x")
    register = Register(folder)
    done = withdraw(register, "bert", root)
    assert (done.new, done.images, done.cached) == (True, 2, 1)
    assert (done.heads, done.dropped_heads, done.released) == (2, 0, 1)
    assert sorted(p.name for p in root.iterdir()) == ["anna", "carla"]
    assert register.remaining(NAMES) == [True, False, True]
    anna, _, carla = register.pseudonyms(NAMES)
    for path in (folder / "state" / "demo").glob("head-*.safetensors"):
        kept, whole = load_file(path), head(3)
        assert people_of(path) == (anna, carla)
        assert torch.equal(kept["weight"], whole["weight"][[0, 2]])
        assert torch.equal(kept["bias"], whole["bias"][[0, 2]])
        assert kept["scale"] == 3.0
    assert done.verdicts == (Verdict("demo", (1, 2)),)
    assert cached_faces({"set": 2}, lambda: pytest.fail("kept")).names == ("dora",)


def test_doing_it_again_finishes_what_was_begun(tmp_path, monkeypatch):
    folder, root = tmp_path / "site", data(tmp_path / "faces")
    site(folder).save(context(), 1, head(3))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("clients.withdrawal.shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            withdraw(Register(folder), "bert", root)
    assert Register(folder).remaining(NAMES) == [True, False, True], "the tombstone holds already"
    done = withdraw(Register(folder), "bert", root)
    assert (done.new, done.images, done.heads) == (False, 2, 1)
    last = withdraw(Register(folder), "bert", root)
    assert (last.images, last.heads, last.verdicts) == (0, 0, done.verdicts)
    assert len((folder / TOMBSTONES).read_text().splitlines()) == 1


def test_a_head_that_does_not_say_whose_it_is_goes_whole(tmp_path):
    save_file(head(3), tmp_path / "head-round-000001.safetensors")
    (tmp_path / "head-round-000002.safetensors").write_bytes(b"damaged")
    done = withdraw(Register(tmp_path), "bert")
    assert done.dropped_heads == 2 and not list(tmp_path.glob("head-*"))


def test_the_verdict_is_honest(tmp_path):
    for run, server_round, names in (("first", 1, NAMES), ("late", 1, NAMES[:1])):
        site(tmp_path, names, run).save(context(), server_round, head(len(names)))
    for run in ("first", "late"):
        site(tmp_path, NAMES, run).save(context(), 4, head(3))
    first, late = withdraw(Register(tmp_path), "carla").verdicts
    assert (first.run, first.action, first.keep) == ("first", "full retrain", 0)
    assert (late.run, late.action, late.keep) == ("late", "retrain from round", 3)
    assert all(v.action == "no action" for v in withdraw(Register(tmp_path), "dora").verdicts)
    assert not withdraw(Register(tmp_path), "dora").known


@pytest.mark.parametrize("name", ["", ".", "..", "../faces", "a/b", "/etc", "a\0b"])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="person needs"):
        withdraw(Register(tmp_path / "site"), name, data(tmp_path / "faces"))
    assert len(list((tmp_path / "faces").iterdir())) == 3


def test_a_link_is_cut_and_its_end_is_left_alone(tmp_path):
    root = data(tmp_path / "faces")
    elsewhere = tmp_path / "archive"
    (root / "bert").rename(elsewhere)
    (root / "bert").symlink_to(elsewhere)
    withdraw(Register(tmp_path / "site"), "bert", root)
    assert not (root / "bert").is_symlink() and len(list(elsewhere.iterdir())) == 2


@pytest.mark.parametrize("where", ["context", "disk"])
def test_the_site_goes_on_with_the_head_of_those_who_stayed(tmp_path, where):
    memory = context()
    site(tmp_path).save(memory, 1, head(3))
    if where == "disk":
        memory = context()
        withdraw(Register(tmp_path), "bert")
    now = site(tmp_path, ("anna", "carla", "dora"))
    fresh = {k: -torch.ones_like(v) for k, v in head(3).items()}
    found = now.load(memory, 2, fresh)
    assert torch.equal(found["weight"][:2], head(3)["weight"][[0, 2]])
    assert torch.equal(found["weight"][2], -torch.ones(4)), "who is new starts anew"
    assert found["scale"] == 3.0


def test_the_same_people_have_the_head_as_it_was():
    kept = head(2)
    assert aligned(kept, ("a", "b"), head(2), ("a", "b"))["weight"] is kept["weight"]
    turned = aligned(kept, ("a", "b"), head(2), ("b", "a"))
    assert torch.equal(turned["weight"], kept["weight"].flip(0))
