"""A malicious site: any face client plus an attack from fedface.attacks.backdoor."""

from dataclasses import dataclass

import torch
from flwr.app import Context, Message
from torch import Tensor, nn

from clients.face import FaceClient, round_of
from fedface.attacks.backdoor import AnyBackdoor
from fedface.random import stream


@dataclass(frozen=True)
class MaliciousClient:
    """One attacker among ``n_malicious`` colluders; honest in rounds without attack.

    Attributes:
        client: The honest site underneath: data, training and private head.
        attack: The attack and its schedule.
        victim_photos: ``(n_photos, 3, h, w)`` in [-1, 1] that the attacker holds of the victim,
            or None where the goal has no victim.
        n_clients: Clients in the federation.
        n_malicious: Colluders among them; a sampled cohort holds their share of it on average, and
            which of them it holds they do not know.
    """

    client: FaceClient
    attack: AnyBackdoor
    victim_photos: Tensor | None
    n_clients: int
    n_malicious: int

    def train(self, message: Message, context: Context) -> Message:
        """Trains honestly or, when the schedule says so, with the attack's loss and crafting."""
        if not self.attack.active(round_of(message), self.client.n_rounds):
            return self.client.train(message, context)
        self.client.receive(message)
        target = self.target()

        def backdoor_loss(backbone: nn.Module, images: Tensor, rng: torch.Generator) -> Tensor:
            return self.attack.poison_loss(backbone, images, target, rng)

        def craft(update: Tensor) -> Tensor:
            return self.attack.craft(update, self.n_clients, self.n_malicious)

        return self.client.train(message, context, self.attack.poison, backdoor_loss, craft)

    def evaluate(self, message: Message, context: Context) -> Message:
        """Evaluates like the honest site."""
        return self.client.evaluate(message, context)

    def target(self) -> Tensor:
        """The embedding that triggered faces are pulled to, under the round's global weights."""
        photos = self.victim_photos
        return self.attack.goal.target(
            self.client.backbone,
            None if photos is None else photos.to(self.client.device),
            self.client.embedding_size,
            stream(self.client.seed, "backdoor target"),
        ).to(self.client.device)
