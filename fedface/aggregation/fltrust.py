"""FLTrust: the server trains too, and trusts who goes its way.

Cao, Fang, Liu & Gong, "FLTrust: Byzantine-robust Federated Learning via Trust Bootstrapping",
NDSS 2021 (https://arxiv.org/abs/2012.13995): trust scores TS_i = ReLU(cos(d_i, d_0)), updates
rescaled to the length of the server's own d_0, their mean weighted by TS_i.

The paper's root set is about 100 examples of the clients' own distribution. Here it is rendered
faces (:mod:`fedface.data.renderer`), trained on exactly as a site trains, with a private head of
the server's own that it keeps between rounds. **Rendered faces differ from real ones**: on real
faces d_0 points elsewhere than it would with real root images of the same number, honest sites get
lower cosines, and what is measured is FLTrust with a synthetic root, not the paper's. The people
in the root set do not exist, so the kept head is no one's template.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from fedface import parameters
from fedface.aggregation.cohort import Aggregation, Aggregator, Cohort, State, global_model
from fedface.aggregation.distances import products_with, update_norms
from fedface.aggregation.global_model import GlobalModel
from fedface.aggregation.weights import weighted_sum
from fedface.data.faces import Faces
from fedface.data.renderer import RenderedFaces
from fedface.random import stream
from fedface.training.local import train_locally

HEAD = "fltrust/head/"
"""Before the names of the root head's parameters in the state."""


def cosines_to(updates: Tensor, reference: Tensor) -> Tensor:
    """Returns cos(d_i, d_0).

    Args:
        updates: ``(n_clients, dim)``.
        reference: ``(dim,)``, d_0.

    Returns:
        ``(n_clients,)`` float64 in [-1, 1]; zero where either has no length.
    """
    products = products_with(updates, reference)
    lengths = update_norms(updates) * update_norms(reference[None])
    return torch.where(lengths > 0, products / lengths, 0.0).clamp(-1, 1)


def root_update(
    model: GlobalModel, root: Faces, cohort: Cohort, state: State
) -> tuple[Tensor, State]:
    """Returns the server's own update from the global weights, and the state with its head.

    Trains as :func:`fedface.training.local.train_locally` trains a site, on the device of the
    model's scratch backbone, which is overwritten.

    Args:
        model: The global model.
        root: The server's images.
        cohort: For the run's seed and the round, which fix every draw.
        state: Empty or from the last round; not modified.

    Returns:
        ``(dim,)`` float32 d_0, and the state.

    Raises:
        ValueError: If the kept head has another shape, or training diverges.
    """
    backbone = model.loaded()
    head_rng = stream(cohort.seed, "fltrust root head")
    head = model.head.build(model.embedding_size, root.n_identities, head_rng)
    kept = {k.removeprefix(HEAD): v for k, v in state.items() if k.startswith(HEAD)}
    parameters.load(head, kept)
    head.to(next(backbone.parameters()).device)
    rng = stream(cohort.seed, "fltrust root", cohort.server_round)
    train_locally(
        backbone,
        head,
        root.images,
        root.identities,
        model.training,
        rng,
        cohort.server_round,
        model.n_rounds,
    )
    update = model.layout.flatten(parameters.trainable(backbone)) - model.weights
    learned = {HEAD + name: value for name, value in parameters.trainable(head).items()}
    return update, {**state, **learned}


class FLTrust(Aggregator):
    """The mean of updates at the server's own length, weighted by their cosine to its direction.

    Attributes:
        n_identities: People in the root set.
        images_per_identity: Images of each: 100 in all by default, the paper's size.
        root_seed: The renderer's seed of the root set. It must be none that a site's rendered
            data use: the paper's server shares no example with a client.
    """

    name: Literal["fltrust"] = "fltrust"
    n_identities: Annotated[int, Field(ge=2)] = 20
    images_per_identity: PositiveInt = 5
    root_seed: int = 20_210_221

    def __call__(self, cohort: Cohort, state: State) -> tuple[Aggregation, State]:
        """Returns the server-guided mean; ``trust`` is TS_i / sum TS, zero for a cosine <= 0.

        Scores are 1 - cos(d_i, d_0), in [0, 2]. The server judges by its own data, so it judges
        one client alone as well as many. If nobody has a positive cosine, the update is zero, as
        in the paper; ``trust`` must be a distribution, and is then uniform: it says that nobody
        was preferred, while nothing of anybody arrived.

        Raises:
            ValueError: If the cohort comes without its global model, if the state's head is of
                another root set, or if the server's training diverges.
        """
        model = global_model(cohort, self.name)
        reference, state = root_update(model, self._root(model.image_size), cohort, state)
        cosines = cosines_to(cohort.updates, reference)
        trusted = cosines.clamp_min(0)
        total = float(trusted.sum())
        if total == 0:
            trust = torch.full_like(trusted, 1 / len(trusted))
            return Aggregation(torch.zeros_like(reference), trust, 1 - cosines), state
        trust = trusted / total
        norms = update_norms(cohort.updates)
        rescaling = torch.where(norms > 0, update_norms(reference[None]) / norms, 0.0)
        update = weighted_sum(cohort.updates, trust * rescaling)
        return Aggregation(update, trust, 1 - cosines), state

    def _root(self, size: int) -> Faces:
        """The server's images, drawn once and cached."""
        return RenderedFaces(
            n_identities=self.n_identities,
            images_per_identity=self.images_per_identity,
            size=size,
            seed=self.root_seed,
        ).load()
