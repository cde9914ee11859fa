"""The tokeniser and the token transformer of AiT: hard and soft decoding, invalid pixels, vocabularies."""

import math

import pytest
import torch
from torch.nn import functional as F

from logitkit.models import AiTSmall, MaskedVQVAE, mask_augment, masked_mse, silog_loss


def tokeniser(**settings):
    torch.manual_seed(0)
    return MaskedVQVAE(
        **{"size": 16, "stride": 8, "codes": 12, "dim": 6, "width": 4, "blocks": 1, **settings}
    )


def images(n=5, size=16):
    return torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(1))


def model():
    torch.manual_seed(0)
    tasks = {"depth": ["depth"] * 4, "object": ["coordinate"] * 2 + ["class"] + ["mask"] * 4}
    sizes = {"coordinate": 9, "class": 3, "mask": 7, "depth": 12}
    return AiTSmall((1, 16, 16), sizes, tasks, soft=("mask", "depth"), dim=16, heads=2, depth=1)


def test_silog_has_the_values_of_the_official_code():
    """SiLogLoss of github.com/SwinTransformer/AiT, and its MseIgnoreZeroLoss."""
    i = torch.arange(24).double()
    prediction = (1.5 + torch.sin(i * 1.3)).view(2, 3, 4)
    target = (1.2 + torch.cos(i * 0.7)).view(2, 3, 4)
    target[0, 1], target[1, 2, 3] = 0, 0
    for lam, expected in ((0.0, 0.8662524418773035), (0.5, 0.8517577429918795), (1.0, 0.837012074246752)):
        assert silog_loss(prediction, target, lam).item() == pytest.approx(expected, rel=1e-12)
    mse = masked_mse(prediction, target, target > 0)
    assert mse.item() == pytest.approx(1.0015555840556676, rel=1e-12)


def test_silog_with_lam_1_does_not_see_scale():
    prediction, target = images() + 0.1, images(size=16).flip(0) + 0.1
    value = silog_loss(prediction, target, 1.0).item()
    assert silog_loss(7 * prediction, target, 1.0).item() == pytest.approx(value, rel=1e-4)
    assert abs(silog_loss(7 * prediction, target, 0.5).item() - value) > 0.5


def test_silog_is_finite_where_nothing_is_left():
    prediction = torch.ones(2, 3, requires_grad=True)
    for target in (torch.zeros(2, 3), torch.ones(2, 3)):
        loss = silog_loss(prediction, target)
        loss.backward()
        assert 0 <= loss.item() <= 1e-6
    assert torch.isfinite(prediction.grad).all()


def test_silog_gradient():
    x = (images(2, 4).double() + 0.2).requires_grad_()
    y = images(2, 4).double().flip(0) - 0.3
    assert (y <= 0).any()
    assert torch.autograd.gradcheck(lambda x: silog_loss(x, y), x)


def test_invalid_pixels_have_no_influence():
    part, x = tokeniser().eval(), images()
    valid = torch.rand(x.shape, generator=torch.Generator().manual_seed(2)) > 0.4
    known = torch.where(valid, x, 0.0)
    plain = part(known, x, valid)
    for junk in (1e6, float("nan"), float("inf")):
        other = part(known, torch.where(valid, x, junk), valid)
        assert other.loss.equal(plain.loss)
        part.zero_grad()
        other.loss.backward()
        assert all(torch.isfinite(p.grad).all() for p in part.parameters())
    output = images().roll(1, dims=0).requires_grad_()
    masked_mse(output, x, valid).backward()
    assert (output.grad[~valid] == 0).all()
    assert (output.grad[valid] != 0).all()
    assert masked_mse(output, x, torch.zeros_like(valid)).item() == 0


def test_the_loss_is_reconstruction_and_commitment():
    part, x = tokeniser(commitment=0.5).eval(), images()
    found = part(x)
    z = part.encoder(x).flatten(2).transpose(1, 2)
    distance = torch.cdist(z, part.codebook[None].expand(5, -1, -1))
    assert found.tokens.equal(distance.argmin(-1))
    expected = (found.output - x).square().mean() + 0.5 * (distance.amin(-1) ** 2).sum() / z.numel()
    assert found.loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_tokens_decode_to_what_they_encode_in_row_major_order():
    part, x = tokeniser().eval(), images()
    tokens = part.encode(x)
    assert tokens.equal(part(x).tokens)
    torch.testing.assert_close(part.decode(tokens), part(x).output, atol=1e-5, rtol=1e-4)
    grid = part.codebook[tokens].view(5, 2, 2, 6).permute(0, 3, 1, 2)
    assert part.decode(tokens).equal(part.decoder(grid))


