import dataclasses
import statistics

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from fedface.aggregation import AnyAggregator, Ariba, LiteralAriba, Mean, MultiKrum
from fedface.aggregation.ariba import PROBE, SHARING
from fedface.aggregation.memory import IDS, RESIDUALS, SEEN, SHUT_OUT
from fedface.aggregation.probe import Probe
from fedface.aggregation.prune import MadCut, TopM
from fedface.aggregation.shared_direction import SharedDirection
from fedface.parameters import Layout
from tests.fedface.aggregation.properties import (
    PROPERTIES,
    aggregate,
    make_cohort,
    random_updates,
    unequal_cohort,
)

ATTACKERS = [2, 5, 11, 17]


def pruned(aggregation):
    return (aggregation.trust == 0).nonzero().squeeze(1).tolist()


def attacked(seed, factor=5.0, **noise):
    cohort = unequal_cohort(seed, **noise)
    updates = cohort.updates.clone()
    updates[ATTACKERS] *= factor
    return dataclasses.replace(cohort, updates=updates)


def test_scores_are_the_robust_z_of_the_counted_flags():
    cut = MadCut(max_z=1.0, floor=1.0, min_excess=0)
    cohort, rule = attacked(0), Ariba(prune=cut, sharing=None, max_excess=None)
    flags = rule.flags(cohort)
    n_layers = {"conv1": 16, "conv2": 32, "fc": 64}
    assert {name: flagged.shape[1] for name, flagged in flags.items()} == n_layers
    counts = [
        sum(sum(bool(x) for x in flags[name][i]) / size for name, size in n_layers.items()) / 3
        for i in range(20)
    ]
    middle = statistics.median(counts)
    mad = 1.4826 * statistics.median([abs(c - middle) for c in counts])
    floor = sum(0.01 * 0.99 / size for size in n_layers.values()) ** 0.5 / 3
    result = aggregate(rule, cohort)
    expected = [(c - middle) / max(mad, floor) for c in counts]
    assert result.scores.tolist() == pytest.approx(expected)
    for name, size in n_layers.items():
        shares = [sum(map(bool, flags[name][i])) / size for i in range(20)]
        assert result.layer_scores[name].tolist() == pytest.approx(shares)


def toy(seed):
    """Section 1.5: n = 10, 64 filters, d = 27, two attackers shift eight filters."""
    layout = Layout.from_shapes({"conv.weight": (64, 3, 3, 3)})
    updates = random_updates(10, layout.dim, seed)
    updates[[3, 7], : 8 * 27] += 2.0
    return make_cohort(updates, layout=layout)


def test_finds_the_toy_attackers():
    honest = 0
    for seed in range(10):
        assert pruned(aggregate(Ariba(prune=TopM(m=2)), toy(seed))) == [3, 7]
        honest += len({*pruned(aggregate(Ariba(), toy(seed)))} - {3, 7})
    assert honest <= 0.05 * 80


def test_the_mad_cut_finds_most_toy_attackers_without_knowing_how_many():
    """Eight filters of 64 are near the cut (counts 8 to 11 against up to 4), with ten clients."""
    literal = Ariba(prune=MadCut(min_excess=0))
    found = sum(len({3, 7} & {*pruned(aggregate(literal, toy(seed)))}) for seed in range(10))
    assert found >= 12


def test_the_default_leaves_attackers_of_few_filters_in():
    """The stated price of few honest exclusions: an eighth of the filters is below min_excess."""
    counting = Ariba(sharing=None)
    assert all(pruned(aggregate(counting, toy(seed))) == [] for seed in range(10))


@pytest.mark.parametrize("seed", range(4))
def test_prunes_scaled_updates_and_no_larger_site(seed):
    cohort = attacked(seed, length_noise=0.0)
    assert float(cohort.n_steps.max() / cohort.n_steps.min()) > 2.5
    result = aggregate(Ariba(), cohort)
    assert pruned(result) == ATTACKERS
    honest = [i for i in range(20) if i not in ATTACKERS]
    counts = cohort.n_examples[honest].double()
    expected = (counts / counts.sum()) @ cohort.updates[honest].double()
    torch.testing.assert_close(result.update, expected.float())


def test_prunes_scaled_updates_among_sites_of_ordinary_spread():
    for seed in range(6):
        assert set(ATTACKERS) <= set(pruned(aggregate(Ariba(), attacked(seed, length_noise=0.2))))


def test_honest_sites_stay_in_clean_rounds_only_if_length_is_expected():
    excluded = {"raw": 0, "expected": 0}
    for seed in range(12):
        cohort = unequal_cohort(seed, length_noise=0.1 * (seed % 3))
        for magnitude in excluded:
            rule = Ariba(magnitude=magnitude, prune=MadCut(min_excess=0.2))
            excluded[magnitude] += len(pruned(aggregate(rule, cohort)))
    assert excluded["expected"] <= 0.05 * 12 * 20
    assert excluded["raw"] > 0.15 * 12 * 20


