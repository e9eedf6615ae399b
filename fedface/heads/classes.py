"""What every head shares: one weight vector per identity, and labels that name identities.

A trained weight vector is a face template of its identity: a head never leaves its site.
"""

import torch
from torch import Tensor, nn


def class_weights(n_identities: int, embedding_size: int, rng: torch.Generator) -> nn.Parameter:
    """Returns ``(n_identities, embedding_size)`` weights from N(0, 1 / embedding_size).

    Rows of about length one. InsightFace draws from N(0, 0.01^2), rows of length 0.23 at d = 512:
    a margin head sees directions alone, so a step turns a row by its size over the row's length
    squared, and with the few identities and short rounds of one site such short rows spin.

    Raises:
        ValueError: If ``n_identities`` or ``embedding_size`` is below 1.
    """
    if n_identities < 1 or embedding_size < 1:
        raise ValueError(
            "a head needs n_identities >= 1 and embedding_size >= 1, "
            f"got {n_identities=}, {embedding_size=}"
        )
    shape = (n_identities, embedding_size)
    drawn = torch.randn(shape, generator=rng, device=rng.device).cpu()
    return nn.Parameter(drawn / embedding_size**0.5)


def check_inputs(embeddings: Tensor, labels: Tensor, embedding_size: int) -> None:
    """Refuses embeddings and labels that do not belong together or not to the head.

    Raises:
        ValueError: If ``embeddings`` is not ``(batch, embedding_size)`` or ``labels`` not
            ``(batch,)`` int64.
    """
    if embeddings.ndim != 2 or embeddings.shape[1] != embedding_size:
        raise ValueError(
            f"embeddings need shape (batch, {embedding_size}), got {tuple(embeddings.shape)}"
        )
    if labels.shape != embeddings.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(
            f"labels need shape ({len(embeddings)},) and dtype torch.int64, "
            f"got {tuple(labels.shape)} {labels.dtype}"
        )


def at_labels(scores: Tensor, labels: Tensor) -> Tensor:
    """Returns ``scores[i, labels[i]]`` as ``(batch, 1)``.

    Args:
        scores: ``(batch, n_identities)``.
        labels: ``(batch,)`` int64 in 0..n_identities - 1.

    Raises:
        ValueError: If a label is out of range. On an accelerator, where looking would stall it,
            the device reports that itself, later.
    """
    try:
        return scores.gather(1, labels[:, None])
    except RuntimeError as error:
        raise ValueError(f"labels need to lie in 0..{scores.shape[1] - 1}: {error}") from error
