"""The part of a run's configuration that only real sites need: who takes part."""

from typing import Annotated, Self

from pydantic import Field, PositiveFloat, StringConstraints, model_validator

from fedface.config import Config

SiteName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
"""Lower-case letters, digits and hyphens: it is a file name, too."""


class Deployment(Config):
    """Which sites a run asks; nobody else gets its messages, connected or not.

    Attributes:
        sites: Names as they were admitted. A site's place in this list is its client id, so the
            order is part of the run: another order gives other random streams.
        poll_seconds: Pause between two looks for replies and for connected sites.
    """

    sites: Annotated[tuple[SiteName, ...], Field(min_length=1)]
    poll_seconds: PositiveFloat = 1.0

    @model_validator(mode="after")
    def _sites_differ(self) -> Self:
        if len(set(self.sites)) != len(self.sites):
            raise ValueError(f"sites need names that differ, got {', '.join(self.sites)}")
        return self
