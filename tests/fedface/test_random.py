import numpy as np
import pytest
import torch
from scipy.stats import kstest

from fedface.random import numpy_stream, stream


def draws(*name: int | str, n: int = 4) -> list[float]:
    return torch.rand(n, generator=stream(*name), dtype=torch.float64).tolist()


def numpy_draws(*name: int | str) -> list[float]:
    return numpy_stream(*name).random(4).tolist()


def test_a_stream_depends_on_its_name_alone():
    torch.rand(3)
    first = draws(1, "training", 2, 3), numpy_draws(1, "training", 2, 3)
    torch.manual_seed(99)
    np.random.default_rng(99)
    draws(5, "other")
    assert (draws(1, "training", 2, 3), numpy_draws(1, "training", 2, 3)) == first


def test_a_stream_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    draws(1, "training")
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("of", [draws, numpy_draws])
def test_every_part_of_the_name_counts(of):
    names = [
        (1, "training", 2, 3),
        (2, "training", 2, 3),
        (1, "trainings", 2, 3),
        (1, "training", 3, 2),
        (1, "training", 2),
        (1, "training", "2", 3),
        (1, "training", 23),
        (1, "training2", 3),
        (1, "training", -2, 3),
        (1,),
    ]
    assert len({tuple(of(*name)) for name in names}) == len(names)


def test_numpy_integers_name_the_same_stream_as_plain_ones():
    plain = draws(1, "training", 2)
    assert draws(np.int64(1), "training", np.int32(2)) == plain


def test_a_name_of_neither_integers_nor_texts_is_refused():
    with pytest.raises(TypeError):
        stream(1, "training", 2.0)  # type: ignore[arg-type]


def test_first_draws_of_neighbouring_streams_are_independent():
    """A stream per client and round: their first draws must look like one good generator's."""
    first = np.array([draws(0, "training", r, c, n=1)[0] for r in range(20) for c in range(20)])
    assert kstest(first, "uniform").pvalue > 0.001
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 4 / np.sqrt(len(first))


def test_streams_are_the_same_on_every_machine():
    assert stream(0, "backbone").initial_seed() == 5940898966988682445
    assert numpy_stream(0, "backbone").integers(1000, size=3).tolist() == [111, 392, 68]