def test_soft_decoding_of_certain_logits_is_hard_decoding_and_only_it_has_a_gradient():
    part, x = tokeniser().eval(), images()
    tokens = part.encode(x)
    logits = torch.randn(5, 4, 12, generator=torch.Generator().manual_seed(3))
    logits.scatter_(2, tokens[:, :, None], 6.0).requires_grad_()
    torch.testing.assert_close(part.decode_soft(logits, 1e-6), part.decode(tokens), atol=1e-5, rtol=0)
    uniform = part.decode_soft(torch.zeros(1, 4, 12))
    mean = part.decoder(part.codebook.mean(dim=0)[None, :, None, None].expand(1, -1, 2, 2))
    torch.testing.assert_close(uniform, mean)
    silog_loss(part.decode_soft(logits).exp(), x + 0.1).backward()
    assert (logits.grad.abs().amax(dim=-1) > 0).all()
    logits.grad = None
    part.decode(logits.argmax(-1)).sum().backward()
    assert logits.grad is None


def test_the_codebook_follows_by_hand():
    part = tokeniser(codes=2, dim=1, decay=0.9).quantiser.train()
    part.vectors.copy_(torch.tensor([[0.0], [10.0]]))
    part.counts.fill_(2.0)
    part.sums.copy_(2 * part.vectors)
    part(torch.tensor([[[1.0], [2.0], [9.0]]]))
    # counts 0.9 * 2 + 0.1 * (2, 1); sums 0.9 * (0, 20) + 0.1 * (3, 9)
    torch.testing.assert_close(part.counts, torch.tensor([2.0, 1.9]))
    torch.testing.assert_close(part.vectors[:, 0], torch.tensor([0.3 / 2.0, 18.9 / 1.9]))
    before = part.vectors.clone()
    part.eval()(torch.tensor([[[5.0]]]))
    assert part.vectors.equal(before)


def test_codes_out_of_use_restart():
    part, x = tokeniser(codes=12).train(), images(64)
    part(x)
    assert (part.quantiser.counts > 0).all()
    with torch.no_grad():
        part.quantiser.vectors[3:] = 1e6
        part.quantiser.sums[3:] = 1e6 * part.quantiser.counts[3:, None]
    for _ in range(500):
        part.quantiser(part._features(x[:4]).detach())
    assert part.codebook.abs().max() < 1e3


def test_training_fills_in_what_is_missing():
    part, generator = tokeniser().train(), torch.Generator().manual_seed(0)
    level = torch.rand(64, 1, 1, 1, generator=generator)
    x = level.expand(64, 1, 16, 16).contiguous()
    optimizer = torch.optim.Adam(part.parameters(), lr=3e-3)
    for _ in range(120):
        optimizer.zero_grad()
        part(mask_augment(x, 0.5, 4, generator), x).loss.backward()
        optimizer.step()
    part.eval()
    rmse = (part(mask_augment(x, 0.5, 4, generator)).output - x).square().mean().sqrt()
    assert rmse < 0.6 * x.std()


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 1.0])
def test_mask_augment_hides_exactly_so_many_patches(ratio):
    x = torch.ones(6, 2, 8, 12)
    masked = mask_augment(x, ratio, 4, torch.Generator().manual_seed(0))
    patches = masked.view(6, 2, 2, 4, 3, 4).permute(0, 1, 2, 4, 3, 5).flatten(-2)
    assert ((patches == 0).all(-1) | (patches == 1).all(-1)).all()
    hidden = (patches == 0).all(-1)
    assert hidden[:, 0].equal(hidden[:, 1])
    assert (hidden[:, 0].sum(dim=(1, 2)) == math.ceil(ratio * 6)).all()
    if 0 < ratio < 1:
        assert len(hidden[:, 0].flatten(1).unique(dim=0)) > 1


def test_vocabularies_do_not_overlap():
    part = model()
    spans = sorted((s.start, s.stop) for s in part.vocabularies.values())
    assert spans == [(0, 9), (9, 12), (12, 19), (19, 31)]
    tokens = torch.tensor([[8, 0, 2, 0, 6, 1, 1]])
    assert part._joint(tokens, "object", 1).tolist() == [[8, 0, 11, 12, 18, 13, 13]]
    logits = torch.arange(31.0).expand(1, 7, 31)
    own = part.own(logits, "object")
    assert {k: tuple(v.shape) for k, v in own.items()} == {
        "coordinate": (1, 2, 9), "class": (1, 1, 3), "mask": (1, 4, 7)
    }  # fmt: skip
    assert own["class"][0, 0].tolist() == [9, 10, 11]
    assert own["mask"][0, 3].tolist() == list(range(12, 19))


def test_the_loss_is_cross_entropy_of_the_joint_vocabulary():
    part, x = model(), images(3)
    tokens = torch.randint(0, 12, (3, 4), generator=torch.Generator().manual_seed(0))
    logits = part(x, tokens, "depth")
    assert logits.shape == (3, 4, 31)
    log_p = logits.log_softmax(-1)
    each = [-log_p[i, j, 19 + tokens[i, j]] for i in range(3) for j in range(4)]
    assert part.loss(x, tokens, "depth").item() == pytest.approx(torch.stack(each).mean().item(), rel=1e-5)


def test_no_token_sees_itself_or_those_after_it():
    part, x = model(), images(2)
    tokens = torch.zeros(2, 4, dtype=torch.int64)
    base = part(x, tokens, "depth")
    tokens[:, 2] = 5
    moved = (part(x, tokens, "depth") - base).abs().amax(dim=(0, 2))
    assert (moved[:3] < 1e-6).all()
    assert moved[3] > 1e-6


