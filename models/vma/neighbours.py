"""What the rest of a memory shows of each of its images.

    n_i = sum_{j != i} q(j|M,m_i) s_ij(m_j)        s_ij = argmax_s q(s|m_i,m_j)

Every image is addressed as if it were a target, in its memory without itself, and what is found is laid onto it: a mean
of drawings of the same character, which shows where its strokes may lie.  It depends on no target, so p(x|z,m_a,n_a)
is as good a likelihood as p(x|z,m_a).

`G` memories · `M` images in a memory · `I` some of them · `S` slots, M and the dummies · `D` embedding · `H W` image.
"""

import math

import torch
from torch import Tensor

from models.vma.distributions import AddressPosterior
from models.vma.placements import PlacementPosterior, Placements

PLANES = 2  # n_i, and how much of q(j|M,m_i) is not on dummies
MOST = 64  # others that an image sees: the likeliest, and q(j|M,m_i) is that of these and the dummies
PAIRS_AT_ONCE = 8192  # of images, each laid onto the other


@torch.no_grad()
def neighbours(
    memory: Tensor,
    embeddings: Tensor,
    q_a: AddressPosterior,
    q_s: PlacementPosterior | None = None,
    placements: Placements = Placements(),
) -> Tensor:
    """Memories [G, M, H, W] with embeddings [G, S, D] -> [G, M, PLANES, H, W]; empty where M < 2.

    Without `q_s` images are not moved.
    """
    groups, size, height, width = memory.shape
    if size < 2:
        return memory.new_zeros(groups, size, PLANES, height, width)
    flat = memory.flatten(0, 1).unsqueeze(1)  # [G M, 1, H, W]
    first = size * torch.arange(groups, device=memory.device).view(-1, 1, 1)
    features = None if q_s is None else q_s.features_of(memory)

    def of(i: Tensor) -> Tensor:
        """[I] -> [G, I, PLANES, H, W]"""
        logits = q_a(embeddings[:, i], embeddings).logits  # [G, I, S]
        logits = logits.scatter(-1, i.view(1, -1, 1).expand(groups, -1, 1), -math.inf)
        of_images, dummies = logits.split([size, logits.shape[-1] - size], -1)
        j = torch.arange(size, device=memory.device).expand_as(of_images)
        if size > MOST:
            of_images, j = of_images.topk(MOST)  # [G, I, J]
        weights = torch.cat([of_images, dummies], -1).softmax(-1)[..., : j.shape[-1]].to(memory.dtype)
        rows = first + j
        s = torch.zeros_like(rows)
        if q_s is not None and features is not None:
            others = features if size <= MOST else features.flatten(0, 1)[rows.squeeze(1)]
            s = q_s.of(memory[:, i], others).argmax(-1)
        placed = placements.place(flat, rows.flatten(), s.flatten()).reshape(*rows.shape, height, width)
        mean = torch.einsum("gij,gijhw->gihw", weights, placed)
        found = weights.sum(-1)[..., None, None].expand_as(mean)
        return torch.stack([mean, found], 2)

    at_once = max(1, PAIRS_AT_ONCE // (groups * size)) if size <= MOST else 1  # each has others of its own
    return torch.cat([of(i) for i in torch.arange(size, device=memory.device).split(at_once)], 1)
