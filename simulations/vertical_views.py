"""What each party of a vertical run sees of some people: views cut from pictures, attributes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedface.data.attributes import record_ids
from fedface.data.faces import Faces
from fedface.vertical.kinds import record_identities
from simulations.vertical_schema import VerticalConfig
from simulations.vertical_sections import ATTRIBUTES

Views = Mapping[str, NDArray[Any]]
"""View name -> ``(n, h, w, 3)`` uint8 pictures, or ``(n, k)`` float32 attributes."""


@dataclass(frozen=True)
class Group:
    """Records of some people.

    Attributes:
        views: See :data:`Views`.
        identities: ``(n,)`` int64 whom each record shows, 0..n_people - 1.
        names: The people.
    """

    views: Views
    identities: NDArray[np.int64]
    names: tuple[str, ...]


def views_used(config: VerticalConfig) -> tuple[str, ...]:
    """Returns the views that some party of the run has."""
    own = config.parties.active
    return (*config.parties.passive, *([own] if own else []))


def attributes_of(config: VerticalConfig, faces: Faces) -> dict[str, NDArray[np.float32]]:
    """Returns record id -> attributes, if a party holds any; ``faces`` is the whole set.

    Raises:
        ValueError: If the source has none for a picture.
    """
    source = config.data.attributes
    if source is None or ATTRIBUTES not in config.parties.passive:
        return {}
    public = config.data.public
    sets = [(faces, config.data.faces)] + ([(public.load(), public)] if public else [])
    return {
        name: row
        for part, settings in sets
        for name, row in zip(
            record_ids(part.identities, part.names), source.load(part, settings), strict=True
        )
    }


def cut(config: VerticalConfig, faces: Faces, known: Mapping[str, NDArray[np.float32]]) -> Group:
    """Returns the records of ``faces``, cut into views; ``known`` as :func:`attributes_of`."""
    views = config.data.views
    found: dict[str, NDArray[Any]] = dict(zip(views.views, views.cut(faces.images), strict=True))
    if known:
        found[ATTRIBUTES] = np.stack([known[i] for i in record_ids(faces.identities, faces.names)])
    identities = record_identities(views, faces.identities)
    return Group({view: found[view] for view in views_used(config)}, identities, faces.names)
