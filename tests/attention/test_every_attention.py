"""What holds for every attention part: masks, causality, padding, weights, decoding, and a clear no."""

import inspect

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from logitkit import attention, catalog

DIM, HEADS = 16, 4
GRIDS = [(1, 1), (2, 3), (4, 4)]
PARTS = [card.name for card in catalog.cards("attention") if not card.companion_of]
FUNCTIONS = attention.FUNCTIONS


def make(name, grid=(2, 3), **settings):
    tokens = grid[0] * grid[1]
    place = {"embed_dim": DIM, "num_heads": HEADS, "grid": grid, "max_len": tokens, "n_ref": tokens}
    torch.manual_seed(0)
    part = catalog.create("attention", name, **place, **settings).double().eval()
    for p in part.parameters():  # nothing that starts at zero may hide
        p.data.add_(0.1 * torch.randn_like(p))
    return part


def tokens(grid, batch=2, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(batch, grid[0] * grid[1], DIM, generator=g, dtype=torch.float64)


def able(*features):
    return [name for name in PARTS if set(features) <= catalog.get("attention", name).build.takes]


def having(argument):
    return [n for n in PARTS if argument in inspect.signature(catalog.get("attention", n).build).parameters]


def call(part, *args, **asked):
    """The output, once the part has said what it takes."""
    return part(*args, **asked)[0]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("name", PARTS)
def test_a_sequence_does_not_depend_on_its_batch(name, grid):
    part, x = make(name, grid), tokens(grid, batch=3)
    torch.testing.assert_close(call(part, x)[1:2], call(part, x[1:2]))


@pytest.mark.parametrize("name", able("mask"))
@pytest.mark.parametrize("kind", ["boolean", "additive", "per head"])
def test_a_hidden_key_has_no_influence(name, kind):
    part, x = make(name), tokens((2, 3))
    n = x.shape[1]
    hidden = torch.rand(n, n, generator=torch.Generator().manual_seed(1)) < 0.5
    hidden[:, 4] = True  # nobody sees token 4
    hidden[2] = True  # token 2 sees nobody
    mask = hidden if kind == "boolean" else torch.zeros(n, n, dtype=x.dtype).masked_fill(hidden, -torch.inf)
    if kind == "per head":
        mask = mask.expand(len(x) * HEADS, n, n)
    out, weights = part(x, need_weights=True, attn_mask=mask, average_attn_weights=False)
    assert out.isfinite().all()
    assert weights.masked_select(hidden).abs().max() == 0
    changed = x.clone()
    changed[:, 4] += 10.0
    others = torch.arange(n) != 4
    if "cross" in part.takes:
        torch.testing.assert_close(call(part, x, changed, attn_mask=mask), out)
    torch.testing.assert_close(call(part, changed, attn_mask=mask)[:, others], out[:, others])


@pytest.mark.parametrize("name", able("mask"))
def test_gradients_are_finite_where_a_row_sees_nobody(name):
    part, x = make(name), tokens((2, 3)).requires_grad_()
    hidden = torch.zeros(6, 6, dtype=torch.bool)
    hidden[2] = True
    call(part, x, attn_mask=hidden).square().sum().backward()
    assert x.grad.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in part.parameters())


@pytest.mark.parametrize("grid", GRIDS[1:], ids=str)
@pytest.mark.parametrize("name", able("padding"))
def test_padded_keys_contribute_nothing(name, grid):
    part, x = make(name, grid), tokens(grid)
    n = x.shape[1]
    padding = torch.zeros(2, n, dtype=torch.bool)
    padding[0, n - 2 :] = True
    changed = x.clone()
    changed[0, n - 2 :] = 1e3
    out = call(part, x, key_padding_mask=padding)
    seen = ~padding
    torch.testing.assert_close(call(part, changed, key_padding_mask=padding)[seen], out[seen])
    torch.testing.assert_close(out[1], call(part, x)[1])
    if "cross" in part.takes:
        torch.testing.assert_close(out[0], call(part, x[:1], x[:1, : n - 2])[0])


@pytest.mark.parametrize("name", able("causal"))
def test_no_token_sees_those_after_it(name):
    part, x = make(name, (4, 4)), tokens((4, 4), batch=1).requires_grad_()
    out = call(part, x, is_causal=True)
    reach = torch.stack(
        [torch.autograd.grad(row.sum(), x, retain_graph=True)[0].abs().sum(-1)[0] for row in out[0]]
    )
    assert reach.triu(1).max() == 0
    assert (reach.diagonal() > 0).all()
    assert (reach[-1] > 0).all()


@pytest.mark.parametrize("name", able("causal", "mask"))
def test_causal_is_the_triangle_mask(name):
    part, x = make(name, (4, 4)), tokens((4, 4))
    triangle = torch.ones(16, 16, dtype=torch.bool).triu(1)
    torch.testing.assert_close(call(part, x, is_causal=True), call(part, x, attn_mask=triangle))


