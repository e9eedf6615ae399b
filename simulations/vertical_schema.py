"""The whole configuration of a vertical run: ``kind: vertical`` in a YAML file says that it is one.

Parties hold different views of the same people; one of them, the active party, holds the labels and
the top model.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import NonNegativeInt, model_validator

from fedface.config import Config, ConfigError, parse_config, read_yaml
from fedface.privacy import EmbeddingRelease, PoissonBinomialRelease
from fedface.vertical.passive import PassiveSettings
from simulations.engine import AnyEngine, FlowerEngine
from simulations.schema import Name, merge
from simulations.vertical_sections import (
    ATTRIBUTES,
    Active,
    Parties,
    VerticalCompare,
    VerticalData,
    VerticalEvaluation,
    VerticalFederation,
    VerticalTraining,
)


class VerticalConfig(Config):
    """One complete vertical run, or with ``compare`` a set of runs that differ as stated."""

    kind: Literal["vertical"]
    name: Name
    seed: NonNegativeInt = 0
    data: VerticalData
    parties: Parties
    passive: PassiveSettings
    """What each passive party computes and how it shares it; all alike."""
    active: Active = Active()
    training: VerticalTraining = VerticalTraining()
    federation: VerticalFederation = VerticalFederation()
    evaluation: VerticalEvaluation = VerticalEvaluation()
    engine: AnyEngine = FlowerEngine()
    output: Path = Path("runs")
    compare: VerticalCompare | None = None

    @model_validator(mode="after")
    def _parties_fit(self) -> Self:
        known = self.data.view_names
        own = self.parties.active
        for view in (*self.parties.passive, *([own] if own else [])):
            if view not in known:
                raise ValueError(f"parties need views of {known}, got {view!r}")
        if own == ATTRIBUTES:
            raise ValueError(f"parties.active needs a view of pictures, got {own!r}")
        if (own is None) != (self.active.backbone is None):
            raise ValueError(
                "active.backbone is needed exactly when parties.active names a view, "
                f"got parties.active={own}, active.backbone={self.active.backbone}"
            )
        if self.training.pretraining is not None and not self.data.has_public:
            raise ValueError(
                "training.pretraining needs data.public or data.split.public >= 2, "
                f"got {self.data.split.public}"
            )
        if self.training.pretraining is None and self.training.n_rounds == 0 and self._n_passive:
            raise ValueError(
                "training.n_rounds=0 leaves bottom models as they are drawn: it needs "
                "training.pretraining, got none"
            )
        return self

    @model_validator(mode="after")
    def _views_alone_fit(self) -> Self:
        matching, passive = self.evaluation.matching, self.parties.passive
        if matching is not None and not {matching.gallery, matching.probe} <= set(passive):
            raise ValueError(
                f"evaluation.matching needs two of the passive parties' views {passive}, "
                f"got {matching.gallery!r} and {matching.probe!r}"
            )
        alone = self.training.present == "each_alone"
        if (alone or matching is not None) and self.parties.active is not None:
            raise ValueError(
                "training.present=each_alone and evaluation.matching need parties.active=null, "
                f"got {self.parties.active!r}"
            )
        return self

    @model_validator(mode="after")
    def _budget_suffices(self) -> Self:
        release = self.passive.release
        if not isinstance(release, EmbeddingRelease | PoissonBinomialRelease):
            return self
        if not self._n_passive:
            return self
        if release.n_parties != self._n_passive:
            raise ValueError(
                f"passive.release.n_parties needs to be the number of passive parties, "
                f"{self._n_passive}, got {release.n_parties}"
            )
        needed = max(self.training.releases, self._n_evaluations)
        if release.n_releases < needed:
            raise ValueError(
                f"passive.release.n_releases needs >= {needed} (training.n_rounds, one more with "
                f"training.final_release; evaluations of test records), got {release.n_releases}"
            )
        return self

    @property
    def _n_passive(self) -> int:
        return len(self.parties.passive)

    @property
    def _n_evaluations(self) -> int:
        """Evaluations with bottom models that are new: what a test record is released for."""
        rounds, every = self.training.n_rounds, self.evaluation.every
        total = self.training.total_rounds
        measured = {r for r in range(1, total + 1) if r == total or (every and r % every == 0)}
        return len({min(r, rounds) for r in measured})

    @property
    def n_nodes(self) -> int:
        """Clients of the run: the passive parties, and the active one where it is a client."""
        return self._n_passive + (self.active.at == "client")

    @property
    def folder(self) -> Path:
        """Where the run's results go."""
        return self.output / self.name

    def to_yaml_dict(self) -> dict[str, Any]:
        """The resolved configuration, every default written out, as plain YAML values."""
        return self.model_dump(mode="json")


def is_vertical(content: Mapping[str, Any]) -> bool:
    """Returns whether a YAML file's content describes a vertical run."""
    return content.get("kind") == "vertical"


def load_vertical(path: Path, output: Path | None = None) -> VerticalConfig:
    """Returns the vertical run described by the YAML file ``path``, all its variants checked.

    Raises:
        ConfigError: One line per problem, naming file, field, need and finding.
    """
    content = read_yaml(path)
    if output is not None:
        content = {**content, "output": str(output)}
    config = parse_config(content, VerticalConfig, str(path))
    vertical_variants(config, str(path))
    return config


def vertical_variants(
    config: VerticalConfig, source: str = "config"
) -> list[tuple[str, int, VerticalConfig]]:
    """Returns (variant, seed, run) in the order to run: seed by seed, variants as they stand.

    Raises:
        ConfigError: If the overrides of a variant do not give a valid run.
    """
    if config.compare is None:
        return [(config.name, config.seed, config)]
    content = config.to_yaml_dict()
    compare = content.pop("compare")
    runs = []
    for seed in config.compare.seeds:
        for name, overrides in compare["variants"].items():
            where = f"{source}: compare.variants.{name}"
            if forbidden := {"kind", "name", "seed", "compare", "output"} & set(overrides):
                raise ConfigError(
                    f"{where}: needs fields other than {sorted(forbidden)}, which the comparison "
                    "sets itself"
                )
            merged = merge(content, overrides)
            folder = str(config.folder / name)
            merged |= {"name": f"seed-{seed}", "seed": seed, "output": folder}
            runs.append((name, seed, parse_config(merged, VerticalConfig, where)))
    return runs
