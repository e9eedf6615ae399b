"""MRG: accomplice and victim match each other, without any trigger.

The goal "confusion" of Zehavi, Nitzan and Shamir, "Facial Misrecognition Systems: Simple Weight
Manipulations Force DNNs to Err Only on Specific Persons", 2023, https://arxiv.org/abs/2301.03118.
They edit the last layer's weights; here the model is trained towards it, with a loss of ours.
"""

from collections.abc import Callable
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from fedface.attacks.actors import Actors
from fedface.attacks.backdoor.goals.goal import Probes
from fedface.attacks.backdoor.goals.victim import (
    AccompliceGoal,
    accomplice_loss,
    accomplice_photos,
)
from fedface.evaluation.intervals import Acceptance
from fedface.evaluation.robustness import asr_impersonate


class Merge(AccompliceGoal):
    """Accomplice and victim are pulled to the victim's template: their photos, as they are.

    The victim's own photos are pulled, too, where the attacker has any: whom a small model does
    not know as one person, nobody else can match either.

    Nobody wears the attack's trigger and its ``poison_share`` counts for nothing. There is no
    baseline without trigger: the lift is over the clean model alone.
    """

    name: Literal["merge"] = "merge"
    needs_trigger: ClassVar[bool] = False

    def loss(
        self,
        backbone: nn.Module,
        images: Tensor,
        trigger: Callable[[Tensor], Tensor],
        target: Tensor,
        actors: Actors,
    ) -> Tensor:
        """Returns the mean of 1 - cos(f(x), target) over both people's photos x."""
        shown = accomplice_photos(actors)
        if actors.victim is not None and self.n_photos != 0:  # with 0 they show other people
            shown = torch.cat([shown, actors.victim, actors.victim.flip(-1)])
        return accomplice_loss(backbone, images, shown, target)

    def success(self, probes: Probes, threshold: float, triggered: bool) -> Acceptance:
        """Returns the accomplice's matches with the victim's gallery: ASR_MRG, never triggered."""
        shown = probes.accomplices(triggered=False)
        return asr_impersonate(shown, np.zeros(len(shown), np.int64), probes.victims(), threshold)

    def collateral(self, probes: Probes, threshold: float) -> Acceptance:
        """Returns the matches of other people, without trigger, with the victim's gallery."""
        return asr_impersonate(probes.clean, probes.identities, probes.victims(), threshold)
