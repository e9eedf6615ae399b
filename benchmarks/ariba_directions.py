"""Variants of ARIBA's search for directions that few clients share, for ``ariba_ablation.py``."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedface.aggregation.cohort import Cohort
from fedface.aggregation.distances import cosines, gram
from fedface.aggregation.fragments import fragment_layers
from fedface.aggregation.memory import unit_residuals
from fedface.aggregation.shared_direction import SharedDirection, Sharing
from fedface.aggregation.univariate import MAD_TO_SIGMA, coordinate_median

TINY = 1e-30

Found = tuple[Tensor, dict[str, Tensor]]
"""``(n_clients,)`` scores, and by the name of the cut who is found."""


@dataclass(frozen=True)
class Directions:
    """One way to look for shared directions; the defaults are ARIBA's."""

    vectors: str = "update"
    decay: float = 0.8
    n_neighbours: int = 3
    centring: str = "core"


@dataclass
class Sharer:
    """Follows shared directions over the rounds of one recording."""

    residuals: dict[tuple[str, float], dict[int, Tensor]] = field(default_factory=dict)
    shut_out: dict[tuple[Directions, int], bool] = field(default_factory=dict)

    def __call__(self, cohort: Cohort, hows: list[Directions]) -> Iterator[Found]:
        """Adds one round; yields every variant's scores, in spreads, and who is shut out."""
        units: dict[str, Tensor] = {}
        products: dict[tuple[str, float], Tensor] = {}
        for how in hows:
            key = (how.vectors, how.decay)
            if how.vectors not in units:
                units[how.vectors] = unit_residuals(unit_pieces(cohort, how.vectors))
            if key not in products:
                products[key] = self._cosines(cohort.client_ids, units[how.vectors], key)
            rule = SharedDirection(n_neighbours=how.n_neighbours)
            before = torch.tensor([self.shut_out.get((how, i), False) for i in cohort.client_ids])
            if how.centring == "core":
                scores, found = rule.judge(products[key], before)
            else:
                scores = centred_by_all(products[key], rule)
                found = scores > torch.where(before, rule.readmit_z, rule.max_z)
            for client, out in zip(cohort.client_ids, found.tolist(), strict=True):
                self.shut_out[how, client] = out
            yield scores, {"as built": found}

    def _cosines(self, clients: tuple[int, ...], new: Tensor, key: tuple[str, float]) -> Tensor:
        """Adds the round's residuals to the remembered ones, decayed; cosines between clients."""
        memory = self.residuals.setdefault(key, {})
        for client, row in zip(clients, new, strict=True):
            memory[client] = key[1] * memory[client] + row if client in memory else row
        return cosines(gram(torch.stack([memory[client] for client in clients]), exact=False))


def unit_pieces(cohort: Cohort, unit: str) -> Tensor:
    """Returns the updates as they are, or every fragment or parameter divided by its length."""
    if unit == "update":
        return cohort.updates
    units = cohort.updates.clone()
    rows = {layer.weight.name for layer in fragment_layers(cohort.layout)}
    for slot in cohort.layout.slots:
        n_pieces = slot.shape[0] if unit == "fragment" and slot.name in rows else 1
        part = units[:, slot.start : slot.stop].reshape(len(units), n_pieces, -1)
        part = part / part.norm(dim=2, keepdim=True).clamp_min(TINY)
        units[:, slot.start : slot.stop] = part.flatten(1)
    return units


def centred_by_all(products: Tensor, rule: SharedDirection) -> Tensor:
    """Returns the scores if the mean of all clients is the consensus: the null is -1 / (n - 1)."""
    n = len(products)
    null = -1 / (n - 1)
    shares = ((products - null) / (1 - null)).fill_diagonal_(0)
    pairs = shares[tuple(torch.triu_indices(n, n, offset=1))]
    spread = MAD_TO_SIGMA * float(coordinate_median((pairs - coordinate_median(pairs)).abs()))
    everyone = Sharing(shares, torch.ones(n, dtype=torch.bool), spread)
    return everyone.scores(rule.n_neighbours, rule.pair_discount, rule.least_spread)
