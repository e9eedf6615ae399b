import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fedface.aggregation.ariba import SHARING, Ariba
from fedface.aggregation.cohort import Cohort
from fedface.parameters import Layout

REPOSITORY = Path(__file__).parents[2]


def by_path(name):
    path = REPOSITORY / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # the scripts import each other by these names
    spec.loader.exec_module(module)
    return module


directions, kinds, ablation = map(by_path, ("ariba_directions", "ariba_variants", "ariba_ablation"))
LAYOUT = Layout.from_shapes(
    {
        "one.weight": (4, 3, 3, 3),
        "two.weight": (8, 4, 3, 3),
        "norm.weight": (8,),
        "fc.weight": (20, 32),
        "fc.bias": (20,),
    }
)
MALICIOUS = (2, 5)


def cohort(server_round=1, seed=0, *, shared=0.0, loud=1.0, n=9):
    """Gaussian updates; the malicious ones share a direction and are ``loud`` times as long."""
    rng = torch.Generator().manual_seed(100 * seed + server_round)
    updates = torch.randn(n, LAYOUT.dim, generator=rng)
    direction = torch.randn(LAYOUT.dim, generator=torch.Generator().manual_seed(7))
    for client in [m for m in MALICIOUS if m < n]:
        updates[client] = loud * (updates[client] + shared * direction)
    counts = torch.arange(n) * 3 + 40
    return Cohort(updates, LAYOUT, counts, counts // 8, tuple(range(n)), server_round, seed)


def write(folder, attack, malicious, seeds=(0,), n_rounds=3, **changes):
    for seed in seeds:
        for server_round in range(1, n_rounds + 1):
            ablation.save_cohort(cohort(server_round, seed, **changes), folder / attack / str(seed))
        ablation.save_facts(folder / attack / str(seed), attack, seed, malicious)


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablation")
    write(folder / "in", "sharing", MALICIOUS, seeds=(0, 1), shared=1.0)
    write(folder / "in", "loud", MALICIOUS, n_rounds=2, loud=30.0)
    write(folder / "in", "clean", (), n_rounds=2)
    text = ablation.score(folder / "in", folder / "out", every=1, jobs=1)
    return text, folder / "out"


def test_the_tables_are_variants_by_attacks(scored):
    text, out = scored
    assert (out / "ariba_ablation.md").read_text() == text
    facts = json.loads((out / "ariba_ablation.json").read_text())
    results = [(r, r["variants"]) for r in facts["recordings"]]
    aurocs, built, literal = ablation.tables(results).values()
    assert aurocs.columns == ("axis", "variant", "loud", "sharing")
    assert built.columns == ("axis", "variant", "loud", "sharing", "clean")
    assert [row[:2] for row in aurocs.rows] == list(kinds.variants())
    assert len(set(kinds.variants().values())) == len(aurocs.rows) == 39
    assert not any("soft" in row for row in built.rows)
    assert not any(row[0].startswith("sharing") for row in literal.rows)
    assert all(row[-1].startswith("- / ") for row in built.rows)
    assert "Seeds: clean 0; loud 0; sharing 0, 1." in text
    assert facts["environment"]["machine"] in text


def test_each_detector_finds_the_attack_that_it_is_for(scored):
    recordings = json.loads((scored[1] / "ariba_ablation.json").read_text())["recordings"]
    table = ablation.tables([(r, r["variants"]) for r in recordings])["AUROC"]
    aurocs = {row[:2]: row[2:] for row in table.rows}
    assert aurocs[ablation.COUNTED][0] == "1.000"
    assert aurocs[ablation.SHARED][1] == "1.000"
    assert aurocs[ablation.BOTH] == ("1.000", "1.000")
    assert float(aurocs["preprocessing", "unit norm"][0]) < 0.9  # length alone has no direction


def test_means_are_over_rounds_from_the_second_then_over_seeds(scored):
    facts = json.loads((scored[1] / "ariba_ablation.json").read_text())
    sharing = [r["variants"] for r in facts["recordings"] if r["attack"] == "sharing"]
    name = "statistic: orientation only"
    by_hand = {}
    for seed in (0, 1):
        for server_round in (1, 2, 3):
            counter = kinds.Counter(cohort(server_round, seed, shared=1.0))
            scores, _ = counter(kinds.Counting(statistic="orientation"))
            honest = [h for h in range(9) if h not in MALICIOUS]
            wins = [
                float(scores[m] > scores[h]) + 0.5 * float(scores[m] == scores[h])
                for m in MALICIOUS
                for h in honest
            ]
            by_hand[seed, server_round] = np.mean(wins)
    assert len(set(by_hand.values())) > 4  # else this would compare nothing
    expected = [(by_hand[seed, 2] + by_hand[seed, 3]) / 2 for seed in (0, 1)]
    assert [j[name]["auroc"] for j in sharing] == pytest.approx(expected)
    assert ablation.averaged(sharing)[name]["auroc"] == pytest.approx(np.mean(expected))


def test_figures_by_hand():
    malicious = torch.tensor([True, False, False, True])
    above = {"cut": torch.tensor([True, False, True, False])}
    judged = ablation.figures(torch.tensor([3.0, 1.0, 2.0, 1.0]), above, malicious)
    assert judged["auroc"] == (1 + 1 + 0.5 + 0) / 4
    assert judged["cuts"] == {"cut": {"malicious": 0.5, "honest": 0.5}}
    clean = ablation.figures(torch.zeros(4), above, torch.zeros(4, dtype=torch.bool))
    assert clean["auroc"] is None
    assert clean["cuts"]["cut"] == {"malicious": None, "honest": 0.5}


@pytest.mark.parametrize("changes", [{"loud": 30.0}, {"shared": 1.0}, {}])
def test_the_defaults_are_ariba_without_its_length_rule(changes):
    state, sharer = {}, directions.Sharer()
    for server_round in range(1, 4):
        now = cohort(server_round, **changes)
        expected, state = Ariba(max_excess=None)(now, state)
        counter = kinds.Counter(now)
        counted = counter(kinds.Counting())
        (shared,) = sharer(now, [directions.Directions()])
        scores, cuts = ablation.both(counter, counted, shared)
        assert torch.equal(scores, expected.scores)
        assert torch.equal(cuts["as built"], expected.trust == 0)
        assert torch.equal(shared[0], expected.layer_scores[SHARING])


def test_every_variant_is_one_step_from_a_default():
    for (axis, label), how in kinds.variants().items():
        if how is None or axis == "ARIBA":
            continue
        default = type(how)()
        changed = {key for key, value in vars(how).items() if value != vars(default)[key]}
        assert len(changed) == 1 or (label, len(changed)) == ("PCA-2 + Mahalanobis", 2)


def test_fragments_are_cut_as_named():
    rows = torch.arange(2.0 * LAYOUT.dim).reshape(2, -1)
    chunks = kinds.pieces(rows, LAYOUT, "chunk 64")["chunks"]
    assert chunks.shape == (2, LAYOUT.dim // 64, 64)
    assert torch.equal(chunks[1, 3], rows[1, 192:256])
    kernels = kinds.pieces(rows, LAYOUT, "kernel")
    assert torch.equal(kernels["two"][0, 5], rows[0, 108 + 45 : 108 + 54])
    assert kernels["fc"].shape == (2, 20, 33)
    assert {n: p.shape[1:] for n, p in kinds.pieces(rows, LAYOUT, "layer").items()} == {
        "one": (1, 108),
        "two": (1, 288),
        "fc": (1, 660),
    }
    assert torch.equal(kinds.pieces(rows, LAYOUT, "model")["model"][:, 0], rows)


def test_layers_are_chosen_as_named():
    counter = kinds.Counter(cohort())
    expected = {
        "all": {"one", "two", "fc"},
        "all conv": {"one", "two"},
        "first conv": {"one"},
        "last conv + fc": {"two", "fc"},
        "fc only (F3)": {"fc"},
    }
    for layers, names in expected.items():
        assert counter.flags(kinds.Counting(layers=layers)).keys() == names


def test_counts_by_hand():
    counter = kinds.Counter(cohort(loud=3.0))
    flags = counter.flags(kinds.Counting(quantile=0.9))
    counts = {
        "layer": [np.mean([f[i].double().mean() for f in flags.values()]) for i in range(9)],
        "raw": [sum(int(f[i].sum()) for f in flags.values()) / 32 for i in range(9)],
        "soft": [0.0] * 9,
    }
    for distances, degrees in counter.distances(kinds.Counting()).values():
        excess = (distances - kinds.limit(distances, degrees, kinds.Counting(quantile=0.9))).numpy()
        counts["soft"] += np.maximum(excess, 0).mean(axis=1)
    for count, expected in counts.items():
        scores, cuts = counter(kinds.Counting(quantile=0.9, count=count))
        assert scores.tolist() == pytest.approx(list(expected))
        assert bool(cuts) == (count != "soft")


def test_classical_distances_are_the_definition():
    points = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    found, degrees = kinds._distances(points, "classical", np.random.default_rng(0))
    x = points.double().numpy()
    inverse = np.linalg.inv(np.cov(x.T, bias=True))
    centred = x - x.mean(axis=0)
    assert found.numpy() == pytest.approx(np.einsum("ij,jk,ik->i", centred, inverse, centred))
    assert degrees == 3


@pytest.mark.parametrize("statistic", ["classical", "shrinkage", "lof", "forest", "knn"])
def test_every_statistic_puts_a_far_point_first(statistic):
    points = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    points[17] = 9.0
    found, _ = kinds._distances(points, statistic, np.random.default_rng(0))
    assert int(found.argmax()) == 17


def test_norm_sees_length_alone_and_orientation_direction_alone():
    fragments = torch.randn(5, 1, 6, generator=torch.Generator().manual_seed(0)).repeat(1, 4, 1)
    fragments[1:] = fragments[0]
    longer, turned = fragments.clone(), fragments.clone()
    longer[2] *= 5
    turned[2] = -turned[2]
    for changed, name, moved in (
        (longer, "norm", True),
        (longer, "orientation", False),
        (turned, "norm", False),
        (turned, "orientation", True),
    ):
        feature = kinds._feature(changed, name)
        assert (not torch.allclose(feature[2], feature[0], atol=1e-5)) == moved


def test_positions_are_judged_over_the_clients_alone():
    now = cohort(n=20)
    now.updates[4, :27] += 30  # one filter
    (distances, degrees) = kinds.Counter(now).distances(kinds.Counting(pooling="position"))["one"]
    assert distances.shape == (20, 4) and degrees == 4
    assert int(distances[:, 0].argmax()) == 4
    quiet = replace(now, updates=now.updates.clone())
    quiet.updates[4, 27:108] = 50  # another filter's outlier does not matter here
    again = kinds.Counter(quiet).distances(kinds.Counting(pooling="position", magnitude="raw"))
    before = kinds.Counter(now).distances(kinds.Counting(pooling="position", magnitude="raw"))
    assert torch.allclose(again["one"][0][:, 0], before["one"][0][:, 0])


def test_units_have_length_one():
    now = cohort()
    fragments, layers = (directions.unit_pieces(now, unit) for unit in ("fragment", "layer"))
    assert fragments[3, 27:54].norm() == pytest.approx(1)  # the second filter
    assert fragments[3, 396:404].norm() == pytest.approx(1)  # the norm's weight, whole
    assert layers[3, :108].norm() == pytest.approx(1)
    assert torch.equal(directions.unit_pieces(now, "update"), now.updates)


def test_the_mean_of_all_has_its_own_null():
    n = 7
    centred = torch.eye(n, dtype=torch.float64) - 1 / n
    unit = centred / centred.norm(dim=1, keepdim=True)
    scores = directions.centred_by_all(unit @ unit.T, directions.SharedDirection())
    assert scores.abs().max() < 1e-9


def test_what_was_saved_is_loaded(tmp_path):
    now = cohort(server_round=12, seed=3)
    ablation.save_cohort(now, tmp_path)
    again = ablation.load_cohort(tmp_path / "round-012.safetensors")
    assert torch.equal(again.updates, now.updates) and again.layout == now.layout
    assert torch.equal(again.n_examples, now.n_examples)
    assert torch.equal(again.n_steps, now.n_steps)
    assert (again.client_ids, again.server_round, again.seed) == (now.client_ids, 12, 3)


def test_what_cannot_be_scored_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"recording\.json"):
        ablation.score(tmp_path, tmp_path, every=1, jobs=1)
    write(tmp_path, "few", (), n=5)
    with pytest.raises(ValueError, match="at least 6 clients, got 5"):
        ablation.score(tmp_path, tmp_path, every=1, jobs=1)


def test_recordings_stay_out_of_the_repository(capsys):
    with pytest.raises(SystemExit):
        ablation.main(["record", "any.yaml", str(REPOSITORY / "runs" / "x")])
    assert "outside" in capsys.readouterr().err


@pytest.mark.slow
def test_a_comparison_is_recorded_and_scored(tmp_path):
    text = (REPOSITORY / "benchmarks" / "ariba_ablation.yaml").read_text()
    for old, new in (
        ("n_identities: 300", "n_identities: 40"),
        ("{test: 50, calibration: 30}", "{test: 12, calibration: 8}"),
        ("n_clients: 20, n_rounds: 15", "n_clients: 6, n_rounds: 2"),
        ("seeds: [0, 1, 2]", "seeds: [1]"),
    ):
        assert old in text
        text = text.replace(old, new)
    lines = text.splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith(("    impersonate", "    poisoning-"))]
    (tmp_path / "small.yaml").write_text("".join(kept))
    ablation.main(["record", str(tmp_path / "small.yaml"), str(tmp_path / "out")])
    found = sorted(p.parent.parent.name for p in (tmp_path / "out").rglob("recording.json"))
    assert found == ["clean", "poisoning", "replacement"]
    config = (tmp_path / "out/runs/runs/poisoning/seed-1/config.yaml").read_text()
    assert "name: mean" in config and "folder" not in config
    shown = ablation.score(tmp_path / "out", tmp_path / "tables", every=1, jobs=1)
    assert "| axis | variant | poisoning | replacement | clean |" in shown
