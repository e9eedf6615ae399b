"""A malicious site: any face client plus an attack from fedface.attacks."""

from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message
from torch import Tensor

from clients.arrays import to_record
from clients.face import FaceClient, round_of
from fedface import parameters
from fedface.aggregation.global_model import GlobalModel
from fedface.attacks import AnyAttack
from fedface.attacks.actors import Actors
from fedface.attacks.attack import Site
from fedface.parameters import Layout
from fedface.training.local import HONEST, Hooks, LocalTraining
from fedface.training.site_update import SiteUpdate

ORDERS, NOTES = "attack-memory", "attack-notes"
"""The records that colluders exchange with their headquarters; the server never sees them."""


@dataclass(frozen=True)
class MaliciousClient:
    """One attacker among ``n_malicious`` colluders; honest in rounds without attack.

    Attributes:
        client: The honest site underneath: data, training and private head.
        attack: The attack and its schedule.
        actors: Photos that the attacker holds of the people whom the goal names.
        colluder: Its number among the colluders, from 0.
        n_clients: Clients in the federation.
        n_malicious: Colluders among them; a sampled cohort holds their share of it on average, and
            which of them it holds they do not know.
    """

    client: FaceClient
    attack: AnyAttack
    actors: Actors
    colluder: int
    n_clients: int
    n_malicious: int

    def train(self, message: Message, context: Context) -> Message:
        """Trains honestly or, when the schedule says so, as the attack does."""
        if not self.attack.active(round_of(message), self.client.n_rounds):
            return self.client.train(message, context)
        self.client.receive(message)
        trained, notes = self.attack.train(self.site(message, context))
        records = (
            {NOTES: to_record({name: note.clone() for name, note in notes.items()})}
            if notes
            else {}
        )
        return self.client.reply(message, context, trained, **records)

    def evaluate(self, message: Message, context: Context) -> Message:
        """Evaluates like the honest site."""
        return self.client.evaluate(message, context)

    def site(self, message: Message, context: Context) -> Site:
        """Returns what the attack may use here: call it after the weights were received."""
        honest = self.client
        layout = Layout.of(honest.backbone)
        weights = layout.flatten(parameters.trainable(honest.backbone))
        buffers = parameters.buffers(honest.backbone)
        model = GlobalModel(
            weights,
            layout,
            honest.backbone,
            honest.head,
            honest.training,
            honest.embedding_size,
            honest.images.shape[1],
            honest.n_rounds,
            buffers,
        )

        def train(hooks: Hooks = HONEST, training: LocalTraining | None = None) -> SiteUpdate:
            model.loaded()
            return honest.run(message, context, hooks, training)

        return Site(
            client=honest.client,
            colluder=self.colluder,
            n_malicious=self.n_malicious,
            n_clients=self.n_clients,
            server_round=round_of(message),
            seed=honest.seed,
            model=model,
            images=honest.images,
            labels=honest.labels,
            actors=on_device(self.actors, honest.device),
            memory=memory_of(message),
            device=honest.device,
            train=train,
        )


def memory_of(message: Message) -> dict[str, Tensor]:
    """Returns what headquarters put into ``message``; empty where it put nothing."""
    record = message.content.array_records.get(ORDERS, ArrayRecord())
    return {name: torch.from_numpy(np.array(array.numpy())) for name, array in record.items()}


def on_device(actors: Actors, device: torch.device) -> Actors:
    """Returns ``actors`` with their photos on ``device``."""
    victim, accomplice = actors.victim, actors.accomplice
    return Actors(
        None if victim is None else victim.to(device),
        None if accomplice is None else accomplice.to(device),
    )
