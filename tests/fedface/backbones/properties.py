"""What every backbone promises, as assertions on a config."""

import pytest
import torch
from torch import Tensor

from fedface.random import stream

SIZE = 32


def build(backbone, image_size: int = SIZE, seed: int = 0):
    return backbone.build(image_size, stream(seed, "weights"))


def random_images(n: int = 3, image_size: int = SIZE) -> Tensor:
    return 2 * torch.rand(n, 3, image_size, image_size, generator=stream(0, "images")) - 1


def assert_embeds_as_float32(backbone) -> None:
    embeddings = build(backbone)(random_images())
    assert embeddings.shape == (3, backbone.embedding_size)
    assert embeddings.dtype == torch.float32 and embeddings.isfinite().all()


def assert_not_of_unit_length(backbone) -> None:
    lengths = build(backbone)(random_images()).norm(dim=1)
    assert (lengths - 1).abs().min() > 0.1


def assert_initialised_by_rng_alone(backbone) -> None:
    first = build(backbone).state_dict()
    torch.rand(7)  # moves torch's own generator
    again, other = build(backbone).state_dict(), build(backbone, seed=1).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["fc.weight"], other["fc.weight"])


def assert_leaves_the_images(backbone) -> None:
    images = random_images()
    before = images.clone()
    build(backbone)(images).sum().backward()
    assert torch.equal(images, before)


def assert_every_parameter_learns(backbone) -> None:
    network = build(backbone)
    directions = torch.randn(4, backbone.embedding_size, generator=stream(0, "directions"))
    (network(random_images(n=4)) * directions).sum().backward()
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() > 0, name


def assert_survives_bfloat16_autocast(backbone) -> None:
    network, images = build(backbone), random_images(n=4)
    seen = []
    convolution = next(m for m in network.modules() if isinstance(m, torch.nn.Conv2d))
    convolution.register_forward_hook(lambda *args: seen.append(args[2].dtype))
    network.fc.register_forward_hook(lambda *args: seen.extend((args[1][0].dtype, args[2].dtype)))
    exact = network(images)
    seen.clear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = network(images)
    assert seen == [torch.bfloat16, torch.float32, torch.float32]
    assert rough.dtype == torch.float32
    assert torch.cosine_similarity(exact, rough).min() > 0.98
    rough.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.requires_grad)


def assert_refuses_other_sizes(backbone) -> None:
    for image_size in (-16, 0, 8, 40, 100):
        with pytest.raises(ValueError, match=f"{backbone.name} needs .*image_size={image_size}"):
            build(backbone, image_size)
    network = build(backbone)
    for shape in ((1, 3, 48, 48), (1, 1, SIZE, SIZE), (3, SIZE, SIZE)):
        with pytest.raises(ValueError, match=r"images need shape \(batch, 3, 32, 32\)"):
            network(torch.zeros(shape))


def assert_embeds_each_image_alone(backbone) -> None:
    network, images = build(backbone), random_images()
    torch.testing.assert_close(network(images)[:1], network(images[:1]), rtol=1e-4, atol=1e-4)


EVERY = (
    assert_embeds_as_float32,
    assert_not_of_unit_length,
    assert_initialised_by_rng_alone,
    assert_leaves_the_images,
    assert_every_parameter_learns,
    assert_survives_bfloat16_autocast,
    assert_refuses_other_sizes,
)
