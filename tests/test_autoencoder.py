"""The networks against the published layer sizes, and against convolutions written out one after another."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoencoders.published import Decoder, Encoder, SkipConv, halved, upsample


def weight_shapes(network: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(p.shape) for p in network.parameters() if p.dim() > 1]


def number(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("outputs", [128, 200])
def test_published_encoder(outputs: int) -> None:
    """26 x 26: 48 channels down to 13 x 13, 64 down to 7 x 7 and 4 x 4, two dense layers."""
    encoder = Encoder(26, (48, 64), 100, outputs)
    convolutions = [(48, 1, 3, 3), (48, 48, 3, 3), (48, 48, 3, 3), (64, 48, 3, 3), (64, 64, 3, 3), (64, 64, 3, 3)]
    assert weight_shapes(encoder) == [*convolutions, (100, 4 * 4 * 64), (outputs, 100)]
    assert [c.stride for c in encoder.modules() if isinstance(c, nn.Conv2d)] == [(s, s) for s in (1, 2, 1, 2, 1, 2)]
    assert number(encoder) == 246_116 + 101 * outputs
    vector, maps = encoder(torch.zeros(3, 26, 26))
    assert vector.shape == (3, outputs)
    assert [m.shape for m in maps] == [(3, 48, 13, 13), (3, 64, 7, 7)]


def test_published_decoder() -> None:
    """26 x 26: a code of 128, two dense layers to 4 x 4, doubled thrice, with maps joined at 7 x 7 and 13 x 13."""
    decoder = Decoder(26, (48, 64), 256, 128, outputs=1)
    dense = [(256, 128), (1024, 256)]
    coarse = [(64, 64, 3, 3), (64 + 64, 64, 3, 3)]
    fine = [(64, 64, 3, 3), (64 + 48, 48, 3, 3)]
    image = [(48, 48, 3, 3), (48, 48, 3, 3), (48, 1, 2, 2)]
    assert weight_shapes(decoder) == dense + coarse + fine + image
    assert number(decoder) == 534_033
    strides = [c.stride for c in decoder.modules() if isinstance(c, nn.ConvTranspose2d)]
    assert strides == [(s, s) for s in (2, 1, 2, 1, 2, 1, 1)]
    maps = [torch.zeros(3, 48, 13, 13), torch.zeros(3, 64, 7, 7)]
    assert decoder(torch.zeros(3, 128), decoder.precompute_skips(maps)).shape == (3, 1, 26, 26)


@pytest.mark.parametrize("side", range(20, 65))
def test_images_come_back_in_their_size(side: int) -> None:
    encoder, decoder = Encoder(side, (2, 3), 4, 5), Decoder(side, (2, 3), 4, 5, outputs=3)
    code, maps = encoder(torch.rand(2, side, side))
    assert decoder(code, decoder.precompute_skips(maps)).shape == (2, 3, side, side)
    n1, n2 = halved(side), halved(halved(side))
    assert [m.shape for m in maps] == [(2, 2, n1, n1), (2, 3, n2, n2)]
    assert n1 == -(-side // 2)


@pytest.mark.parametrize("side", [12, 13])
def test_doubling_undoes_halving(side: int) -> None:
    assert upsample(2, side)(torch.zeros(1, 2, halved(side), halved(side))).shape == (1, 2, side, side)


def test_skip_convolution_is_one_of_the_concatenation() -> None:
    torch.manual_seed(0)
    layer = SkipConv(3, 2, 4).double()
    state, skip = torch.randn(5, 3, 7, 7).double(), torch.randn(5, 2, 7, 7).double()
    whole = F.conv_transpose2d(torch.cat([state, skip], 1), layer.weight, layer.bias, padding=1)
    torch.testing.assert_close(layer(state, layer.project_skip(skip)), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("side", [20, 21, 26])
def test_every_pixel_can_be_reached_from_code_and_maps(side: int) -> None:
    """A ReLU in the wrong place or a map that is not used would leave pixels without a gradient."""
    torch.manual_seed(0)
    decoder = Decoder(side, (4, 4), 8, 3).double()
    n1, n2 = halved(side), halved(halved(side))
    inputs = [torch.randn(1, *shape, dtype=torch.float64) for shape in [(3,), (4, n1, n1), (4, n2, n2)]]
    base = decoder(inputs[0], decoder.precompute_skips(inputs[1:]))
    for i in range(3):
        moved: list[Tensor] = [value + 1 if i == j else value for j, value in enumerate(inputs)]
        changed = decoder(moved[0], decoder.precompute_skips(moved[1:])) != base
        assert changed.double().mean() > 0.9


def test_images_of_a_batch_do_not_mix() -> None:
    torch.manual_seed(0)
    encoder = Encoder(20, (2, 3), 4, 5).double()
    images = torch.rand(4, 20, 20).double()
    vector, maps = encoder(images)
    one_vector, one_maps = encoder(images[2:3])
    torch.testing.assert_close(vector[2:3], one_vector, rtol=0, atol=1e-12)
    for m, one in zip(maps, one_maps, strict=True):
        torch.testing.assert_close(m[2:3], one, rtol=0, atol=1e-12)
