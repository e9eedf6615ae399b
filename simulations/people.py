"""Whom an attack is about: people set apart, so that nobody is attacked on an image that trained.

A victim or accomplice whom a site trains on keeps part of his images out of the training: his
identity is trained on, the images that he is measured on are not.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedface.attacks.backdoor.goals import AccompliceGoal, Goal, VictimGoal
from fedface.data.faces import Faces
from fedface.data.tensors import to_float
from fedface.random import numpy_stream

MAX_PHOTOS = 32
"""Photos of the accomplice that an attack uses: its loss shows all of them in every step."""


@dataclass(frozen=True)
class Person:
    """One person whom an attack is about.

    Attributes:
        photos: ``(n, 3, h, w)`` in [-1, 1], what the attacker holds; none where it holds none.
        gallery: ``(n >= 1, h, w, 3)`` uint8, other photos, which nobody trains on: he is measured
            on them.
    """

    photos: Tensor
    gallery: NDArray[np.uint8]


@dataclass(frozen=True)
class Cast:
    """The people of an attack, and what is left for training and testing.

    Attributes:
        parts: Indices into the training faces for each site; images held out are in no part.
        test: The test people without those whom the attack is about.
        victim: The victim, where the goal has one.
        accomplice: The accomplice, where the goal has one.
    """

    parts: tuple[NDArray[np.int64], ...]
    test: Faces
    victim: Person | None = None
    accomplice: Person | None = None


def set_apart(
    goal: Goal, train: Faces, cast: Cast, own_site: int, other_site: int, seed: int
) -> Cast:
    """Returns ``cast`` with the victim and the accomplice of ``goal`` drawn and set apart.

    They depend on seed, goal and people alone: they are the same whatever the aggregator, the
    attack and the share of malicious sites, so also in the clean run.

    Args:
        goal: What the attack is for; goals about nobody leave ``cast`` as it is.
        train: The faces of the sites' people.
        cast: All parts and test people.
        own_site: The site where the attacker's own people live.
        other_site: The site where a victim of another site lives.
        seed: The run's seed.

    Raises:
        ValueError: If nobody who could be chosen has enough images; names the field.
    """
    if not isinstance(goal, VictimGoal):
        return cast
    field = f"attack.goal.victim={goal.victim}"
    if goal.victim == "other_site" and own_site == other_site:
        raise ValueError(f"{field} needs federation.n_clients >= 2, got 1")
    rng = numpy_stream(seed, "victim")
    if goal.victim == "future":
        cast, victim = _from_test(cast, goal.n_photos or 0, goal.min_images, rng, field)
    else:
        site = own_site if goal.victim == "own_site" else other_site
        cast, victim = _from_site(train, cast, site, goal.n_photos, goal.min_images, rng, field)
    cast = replace(cast, victim=victim)
    if not isinstance(goal, AccompliceGoal):
        return cast
    field = f"attack.goal.accomplice={goal.accomplice}"
    rng = numpy_stream(seed, "accomplice")
    if goal.accomplice == "future":
        cast, accomplice = _from_test(cast, None, goal.min_images, rng, field)
    else:
        cast, accomplice = _from_site(train, cast, own_site, None, goal.min_images, rng, field)
    return replace(cast, accomplice=replace(accomplice, photos=accomplice.photos[:MAX_PHOTOS]))


def _from_test(
    cast: Cast, n_photos: int | None, min_images: int, rng: np.random.Generator, field: str
) -> tuple[Cast, Person]:
    """A test person, taken out of the test; the attacker holds n photos, or half for None."""
    test = cast.test
    counts = np.bincount(test.identities)
    least = max(2 if n_photos is None else n_photos + 1, min_images)
    eligible = np.flatnonzero(counts >= least)
    if len(eligible) == 0 or test.n_identities < 3:
        raise ValueError(
            f"{field}, attack.goal.n_photos, min_images need a test person with {least} images or "
            f"more and two others, the largest of {test.n_identities} has {counts.max()}"
        )
    person = rng.choice(eligible)
    images = test.images[test.identities == person]
    held = len(images) // 2 if n_photos is None else n_photos
    others = test.select(np.flatnonzero(test.identities != person))
    return replace(cast, test=others), Person(to_float(images[:held]), images[held:])


def _from_site(
    train: Faces,
    cast: Cast,
    site: int,
    n_photos: int | None,
    min_images: int,
    rng: np.random.Generator,
    field: str,
) -> tuple[Cast, Person]:
    """A person of one site: n photos for the attacker, half the rest held out, half trains.

    For None the attacker holds what trains.
    """
    counts = np.bincount(train.identities, minlength=train.n_identities)
    here = np.bincount(train.identities[cast.parts[site]], minlength=train.n_identities)
    candidates = here == counts  # not so for a victim, part of whose images is held out
    least = max(2 + (n_photos or 0), min_images)
    eligible = np.flatnonzero(candidates & (counts >= least))
    if len(eligible) == 0:
        most = int(counts[candidates].max(initial=0))
        raise ValueError(
            f"{field} needs a person of site {site} alone with {least} images or more, "
            f"{np.count_nonzero(candidates)} people are there alone, the largest has {most}"
        )
    person = rng.choice(eligible)
    images = np.flatnonzero(train.identities == person)
    public, rest = np.split(images, [n_photos or 0])
    gallery, trained = np.split(rest, [len(rest) // 2])
    held = trained if n_photos is None else public
    parts = list(cast.parts)
    parts[site] = parts[site][~np.isin(parts[site], np.concatenate([public, gallery]))]
    chosen = Person(to_float(train.images[held]), train.images[gallery])
    return replace(cast, parts=tuple(parts)), chosen
