import math

import torch
from torch import nn
from torch.testing import assert_close

from fedface.heads.margin import MarginHead, cosines


def loop_cosines(embeddings, weight):
    rows = []
    for e in embeddings.tolist():
        row = []
        for w in weight.tolist():
            dot = sum(a * b for a, b in zip(e, w, strict=True))
            row.append(dot / math.hypot(*e) / math.hypot(*w))
        rows.append(row)
    return torch.tensor(rows, dtype=embeddings.dtype)


def test_cosines_match_the_definition():
    embeddings, weight = torch.randn(6, 4).double(), torch.randn(5, 4).double()
    assert_close(cosines(embeddings, weight), loop_cosines(embeddings, weight))


def test_cosines_ignore_every_length():
    embeddings, weight = torch.randn(6, 4).double(), torch.randn(5, 4).double()
    assert_close(cosines(1e-3 * embeddings, 1e4 * weight), cosines(embeddings, weight))


def test_cosines_keep_small_angles_apart_under_autocast():
    embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.01]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cosine = cosines(embeddings.bfloat16().float(), torch.tensor([[1.0, 0.0]]))
        assert cosine.dtype == torch.float32
        assert cosine[0] > cosine[1]


def test_only_the_true_identity_gets_the_margin():
    head = MarginHead(nn.Parameter(torch.randn(5, 4)), 10.0, lambda cosine: cosine - 3)
    embeddings, labels = torch.randn(3, 4), torch.tensor([4, 0, 4])
    expected = 10 * cosines(embeddings, head.weight)
    for i, label in enumerate(labels.tolist()):
        expected[i, label] -= 30
    assert_close(head(embeddings, labels), expected)


def test_evaluation_asks_without_the_margin():
    head = MarginHead(nn.Parameter(torch.randn(5, 4)), 16.0, lambda cosine: cosine - 0.5).eval()
    embeddings, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 4, 0])
    assert_close(head(embeddings, labels), 16.0 * loop_cosines(embeddings, head.weight.detach()))
    assert head.train()(embeddings, labels)[0, 0] < head.eval()(embeddings, labels)[0, 0]
