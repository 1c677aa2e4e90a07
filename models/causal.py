"""A causal likelihood of binary images: every pixel depends on those before it, row by row, and on the parameters.

    log p(x|parameters) = sum_i log p(x_i | x_<i, parameters)

It is exact and normalised.  A target passes the trunk once, whatever images of the memory it is paired with; only the
fusion with the decoder's parameters and what follows it is computed for every pair.  Masked convolutions: van den Oord
et al. 2016, "Pixel recurrent neural networks", arXiv 1601.06759.

`K` samples · `G` memories · `T` targets · `N` images or pairs of a target and parameters · `H W` image · `C` channels,
last inside this module.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from models.base import Likelihood, Noise

PAIRS_AT_ONCE = {"cpu": 48, "cuda": 4096}  # on a CPU as many as fit its caches


class Drawn:
    """The inputs of every masked convolution at the pixels drawn so far, so that a new pixel costs one place of each.

    `place` (row, column) is the pixel that is being drawn.
    """

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width
        self.place = (0, 0)
        self._inputs: dict[MaskedConv2d, Tensor] = {}

    def window(self, layer: "MaskedConv2d", x: Tensor) -> Tensor:
        """What `layer` sees from the present place, where its input is x [N, 1, 1, C]: [N, h, w, C]."""
        (row, column), (h, w) = self.place, layer.kernel_size
        if layer not in self._inputs:  # with a border of zeros above and on both sides
            self._inputs[layer] = x.new_zeros(len(x), self.height + h - 1, self.width + w - 1, x.shape[-1])
        window = self._inputs[layer][:, row : row + h, column : column + w]
        window[:, h - 1 :, w // 2 : w // 2 + 1] = x
        return window


class MaskedConv2d(nn.Conv2d):
    """Convolution that sees the pixels before its own in a square of `size`, and with `own` its own.

    The kernel has no rows for what lies below; only the rest of its last row is masked.
    """

    mask: Tensor

    def __init__(self, inputs: int, outputs: int, size: int, own: bool) -> None:
        super().__init__(inputs, outputs, (size // 2 + 1, size))
        mask = torch.ones(self.kernel_size)
        mask[-1, size // 2 + own :] = 0
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor, drawn: Drawn | None = None) -> Tensor:
        """[N, H, W, C] -> [N, H, W, C']; or of the one place that is drawn, [N, 1, 1, C] -> [N, 1, 1, C']."""
        weight, border = self.weight * self.mask, self.kernel_size[1] // 2
        if drawn is None:
            seen = F.pad(x, (0, 0, 0, 0, border, 0)).permute(0, 3, 1, 2)
            return F.conv2d(seen, weight, self.bias, padding=(0, border)).permute(0, 2, 3, 1)
        at_place = weight.permute(0, 2, 3, 1).flatten(1)
        return F.linear(drawn.window(self, x).flatten(1), at_place, self.bias)[:, None, None]


class MaskedBlock(nn.Module):
    """x + f(x) with one masked convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.masked = MaskedConv2d(channels, channels, 3, own=True)
        self.mix = nn.Linear(channels, channels)

    def forward(self, x: Tensor, drawn: Drawn | None = None) -> Tensor:
        return self.mix(self.masked(x.relu(), drawn).relu_()) + x


