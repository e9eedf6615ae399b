"""Site policies in a run's configuration, and the hash by which a policy names a run."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from clients.policy import SitePolicy, sha256_of
from fedface.config import Config

if TYPE_CHECKING:
    from simulations.schema import RunConfig


class SitePolicies(Config):
    """What may leave each simulated site; real sites have a file of their own instead.

    A malicious site has no gate: nobody polices himself.

    Attributes:
        everywhere: The policy of all sites, None for no gate.
        sites: Policies of single sites by partition id, in place of the former; None for no gate.
    """

    everywhere: SitePolicy | None = None
    sites: dict[Annotated[int, Field(ge=0)], SitePolicy | None] = Field(default_factory=dict)

    def of(self, client: int) -> SitePolicy | None:
        """Returns the policy of site ``client``, None where nothing is checked."""
        return self.sites.get(client, self.everywhere)


def run_hash(config: "RunConfig") -> str:
    """Returns the SHA-256 that names what a run asks of its sites.

    Where it is run and written, the engine, and the sites' own policies do not count.
    """
    content = config.model_dump(mode="json", exclude={"policy", "output", "engine", "compare"})
    return sha256_of(content)
