"""`max_shift` and `scales`: an address names an image of the memory, how it is stretched and by how much moved."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.config import small_config
from helpers.program import main
from test_latent_free import batch, log_likelihood
from torch import Tensor
from torch.distributions import Categorical

from autoencoders.features import FeaturesAt
from config import ConfigError
from models.vma.model import VMA
from models.vma.placements import PlacementPosterior, Placements
from runtime.randomness import StepNoise
from studies.classification import address_posterior

LATENT_FREE = ("model.likelihood=causal", "model.latent_dim=0", "test_spec.metric=nll")


def placed(image: Tensor, down: int, right: int, tall: float = 1, wide: float = 1) -> Tensor:
    """[..., H, W], pixel by pixel: `tall` times as high, and then moved; beyond the border lies what lies at it."""
    return _sampled(image, lambda i, c: (i - down - c) / tall + c, lambda j, c: (j - right - c) / wide + c)


def placed_back(image: Tensor, down: int, right: int, tall: float = 1, wide: float = 1) -> Tensor:
    """The same, undone: what lies where a pixel of the image comes to lie."""
    return _sampled(image, lambda i, c: (i - c) * tall + c + down, lambda j, c: (j - c) * wide + c + right)


def _sampled(image: Tensor, row: Callable[[int, float], float], column: Callable[[int, float], float]) -> Tensor:
    h, w = image.shape[-2:]
    out = torch.empty_like(image)
    for i, j in itertools.product(range(h), range(w)):
        source = round(row(i, (h - 1) / 2)), round(column(j, (w - 1) / 2))
        out[..., i, j] = image[..., min(max(source[0], 0), h - 1), min(max(source[1], 0), w - 1)]
    return out


def every_placement(placements: Placements) -> list[tuple[int, int, float, float]]:
    """Down, right, tall and wide of each."""
    by, scales = range(-placements.max_shift, placements.max_shift + 1), placements.scales
    return [(down, right, *stretch) for stretch in itertools.product(scales, scales) for down in by for right in by]


@pytest.fixture(params=["model.scales=[1]", "model.scales=[0.6,1]"])
def model(request: pytest.FixtureRequest, tiny_model: Callable[..., VMA]) -> VMA:
    """With placements that are not equally likely: shifts by one pixel, and stretches."""
    torch.manual_seed(0)
    more = ("model.max_shift=1", request.param)
    found = tiny_model(*more, latent=0, likelihood="causal", learned_prior=True, gain=0.5)
    with torch.no_grad():
        for logits in found.p_s.parameters():
            logits.copy_(torch.randn_like(logits))
    return found


def log_p_of_placements(model: VMA) -> Tensor:
    """log p(s) [R]: every stretch with every shift."""
    shift = model.p_s.shift_logits.log_softmax(0)
    if model.p_s.stretch_logits is None:
        return shift
    return torch.cat([stretch + shift for stretch in model.p_s.stretch_logits.log_softmax(0)])


def one_by_one(model: VMA, x: Tensor, memory: Tensor) -> Tensor:
    """p(a) p(x|m_a) in log, [A, G, T]: every image with every placement, then the dummies."""
    p_x, every = model.p_x, every_placement(model.placements)
    log_p_s = log_p_of_placements(model)
    log_joint = []
    for g, t in itertools.product(range(x.shape[0]), range(x.shape[1])):
        target, of_target = x[g : g + 1, t : t + 1], []
        log_p_slot = model.p_a(1, memory.shape[1]).logits.flatten()
        for slot, image in enumerate(model.slot_images(memory)[g]):
            vector, maps = model.encoder(image.unsqueeze(0))
            parameters = p_x.decoder(p_x.memory_code(vector.relu()), p_x.decoder.precompute_skips(maps))
            is_dummy = slot >= memory.shape[1]
            for s, where in enumerate([(0, 0, 1.0, 1.0)] if is_dummy else every):
                at = placed(parameters, *where)[None, None]
                log_p_x = p_x.likelihood.log_prob(at, target, p_x.likelihood.context(target)).squeeze()
                of_target.append(log_p_slot[slot] + (0 if is_dummy else log_p_s[s]) + log_p_x)
        log_joint.append(torch.stack(of_target))
    return torch.stack(log_joint, 1).unflatten(1, x.shape[:2])


@torch.no_grad()
def test_log_likelihood_is_the_sum_over_images_and_placements(model: VMA) -> None:
    b = batch()
    wanted = one_by_one(model, b.x, b.memory)
    m = model.encode_memory(b.memory, precompute_features=True)
    log_p, targets = model.log_likelihood(m, model.encode_targets(b.x, m))
    torch.testing.assert_close(log_p, wanted.logsumexp(0), rtol=1e-10, atol=0)
    posterior = (wanted - wanted.logsumexp(0)).movedim(0, -1)
    torch.testing.assert_close(targets.q_a.logits, posterior, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(m.p_a.probs.sum(-1), torch.ones(2, 1, dtype=torch.float64))
    found = model.explain(b.x, b.memory, StepNoise("cpu", 0), 1)
    placements = len(model.placements)
    of_images = posterior.exp()[..., : 3 * placements].unflatten(-1, (3, placements)).sum(-1)
    assert found.p_a is not None
    torch.testing.assert_close(found.p_a[..., :3], of_images, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(address_posterior(model, b.x, b.memory, StepNoise("cpu", 0), 1), found.p_a)
    same = b.x_class.unsqueeze(2) == b.memory_class.unsqueeze(1)
    accuracy = model.metrics(m, targets, b)["address_accuracy"]
    torch.testing.assert_close(accuracy, (of_images * same).sum(-1), rtol=1e-9, atol=1e-12)


@torch.no_grad()
def test_with_a_z_the_posterior_is_of_slots_too(tiny_model: Callable[..., VMA]) -> None:
    """Importance weights, and sums over all addresses, added up over the placements of each image."""
    model = tiny_model("model.max_shift=1", learned_prior=True, gain=0.5)
    b, k, placements = batch(), 40, len(model.placements)
    slots = [[*range(3 * placements)][i * placements : (i + 1) * placements] for i in range(3)]
    slots += [[3 * placements + d] for d in range(len(model.dummies))]
    m = model.encode_memory(b.memory, precompute_features=True)
    targets = model.encode_targets(b.x, m)
    s = model.importance_samples(b.x, m, targets, StepNoise("cpu", 0), k)
    weights = s.log_w.softmax(0)
    wanted = torch.stack([(weights * torch.isin(s.a, torch.tensor(of))).sum(0) for of in slots], -1)
    found = model.explain(b.x, b.memory, StepNoise("cpu", 0), k).p_a
    assert found is not None
    torch.testing.assert_close(found, wanted)

    one = b.x[:, :1]
    targets = model.encode_targets(one, m)
    every = model.samples_at(model.every_address(m, targets, 2), targets, StepNoise("cpu", 1)).log_w
    joint = every.unflatten(0, (2, -1)).exp().mean(0)  # [A, G, 1]
    by_slot = torch.stack([joint[of].sum(0) for of in slots], -1)
    posterior = address_posterior(model, one, b.memory, StepNoise("cpu", 1), 2)
    torch.testing.assert_close(posterior, by_slot / by_slot.sum(-1, keepdim=True))


@torch.no_grad()
def test_weights_of_many_samples_average_to_the_sum(model: VMA) -> None:
    """So p(a) and q(a|M,x) of image and placement are both normalised, and a slot is decoded as it was placed."""
    b, k = batch(), 4000
    model.q_s.log_scale.fill_(-5.0)  # undecided, else the weights have no variance to speak of
    ratio = (model.log_weights(b.x, b.memory, StepNoise("cpu", 0), k) - log_likelihood(model, b)).exp()
    assert ratio.std(0).max() > 0.01
    assert ((ratio.mean(0) - 1).abs() <= 4.5 * ratio.std(0) / math.sqrt(k)).all()


@pytest.mark.parametrize("scales", [(1.0,), (0.7, 1.0, 1.5)])
def test_placed_maps_and_their_gradient(scales: tuple[float, ...]) -> None:
    torch.manual_seed(0)
    placements, maps = Placements(2, scales), torch.randn(3, 2, 9, 8, dtype=torch.float64, requires_grad=True)
    s = torch.arange(len(placements))
    rows, every = s % 3, every_placement(placements)
    wanted, undone = (
        torch.stack([by(maps[row], *where) for row, where in zip(rows, every, strict=True)])
        for by in (placed, placed_back)
    )
    found = placements.place(maps, rows, s)
    assert torch.equal(found, wanted)
    assert torch.equal(placements.place(maps, rows, s, back=True), undone)
    assert torch.equal(placements.place(maps, rows, torch.full_like(rows, placements.identity)), maps[rows])
    weights = torch.randn_like(found)
    torch.testing.assert_close(
        *(torch.autograd.grad((value * weights).sum(), maps)[0] for value in (found, wanted)), rtol=1e-12, atol=0
    )


def test_distances_between_addresses() -> None:
    placements, images, dummies = Placements(1, (0.5, 1.0, 2.0)), 2, 2
    slots = [slot for slot in range(images) for _ in range(len(placements))] + [2, 3]
    every = every_placement(placements) * images + [(0, 0, 1.0, 1.0)] * dummies
    wanted = torch.zeros(len(every), len(every))
    for (i, a), (j, b) in itertools.product(enumerate(every), repeat=2):
        moved = sum(abs(a[k] - b[k]) for k in (0, 1))
        scaled = sum(abs(math.log2(a[k]) - math.log2(b[k])) for k in (2, 3))  # these scales are powers of two
        wanted[i, j] = moved + 2 * scaled + 5 * (slots[i] != slots[j])
    all_of_them = torch.arange(len(every)).view(-1, 1, 1).expand(-1, 1, 2)
    found = placements.distances(all_of_them, len(every), images)
    torch.testing.assert_close(found, wanted.expand(1, 2, -1, -1))


def test_addresses_are_pairs_of_slot_and_placement() -> None:
    assert every_placement(Placements(1, (0.5, 1.0)))[Placements(1, (0.5, 1.0)).identity] == (0, 0, 1, 1)
    placements, images, dummies = Placements(1), 3, 2
    a = torch.arange(images * 9 + dummies)
    pairs = [(i, s) for i in range(images) for s in range(9)] + [(images + d, 4) for d in range(dummies)]
    assert (
        list(zip(placements.slot(a, images).tolist(), placements.placement(a, images).tolist(), strict=True)) == pairs
    )
    of_slots, log_p = Categorical(logits=torch.randn(2, 1, 5)), torch.randn(2, 4, 3, 9).log_softmax(-1)
    joint = placements.joint(Categorical(logits=of_slots.logits.expand(2, 4, 5)), log_p, images)
    torch.testing.assert_close(placements.of_slots(joint.probs, images), of_slots.probs.expand(2, 4, 5))
    torch.testing.assert_close(joint.logits[..., 9:18], of_slots.logits[..., 1:2] + log_p[:, :, 1])


@torch.no_grad()
@pytest.mark.parametrize("scales", [(1.0,), (0.7, 1.0)])
def test_placement_posterior_is_the_softmax_of_correlations_and_finds_a_placed_copy(scales: tuple[float, ...]) -> None:
    torch.manual_seed(0)
    placements = Placements(2, scales)
    q_s, memory = PlacementPosterior(placements).double(), torch.zeros(1, 2, 20, 20, dtype=torch.float64)
    memory[:, 0, 5:15, 8], memory[:, 0, 9, 6:14], memory[:, 1, 6:12, 6:12] = 1, 1, 1
    copies = (2, -1, scales[0], 1.0), (-1, 0, scales[0], scales[0])
    x = torch.stack([placed(memory[0, i], *where) for i, where in enumerate(copies)])[None]
    log_q, every = q_s(x, memory), every_placement(placements)
    f_x = q_s.features(x[0].unsqueeze(1))
    for t, i in itertools.product(range(2), range(2)):
        products = []
        for down, right, *stretch in every:
            f_m = q_s.features(placed(memory[0, i], 0, 0, *stretch)[None])
            inside = torch.zeros_like(f_m)  # nothing comes in from beyond the border
            for row, column in itertools.product(range(20), range(20)):
                if 0 <= row - down < 20 and 0 <= column - right < 20:
                    inside[:, row, column] = f_m[:, row - down, column - right]
            energy = 0 if q_s.energy is None else q_s.energy / 2 * f_m.square().sum()
            products.append(((f_x[t] * inside).sum() - energy) * q_s.log_scale.exp())
        torch.testing.assert_close(log_q[0, t, i], torch.stack(products).log_softmax(0), rtol=1e-9, atol=1e-9)
    assert [every[int(log_q[0, i, i].argmax())] for i in range(2)] == list(copies)


@torch.no_grad()
def test_placement_posterior_keeps_its_digits_under_bf16() -> None:
    """Only the features are computed in bf16: products of hundreds of nats would lose tenths."""
    torch.manual_seed(0)
    q_s = PlacementPosterior(Placements(3, (0.8, 1.0, 1.25)))
    x, memory = ((torch.rand(1, n, 26, 26) < 0.3).float() for n in (4, 3))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        log_q = q_s(x, memory)
    with torch.no_grad():
        exact = q_s(x, memory)
    assert log_q.dtype == torch.float32
    torch.testing.assert_close(log_q.exp().sum(-1), torch.ones(1, 4, 3), rtol=0, atol=1e-5)
    assert (log_q - exact)[exact > -5].abs().max() < 0.05


def test_the_sum_over_likeliest_addresses_is_a_bound(model: VMA) -> None:
    b = batch()
    m = model.encode_memory(b.memory)
    targets, exact = model.encode_targets(b.x, m), log_likelihood(model, b)
    order, log_joint = targets.q_a.logits.argsort(-1, descending=True), one_by_one(model, b.x, b.memory).movedim(0, -1)
    addresses = 3 * len(model.placements) + 2
    for n in (1, 5, addresses - 1, addresses, 1000):
        model.summed_addresses = n
        bound, found = model.log_likelihood(m, targets)
        wanted = log_joint.gather(-1, order[..., :n]).logsumexp(-1)
        torch.testing.assert_close(bound, wanted, rtol=1e-10, atol=0)
        assert (bound <= exact + 1e-9).all()
        assert (found.q_a.probs > 0).sum(-1).eq(min(n, addresses)).all()
        assert model.metrics(m, found, b)["kl_a"].isfinite().all()
        model.address_rounds = min(3, n)
        searched, found = model.log_likelihood(m, targets)
        model.address_rounds = 1
        here = found.q_a.probs > 0
        assert here.sum(-1).eq(min(n, addresses)).all()
        wanted = log_joint.masked_fill(~here, -math.inf).logsumexp(-1)
        torch.testing.assert_close(searched, wanted, rtol=1e-10, atol=0)
    torch.testing.assert_close(bound, exact)


@torch.no_grad()
def test_with_addresses_drawn_for_the_rest_the_sum_is_unbiased(model: VMA) -> None:
    """4 standard errors of the mean over 400 offsets, of a q(a|M,x) that is wrong by 0.7 nats here and there."""
    b, repeats = batch(g=1, t=1), 400
    m = model.encode_memory(b.memory)
    exact, posterior = model.log_likelihood(m, model.encode_targets(b.x, m))
    p = posterior.q_a.logits
    log_q = p + 0.7 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0), dtype=p.dtype)
    targets = replace(posterior, q_a=Categorical(logits=log_q))
    model.summed_addresses, model.address_rounds = 6, 2
    bound, _ = model.log_likelihood(m, targets)
    model.sampled_addresses = 4
    noise = StepNoise("cpu", 0)  # fresh in every call
    drawn = [model.log_likelihood(m, targets, noise) for _ in range(repeats)]
    ratio = torch.stack([(estimate - exact).exp().squeeze() for estimate, _ in drawn])
    assert bound < exact - 0.1 and abs(ratio.mean() - 1) < 4 * ratio.std() / math.sqrt(repeats)
    assert ratio.min() > (bound - exact).exp() and ratio.std() > 0
    assert all((found.q_a.probs > 0).all() for _, found in drawn)
    with pytest.raises(ValueError, match=r"4 addresses are drawn .* needs noise"):
        model.log_likelihood(m, targets)


@torch.no_grad()
def test_the_largest_offset_draws_none_of_the_addresses_that_were_found(model: VMA) -> None:
    """1 - 2^-24, to which 7 is added: 8 in float32.  The last address, a dummy, is among the likely ones."""

    class Largest(StepNoise):
        def uniform(self, name: str, *shape: int) -> torch.Tensor:
            return torch.full(shape, 1 - 2**-24)

    b = batch()
    m = model.encode_memory(b.memory)
    logits = model.encode_targets(b.x, m).q_a.logits.clone()
    logits[..., -1] = 10.0
    targets = replace(model.encode_targets(b.x, m), q_a=Categorical(logits=logits))
    model.summed_addresses, model.sampled_addresses = 6, 8
    assert model.log_likelihood(m, targets, Largest("cpu", 0))[0].isfinite().all()


def test_every_part_learns_by_vimco_and_pictures_show_slots(model: VMA) -> None:
    b = batch(t=4)
    model.loss(b, StepNoise("cpu", 0))[0].backward()
    of_s = dict(model.p_s.named_parameters()) | dict(model.q_s.named_parameters())
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in of_s.values())
    samples, picked = model.sample(b.memory, StepNoise("cpu", 0), 20)
    _, slots = model.reconstruct(b.x, b.memory, StepNoise("cpu", 0))
    assert samples.shape[:2] == picked.shape == (20, 2)
    assert picked.max() <= 4 and slots.max() <= 4


@torch.no_grad()
def test_pictures_are_drawn_from_the_placed_image(model: VMA) -> None:
    b, (row, middle) = batch(g=1), (torch.tensor([[[1]]]), torch.tensor([[[model.placements.identity]]]))
    features = model.encode_memory(b.memory, precompute_features=True).features
    assert features is not None
    z = torch.empty(1, 1, 1, 0, dtype=torch.float64)
    plain = model.p_x.decode(z, FeaturesAt(features, row, middle))
    assert torch.equal(plain, model.p_x.decode(z, FeaturesAt(features, row)))
    found = model.p_x.decode(z, FeaturesAt(features, row, torch.tensor([[[6]]])))
    assert torch.equal(found, placed(plain, *every_placement(model.placements)[6]))


def test_it_trains_tests_and_begins_with_weights_without_placements_and_with_fewer_blocks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, shifted = tmp_path / "plain", tmp_path / "shifted"
    assert main(plain, "--train", *LATENT_FREE, "train_spec.steps=2") == 0
    deeper = "model.causal={trunk_blocks: 4, fusion_blocks: 3}"
    where = ("model.max_shift=1", "model.scales=[1,1.25]", deeper)
    begun = (*LATENT_FREE, *where, "train_spec.steps=1", "train_spec.lr=1e-9")
    bounded = ("test_spec.addresses=12", "test_spec.test_params.timesteps=[0, 3]")
    assert main(shifted, "--train", "--test", "--sample", *begun, *bounded, f"train_spec.init_from={plain}/vma.pt") == 0
    then, now = (torch.load(path / "vma.pt", weights_only=True)["model"] for path in (plain, shifted))
    assert all((now[name] - then[name]).abs().max() < 1e-7 for name in then)
    new_blocks = ("p_x.likelihood.trunk.3.", "p_x.likelihood.fusion.2.")
    assert {name for name in now if name not in then and not name.startswith(new_blocks)} == {
        *("p_s.shift_logits", "p_s.stretch_logits", "q_s.features.weight", "q_s.log_scale", "q_s.energy")
    }
    text = (shifted / "table.md").read_text()
    assert "a bound of the log-likelihood, the sum over the 12 likeliest addresses" in text
    for other in ("model.max_shift=1", deeper):
        assert main(plain, "--test", *LATENT_FREE, other) == 2  # other weights are needed
    shallow = ("model.causal={trunk_blocks: 4, fusion_blocks: 2}", f"train_spec.init_from={shifted}/vma.pt")
    capsys.readouterr()
    assert main(tmp_path / "shallow", "--train", *LATENT_FREE, *shallow) == 2
    assert "model.causal.fusion_blocks: 3 in the checkpoint, 2 now; blocks can be added, but" in capsys.readouterr().err
    turned = (*begun, "model.scales=[1,1.5]", f"train_spec.init_from={shifted}/vma.pt")
    assert main(tmp_path / "turned", "--train", *turned) == 2
    assert "model.scales: [1.0, 1.25] in the checkpoint, [1.0, 1.5] now" in capsys.readouterr().err


def test_how_the_sum_is_taken_is_done_and_is_part_of_what_a_table_is(tmp_path: Path) -> None:
    where = (*LATENT_FREE, "model.max_shift=1", "test_spec.test_params.max_batch_cls=[1]")
    assert main(tmp_path, "--train", "train_spec.steps=1", *where) == 0
    few, found = "test_spec.addresses=8", []
    for more in ((), (few,), (few, "test_spec.address_rounds=4"), (few, "test_spec.sampled_addresses=2")):
        assert main(tmp_path, "--test", *where, *more) == 0
        found.append(np.load(tmp_path / "table.npz")["C=1 M=3/bound"])
    assert all((a != b).any() for a, b in itertools.combinations(found, 2)), found
    assert (found[1] < found[0]).all() and (found[2] >= found[1] - 1e-4).mean() > 0.5
    assert len(list(tmp_path.glob("table.before-*.npz"))) == 3


def test_a_placement_needs_a_picked_image_and_the_image_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.max_shift: 2 moves .*, and model\.read soft picks none; use 0"):
        small_config(tmp_path, "model.max_shift=2", "model.read=soft")
    with pytest.raises(ConfigError, match=r"model\.scales: .* stretch the picked image, and .* picks none; use \[1\]"):
        small_config(tmp_path, "model.scales=[0.8,1]", "model.read=soft")
    for scales in ("[0.8,1.2]", "[1,1]", "[1.25,1]"):
        with pytest.raises(ConfigError, match=r"model\.scales: .* must contain 1, .* and rise; use \["):
            small_config(tmp_path, f"model.scales={scales}")
