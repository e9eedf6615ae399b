"""IID: every client gets a uniform random share of all images, whoever they show."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedface.config import Config


class Iid(Config):
    """Deals the shuffled images out in near-equal shares; clients share identities."""

    name: Literal["iid"] = "iid"

    def __call__(
        self, identities: NDArray[np.int64], n_clients: int, rng: np.random.Generator
    ) -> list[NDArray[np.int64]]:
        """Returns each client's image indices: ascending, every image once, sizes within one.

        Args:
            identities: ``(n_images,)`` the identity of each image (only its length counts here).
            n_clients: The number of clients.
            rng: The partition's own stream.

        Raises:
            ValueError: Unless 1 <= n_clients <= n_images.
        """
        n_images = len(identities)
        if not 1 <= n_clients <= n_images:
            raise ValueError(
                f"iid needs 1 <= n_clients <= n_images, got n_clients={n_clients}, "
                f"n_images={n_images}"
            )
        shares = np.array_split(rng.permutation(n_images), n_clients)
        return [np.sort(share) for share in shares]
