"""Dirichlet: each identity is spread over the clients in proportions drawn from Dir(alpha).

Yurochkin et al., "Bayesian Nonparametric Federated Learning of Neural Networks", ICML 2019
(https://arxiv.org/abs/1905.12022), section 4: p_k ~ Dir_J(alpha) per class k over J clients. Hsu et
al., "Measuring the Effects of Non-Identical Data Distribution", 2019
(https://arxiv.org/abs/1909.06335) draw per client over classes instead, so that all clients have
equal sizes; with thousands of identities few images fit that constraint, so we follow the former,
as Flower Datasets' ``DirichletPartitioner`` does. Two deliberate differences from Flower's code:

* No self-balancing (Flower's default is on): stopping clients once they are full changes the
  proportions of the later identities, which are then no longer Dir(alpha).
* Counts are multinomial: each image draws its client from p_k. Flower cuts the images at
  ``floor(cumsum(p_k) * n_k)``; where identities have few images that starves the first clients and
  feeds the last one, at every identity anew. The multinomial favours no client.
"""

from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt

from fedface.config import Config

_MAX_DRAWS = 100


class Dirichlet(Config):
    """Shares identities between clients; smaller ``alpha``, more uneven.

    Attributes:
        alpha: Concentration, the same for each client: towards 0 each identity has one client,
            towards infinity each image draws its client uniformly. Papers differ: no default.
        min_size: Fewest images of a client (10 in Yurochkin et al.'s code and in Flower's). The
            whole draw is repeated until every client has them, at most 100 times.
    """

    name: Literal["dirichlet"] = "dirichlet"
    alpha: Annotated[float, Field(ge=1e-6, le=1e6)]
    min_size: PositiveInt = 10

    def __call__(
        self, identities: NDArray[np.int64], n_clients: int, rng: np.random.Generator
    ) -> list[NDArray[np.int64]]:
        """Returns each client's image indices: ascending, every image exactly once.

        Args:
            identities: ``(n_images,)`` the identity of each image.
            n_clients: The number of clients.
            rng: The partition's own stream.

        Raises:
            ValueError: Unless n_clients >= 1 and n_clients * min_size <= n_images, or if no draw of
                100 gives every client min_size images.
        """
        if not 1 <= n_clients <= len(identities) // self.min_size:
            raise ValueError(
                "dirichlet needs n_clients >= 1 and n_clients * min_size <= n_images, "
                f"got n_clients={n_clients}, min_size={self.min_size}, n_images={len(identities)}"
            )
        smallest = 0
        for _ in range(_MAX_DRAWS):
            owner = draw_owners(identities, n_clients, self.alpha, rng)
            fewest = int(np.bincount(owner, minlength=n_clients).min())
            if fewest >= self.min_size:
                return [np.flatnonzero(owner == client) for client in range(n_clients)]
            smallest = max(smallest, fewest)
        raise ValueError(
            f"dirichlet needs min_size={self.min_size} images at every client within {_MAX_DRAWS} "
            f"draws, got at best {smallest} at the smallest with alpha={self.alpha}, "
            f"n_clients={n_clients}, n_images={len(identities)}"
        )


def draw_owners(
    identities: NDArray[np.int64], n_clients: int, alpha: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Returns one draw of each image's client, ``(n_images,)`` in [0, n_clients).

    For identity k: p_k ~ Dir(alpha, ..., alpha), counts ~ Multinomial(n_k, p_k), images at random.
    Holds two (n_identities, n_clients) arrays.
    """
    people, person, n_images = np.unique(identities, return_inverse=True, return_counts=True)
    proportions = rng.dirichlet(np.full(n_clients, alpha), size=len(people))
    counts = rng.multinomial(n_images, proportions)  # (n_identities, n_clients)
    shuffled = rng.permutation(len(identities))
    by_person = shuffled[np.argsort(person[shuffled], kind="stable")]
    owner = np.empty(len(identities), dtype=np.int64)
    owner[by_person] = np.repeat(np.tile(np.arange(n_clients), len(people)), counts.ravel())
    return owner
