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
from fedface.aggregation.memory import IDS, rows_of

CONTRIBUTED = "clients/contributed"
WEIGHTS = "clients/contributed_weight"
IN_A_ROW = "clients/pruned_in_a_row"
TAKEN, ROUNDS = "model/updates", "model/rounds"


def take_back(
    state: State,
    cohort: Cohort,
    update: Tensor,
    trust: Tensor,
    factors: Tensor,
    pruned: Tensor,
    after: int,
) -> tuple[Tensor, State]:
    """Returns the round's global update without what the pruned had put into earlier ones.

    Args:
        state: With ``clients/ids``, as :func:`fedface.aggregation.memory.remember` returned it for
            this round; not modified.
        cohort: This round's.
        update: ``(dim,)`` float32, the trusted clients' weighted sum.
        trust: ``(n_clients,)`` float64 weights, sum one.
        factors: ``(n_clients,)`` float64, by which each update was multiplied besides.
        pruned: ``(n_clients,)`` bool.
        after: Rounds in a row, of those that a client was in, for which it must have been pruned.

    Returns:
        ``(dim,)`` float32, and the state with, for each known client, what it has put in
        (``clients/contributed``, ``(n_known, dim)`` float32), the sum of its weights and its rounds
        in a row, and for the model the sum of all updates and the number of rounds. Where all of it
        came from the pruned, nothing is taken back.
    """
    rows, n_known = rows_of(state, cohort), len(state[IDS])
    contributed = state.get(CONTRIBUTED, torch.zeros(n_known, len(update))).clone()
    weights = state.get(WEIGHTS, torch.zeros(n_known, dtype=torch.float64)).clone()
    in_a_row = state.get(IN_A_ROW, torch.zeros(n_known, dtype=torch.int64)).clone()
    taken = state.get(TAKEN, torch.zeros_like(update)).double()
    n_rounds = state.get(ROUNDS, torch.zeros((), dtype=torch.float64))
    in_a_row[rows] = torch.where(pruned, in_a_row[rows] + 1, 0)
    gone = rows[(in_a_row[rows] >= after) & (weights[rows] > 0)]
    kept = 1 - float(weights[gone].sum() / n_rounds) if len(gone) else 1.0
    corrected = update.double()
    if 0 < kept < 1:
        without = (taken - contributed[gone].double().sum(dim=0)) / kept
        corrected, taken = corrected + without - taken, without
        contributed[gone], weights[gone] = 0.0, 0.0
        contributed, weights = contributed / kept, weights / kept
    # Rows of zero trust are left out, not multiplied: whatever they hold, it cannot arrive.
    for client in trust.nonzero().squeeze(1).tolist():
        contributed[rows[client]] += float(trust[client] * factors[client]) * cohort.updates[client]
    weights[rows] += trust
    return corrected.float(), {
        **state,
        CONTRIBUTED: contributed,
        WEIGHTS: weights,
        IN_A_ROW: in_a_row,
        TAKEN: (taken + update.double()).float(),
        ROUNDS: n_rounds + 1,
    }
