"""The path of a GPU, taken on the CPU where there is none: the same points, the same outliers."""

import pytest
import torch

from fedface.aggregation import points, points_on_device
from fedface.aggregation.on_device import aggregating_on
from fedface.aggregation.outlier_fragments import Detector
from fedface.aggregation.points import Points, taken_from
from fedface.aggregation.points_on_device import PointsOnDevice
from fedface.random import numpy_stream
from tests.fedface.aggregation.test_on_device import DEVICES


@pytest.fixture(params=DEVICES)
def device(request, monkeypatch):
    monkeypatch.setattr(points_on_device, "BLOCK", 400)
    return request.param


@pytest.mark.parametrize("measured", [1 << 14, 500])
def test_points_agree(device, measured, monkeypatch):
    monkeypatch.setattr(points, "MEASURED", measured)
    fragments = torch.randn(10, 12, 90, generator=torch.Generator().manual_seed(0))
    fragments[:, 4] = 0.0
    fragments[3, 4, 1] = 1e-6
    fragments[2, 6] = 1e38
    lengths = torch.linspace(0.5, 2, 10).double().numpy()
    take = taken_from(fragments)
    expected = Points(take, (10, 12, 90), lengths).at(slice(2, 9))
    found = PointsOnDevice(torch.device(device), take, (10, 12, 90), lengths).at(slice(2, 9))
    torch.testing.assert_close(found.cpu(), torch.from_numpy(expected), rtol=1e-4, atol=1e-4)


def test_the_same_fragments_are_outliers(device):
    fragments = torch.randn(20, 64, 72, generator=torch.Generator().manual_seed(1))
    fragments[[3, 7], :8] += 2 * torch.randn(72, generator=torch.Generator().manual_seed(2))
    detector = Detector(8, 0.99, 0.75)
    expected = detector.flags(fragments, numpy_stream(0, "test"))
    with aggregating_on(device):
        found = detector.flags(fragments, numpy_stream(0, "test"))
    assert bool(found[[3, 7], :8].all()) and int((found != expected).sum()) <= 3
