"""Comparison scores: cosines of embeddings, sorted into genuine and impostor pairs.

A pair is *genuine* when both images show one person and *impostor* otherwise (ISO/IEC 19795-1:
mated and non-mated). Scores are float64 and higher means more alike.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

DECIMALS = 12
"""Scores are rounded to this many decimals, far below the 7 digits of float32 embeddings.

Matrix products sum in an order that depends on where a row lies, so pairs of equal images would
differ in the 16th decimal; rounded they tie, as they do on paper.
"""


@dataclass(frozen=True)
class PairScores:
    """The scores of all pairs of different images, each pair once.

    Attributes:
        genuine: ``(n_genuine,)`` float64 scores of pairs that show one identity.
        impostor: ``(n_impostor,)`` float64 scores of pairs that show two.
        genuine_identities: ``(n_genuine,)`` int32, each genuine pair's identity.
        impostor_identities: ``(n_impostor, 2)`` int32, each impostor pair's identities, ascending.
        n_images: ``(n_identities,)`` int64 images per identity. Identities are counted
            0..n_identities-1 in ascending order of the labels given.
    """

    genuine: NDArray[np.float64]
    impostor: NDArray[np.float64]
    genuine_identities: NDArray[np.int32]
    impostor_identities: NDArray[np.int32]
    n_images: NDArray[np.int64]


def check_embeddings(embeddings: NDArray[np.floating[Any]], identities: NDArray[Any]) -> None:
    """Checks that ``embeddings`` are ``(n, dim)``, of length one, and labelled one by one.

    Raises:
        ValueError: If a shape differs, a value is not finite, a row is more than 1e-3 from length
            one, or ``identities`` are no integers.
    """
    if embeddings.ndim != 2 or identities.shape != embeddings.shape[:1]:
        raise ValueError(
            "embeddings need shape (n, dim) and identities shape (n,), "
            f"got {embeddings.shape} and {identities.shape}"
        )
    if not np.issubdtype(identities.dtype, np.integer):
        raise ValueError(f"identities need an integer dtype, got {identities.dtype}")
    norms = np.linalg.norm(embeddings.astype(np.float64), axis=1)
    wrong = np.flatnonzero(~(np.abs(norms - 1) <= 1e-3))
    if len(wrong) > 0:
        raise ValueError(
            f"embeddings need length 1 (within 1e-3), got {norms[wrong[0]]} in row {wrong[0]}"
        )


def cosine_scores(
    probes: NDArray[np.floating[Any]], gallery: NDArray[np.floating[Any]]
) -> NDArray[np.float64]:
    """Returns the ``(n_probes, n_gallery)`` cosines of two sets of unit embeddings.

    The products are summed in float64 and rounded to :data:`DECIMALS`.
    """
    scores: NDArray[np.float64] = probes.astype(np.float64) @ gallery.astype(np.float64).T
    return np.round(scores, DECIMALS)


def pair_scores(
    embeddings: NDArray[np.floating[Any]], identities: NDArray[Any], block_size: int = 1024
) -> PairScores:
    """Returns the scores of all n (n - 1) / 2 pairs of images, 16 bytes each.

    Args:
        embeddings: ``(n, dim)``, L2-normalised.
        identities: ``(n,)`` integers: whom each image shows.
        block_size: Rows compared at once, which bounds the working memory.

    Raises:
        ValueError: If the embeddings fail :func:`check_embeddings` or ``block_size`` is below 1.
    """
    check_embeddings(embeddings, identities)
    if block_size < 1:
        raise ValueError(f"pair_scores needs block_size >= 1, got {block_size}")
    _, inverse, n_images = np.unique(identities, return_inverse=True, return_counts=True)
    order = np.argsort(inverse, kind="stable")
    index, embeddings = inverse[order].astype(np.int32), embeddings[order]
    genuine: list[NDArray[np.float64]] = [np.empty(0)]
    impostor: list[NDArray[np.float64]] = [np.empty(0)]
    genuine_of: list[NDArray[np.int32]] = [np.empty(0, np.int32)]
    impostor_of: list[NDArray[np.int32]] = [np.empty((0, 2), np.int32)]
    for start in range(0, len(embeddings), block_size):
        stop = min(start + block_size, len(embeddings))
        scores = cosine_scores(embeddings[start:stop], embeddings[start:])
        once = np.triu(np.ones(scores.shape, dtype=bool), k=1)
        same = index[start:stop, None] == index[None, start:]
        rows, columns = np.nonzero(once & same)
        genuine.append(scores[rows, columns])
        genuine_of.append(index[start + rows])
        rows, columns = np.nonzero(once & ~same)
        impostor.append(scores[rows, columns])
        impostor_of.append(np.stack([index[start + rows], index[start + columns]], axis=1))
    return PairScores(
        np.concatenate(genuine),
        np.concatenate(impostor),
        np.concatenate(genuine_of),
        np.concatenate(impostor_of),
        n_images.astype(np.int64),
    )


def choose_images(
    identities: NDArray[Any], max_images: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Returns the ascending indices of at most ``max_images`` images, people kept together.

    Identities are taken whole in random order, and the last one in part, so genuine pairs remain
    where single images drawn at random would leave almost none.

    Raises:
        ValueError: If ``max_images`` is below 2.
    """
    if max_images < 2:
        raise ValueError(f"max_images needs to be 2 or more, got {max_images}")
    names, index = np.unique(identities, return_inverse=True)
    place = rng.permutation(len(names))
    chosen: NDArray[np.int64] = np.sort(np.argsort(place[index], kind="stable")[:max_images])
    return chosen
