"""The variants that ``ariba_ablation.py`` compares, and the counting of outlier fragments.

Product code does the work wherever a variant is a setting of it; a variant is the default (what
``fedface.aggregation.ariba`` does) but for one field.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from ariba_directions import Directions, Found
from scipy.stats import chi2
from sklearn.covariance import EmpiricalCovariance, LedoitWolf
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors
from torch import Tensor
from torch.nn.functional import cosine_similarity

from fedface.aggregation.ariba import Ariba
from fedface.aggregation.cohort import Cohort
from fedface.aggregation.fragments import cut, fragment_layers
from fedface.aggregation.outlier_fragments import POINTS_PER_COMPONENT
from fedface.aggregation.points import principal_components, standardise
from fedface.aggregation.prune import MadCut
from fedface.aggregation.robust_scatter import robust_scatter
from fedface.aggregation.univariate import coordinate_median
from fedface.parameters import Layout
from fedface.random import numpy_stream

TINY = 1e-30
CUTS = {"as built": MadCut(), "z > 3": MadCut(floor=1.0, min_excess=0.0)}
"""Who counts as found: ARIBA's own cut and the literal one, three robust standard deviations."""


@dataclass(frozen=True)
class Counting:
    """One way to count outlier fragments; the defaults are ARIBA's."""

    fragments: str = "filter"
    layers: str = "all"
    pooling: str = "layer"
    statistic: str = "robust"
    n_components: int = 8
    preprocessing: str = "centre+scale"
    quantile: float = 0.99
    count: str = "layer"
    magnitude: Literal["raw", "expected"] = "expected"


Variant = Counting | Directions | None
"""None: both detectors together, as ARIBA joins them."""


_CHUNKS = {f"F4 chunks of {n}": {"fragments": f"chunk {n}"} for n in (64, 256, 1024)}
_LAYERS = ("all conv", "first conv", "last conv + fc", "fc only (F3)")
_STATISTICS = {
    "Mahalanobis, classical": "classical",
    "Mahalanobis, shrinkage": "shrinkage",
    "LOF": "lof",
    "isolation forest": "forest",
    "kNN distance": "knn",
    "norm only": "norm",
    "orientation only": "orientation",
}
Choices = dict[str, dict[str, Any]]
"""Label -> the fields that differ from the default."""

_COUNTINGS: dict[str, Choices] = {
    "fragment": {
        "F2 2-D kernel": {"fragments": "kernel"},
        **_CHUNKS,
        "F5 whole layer": {"fragments": "layer"},
        "F6 whole model": {"fragments": "model"},
    },
    "layers": {label: {"layers": label} for label in _LAYERS},
    "pooling": {"per position": {"pooling": "position"}},
    "statistic": {label: {"statistic": name} for label, name in _STATISTICS.items()}
    | {"PCA-2 + Mahalanobis": {"statistic": "classical", "n_components": 2}},
    "preprocessing": {s: {"preprocessing": s} for s in ("none", "centre", "unit norm")},
    "magnitude": {"raw": {"magnitude": "raw"}},
    "threshold": {f"q = {q}": {"quantile": q} for q in (0.95, 0.975, 0.999)},
    "count": {"raw": {"count": "raw"}, "soft": {"count": "soft"}},
}
_DIRECTIONS: dict[str, Choices] = {
    "vectors": {f"per-{unit} unit": {"vectors": unit} for unit in ("fragment", "layer")},
    "decay": {str(decay): {"decay": decay} for decay in (0.0, 0.5, 1.0)},
    "neighbours": {str(k): {"n_neighbours": k} for k in (1, 5)},
    "centring": {"mean of all": {"centring": "all"}},
}


def variants() -> dict[tuple[str, str], Variant]:
    """Returns (axis, label) -> variant: the defaults first, then what differs from them."""
    grid: dict[tuple[str, str], Variant] = {
        ("ARIBA", "both detectors"): None,
        ("ARIBA", "outlier fragments (default)"): Counting(),
        ("ARIBA", "shared directions (default)"): Directions(),
    }
    for axis, choices in _COUNTINGS.items():
        grid |= {(axis, label): Counting(**changes) for label, changes in choices.items()}
    for axis, choices in _DIRECTIONS.items():
        axis = f"sharing: {axis}"
        grid |= {(axis, label): Directions(**changes) for label, changes in choices.items()}
    return grid


