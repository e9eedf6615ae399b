"""Model replacement: scale the poisoned update until it survives the mean.

Bagdasaryan, Veit, Hua, Estrin, Shmatikov, "How To Backdoor Federated Learning", 2018 (AISTATS
2020), https://arxiv.org/abs/1807.00459. An attacker who wants the global model to become X sends
w + gamma * (X - w) with gamma = n / eta; where the honest updates nearly cancel, the mean is X.
"""

from typing import Literal

from pydantic import PositiveFloat
from torch import Tensor

from fedface.attacks.backdoor.attack import Backdoor


class ModelReplacement(Backdoor):
    """Poisoned training as in ``Poisoning``, then the update times gamma.

    Attributes:
        scale: gamma, or None for n_clients / n_malicious: eta = 1 and m colluders that share the
            replacement, each n / m instead of the paper's n of a single attacker. Exact for a plain
            mean of the cohort at server learning rate 1; where the mean is weighted by example
            counts or the rate differs, the attacker overshoots or falls short unless given a scale.
    """

    name: Literal["model_replacement"] = "model_replacement"
    scale: PositiveFloat | None = None

    def craft(self, update: Tensor, n_clients: int, n_malicious: int) -> Tensor:
        """Returns gamma * (X - w), where ``update`` is X - w: see :class:`Backdoor`.

        Raises:
            ValueError: Unless 1 <= n_malicious <= n_clients.
        """
        if not 1 <= n_malicious <= n_clients:
            raise ValueError(
                "model_replacement needs 1 <= n_malicious <= n_clients, "
                f"got n_malicious={n_malicious}, n_clients={n_clients}"
            )
        scale = n_clients / n_malicious if self.scale is None else self.scale
        return scale * update
