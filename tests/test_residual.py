"""The residual architecture: sizes, skips, gradients and memory format."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor

import config as configuration
from autoencoders.base import Decoder, Encoder
from autoencoders.features import gather_maps
from autoencoders.residual import Block, Residual, halved
from parsers import build_model, train_loader, training_images
from runtime.randomness import StepNoise

SMALL = Residual(channels=(2, 3, 4), blocks=(1, 2), address_channels=(2, 3))


def networks(side: int, outputs: int = 1, dtype: torch.dtype = torch.float32) -> tuple[Encoder, Decoder]:
    torch.manual_seed(side)
    return SMALL.encoder(side, 5).to(dtype), SMALL.decoder(side, 6, outputs).to(dtype)


@pytest.mark.parametrize("side", range(20, 65))
def test_images_come_back_in_their_size(side: int) -> None:
    encoder, decoder = networks(side, outputs=2)
    vector, maps = encoder(torch.rand(3, side, side))
    assert vector.shape == (3, 5)
    n1, n2 = halved(side), halved(halved(side))
    assert [m.shape for m in maps] == [(3, 1, 2 * n1, 2 * n1), (3, 3, n1, n1), (3, 4, n2, n2)]
    skips = decoder.precompute_skips(maps)
    assert [m.shape for m in skips] == [(3, 2, 2 * n1, 2 * n1), (3, 3, n1, n1), (3, 4, n2, n2)]
    assert decoder(torch.rand(3, 6), skips).shape == (3, 2, side, side)
    assert SMALL.address_encoder(side, 7)(torch.rand(3, side, side))[0].shape == (3, 7)


def test_blocks_are_where_the_configuration_puts_them() -> None:
    """The smaller encoder, which addresses, keeps its one block."""
    architecture = Residual(channels=(2, 3, 4), blocks=(1, 2), encoder_blocks=(3, 4), address_channels=(2, 3))
    networks = (
        architecture.encoder(26, 5), architecture.decoder(26, 6, 1), architecture.address_encoder(26, 5),
    )  # fmt: skip
    widths = [Counter(one.first.in_channels for one in net.modules() if isinstance(one, Block)) for net in networks]
    assert widths == [{3: 3, 4: 4}, {3: 1, 4: 2}, {3: 1}]


@pytest.mark.parametrize("side", [25, 26])
def test_the_first_map_is_the_image(side: int) -> None:
    image = torch.rand(2, side, side)
    whole = networks(side)[0](image)[1][0].squeeze(1)
    assert torch.equal(whole[:, :side, :side], image)
    assert whole.sum() == image.sum()  # the border is paper


def test_skips_of_picked_rows_equal_skips_computed_anew() -> None:
    encoder, decoder = networks(26, dtype=torch.float64)
    images, rows = torch.rand(4, 26, 26, dtype=torch.float64), torch.tensor([2, 0, 2, 3, 1, 1])
    code = torch.randn(6, 6, dtype=torch.float64)
    once = [gather_maps(m, rows) for m in decoder.precompute_skips(encoder(images)[1])]
    anew = decoder.precompute_skips(encoder(images[rows])[1])
    torch.testing.assert_close(decoder(code, once), decoder(code, anew), rtol=0, atol=1e-12)


@pytest.mark.parametrize("side", [25, 26])
def test_gradient_reaches_every_parameter_and_every_pixel(side: int) -> None:
    encoder, decoder = networks(side, dtype=torch.float64)
    image = torch.rand(1, side, side, dtype=torch.float64, requires_grad=True)
    vector, maps = encoder(image)
    code = torch.cat([vector, vector[:, :1]], 1)
    (decoder(code, decoder.precompute_skips(maps)) ** 2).sum().backward()
    for network in (encoder, decoder):
        assert all(bool(p.grad is not None and p.grad.any()) for p in network.parameters())
    assert image.grad is not None and bool(image.grad.all())


@pytest.mark.parametrize("side", [21, 26])
def test_every_pixel_can_be_reached_from_code_and_each_map(side: int) -> None:
    """Eight channels, so that no pixel has only those that the last ReLU cuts off."""
    torch.manual_seed(side)
    decoder = Residual(channels=(8, 8, 8)).decoder(side, 6, 1).double()
    n1, n2 = halved(side), halved(halved(side))
    shapes = [(6,), (1, 2 * n1, 2 * n1), (8, n1, n1), (8, n2, n2)]
    inputs: list[Tensor] = [torch.randn(1, *shape, dtype=torch.float64) for shape in shapes]
    base = decoder(inputs[0], decoder.precompute_skips(inputs[1:]))
    for i in range(4):
        moved = [value + 1 if i == j else value for j, value in enumerate(inputs)]
        assert bool((decoder(moved[0], decoder.precompute_skips(moved[1:])) != base).all())


def test_memory_format_changes_nothing_and_is_kept() -> None:
    encoder, decoder = networks(26)
    images, code = torch.rand(3, 26, 26), torch.randn(3, 6)
    plain = decoder(code, decoder.precompute_skips(encoder(images)[1]))
    for network in (encoder, decoder):
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    maps = encoder(images)[1]
    assert all(m.is_contiguous(memory_format=torch.channels_last) for m in decoder.precompute_skips(maps))
    torch.testing.assert_close(decoder(code, decoder.precompute_skips(maps)), plain, rtol=0, atol=1e-5)


def test_block_without_its_last_convolution_is_the_identity() -> None:
    block = Block(3)
    for parameter in block.second.parameters():
        torch.nn.init.zeros_(parameter)
    x = torch.randn(2, 3, 5, 5)
    assert torch.equal(block(x), x)


FAST = Path(__file__).parents[1] / "configs" / "vma_fast.yaml"


def test_the_gradient_of_a_whole_model_reaches_every_parameter() -> None:
    """Those of all networks, after the weights have moved enough for dummies to be picked: in 20 batches."""
    small = (
        "kind=glyphs",
        "classes=60",
        "resize=21",
        "held_out_classes=0",
        "iter=null",
        "batch_size=32",
        "mixture=null",
    )
    widths = "model.autoencoder={kind: residual, channels: [4, 4, 6], blocks: [1, 1], address_channels: [4, 4]}"
    config = configuration.load(FAST, [*(f"train_data.{one}" for one in small), widths, "test_spec.targets=null"])
    cpu = torch.device("cpu")
    model, loader = build_model(config, cpu), train_loader(config, training_images(config, cpu))
    for step in range(20):
        model.loss(loader.at(step), StepNoise(cpu, step))[0].backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_weights_of_the_shipped_configuration_fit_into_six_megabytes() -> None:
    model = build_model(configuration.load(FAST), torch.device("cpu"))
    assert 4 * sum(p.numel() for p in model.parameters()) < 5.9e6