class CausalLikelihood(Likelihood):
    """p(x|parameters) with parameters [2 C, H, W]: for every pixel a gain and a shift of each of C fusion channels."""

    pictured = "drawn pixel by pixel"

    def __init__(
        self,
        trunk_channels: int = 48,
        trunk_blocks: int = 3,
        fusion_channels: int = 32,
        fusion_blocks: int = 2,
    ) -> None:
        super().__init__()
        self.channels = 2 * fusion_channels
        self.first = MaskedConv2d(1, trunk_channels, 7, own=False)
        self.trunk = nn.ModuleList(MaskedBlock(trunk_channels) for _ in range(trunk_blocks))
        self.to_fusion = nn.Linear(trunk_channels, fusion_channels)
        self.fusion = nn.ModuleList(MaskedBlock(fusion_channels) for _ in range(fusion_blocks))
        self.hidden = nn.Linear(fusion_channels, fusion_channels)
        self.logit = nn.Linear(fusion_channels, 1)
        nn.init.constant_(self.logit.bias, -2.0)  # most pixels are paper

    def adapted(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`weights`, perhaps of a shallower one; the blocks it lacks change nothing yet (Chen et al. 2016, Net2Net)."""
        given = {_block(name) for name in weights}
        blocks = {name: w for name, w in self.state_dict().items() if name.startswith(("trunk.", "fusion."))}
        new = {name: w for name, w in blocks.items() if _block(name) not in given}
        return {name: torch.zeros_like(w) if ".mix." in name else w for name, w in new.items()} | dict(weights)

    def context(self, x: Tensor) -> Tensor:
        """What each pixel sees of those before it: [G, T, H, W] -> [G, T, H, W, C]."""
        return self._trunk(x.flatten(0, 1).unsqueeze(-1)).unflatten(0, x.shape[:2])

    def log_prob(self, parameters: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
        """log p(x|parameters) in nats, exact: [K, G, T, 2 C, H, W], [G, T, H, W] and its context -> [K, G, T]."""
        if context is None:
            raise ValueError("the causal likelihood needs the context of its targets")
        at_once = PAIRS_AT_ONCE[x.device.type]
        paired = [v.expand(len(parameters), *v.shape).flatten(0, 2) for v in (x, context)]
        parts = zip(*(v.split(at_once) for v in (parameters.flatten(0, 2), *paired)), strict=True)
        return torch.cat([self._log_prob(*part) for part in parts]).view(parameters.shape[:3])

    def _log_prob(self, parameters: Tensor, x: Tensor, context: Tensor) -> Tensor:
        """[N, 2 C, H, W], [N, H, W] and [N, H, W, C] -> [N]."""
        logits = self.logits(parameters, context).to(x.dtype)
        return -F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum((1, 2))

    def _trunk(self, x: Tensor, drawn: Drawn | None = None) -> Tensor:
        """[N, H, W, 1] -> [N, H, W, C]."""
        h = self.first(x, drawn)
        for block in self.trunk:
            h = block(h, drawn)
        return self.to_fusion(h.relu())

    def logits(self, parameters: Tensor, context: Tensor, drawn: Drawn | None = None) -> Tensor:
        """Log-odds of ink: [N, 2 C, H, W] and [N, H, W, C] -> [N, H, W]; with `drawn`, of its one place, H = W = 1."""
        gain, shift = parameters.movedim(1, -1).chunk(2, -1)
        h = torch.addcmul(shift, context, gain + 1)
        for block in self.fusion:
            h = block(h, drawn)
        return self.logit(self.hidden(h.relu()).relu_()).squeeze(-1)

    def sample(self, parameters: Tensor, noise: Noise) -> Tensor:
        """An image drawn pixel by pixel: [..., 2 C, H, W] -> [..., H, W]."""
        batch, (height, width) = parameters.shape[:-3], parameters.shape[-2:]
        uniform = noise.uniform("pixels", *batch, height, width).to(parameters.dtype).view(-1, height, width)
        return self.draw(parameters.flatten(0, -4), uniform)[0].view(*batch, height, width)

    picture = sample

    @torch.no_grad()
    def draw(self, parameters: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Images drawn pixel by pixel, and the probability of ink that each pixel was drawn with.

        Args:
            parameters: [N, 2 C, H, W].
            uniform: [N, H, W] numbers in [0, 1): a pixel is ink where its number lies below its probability.

        Returns:
            [N, H, W] and [N, H, W].
        """
        height, width = uniform.shape[1:]
        image, probability = torch.zeros_like(uniform), torch.zeros_like(uniform)
        drawn = Drawn(height, width)
        for row in tqdm(range(height), "drawing rows", delay=2, leave=False, disable=None):
            for column in range(width):
                drawn.place = row, column
                at = (..., slice(row, row + 1), slice(column, column + 1))
                x = image[at].unsqueeze(-1)
                logits = self.logits(parameters[at], self._trunk(x, drawn), drawn)
                probability[at] = logits.to(uniform.dtype).sigmoid()
                image[at] = (uniform[at] < probability[at]).to(uniform.dtype)
                drawn.window(self.first, x)  # replaces the empty pixel by the drawn one
        return image, probability


def _block(name: str) -> tuple[str, ...]:
    """The block that a weight belongs to, "trunk.0.mix.weight" -> ("trunk", "0")."""
    return tuple(name.split(".")[:2])