def test_claimed_steps_are_no_excuse():
    cohort = attacked(1, factor=20.0, length_noise=0.0)
    steps = cohort.n_steps.clone()
    steps[ATTACKERS] = 10**9
    assert pruned(aggregate(Ariba(), dataclasses.replace(cohort, n_steps=steps))) == ATTACKERS


def test_an_enormous_update_does_not_hide_or_break_anything():
    cohort = unequal_cohort(0)
    cohort.updates[6] *= 1e30
    result = aggregate(Ariba(), cohort)
    assert 6 in pruned(result)
    assert bool(result.update.isfinite().all()) and bool(result.scores.isfinite().all())
    assert float(result.update.norm()) < 1000


def test_an_unsuspicious_liar_about_examples_does_not_rule():
    cohort = unequal_cohort(0, length_noise=0.0)
    counts = cohort.n_examples.clone()
    counts[0] = 10**9
    lying = dataclasses.replace(cohort, n_examples=counts)
    assert float(aggregate(Ariba(), lying).trust[0]) < 0.25
    assert float(aggregate(Ariba(max_weight_ratio=None), lying).trust[0]) > 0.99


def test_top_m_prunes_exactly_m():
    for m in (1, 4, 12):
        rule = Ariba(prune=TopM(m=m), max_excess=None)
        assert len(pruned(aggregate(rule, attacked(0)))) == m
    assert pruned(aggregate(Ariba(prune=TopM(m=4)), attacked(0))) == ATTACKERS


def test_never_prunes_half():
    rule = Ariba(prune=MadCut(max_z=1e-6, floor=1e-6, min_excess=0))
    for n_clients in (3, 4, 9, 20):
        result = aggregate(rule, unequal_cohort(0, n_clients))
        assert len(pruned(result)) <= (n_clients - 1) // 2


@pytest.mark.parametrize("n_clients", [1, 2])
def test_too_few_to_judge_are_all_averaged(n_clients):
    cohort = unequal_cohort(0, n_clients)
    cohort.updates[0] *= 100
    result, state = Ariba(prune=TopM(m=2))(cohort, {})
    assert pruned(result) == [] and result.scores.tolist() == [0] * n_clients
    assert state[SEEN].tolist() == [1] * n_clients and int(state[SHUT_OUT].sum()) == 0


def test_equal_updates_score_nothing():
    updates = random_updates(1).repeat(6, 1)
    result = aggregate(Ariba(), make_cohort(updates, n_steps=torch.arange(1, 7)))
    assert result.scores.tolist() == [0] * 6


def test_a_single_deviant_among_equal_ones_is_pruned():
    updates = random_updates(1).repeat(6, 1)
    updates[4] *= -1
    assert pruned(aggregate(Ariba(), make_cohort(updates))) == [4]


def colluders_of(cohort, strength, seed=5):
    """Four clients that add one direction to what they trained, and keep their length."""
    updates = cohort.updates.clone()
    shared = torch.randn(updates.shape[1], generator=torch.Generator().manual_seed(seed))
    lengths = updates[ATTACKERS].norm(dim=1, keepdim=True)
    pushed = updates[ATTACKERS] / lengths + strength * shared / shared.norm()
    updates[ATTACKERS] = pushed / pushed.norm(dim=1, keepdim=True) * lengths
    return dataclasses.replace(cohort, updates=updates)


def test_quiet_colluders_are_shut_out_though_no_fragment_is_an_outlier():
    for seed in range(4):
        cohort = colluders_of(unequal_cohort(seed), 0.8)
        assert not set(ATTACKERS) & set(pruned(aggregate(Ariba(sharing=None), cohort)))
        result, state = Ariba()(cohort, {})
        assert pruned(result) == ATTACKERS and bool((result.scores[ATTACKERS] > 1).all())
        assert result.layer_scores[SHARING].shape == (20,)
        assert state[SHUT_OUT].nonzero().squeeze(1).tolist() == ATTACKERS


def test_who_nearly_shares_too_much_weighs_less():
    cohort = colluders_of(unequal_cohort(0), 0.2)
    full = aggregate(Ariba(sharing=SharedDirection(doubt_z=None)), cohort)
    result = aggregate(Ariba(), cohort)
    assert pruned(full) == pruned(result) == []
    certainty = SharedDirection().certainty(result.layer_scores[SHARING])
    assert 0 < float(certainty[ATTACKERS].max()) < 1
    torch.testing.assert_close(result.trust, full.trust * certainty / (full.trust @ certainty))