@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("name", able("step"))
def test_step_by_step_is_the_parallel_form(name, chunk):
    part, x = make(name, (4, 4)), tokens((4, 4))
    state, found = None, []
    for piece in x.split(chunk, 1):
        out, state = part.step(piece, state)
        found.append(out)
    torch.testing.assert_close(torch.cat(found, 1), call(part, x, is_causal=True))


@pytest.mark.parametrize(
    ("name", "causal"),
    [*((name, False) for name in able("weights")), *((name, True) for name in able("weights", "causal"))],
)
def test_weights_are_what_values_are_mixed_with(name, causal):
    part, x = make(name), tokens((2, 3))
    out, weights = part(x, need_weights=True, is_causal=causal, average_attn_weights=False)
    assert weights.shape == (2, HEADS, 6, 6)
    _, _, value = part.project(x, x, x)
    torch.testing.assert_close(part.merge(weights @ value), out)
    torch.testing.assert_close(part(x, need_weights=True, is_causal=causal)[1], weights.mean(1))


@pytest.mark.parametrize("name", PARTS)
def test_what_a_part_cannot_do_it_refuses(name):
    part, x = make(name), tokens((2, 3))
    n = x.shape[1]
    asked = {
        "mask": {"attn_mask": torch.zeros(n, n, dtype=torch.bool)},
        "padding": {"key_padding_mask": torch.zeros(2, n, dtype=torch.bool)},
        "causal": {"is_causal": True},
        "cross": {"key": x[:, :3]},
        "weights": {"need_weights": True},
    }
    for feature, arguments in asked.items():
        if feature in part.takes:
            assert part(x, **arguments)[0].shape == x.shape
        else:
            with pytest.raises(ValueError, match=f"{type(part).__name__} cannot do"):
                part(x, **arguments)
    if "step" not in part.takes:
        with pytest.raises(ValueError, match="cannot do step"):
            part.step(x)


@pytest.mark.parametrize("name", able("padding", "mask"))
def test_it_takes_the_place_of_torchs_module(name):
    layer = nn.TransformerEncoderLayer(DIM, HEADS, 32, batch_first=True, dtype=torch.float64).eval()
    layer.self_attn = make(name)
    x, padding = tokens((2, 3)), torch.zeros(2, 6, dtype=torch.bool)
    padding[0, -1] = True
    with torch.no_grad():  # where torch would take its fused path
        found = layer(x, src_key_padding_mask=padding)
    mixed = call(layer.self_attn, x, key_padding_mask=padding)
    h = layer.norm1(x + mixed)
    torch.testing.assert_close(found, layer.norm2(h + layer._ff_block(h)))


@pytest.mark.parametrize(
    "name",
    [n for n in PARTS if "num_kv_heads" in inspect.signature(catalog.get("attention", n).build).parameters],
)
def test_fewer_heads_of_keys(name):
    part, x = make(name, num_kv_heads=2), tokens((2, 3))
    wide = make(name)
    sizes = [DIM, DIM // 2, DIM // 2]
    state = part.state_dict()
    for kind in ("weight", "bias"):
        q, k, v = state[f"in_proj.{kind}"].split(sizes)
        k, v = (t.view(2, 4, *t.shape[1:]).repeat_interleave(2, 0).flatten(0, 1) for t in (k, v))
        state[f"in_proj.{kind}"] = torch.cat([q, k, v])
    wide.load_state_dict(state)
    torch.testing.assert_close(call(part, x), call(wide, x))


@pytest.mark.parametrize("name", able("mask"))
def test_dropout_thins_the_weights_in_training_only(name):
    part, x = make(name, (4, 4), dropout=0.5), tokens((4, 4))
    plain = call(part, x)
    torch.testing.assert_close(call(make(name, (4, 4)), x), plain)
    part.train()
    attention.set_dense(part, True)  # nothing but dropout is random
    torch.manual_seed(0)
    draws = torch.stack([call(part, x) for _ in range(400)])
    assert not torch.allclose(draws[0], draws[1])
    error = (draws.mean(0) - plain) / (draws.std(0) / 20)
    assert error.abs().mean() < 1.2  # 0.8 for standard normal errors


def sdpa_inputs(queries, keys, seed, kv_heads=4):
    g = torch.Generator().manual_seed(seed)
    shapes = (2, 4, queries, 8), (2, kv_heads, keys, 8), (2, kv_heads, keys, 5)
    return [torch.randn(*s, generator=g, dtype=torch.float64) for s in shapes]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_take_torchs_arguments(name):
    takes = list(inspect.signature(FUNCTIONS[name]).parameters)
    expected = ["query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa"]
    assert takes[: len(expected)] == expected


@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (2, 7), (7, 2)], ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_mixes_values(name, shape):
    """Linear in the values, grouped heads are repeated heads, causal hides what comes later."""
    function = FUNCTIONS[name]
    q, k, v = sdpa_inputs(*shape, seed=2, kv_heads=2)
    wide = [x.repeat_interleave(2, 1) for x in (k, v)]
    out = function(q, k, v, enable_gqa=True)
    torch.testing.assert_close(out, function(q, *wide))
    torch.testing.assert_close(function(q, k, 3 * v, enable_gqa=True), 3 * out)
    if shape[0] == shape[1]:
        first = function(q, *wide, is_causal=True)
        later = [wide[0].clone(), wide[1].clone()]
        for x in later:
            x[:, :, -1] += 5.0
        torch.testing.assert_close(function(q, *later, is_causal=True)[:, :, :-1], first[:, :, :-1])