def test_generation_agrees_with_training_and_soft_tokens_differ_only_after_soft_slots():
    part, x = model(), images(4)
    hard, soft = (part.generate(x, "object", soft=s) for s in (False, True))
    own = part.own(part(x, hard.tokens, "object"), "object")
    for kind in own:
        torch.testing.assert_close(hard.logits[kind], own[kind], atol=1e-5, rtol=1e-4)
    assert hard.tokens[:, :4].equal(soft.tokens[:, :4])
    assert hard.logits["mask"][:, 0].equal(soft.logits["mask"][:, 0])
    assert not hard.logits["mask"][:, 1].equal(soft.logits["mask"][:, 1])
    assert (hard.tokens < torch.tensor([9, 9, 3, 7, 7, 7, 7])).all()


def test_a_certain_model_reads_soft_tokens_as_hard_ones():
    part, x = model(), images(4)
    with torch.no_grad():
        part.bias[19:31] = torch.linspace(0, 400, 12)
    hard, soft = (part.generate(x, "depth", soft=s) for s in (False, True))
    torch.testing.assert_close(soft.logits["depth"], hard.logits["depth"], atol=1e-5, rtol=0)


def test_it_learns_two_tasks_at_once():
    part, x = model(), images(8)
    generator = torch.Generator().manual_seed(0)
    depth = torch.randint(0, 12, (8, 4), generator=generator)
    thing = (torch.rand(8, 7, generator=generator) * torch.tensor([9, 9, 3, 7, 7, 7, 7])).long()
    optimizer = torch.optim.Adam(part.parameters(), lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        (part.loss(x, depth, "depth") + part.loss(x, thing, "object")).backward()
        optimizer.step()
    assert (part.generate(x, "depth").tokens == depth).float().mean() > 0.9
    assert (part.generate(x, "object", soft=False).tokens == thing).float().mean() > 0.9


def test_the_loss_of_the_decoded_output_reaches_the_transformer():
    part, decoder, x = model(), tokeniser().eval().requires_grad_(False), images(3)
    tokens = decoder.encode(x)
    logits = part.own(part(x, tokens, "depth"), "depth")["depth"]
    silog_loss(F.softplus(decoder.decode_soft(logits)), x + 0.1).backward()
    assert part.stem[0].weight.grad.abs().max() > 0


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"stride must be a power of 2 .* got 6"):
        MaskedVQVAE(size=12, stride=6)
    with pytest.raises(ValueError, match=r"decay must lie in \[0, 1\), got 1"):
        tokeniser(decay=1)
    with pytest.raises(ValueError, match=r"\(batch, 1, 16, 16\), got \(2, 1, 8, 8\)"):
        tokeniser()(torch.zeros(2, 1, 8, 8))
    with pytest.raises(ValueError, match=r"target and valid must have shape \(2, 1, 16, 16\)"):
        tokeniser()(images(2), images(3))
    with pytest.raises(ValueError, match="from 0 to 12"):
        tokeniser().decode(torch.tensor([[0, 1, 2, 12]]))
    with pytest.raises(ValueError, match=r"\(batch, 4\), got \(1, 3\)"):
        tokeniser().decode(torch.zeros(1, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"\(batch, 4, 12\), got \(1, 4, 11\)"):
        tokeniser().decode_soft(torch.zeros(1, 4, 11))
    with pytest.raises(ValueError, match=r"ratio .* got 1.5"):
        mask_augment(images(), 1.5, 4)
    with pytest.raises(ValueError, match="patch=5"):
        mask_augment(images(), 0.5, 5)
    with pytest.raises(ValueError, match=r"lam .* got 2"):
        silog_loss(images(), images(), 2.0)
    with pytest.raises(ValueError, match=r"one shape, got \(5, 1, 16, 16\) and \(2, 1, 16, 16\)"):
        silog_loss(images(), images(2))
    part = model()
    with pytest.raises(ValueError, match=r"task must be one of .* got 'colour'"):
        part.generate(images(), "colour")
    with pytest.raises(ValueError, match=r"shape \(5, 4\), got \(5, 3\)"):
        part(images(), torch.zeros(5, 3, dtype=torch.int64), "depth")
    with pytest.raises(ValueError, match="their vocabularies, got values from 0 to 3"):
        part.loss(images(1), torch.tensor([[0, 0, 3, 0, 0, 0, 0]]), "object")
    with pytest.raises(ValueError, match=r"depth must name vocabularies of \['mask'\], got \['depth'\]"):
        AiTSmall((1, 16, 16), {"mask": 4}, {"depth": ["depth"]})
    with pytest.raises(ValueError, match=r"depth must name .* got none"):
        AiTSmall((1, 16, 16), {"mask": 4}, {"depth": []})
    with pytest.raises(ValueError, match="multiples of 4"):
        AiTSmall((1, 15, 16), {"mask": 4}, {"m": ["mask"]})
    with pytest.raises(ValueError, match="multiple of heads"):
        AiTSmall((1, 16, 16), {"mask": 4}, {"m": ["mask"]}, dim=15)
