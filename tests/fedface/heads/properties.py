"""What every head promises, as assertions on a config."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedface.random import stream

N_IDENTITIES, SIZE = 5, 4


def build(head, seed: int = 0) -> nn.Module:
    return head.build(SIZE, N_IDENTITIES, stream(seed, "head"))


def random_batch(n: int = 12) -> tuple[Tensor, Tensor]:
    rng = stream(0, "batch")
    embeddings = 3 * torch.randn(n, SIZE, generator=rng)
    return embeddings, torch.randint(N_IDENTITIES, (n,), generator=rng)


def assert_logits_for_each_identity(head) -> None:
    logits = build(head)(*random_batch())
    assert logits.shape == (12, N_IDENTITIES) and logits.dtype == torch.float32
    assert build(head)(*random_batch(n=1)).shape == (1, N_IDENTITIES)
    assert build(head)(*random_batch(n=0)).shape == (0, N_IDENTITIES)


def assert_inputs_and_weights_untouched(head) -> None:
    module, (embeddings, labels) = build(head), random_batch()
    before = [t.clone() for t in (embeddings, labels, *module.parameters())]
    F.cross_entropy(module(embeddings.requires_grad_(), labels), labels).backward()
    after = (embeddings, labels, *module.parameters())
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def assert_initialised_by_rng_alone(head) -> None:
    first, state = build(head), torch.get_rng_state()
    torch.rand(3)
    assert torch.equal(build(head).weight, first.weight)
    assert not torch.equal(build(head, seed=1).weight, first.weight)
    torch.set_rng_state(state)
    build(head)
    assert torch.equal(torch.get_rng_state(), state)


def assert_gradients_match_finite_differences(head) -> None:
    module, (embeddings, labels) = build(head).double(), random_batch()
    names = [name for name, _ in module.named_parameters()]

    def logits(embeddings, *parameters):
        named = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(module, named, (embeddings, labels))

    inputs = (embeddings.double(), *(30 * p.detach() for p in module.parameters()))
    assert torch.autograd.gradcheck(logits, tuple(t.clone().requires_grad_() for t in inputs))


def assert_float32_under_autocast(head) -> None:
    module, (embeddings, labels) = build(head), random_batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = module(embeddings, labels)
    assert torch.equal(rough, module(embeddings, labels))


def assert_refuses_what_does_not_fit(head) -> None:
    module, (embeddings, labels) = build(head), random_batch()
    for label in (-1, -100, N_IDENTITIES):
        wrong = labels.index_fill(0, torch.tensor([3]), label)
        with pytest.raises(ValueError, match=rf"labels need to lie in 0\.\.4: .*{label}"):
            module(embeddings, wrong)
    with pytest.raises(ValueError, match=r"labels need shape \(12,\) and dtype torch.int64"):
        module(embeddings, labels.int())
    with pytest.raises(ValueError, match=r"labels need shape \(12,\)"):
        module(embeddings, labels[:-1])
    with pytest.raises(ValueError, match=r"embeddings need shape \(batch, 4\), got \(12, 3\)"):
        module(embeddings[:, :-1], labels)
    for sizes in ((0, 5), (4, 0)):
        with pytest.raises(ValueError, match="n_identities >= 1 and embedding_size >= 1"):
            head.build(*sizes, stream(0, "head"))


def assert_works_per_sample_under_vmap(head) -> None:
    module, (embeddings, labels) = build(head), random_batch()
    alone = torch.func.vmap(lambda e, y: module(e[None], y[None])[0])(embeddings, labels)
    torch.testing.assert_close(alone, module(embeddings, labels))


EVERY = (
    assert_logits_for_each_identity,
    assert_inputs_and_weights_untouched,
    assert_initialised_by_rng_alone,
    assert_gradients_match_finite_differences,
    assert_float32_under_autocast,
    assert_refuses_what_does_not_fit,
    assert_works_per_sample_under_vmap,
)
