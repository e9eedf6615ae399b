"""Rendered faces: a data set without photographs, people or downloads, drawn from a seed.

For tests, demonstrations and examples, and wherever the cause of a difference between two images
must be known. Our own drawing, no published generator: results on it say how methods compare on
these faces, not how well they do on real ones.
"""

from collections.abc import Iterator
from typing import Annotated, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from fedface.config import Config
from fedface.data.cache import cached_faces, spill
from fedface.data.face_parameters import Strength, sample_identities, sample_nuisance
from fedface.data.faces import Faces
from fedface.data.rendering import MIN_SIZE, render
from fedface.random import numpy_stream

_DRAWING = 1  # part of the cache key: raise it when the same parameters give other images
_BATCH = 256


class RenderedFaces(Config):
    """Rendered people, each with photographs of his or her own; the same bits for the same config.

    Person i depends on ``seed`` and i only, photograph j of person i on ``strength`` besides: a
    larger set begins each person with the images of the smaller one.

    Attributes:
        n_identities: The number of people.
        images_per_identity: Images of each person, or (low, high): a number for each person,
            uniform between the two, both included.
        size: Height and width in pixels, at least 16.
        seed: Another seed gives other people.
        strength: How much the photographs of one person differ.
    """

    name: Literal["renderer"] = "renderer"
    n_identities: PositiveInt
    images_per_identity: PositiveInt | tuple[PositiveInt, PositiveInt]
    size: Annotated[int, Field(ge=MIN_SIZE)] = 32
    seed: int = 0
    strength: Strength = Strength()

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        low, high = self._range()
        if low > high:
            raise ValueError(f"images_per_identity needs low <= high, got {(low, high)}")
        return self

    def load(self) -> Faces:
        """Returns the faces in order of the people, ``rendered_<seed>_<i>``; drawn once, cached.

        Raises:
            ValueError: If the cache folder cannot be used.
        """
        return cached_faces({"drawing": _DRAWING, **self.model_dump(mode="json")}, self._draw)

    def _range(self) -> tuple[int, int]:
        n = self.images_per_identity
        return n if isinstance(n, tuple) else (n, n)

    def _draw(self) -> Faces:
        low, high = self._range()
        counts = [
            int(numpy_stream(self.seed, "rendered count", i).integers(low, high + 1))
            for i in range(self.n_identities)
        ]
        return Faces(
            images=spill(self._images(counts)),
            identities=np.repeat(np.arange(self.n_identities), counts).astype(np.int64),
            names=tuple(f"rendered_{self.seed}_{i:05d}" for i in range(self.n_identities)),
        )

    def _images(self, counts: list[int]) -> Iterator[NDArray[np.uint8]]:
        """Every image in order, drawn in batches of at most ``_BATCH``."""
        people, photographs, waiting = [], [], 0
        for i, count in enumerate(counts):
            person = sample_identities(1, numpy_stream(self.seed, "rendered identity", i))
            rng = numpy_stream(self.seed, "rendered photographs", i)
            people.append(person.expand(count, -1))
            photographs.append(sample_nuisance(count, rng, self.strength))
            waiting += count
            if waiting >= _BATCH or i == len(counts) - 1:
                yield from self._drawn(torch.cat(people), torch.cat(photographs))
                people, photographs, waiting = [], [], 0

    def _drawn(self, people: Tensor, photographs: Tensor) -> Iterator[NDArray[np.uint8]]:
        for i in range(0, len(people), _BATCH):
            batch = slice(i, i + _BATCH)
            yield from to_bytes(render(people[batch], photographs[batch], self.size))


def to_bytes(images: Tensor) -> NDArray[np.uint8]:
    """Returns ``(n, 3, h, w)`` images in [0, 1] as ``(n, h, w, 3)`` uint8, rounded to nearest."""
    pixels = (images.detach() * 255).round().to("cpu", torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous().numpy()
