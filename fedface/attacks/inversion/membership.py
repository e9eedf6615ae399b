"""Membership from released embeddings: was this person in the training set of the bottom model?

Li, Rezaei, Liu, "User-Level Membership Inference Attack against Metric Embedding Learning",
arXiv 2203.02077: training pulls the pictures of a person together, so
the embeddings of people who were trained on lie closer to each other than those of strangers. The
attacker (whoever receives embeddings of several pictures per person) computes how compact each
person is, and learns from people whose membership it knows. The classifier is ours, a logistic
regression on standardised features; the paper trains a shadow model for its own.

An active party knows whom it asked for in training: this is the attack of somebody else who gets
embeddings later, or on a bottom model that was trained elsewhere.
"""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import PositiveFloat
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn import functional

from fedface.config import Config


class Membership(Config):
    """A logistic regression on how compact each person's embeddings are.

    Attributes:
        inverse_penalty: C of scikit-learn's logistic regression.
    """

    name: Literal["membership"] = "membership"
    inverse_penalty: PositiveFloat = 1.0

    def __call__(
        self,
        embeddings: Tensor,
        people: NDArray[np.int64],
        known: NDArray[np.int64],
        is_member: NDArray[np.bool_],
    ) -> NDArray[np.float64]:
        """Returns ``(n_people,)`` log odds of membership, in ascending order of the people.

        Args:
            embeddings: ``(n, dim)`` released embeddings, two or more of each person.
            people: ``(n,)`` whom each shows.
            known: ``(n_known,)`` places, in the ascending order of the people, of those whose
                membership the attacker knows.
            is_member: ``(n_known,)``; both kinds are needed.

        Raises:
            ValueError: If shapes differ, a person has one embedding only, or the known people are
                all members or all strangers.
        """
        features = compactness(embeddings, people)
        if known.shape != is_member.shape or len(np.unique(is_member)) != 2:
            raise ValueError(
                "membership needs known members and known strangers, got "
                f"{int(is_member.sum())} members of {len(is_member)} for {len(known)} known people"
            )
        if known.min() < 0 or known.max() >= len(features):
            raise ValueError(f"known people need to lie in 0..{len(features) - 1}, got others")
        scaler = StandardScaler().fit(features[known])
        classifier = LogisticRegression(C=self.inverse_penalty)
        classifier.fit(scaler.transform(features[known]), is_member)
        odds: NDArray[np.float64] = classifier.decision_function(scaler.transform(features))
        return odds


def compactness(embeddings: Tensor, people: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns ``(n_people, 5)``: how close each person's embeddings lie to each other.

    Mean and lowest cosine of two of them, mean and largest distance to their centre, and their mean
    length.

    Raises:
        ValueError: If the shapes differ, a value is not finite or a person has one embedding only.
    """
    if embeddings.ndim != 2 or people.shape != embeddings.shape[:1]:
        raise ValueError(
            f"embeddings need shape (n, dim) and people shape (n,), got {tuple(embeddings.shape)} "
            f"and {people.shape}"
        )
    if not bool(torch.isfinite(embeddings).all()):
        raise ValueError("embeddings need finite values, got others")
    rows = []
    for person in np.unique(people):
        own = embeddings[torch.from_numpy(people == person)].double()
        if len(own) < 2:
            raise ValueError(f"every person needs two embeddings or more, got one of {person}")
        unit = functional.normalize(own, eps=1e-300)
        first, second = torch.triu_indices(len(own), len(own), 1)
        cosines = (unit @ unit.T)[first, second]
        away = (own - own.mean(0)).norm(dim=1)
        length = own.norm(dim=1).mean()
        rows.append([cosines.mean(), cosines.min(), away.mean(), away.max(), length])
    return np.array([[float(value) for value in row] for row in rows])
