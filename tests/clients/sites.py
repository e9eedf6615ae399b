"""A tiny site and the messages that a server sends it."""

from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from torch import Tensor

from clients.face import FaceClient
from clients.state import SiteState
from fedface import parameters
from fedface.backbones import SmallConv
from fedface.heads import CosFace
from fedface.random import numpy_stream, stream
from fedface.training.local import LocalTraining
from fedface.training.optimizers import SGD

N_IDENTITIES, EMBEDDING_SIZE = 7, 16
TRAINING = LocalTraining(batch_size=7, optimizer=SGD(learning_rate=0.02))


def site(
    client: int = 0,
    folder: Path | None = None,
    norm: str = "batch",
    training: LocalTraining = TRAINING,
    n_rounds: int = 10,
) -> FaceClient:
    """A site of seven people with two images each, 16 pixels wide."""
    rng = numpy_stream(client, "images")
    config = SmallConv(norm=norm, widths=(4, 4, 8, 8), embedding_size=EMBEDDING_SIZE)
    return FaceClient(
        client=client,
        images=rng.integers(0, 256, (14, 16, 16, 3)).astype(np.uint8),
        labels=np.repeat(np.arange(N_IDENTITIES), 2),
        n_identities=N_IDENTITIES,
        backbone=config.build(16, stream(0, "backbone")),
        head=CosFace(scale=16, margin=0.1),
        embedding_size=EMBEDDING_SIZE,
        training=training,
        n_rounds=n_rounds,
        seed=0,
        state=SiteState(folder),
        device=torch.device("cpu"),
    )


def global_model(norm: str = "batch") -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The global weights and buffers, other ones than a new site's backbone has."""
    config = SmallConv(norm=norm, widths=(4, 4, 8, 8), embedding_size=EMBEDDING_SIZE)
    backbone = config.build(16, stream(0, "global"))
    buffers = parameters.buffers(backbone)
    for name, value in buffers.items():
        if value.is_floating_point():
            buffers[name] = value + 0.25
    return parameters.trainable(backbone), buffers


def message(server_round: int, kind: str = "train", norm: str = "batch") -> Message:
    """What a server asks in ``server_round``."""
    weights, buffers = global_model(norm)
    records = {
        "arrays": ArrayRecord(dict(weights)),
        "buffers": ArrayRecord(dict(buffers)),
        "config": ConfigRecord({"server-round": server_round}),
    }
    return Message(RecordDict(records), 7, kind)


def context() -> Context:
    """What Flower keeps for a node that has done nothing yet."""
    return Context(1, 7, {"partition-id": 0, "num-partitions": 4}, RecordDict(), {})


def tensors(reply: Message, record: str = "arrays") -> dict[str, Tensor]:
    """The arrays of a reply."""
    found = reply.content.array_records[record]
    return {name: torch.from_numpy(array.numpy().copy()) for name, array in found.items()}


def same_reply(left: Message, right: Message) -> bool:
    """Whether two train replies say the same, bit by bit."""
    return (
        set(left.content) == set(right.content)
        and dict(left.content["metrics"]) == dict(right.content["metrics"])
        and all(
            set(tensors(left, record)) == set(tensors(right, record))
            and all(
                torch.equal(v, tensors(right, record)[n]) for n, v in tensors(left, record).items()
            )
            for record in ("arrays", "buffers")
        )
    )
