"""Random people as unit embeddings: a centre per identity and noise per image."""

import numpy as np


def random_people(n_images, noise=0.8, dim=16, seed=0):
    """Embeddings and shuffled identities; ``n_images[i]`` images of person i."""
    rng = np.random.default_rng(seed)
    identities = rng.permutation(np.repeat(np.arange(len(n_images)), n_images)).astype(np.int64)
    centres = rng.normal(size=(len(n_images), dim))
    raw = centres[identities] + noise * rng.normal(size=(len(identities), dim))
    return unit(raw), identities


def unit(raw):
    raw = np.asarray(raw, dtype=np.float64)
    return (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float32)


def cosine(a, b):
    """The score by the definition: a Python sum."""
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True))


def pairs_of(embeddings, identities):
    """Every pair once, in loops: genuine scores, impostor scores."""
    genuine, impostor = [], []
    for i in range(len(embeddings)):
        for j in range(i + 1, len(embeddings)):
            side = genuine if identities[i] == identities[j] else impostor
            side.append(cosine(embeddings[i], embeddings[j]))
    return np.array(genuine), np.array(impostor)
