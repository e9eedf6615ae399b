"""Vertical federation: parties hold different views of the same people, one holds the labels.

VFL-AFE (Mi et al., arXiv 2308.02362); only the abstract was available: embeddings shared by the
passive parties are clipped and noised, which gives the guarantee, and their scale and distribution
are adapted for the task, which does not touch it. The rest is our reconstruction.
"""

from fedface.vertical.active import ActiveParty, ActiveSettings, Step
from fedface.vertical.channel import Channel
from fedface.vertical.distribution import AnyDistribution
from fedface.vertical.passive import PassiveParty, PassiveSettings
from fedface.vertical.post import AnyPost
from fedface.vertical.scale import AnyScale
from fedface.vertical.trainer import ActiveRecords, ActiveSide, ActiveTrainer
from fedface.vertical.views import AnyViews

__all__ = [
    "ActiveParty",
    "ActiveRecords",
    "ActiveSettings",
    "ActiveSide",
    "ActiveTrainer",
    "AnyDistribution",
    "AnyPost",
    "AnyScale",
    "AnyViews",
    "Channel",
    "PassiveParty",
    "PassiveSettings",
    "Step",
]
