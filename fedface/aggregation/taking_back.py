"""Taking back: what a client has put into the model goes with it when it is pruned for good.

Ours. Whoever is found in round seven was trusted for six, and a backdoor that nobody else trains
against stays in the model. Since the model is the sum of the rounds' updates, what it would have
been without the pruned clients can be estimated from sums alone. With w_i the weight and u_i the
update of client i in a round, T rounds, C_i the sum of w_i u_i over rounds, S that of all clients'
and W_i the sum of w_i,

    S' = (S - C_p) / (1 - W_p / T)

for the pruned p: exact if the others had sent the same updates. (They would not have: they trained
from models with the backdoor in. Federated unlearning by subtraction has the same limit; Wu, Zhu,
Mitra 2022, https://arxiv.org/abs/2201.09441, repair it by distillation, for which a server without
faces has no data.)

A wrong exclusion costs more this way; that is why it takes several in a row.
"""

import torch
from torch import Tensor

from fedface.aggregation.cohort import Cohort, State
from fedface.aggregation.memory import CONTRIBUTED, IN_A_ROW, WEIGHTS, rows_of

TAKEN, ROUNDS = "model/updates", "model/rounds"


def take_back(
    state: State,
    cohort: Cohort,
    update: Tensor,
    trust: Tensor,
    factors: Tensor,
    pruned: Tensor,
    after: int = 1,
) -> tuple[Tensor, State]:
    """Returns the round's global update without what the pruned had put into earlier ones.

    Args:
        state: With ``clients/ids``, as :func:`fedface.aggregation.memory.remember` returned it for
            this round; not modified. Holds ``(n_known, dim)`` float32 of contributions afterwards.
        cohort: This round's.
        update: ``(dim,)`` the trusted clients' weighted sum.
        trust: ``(n_clients,)`` float64 weights, sum one.
        factors: ``(n_clients,)`` float64, by which each update was multiplied besides.
        pruned: ``(n_clients,)`` bool.
        after: Rounds in a row, of those that a client was in, for which it must have been pruned.
    """
    rows, n_known = rows_of(state, cohort), len(state["clients/ids"])
    contributed = state.get(CONTRIBUTED, torch.zeros(n_known, len(update))).clone()
    weights = state.get(WEIGHTS, torch.zeros(n_known, dtype=torch.float64)).clone()
    taken = state.get(TAKEN, torch.zeros(len(update))).double()
    n_rounds = float(state.get(ROUNDS, torch.zeros(1, dtype=torch.float64)))
    in_a_row = state.get(IN_A_ROW, torch.zeros(n_known, dtype=torch.int64)).clone()
    in_a_row[rows] = torch.where(pruned, in_a_row[rows] + 1, 0)
    gone = rows[(in_a_row[rows] >= after) & (weights[rows] > 0)]
    share = float(weights[gone].sum()) / max(n_rounds, 1.0)
    if len(gone) and share < 1:
        without = (taken - contributed[gone].double().sum(dim=0)) / (1 - share)
        update, taken = (update.double() + (without - taken)).float(), without
        contributed[gone], weights[gone] = 0.0, 0.0
        contributed /= 1 - share
        weights /= 1 - share
    for i in trust.nonzero().squeeze(1).tolist():
        contributed[rows[i]] += float(trust[i] * factors[i]) * cohort.updates[i]
        weights[rows[i]] += trust[i]
        taken += float(trust[i] * factors[i]) * cohort.updates[i].double()
    return update, {
        **state,
        CONTRIBUTED: contributed,
        WEIGHTS: weights,
        IN_A_ROW: in_a_row,
        TAKEN: taken.float(),
        ROUNDS: torch.tensor([n_rounds + 1], dtype=torch.float64),
    }