def test_those_who_stop_come_back_and_those_who_take_turns_do_not():
    rule, state = Ariba(), {}
    for seed in range(3):
        result, state = rule(colluders_of(unequal_cohort(seed), 0.8), state)
    assert pruned(result) == ATTACKERS
    for seed in range(3, 20):
        result, state = rule(unequal_cohort(seed), state)
    assert pruned(result) == []


def test_forty_percent_of_scaled_updates_are_pruned_by_their_length():
    many = [0, 2, 5, 7, 11, 13, 17, 18]
    cohort = unequal_cohort(3)
    cohort.updates[many] *= 2.5
    assert set(pruned(aggregate(Ariba(sharing=None, max_excess=None), cohort))) < set(many)
    result = aggregate(Ariba(sharing=None), cohort)
    assert pruned(result) == many and bool((result.scores[many] > 1).all())


def test_the_probe_is_asked_and_remembered():
    class Answers(Probe):
        def judge(self, cohort, state):
            scores = torch.zeros(20, dtype=torch.float64)
            scores[7] = 2 * self.max_z
            return {**state, "probe/told": state.get("probe/told", torch.zeros(1)) + 1}, scores

    result, state = Ariba(probe=Answers())(unequal_cohort(0), {})
    _, state = Ariba(probe=Answers())(unequal_cohort(0), state)
    assert pruned(result) == [7] and float(result.scores[7]) == 2
    assert float(result.layer_scores[PROBE][7]) == 2 * Probe().max_z
    assert state["probe/told"] == 2
    with pytest.raises(ValueError, match="probe needs a cohort with its global model"):
        aggregate(Ariba(probe=Probe()), unequal_cohort(0))


def test_literal_ariba_switches_off_what_is_ours():
    cohort = colluders_of(unequal_cohort(0), 0.8)
    result, state = LiteralAriba()(cohort, {})
    assert not set(ATTACKERS) <= set(pruned(result)) and RESIDUALS not in state
    same = Ariba(
        prune=MadCut(floor=1.0, min_excess=0),
        magnitude="raw",
        clip=False,
        max_excess=None,
        max_weight_ratio=None,
        sharing=None,
    )
    other = aggregate(same, cohort)
    assert torch.equal(other.trust, result.trust) and torch.equal(other.update, result.update)


def test_a_survivor_that_is_too_long_is_shortened():
    cohort = unequal_cohort(0, length_noise=0.0)
    updates = cohort.updates.clone()
    updates[6, : 16 * 27] *= 30  # one layer of three: its count stays below the cut
    long = dataclasses.replace(cohort, updates=updates)
    factors = Ariba().shortening(long)
    assert float(factors[6]) < 0.5 and float(factors.median()) == 1
    kept, cut = (Ariba(clip=clip, prune=TopM(m=1)) for clip in (False, True))
    spared = pruned(aggregate(cut, long))
    assert 6 not in spared or float(aggregate(kept, long).update.norm()) >= float(
        aggregate(cut, long).update.norm()
    )


def test_memory_knows_clients_by_id():
    first = dataclasses.replace(unequal_cohort(0, 5), client_ids=(1, 2, 3, 8, 9))
    second = dataclasses.replace(unequal_cohort(1, 4), client_ids=(0, 2, 8, 11))
    _, state = Ariba()(first, {})
    result, state = Ariba()(second, state)
    assert state[IDS].tolist() == [0, 1, 2, 3, 8, 9, 11]
    assert state[SEEN].tolist() == [1, 1, 2, 1, 2, 1, 1]
    assert result.layer_scores[SHARING].shape == (4,)


def test_a_model_without_fragments_is_refused():
    layout = Layout.from_shapes({"norm.weight": (8,)})
    with pytest.raises(ValueError, match=r"two dimensions or more, got \['norm.weight'\]"):
        aggregate(Ariba(), make_cohort(random_updates(5, 8), layout=layout))


def test_yaml_forms():
    adapter = TypeAdapter(AnyAggregator)
    assert adapter.validate_python({"name": "ariba", "prune": {"name": "mad"}}) == Ariba()
    two = adapter.validate_python({"name": "ariba", "prune": {"name": "top_m", "m": 2}})
    assert two == Ariba(prune=TopM(m=2))
    assert adapter.validate_python({"name": "mean"}) == Mean()
    assert adapter.validate_python({"name": "multi_krum", "n_byzantine": 1}) == MultiKrum(
        n_byzantine=1
    )
    with pytest.raises(ValidationError, match="does not match any of the expected tags"):
        adapter.validate_python({"name": "medain"})
    with pytest.raises(ValidationError, match="less than 1"):
        adapter.validate_python({"name": "ariba", "quantile": 1.0})


@pytest.mark.parametrize("prop", PROPERTIES)
@pytest.mark.parametrize("rule", [Ariba(), Ariba(sharing=None), LiteralAriba()])
def test_property(prop, rule):
    prop(rule)
