import numpy as np
import pytest

from fedface.evaluation.across import Sides, identify_across, verify_across
from fedface.evaluation.verification import tar_at, threshold_at
from fedface.random import numpy_stream


def unit(values: np.ndarray) -> np.ndarray:
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def sides(n_people: int, noise: float, name: str, n_gallery: int = 1, n_probes: int = 1) -> Sides:
    rng = numpy_stream(0, name)
    faces = rng.normal(size=(n_people, 6))
    people = np.arange(n_people)

    def seen(n: int) -> tuple[np.ndarray, np.ndarray]:
        whom = np.repeat(people, n)
        return unit(faces[whom] + noise * rng.normal(size=(len(whom), 6))), whom

    return Sides(*seen(n_gallery), *seen(n_probes))


def by_hand(both: Sides) -> tuple[list[float], list[float]]:
    genuine, impostor = [], []
    for probe, whom in zip(both.probes, both.probe_identities, strict=True):
        for enrolled, who in zip(both.gallery, both.gallery_identities, strict=True):
            score = float(probe.astype(np.float64) @ enrolled.astype(np.float64))
            (genuine if whom == who else impostor).append(score)
    return genuine, impostor


@pytest.mark.parametrize(("n_gallery", "n_probes"), [(1, 1), (2, 3)])
def test_only_pairs_of_gallery_and_probe_count(n_gallery: int, n_probes: int) -> None:
    test = sides(12, 0.4, "test", n_gallery, n_probes)
    calibration = sides(10, 0.4, "calibration", n_gallery, n_probes)
    genuine, impostor = by_hand(test)
    report = verify_across(test, calibration, (0.05, 0.2), 40, numpy_stream(0, "draws"))
    assert report.n_genuine == len(genuine) == 12 * n_gallery * n_probes
    assert report.n_impostor == len(impostor)
    others = np.array(by_hand(calibration)[1])
    for point in report.points:
        threshold = threshold_at(np.round(others, 12), point.alpha)
        assert point.threshold == threshold
        assert point.tar == tar_at(np.round(np.array(genuine), 12), threshold)
        assert point.fmr == pytest.approx(np.mean(np.round(np.array(impostor), 12) >= threshold))
        assert point.low <= point.tar <= point.high


def test_a_rate_without_support_is_refused() -> None:
    test, calibration = sides(8, 0.1, "test"), sides(4, 0.1, "calibration")
    report = verify_across(test, calibration, (0.01, 0.5), 40, numpy_stream(0, "draws"))
    assert [refused.alpha for refused in report.refused] == [0.01]
    assert report.n_calibration_impostor == 12


def test_ranks_by_loops() -> None:
    test = sides(9, 1.2, "test", 2, 2)
    report = identify_across(test, (1, 3, 9), 40, numpy_stream(0, "draws"))
    ranks = []
    for probe, whom in zip(test.probes, test.probe_identities, strict=True):
        best = {}
        for enrolled, who in zip(test.gallery, test.gallery_identities, strict=True):
            score = float(np.round(probe.astype(np.float64) @ enrolled.astype(np.float64), 12))
            best[who] = max(best.get(who, -2), score)
        ranks.append(sum(score >= best[whom] for score in best.values()))
    assert [r.rate for r in report.rates] == [np.mean(np.array(ranks) <= k) for k in (1, 3, 9)]
    assert report.rates[0].rate < 1 == report.rates[2].rate
    assert report.n_gallery == 9 and report.n_probes == 18


def test_one_point_for_all_is_the_last_rank_and_no_match_by_chance() -> None:
    same = np.tile(np.float32([1, 0]), (5, 1))
    people = np.arange(5)
    both = Sides(same, people, same, people)
    assert identify_across(both, (1,), 40, numpy_stream(0)).rates[0].rate == 0
    report = verify_across(both, both, (0.2,), 40, numpy_stream(0))
    assert report.points[0].tar == 0


def test_what_cannot_be_measured_is_refused() -> None:
    good = sides(3, 0.1, "test")
    with pytest.raises(ValueError, match="a person on both sides"):
        Sides(good.gallery, good.gallery_identities, good.probes, good.probe_identities + 3)
    with pytest.raises(ValueError, match="length 1"):
        Sides(2 * good.gallery, good.gallery_identities, good.probes, good.probe_identities)
    with pytest.raises(ValueError, match="rank needs to lie"):
        identify_across(good, (4,), 40, numpy_stream(0))
    one = sides(1, 0.1, "one")
    with pytest.raises(ValueError, match="impostor pairs"):
        verify_across(one, good, (0.5,), 40, numpy_stream(0))
