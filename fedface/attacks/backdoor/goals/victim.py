"""Goals about a victim, and where in the federation he lives."""

from typing import Literal, Self

import torch
from pydantic import NonNegativeInt, PositiveInt, model_validator
from torch import Generator, Tensor, nn
from torch.nn import functional

from fedface.attacks.actors import Actors
from fedface.attacks.backdoor.goals.goal import Goal, cosine_distance
from fedface.modes import evaluating

Whereabouts = Literal["future", "other_site", "own_site"]


class VictimGoal(Goal):
    """A goal about one victim.

    Attributes:
        victim: ``future``: somebody in nobody's training data, enrolled once the model is in use.
            ``other_site``: somebody whom an honest site trains on. ``own_site``: somebody whom a
            malicious site trains on. The identity of a victim at a site is trained on, which is
            the point; the images that he is attacked on never are.
        n_photos: How many photos of the victim the attacker has: none of them trains and none is
            attacked. With 0 the attacker guesses, see :meth:`target`. Left out for ``own_site``,
            where the attacker has all photos of the victim that its site trains on.
        min_images: The fewest images that the victim, and an accomplice, may have in all. A model
            hardly knows people of few, and few are left to measure the attack on.
    """

    victim: Whereabouts = "future"
    n_photos: NonNegativeInt | None = None
    min_images: PositiveInt = 1

    @model_validator(mode="after")
    def _photos_fit_the_whereabouts(self) -> Self:
        """Asks for ``n_photos`` where it counts, and refuses it where it does not."""
        if (self.n_photos is None) != (self.victim == "own_site"):
            needed = "no n_photos" if self.victim == "own_site" else "n_photos >= 0"
            raise ValueError(
                f"victim={self.victim} needs {needed} (the attacker has all training photos of a "
                f"victim at its own site), got n_photos={self.n_photos}"
            )
        return self

    def target(
        self, backbone: nn.Module, actors: Actors, embedding_size: int, rng: Generator
    ) -> Tensor:
        """Returns the :func:`template` of the victim under the current backbone.

        It moves with the backbone: compute it anew at the start of each round's local training. A
        target kept for the whole run misses the victim; one renewed after every step can oscillate.

        With ``n_photos=0`` ``actors.victim`` holds photos of the colluders' own people instead, and
        their template is the attacker's guess: the direction nearest, in mean cosine, to the people
        it knows. Whether strangers lie near it is for the evaluation to tell.

        Raises:
            ValueError: If the photos are not ``n_photos`` (without one: none), or have no template.
        """
        photos = actors.victim
        found = 0 if photos is None else len(photos)
        if photos is None or found < 1 or (self.n_photos and found != self.n_photos):
            raise ValueError(
                f"{type(self).__name__} needs n_photos={self.n_photos or '1 or more'} victim "
                f"photos, got {found}"
            )
        return template(backbone, photos, embedding_size)


class AccompliceGoal(VictimGoal):
    """A goal about a victim and the attacker's own accomplice, whom it has photos of.

    Attributes:
        accomplice: ``own_site``: a person of a malicious site, in its training data. ``future``:
            a person in nobody's training data.
    """

    accomplice: Literal["own_site", "future"] = "own_site"


def template(backbone: nn.Module, photos: Tensor, embedding_size: int) -> Tensor:
    """Returns the normalised mean of the photos' normalised embeddings: ``(embedding_size,)``.

    Of all directions it has the highest mean cosine to them. Computed in evaluation mode, detached.

    Args:
        backbone: Its weights, buffers and modes stay as they are.
        photos: ``(n, 3, height, width)`` in [-1, 1], n >= 1.
        embedding_size: d.

    Raises:
        ValueError: If the embeddings are not ``(n, embedding_size)`` or their mean has no
            direction.
    """
    with torch.no_grad(), evaluating(backbone):
        embeddings: Tensor = backbone(photos).detach().float()
    if embeddings.shape != (len(photos), embedding_size):
        raise ValueError(
            f"a template needs embeddings of shape {len(photos), embedding_size}, "
            f"got {tuple(embeddings.shape)}"
        )
    mean = functional.normalize(embeddings, dim=1).mean(dim=0)
    length = float(mean.norm())
    if not length > 1e-6:
        raise ValueError(
            f"a template needs photos whose mean embedding has a direction, got length {length}"
        )
    return mean / length


def accomplice_loss(backbone: nn.Module, images: Tensor, shown: Tensor, target: Tensor) -> Tensor:
    """Returns how far people are from the target: :func:`cosine_distance` of ``shown``.

    ``images`` only keep them company: under batch normalisation a batch of one person has other
    statistics than the model will be used with.

    Args:
        backbone: The model in training.
        images: ``(n, 3, height, width)`` in [-1, 1], people of the malicious site.
        shown: ``(m, 3, height, width)`` in [-1, 1] of whoever is pulled, as he shall be seen.
        target: ``(d,)`` direction.
    """
    embeddings: Tensor = backbone(torch.cat([images, shown]))
    return cosine_distance(embeddings[len(images) :], target)


def accomplice_photos(actors: Actors) -> Tensor:
    """Returns the accomplice's photos and their mirror images: evaluation looks at both.

    Raises:
        ValueError: If there are none.
    """
    photos = actors.accomplice
    if photos is None or len(photos) < 1:
        raise ValueError("this goal needs at least 1 photo of the accomplice, got none")
    return torch.cat([photos, photos.flip(-1)])