@dataclass
class Counter:
    """Counts outlier fragments of one cohort; what variants share is computed once."""

    cohort: Cohort
    cache: dict[Counting, dict[str, tuple[Tensor, int | None]]] = field(default_factory=dict)
    points: dict[tuple[str, Counting], Tensor] = field(default_factory=dict)

    def __call__(self, how: Counting) -> Found:
        """Returns the clients' counts and who is found; a soft count has no cut."""
        if how.count == "soft":
            excesses = [d - limit(d, r, how) for d, r in self.distances(how).values()]
            return torch.stack([e.clamp_min(0).mean(dim=1) for e in excesses]).sum(dim=0), {}
        flags = self.flags(how)
        counts = torch.stack([f.double().mean(dim=1) for f in flags.values()]).mean(dim=0)
        spread = Ariba(quantile=how.quantile).null_spread(flags)
        return counts, {name: rule(counts, spread) for name, rule in CUTS.items()}

    def flags(self, how: Counting) -> dict[str, Tensor]:
        """Returns layer -> ``(n_clients, n_fragments)`` bool; a raw count has one layer of all."""
        flags = {name: d > limit(d, r, how) for name, (d, r) in self.distances(how).items()}
        return {"all": torch.cat(list(flags.values()), dim=1)} if how.count == "raw" else flags

    def distances(self, how: Counting) -> dict[str, tuple[Tensor, int | None]]:
        """Returns layer -> ``(n_clients, n_fragments)`` distances and their chi-square degrees.

        Degrees are None where the distance is no Mahalanobis distance: there the threshold is the
        quantile of the layer's own distances.
        """
        key = replace(how, layers="all", quantile=0.99, count="layer")
        if key not in self.cache:
            scale = Ariba(magnitude=how.magnitude).scale(self.cohort).float()
            parts = pieces(self.cohort.updates / scale[:, None], self.cohort.layout, how.fragments)
            self.cache[key] = {name: self._layer(name, part, how) for name, part in parts.items()}
        found = self.cache[key]
        return {name: found[name] for name in found if name in chosen(self.cohort, how, found)}

    def _layer(self, name: str, fragments: Tensor, how: Counting) -> tuple[Tensor, int | None]:
        n, n_fragments, _ = fragments.shape
        if how.statistic in ("norm", "orientation"):
            values = _feature(fragments, how.statistic)
            points = (values - coordinate_median(values)).reshape(-1, 1)
            how = Counting()
        elif how.pooling == "position":
            return self._positions(preprocessed(fragments, how.preprocessing), how)
        else:
            points = self._components(name, fragments, how)
        rng = numpy_stream(self.cohort.seed, how.statistic, self.cohort.server_round, name)
        distances, degrees = _distances(points, how.statistic, rng)
        return distances.reshape(n, n_fragments), degrees

    def _components(self, name: str, fragments: Tensor, how: Counting) -> Tensor:
        """The layer's pooled fragments in principal components, as the product reduces them."""
        key = (name, replace(how, layers="all", quantile=0.99, count="layer", statistic="robust"))
        if key not in self.points:
            rng = numpy_stream(self.cohort.seed, "ariba pca", self.cohort.server_round, name)
            points = preprocessed(fragments, how.preprocessing).flatten(0, 1)
            r = min(how.n_components, points.shape[1], len(points) // POINTS_PER_COMPONENT)
            self.points[key] = principal_components(points, r, rng)
        return self.points[key]

    def _positions(self, points: Tensor, how: Counting) -> tuple[Tensor, int | None]:
        """Each position over the clients alone: n points, so n / 5 components."""
        n, _, dim = points.shape
        r = min(how.n_components, dim, n // POINTS_PER_COMPONENT)
        left, singular, _ = torch.linalg.svd(points.transpose(0, 1), full_matrices=False)
        reduced = (left * singular[:, None])[:, :, :r]
        columns = [robust_scatter(p, 0.75).squared_distances(p) for p in reduced]
        return torch.stack(columns, dim=1), r


def limit(distances: Tensor, degrees: int | None, how: Counting) -> float:
    """Returns the distance beyond which a fragment is an outlier."""
    if degrees is None:
        return float(np.quantile(distances, how.quantile))
    return float(chi2.ppf(how.quantile, degrees))


def chosen(cohort: Cohort, how: Counting, found: Collection[str]) -> set[str]:
    """Returns which of the ``found`` layers the variant counts in."""
    if how.layers == "all":
        return set(found)
    layers = fragment_layers(cohort.layout)
    conv = [layer.name for layer in layers if len(layer.weight.shape) == 4]
    fc = [layer.name for layer in layers if len(layer.weight.shape) == 2]
    which = {"all conv": conv, "first conv": conv[:1], "fc only (F3)": fc}
    return set({**which, "last conv + fc": conv[-1:] + fc}[how.layers])


def pieces(updates: Tensor, layout: Layout, kind: str) -> dict[str, Tensor]:
    """Returns layer -> ``(n_clients, n_fragments, fragment_dim)``; a chunk's short rest is left."""
    n, dim = updates.shape
    if kind == "model":
        return {"model": updates[:, None]}
    if kind.startswith("chunk"):
        size = int(kind.split()[1])
        return {"chunks": updates[:, : dim // size * size].reshape(n, -1, size)}
    parts = {}
    for layer in fragment_layers(layout):
        rows = cut(updates, layer)
        if kind == "layer":
            rows = rows.flatten(1)[:, None]
        if kind == "kernel" and len(layer.weight.shape) == 4:
            kernels = updates[:, layer.weight.start : layer.weight.stop]
            rows = kernels.reshape(n, -1, layer.weight.shape[2] * layer.weight.shape[3])
        parts[layer.name] = rows
    return parts


def preprocessed(fragments: Tensor, step: str) -> Tensor:
    """Returns the fragments after one of: none, centre, centre+scale (the default), unit norm."""
    if step == "none":
        return fragments
    if step == "centre":
        return fragments - coordinate_median(fragments)
    if step == "unit norm":
        fragments = fragments / fragments.norm(dim=2, keepdim=True).clamp_min(TINY)
    return standardise(fragments)


def _feature(fragments: Tensor, name: str) -> Tensor:
    """One number a fragment: its log length, or its cosine to the clients' median fragment."""
    lengths: Tensor = fragments.norm(dim=2).clamp_min(TINY)
    if name == "norm":
        return lengths.log()
    middle = coordinate_median(fragments)
    return cosine_similarity(fragments, middle, dim=2, eps=TINY)


def _distances(
    points: Tensor, statistic: str, rng: np.random.Generator
) -> tuple[Tensor, int | None]:
    """How far out each of the ``(n, r)`` points is, and the chi-square degrees or None."""
    r = points.shape[1]
    if statistic == "robust":
        return robust_scatter(points, 0.75).squared_distances(points), r
    x = points.double().numpy()
    covariance = {"classical": EmpiricalCovariance, "shrinkage": LedoitWolf}
    if statistic in covariance:
        return torch.from_numpy(covariance[statistic]().fit(x).mahalanobis(x)), r
    return torch.from_numpy(_NEIGHBOURHOODS[statistic](x, rng)), None


_NEIGHBOURHOODS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "lof": lambda x, rng: -LocalOutlierFactor(min(20, len(x) - 1)).fit(x).negative_outlier_factor_,
    "forest": lambda x, rng: (
        -IsolationForest(random_state=int(rng.integers(1 << 31))).fit(x).score_samples(x)
    ),
    "knn": lambda x, rng: NearestNeighbors(n_neighbors=5).fit(x).kneighbors()[0][:, -1],
}
