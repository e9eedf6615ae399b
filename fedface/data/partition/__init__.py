"""Partitions: ``(identities, n_clients, rng) -> one index array per client``, each image once."""

from typing import Annotated

from pydantic import Field

from fedface.data.partition.by_identity import ByIdentity
from fedface.data.partition.dirichlet import Dirichlet
from fedface.data.partition.iid import Iid

AnyPartition = Annotated[ByIdentity | Dirichlet | Iid, Field(discriminator="name")]
"""Every partition a configuration can name."""