shapes = {
    "queries": st.integers(1, 9), "keys": st.integers(1, 9), "kv_heads": st.sampled_from([1, 2, 4]),
    "shown": st.sampled_from([0.0, 0.3, 0.7, 1.0]), "seed": st.integers(0, 99),
}  # fmt: skip
any_shape = settings(max_examples=15, deadline=None, derandomize=True)
MASKED = [name for name in FUNCTIONS if name in able("mask")]


@pytest.mark.parametrize("name", MASKED)
@any_shape
@given(**shapes, per_head=st.booleans())
def test_a_function_under_any_mask(name, queries, keys, kv_heads, shown, seed, per_head):
    """Hidden keys and values contribute nothing, whatever they are; a row that sees nobody is 0; masks of
    True and of 0 are one; what a query gets does not depend on the other queries."""
    q, k, v = sdpa_inputs(queries, keys, seed, kv_heads)
    g = torch.Generator().manual_seed(seed)
    seen = torch.rand(4 if per_head else 1, queries, keys, generator=g) < shown

    def run(q, k, v, mask):
        return FUNCTIONS[name](q, k, v, attn_mask=mask, enable_gqa=True)

    out = run(q, k, v, seen)
    assert out.isfinite().all()
    assert out.masked_select(~seen.any(-1, keepdim=True)).abs().sum() == 0
    additive = torch.zeros(seen.shape, dtype=q.dtype).masked_fill(~seen, -torch.inf)
    torch.testing.assert_close(run(q, k, v, additive), out)
    unseen = ~seen.any(0).any(0)
    k[:, :, unseen], v[:, :, unseen] = 1e3, -1e3
    torch.testing.assert_close(run(q, k, v, seen), out)
    row = seed % queries
    torch.testing.assert_close(run(q[:, :, [row]], k, v, seen[:, [row]]), out[:, :, [row]])


@pytest.mark.parametrize("name", MASKED)
@any_shape
@given(**shapes, before=st.integers(0, 8))
def test_a_function_is_causal_after_a_cache(name, queries, keys, kv_heads, shown, seed, before):
    """With keys of `before` earlier tokens, the causal offset: the mask that lets query i see keys up to
    i + before, alone and beside another mask."""
    del keys
    q, k, v = sdpa_inputs(queries, queries + before, seed, kv_heads)
    triangle = torch.ones(queries, queries + before, dtype=torch.bool).tril(before)
    other = torch.rand(triangle.shape, generator=torch.Generator().manual_seed(seed)) < shown
    causal = {"is_causal": True, "causal_offset": before, "enable_gqa": True}
    function = FUNCTIONS[name]
    torch.testing.assert_close(
        function(q, k, v, **causal), function(q, k, v, attn_mask=triangle, enable_gqa=True)
    )
    torch.testing.assert_close(
        function(q, k, v, attn_mask=other, **causal),
        function(q, k, v, attn_mask=triangle & other, enable_gqa=True),
    )


@pytest.mark.parametrize("name", able("mask", "padding"))
@any_shape
@given(batch=st.integers(1, 3), grid=st.sampled_from([(1, 1), (1, 2), (2, 2), (3, 3)]),
       shown=shapes["shown"], seed=shapes["seed"])  # fmt: skip
def test_a_part_under_any_mask_and_padding(name, batch, grid, shown, seed):
    """Both together are the mask of both for each sequence; nothing hidden contributes; all is finite."""
    part, x = make(name, grid), tokens(grid, batch, seed)
    n = x.shape[1]
    g = torch.Generator().manual_seed(seed)
    hidden, padding = torch.rand(n, n, generator=g) >= shown, torch.rand(batch, n, generator=g) < 0.3
    out = call(part, x, attn_mask=hidden, key_padding_mask=padding)
    assert out.isfinite().all()
    both = (hidden | padding[:, None]).repeat_interleave(HEADS, 0)
    torch.testing.assert_close(call(part, x, attn_mask=both), out)
    changed = x.masked_fill(padding[..., None], 50.0)
    found = call(part, changed, attn_mask=hidden, key_padding_mask=padding)
    torch.testing.assert_close(found[~padding], out[~padding])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_functions_dropout_keeps_the_mean(name):
    q, k, v = sdpa_inputs(3, 6, seed=3)
    torch.manual_seed(0)
    draws = torch.stack([FUNCTIONS[name](q, k, v, dropout_p=0.3) for _ in range(600)])
    error = (draws.mean(0) - FUNCTIONS[name](q, k, v)) / (draws.std(0) / 600**0.5 + 1e-12)
    assert error.abs().mean() < 1.2
    with pytest.raises(ValueError, match="dropout_p"):
        FUNCTIONS[name](q, k, v, dropout_p=1.0)
