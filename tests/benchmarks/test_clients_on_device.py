import json

import pytest
import torch

from tests.benchmarks.by_path import script

script("measuring")
bench = script("clients_on_device")


def test_all_ways_end_with_the_same_weights_and_none_with_the_first(tmp_path, capsys) -> None:
    output = tmp_path / "found.json"
    bench.main(["--quick", "--device", "cpu", "--processes", "--output", str(output)])
    found = json.loads(output.read_text())["results"]
    assert [each["mode"] for each in found] == ["sequential", "batched"]
    assert found[0]["per_plain"] == 1 and found[0]["apart"] == 0
    assert 0 <= found[1]["apart"] < 1e-4
    assert all(each["images_per_second"] > 0 for each in found)
    assert "| 2 x 16 px | batched |" in capsys.readouterr().out


def test_clients_differ_and_move() -> None:
    case = bench.Case(2, 16, 2, "cpu", 0)
    one, other = bench.batched(case, range(2))()
    start = {n: p.detach() for n, p in case.model().named_parameters()}
    assert all(not torch.equal(one[name], start[name]) for name in ("backbone.fc.weight",))
    assert not torch.equal(one["backbone.fc.weight"], other["backbone.fc.weight"])


def test_a_way_that_trains_otherwise_is_not_measured(monkeypatch) -> None:
    honest = bench.batched

    def broken(case, clients):
        work = honest(case, clients)
        return lambda: [{n: v + 0.1 for n, v in weights.items()} for weights in work()]

    monkeypatch.setitem(bench.MODES, "batched", broken)
    with pytest.raises(RuntimeError, match="batched needs the weights of the plain loop"):
        bench.main(["--quick", "--device", "cpu", "--processes"])
