import pytest

from simulations.engine.flower import FlowerEngine
from simulations.engine.workers import ClientResources


@pytest.mark.parametrize(
    ("engine", "n_gpus", "share"),
    [
        (FlowerEngine(num_cpus=4), 0, 0.0),
        (FlowerEngine(num_cpus=4), 1, 0.25),
        (FlowerEngine(num_cpus=4), 8, 1.0),
        (FlowerEngine(num_cpus=4, client_resources=ClientResources(num_cpus=2)), 1, 0.5),
        (FlowerEngine(num_cpus=4, num_gpus=2), 1, 0.5),
        (FlowerEngine(num_cpus=4, client_resources=ClientResources(num_gpus=0)), 1, 0.0),
        (FlowerEngine(num_cpus=4, client_resources=ClientResources(num_gpus=0.1)), 1, 0.1),
    ],
)
def test_clients_share_the_gpus_that_there_are(engine, n_gpus, share):
    assert engine.shares(n_gpus)["num_gpus"] == pytest.approx(share)


def test_a_gpu_that_is_not_there_is_refused_by_name():
    engine = FlowerEngine(client_resources=ClientResources(num_gpus=0.5))
    with pytest.raises(ValueError, match=r"client_resources\.num_gpus=0\.5 needs a GPU, found"):
        engine.shares(0)
