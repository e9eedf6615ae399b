"""By identity: no two clients know the same person, as between real sites."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedface.config import Config


class ByIdentity(Config):
    """Deals the shuffled identities out in near-equal numbers, each with all of its images.

    Image counts differ as those of the identities do; identity counts differ by at most one.
    """

    name: Literal["by_identity"] = "by_identity"

    def __call__(
        self, identities: NDArray[np.int64], n_clients: int, rng: np.random.Generator
    ) -> list[NDArray[np.int64]]:
        """Returns each client's image indices: ascending, every image once, no identity shared.

        Args:
            identities: ``(n_images,)`` the identity of each image.
            n_clients: The number of clients.
            rng: The partition's own stream.

        Raises:
            ValueError: Unless 1 <= n_clients <= n_identities.
        """
        people, person = np.unique(identities, return_inverse=True)
        if not 1 <= n_clients <= len(people):
            raise ValueError(
                f"by_identity needs 1 <= n_clients <= n_identities, got n_clients={n_clients}, "
                f"n_identities={len(people)}"
            )
        owner = np.empty(len(people), dtype=np.int64)
        for client, share in enumerate(np.array_split(rng.permutation(len(people)), n_clients)):
            owner[share] = client
        return [np.flatnonzero(owner[person] == client) for client in range(n_clients)]
