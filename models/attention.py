"""Attention of every pixel to a memory image: where in it are the strokes so far, and what lies there?

    w_ij = softmax_j(q_i k_j - b/2 |i + d_i - j|^2)        the answer for pixel i: sum_j w_ij v_j

A pixel i looks for places j of the memory image whose keys match what it sees of the pixels before it, around its own
place moved by d_i, which it chooses too.  So an image that lies elsewhere can be copied.

`N` pairs of a target and a memory image · `H W` image, `h w` the part of it that is computed · `B` places of the memory
image, blocks of 2 x 2 pixels · `D` size of queries, keys and values.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MemoryAttention(nn.Module):
    """Queries come from what a pixel sees, keys and values from `channels` maps that a decoder makes of the image.

    Three of the D numbers of queries and keys hold the quadratic, so that the whole exponent is one product, which
    fused kernels compute without storing it.

    Args:
        seen: the number of channels that a pixel sees.
        size: D, a multiple of 4.
        outputs: channels of the answer.
    """

    def __init__(self, seen: int, size: int, outputs: int) -> None:
        super().__init__()
        self.size = size
        self.channels = size // 2  # 2 D numbers for each block of four pixels
        self.query = nn.Linear(seen, size - 3 + 2)  # and d_i
        self.output = nn.Linear(size, outputs, bias=False)
        self.log_precision = nn.Parameter(torch.tensor(math.log(0.08)))  # b in 1 / pixels^2: 3.5 pixels around i

    def forward(self, query: Tensor, maps: Tensor, place: tuple[int, int] = (0, 0)) -> Tensor:
        """The answers [N, h, w, outputs].

        Args:
            query: [N, h, w, D - 1], from `self.query`, of the pixels from `place` (row, column) on.
            maps: [N, channels, H, W] of the memory image.
        """
        n, _, height, width = maps.shape
        with torch.autocast(maps.device.type, enabled=False):  # squares of distances need their digits
            query, maps = (value if value.dtype == torch.float64 else value.float() for value in (query, maps))
            blocks = F.pixel_unshuffle(F.pad(maps, (0, width % 2, 0, height % 2)), 2)  # [N, 2 D, rows, columns]
            keys, values = blocks.flatten(2).transpose(1, 2).chunk(2, -1)  # [N, B, D]
            centres = 2 * _places(blocks.shape[2:], maps) + 0.5  # [B, 2]
            own = _places(query.shape[1:3], maps) + torch.tensor(place, device=maps.device)  # [h w, 2]
            content, moved = query.flatten(1, 2).split([self.size - 3, 2], -1)
            b = self.log_precision.exp()
            # -b/2 |i + d - j|^2 = b (i + d) j - b/2 |j|^2, and what is the same for all j
            q = torch.cat([content, b * (own + moved), torch.ones_like(moved[..., :1])], -1)
            quadratic = torch.cat([centres, -b / 2 * centres.square().sum(1, keepdim=True)], 1)
            k = torch.cat([keys[..., :-3], quadratic.expand(n, -1, -1)], -1)
            answer = F.scaled_dot_product_attention(q[:, None], k[:, None], values[:, None], scale=1.0)
        return self.output(answer.squeeze(1)).unflatten(1, query.shape[1:3])


def _places(shape: torch.Size, like: Tensor) -> Tensor:
    """(row, column) of every place of so many rows and columns: [places, 2]."""
    return torch.cartesian_prod(*(torch.arange(n, device=like.device, dtype=like.dtype) for n in shape))
