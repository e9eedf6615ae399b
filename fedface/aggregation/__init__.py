"""Aggregation: one defence per module, each maps a cohort's updates to one server update."""

from typing import Annotated

from pydantic import Field

from fedface.aggregation.ariba import Ariba
from fedface.aggregation.cohort import Aggregation, Aggregator, Cohort, State
from fedface.aggregation.krum import MultiKrum
from fedface.aggregation.mean import Mean

AnyAggregator = Annotated[Mean | MultiKrum | Ariba, Field(discriminator="name")]
"""Every aggregator a YAML file can name. Adding one is adding its class to this line."""

__all__ = [
    "Aggregation",
    "Aggregator",
    "AnyAggregator",
    "Ariba",
    "Cohort",
    "Mean",
    "MultiKrum",
    "State",
]
