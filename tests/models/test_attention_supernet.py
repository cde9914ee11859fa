"""The supernet against the networks cut from it, an independent count of multiply-adds, and a known order."""

import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from logitkit.models import Architecture, AttentionSupernet, PairwiseRanker, search
from logitkit.models.attention_supernet import Space
from logitkit.ops import use

LENGTH, VOCABULARY = 24, 11
MIXED = Architecture(16, 2, 24, ("cosformer", "softmax"))


def supernet(**settings):
    torch.manual_seed(0)
    space = {"widths": (16, 32), "heads": (2, 4), "hidden": (24, 64), "depths": (2, 3)}
    made = AttentionSupernet((LENGTH,), VOCABULARY, **{**space, **settings}).double().eval()
    for p in made.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    return made


def tokens(batch=3):
    return torch.randint(VOCABULARY, (batch, LENGTH), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "arch",
    [MIXED, Architecture(32, 4, 64, ("softmax",) * 3), Architecture(16, 4, 64, ("cosformer",) * 3)],
    ids=str,
)
def test_a_slice_is_the_extracted_network(arch):
    net, x = supernet(), tokens()
    found = net.set(arch).forward_features(x)
    alone = net.extract(arch).double().eval()
    assert (found[..., arch.width :] == 0).all()
    torch.testing.assert_close(found[..., : arch.width], alone.forward_features(x), rtol=0, atol=1e-12)
    assert not any(a is b for a in alone.parameters() for b in net.parameters())


def test_weights_of_a_slice_are_the_first_rows_and_columns():
    net = supernet()
    alone, whole = net.extract(MIXED), net.shared
    q, k, v = whole.blocks[0].attention.in_proj.weight.chunk(3)
    torch.testing.assert_close(
        alone.blocks[0].attention.in_proj.weight, torch.cat([t[:16, :16] for t in (q, k, v)])
    )
    torch.testing.assert_close(
        alone.blocks[1].mlp[2].weight.double(), whole.blocks[1].mlp[2].weight[:16, :24]
    )


def test_training_draws_an_architecture_per_pass():
    net, x = supernet().train(), tokens()
    torch.manual_seed(0)
    widths = {int((net.forward_features(x)[0, 0] != 0).sum()) for _ in range(20)}
    assert widths == {16, 32}
    net.forward_features(x).sum().backward()
    assert all(p.grad is not None for name, p in net.named_parameters() if "blocks.2" not in name)
    torch.testing.assert_close(net.eval()(x), net(x))


@pytest.mark.parametrize("kind", ["softmax", "cosformer"])
@pytest.mark.parametrize("width", [32, 64])
def test_multiply_adds(kind, width):
    """torch's own count, of the whole matrix of softmax and of cosFormer decoding token by token."""
    arch = Architecture(width, 2, 64, (kind,) * 2)
    net = supernet(widths=(32, 64))
    alone = net.extract(arch).eval()
    x = tokens(1)
    with torch.no_grad(), use("reference"), FlopCounterMode(display=False) as counter:
        if kind == "softmax":
            alone.forward_features(x)
        else:
            h = alone.embedding(x) + alone.position
            for block in alone.blocks:
                state, mixed = None, []
                for token in block.norm1(h).split(1, 1):
                    out, state = block.attention.step(token, state)
                    mixed.append(out)
                h = h + torch.cat(mixed, 1)
                h = h + block.mlp(block.norm2(h))
    assert net.flops(arch) == pytest.approx(counter.get_total_flops() / 2, rel=0.01)


def test_ranker_recovers_an_order():
    space = Space()
    archs = [
        Architecture(w, h, f, kinds)
        for w, h, f in itertools.product(space.widths, space.heads, space.hidden)
        for kinds in itertools.product(space.attention, repeat=3)
    ]
    x = torch.stack([space.features(a) for a in archs])
    hidden = x @ torch.randn(x.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores = PairwiseRanker(penalty=1e-9).fit(x, -hidden).predict(x)
    assert torch.equal(scores.argsort(), hidden.argsort())
    with pytest.raises(ValueError, match="has not been fitted"):
        PairwiseRanker().predict(x)
    with pytest.raises(ValueError, match="at least 2 rows"):
        PairwiseRanker().fit(x[:1], hidden[:1])


def test_search_finds_the_best_within_the_budget():
    net = supernet()

    def loss(arch):  # wider is better, and so is cosformer in the last layer; heads do not matter
        return -arch.width - arch.hidden / 100 - 0.1 * (arch.attention[-1] == "cosformer")

    budget = net.flops(Architecture(32, 4, 24, ("cosformer",) * 3))
    best, looked = search(net, loss, budget, n_eval=30)
    assert len(looked) <= 30
    assert all(net.flops(a) <= budget for a in looked)
    assert best.width == 32
    assert best.attention[-1] == "cosformer"
    every = [
        Architecture(w, h, f, kinds)
        for w, h, f, n in itertools.product(*net.space[:4])
        for kinds in itertools.product(net.space.attention, repeat=n)
    ]
    assert loss(best) == min(loss(a) for a in every if net.flops(a) <= budget)
    with pytest.raises(ValueError, match="no architecture within"):
        search(net, loss, 1.0)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"widths": ()}, "widths needs at least one option"),
        ({"heads": (3,)}, "multiple of every number of heads"),
        ({"attention": ("linear",)}, "attention must be among"),
    ],
)
def test_settings_that_cannot_be(settings, match):
    with pytest.raises(ValueError, match=match):
        supernet(**settings)
    with pytest.raises(ValueError, match="expected an architecture of"):
        supernet().set(Architecture(17, 2, 24, ("softmax",) * 2))
