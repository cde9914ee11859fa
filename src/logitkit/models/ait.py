"""All in Tokens (AiT): a VQ-VAE of depth maps and masks, and a transformer that answers in its tokens.

These map images to token sequences and back, so they are plain modules and not backbones. The part is
`bottleneck.SoftToken`, whose docstring has the source.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from logitkit.models.base import check_inputs, check_shape
from logitkit.models.vit import Block
from logitkit.ops import check_positive, values_visible
from logitkit.ops.codebook import Codebook, soft_token

CLOSEST = 1e-3
TINY = 1e-12


def mask_augment(
    x: Float[Tensor, "batch channels height width"],
    ratio: float = 0.5,
    patch: int = 16,
    generator: Generator | None = None,
) -> Float[Tensor, "batch channels height width"]:
    """x with a random ceil(ratio * patches) of its square patches set to 0, other ones in every example.

    The authors' 0.5 and 16, which is half of the width of a token. Raises ValueError for a ratio outside
    [0, 1], a patch that does not divide height and width, or another rank.
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio must lie in [0, 1], got {ratio}.")
    if x.ndim != 4 or patch < 1 or x.shape[2] % patch or x.shape[3] % patch:
        raise ValueError(
            "mask_augment takes (batch, channels, height, width), both a multiple of the patch, got"
            f" {tuple(x.shape)} and patch={patch}."
        )
    rows, columns = x.shape[2] // patch, x.shape[3] // patch
    device = generator.device if generator is not None else x.device
    order = torch.rand(len(x), rows * columns, generator=generator, device=device).to(x.device).argsort(dim=1)
    keep = (order >= math.ceil(ratio * rows * columns)).view(-1, 1, rows, columns)
    return x * keep.repeat_interleave(patch, dim=2).repeat_interleave(patch, dim=3)


def masked_mse(
    output: Float[Tensor, "*shape"], target: Float[Tensor, "*shape"], valid: Bool[Tensor, "*shape"]
) -> Float[Tensor, ""]:
    """Mean of (output - target)^2 over valid entries, 0 if there are none; the others have no influence,
    whatever they hold."""
    # Replaced before the difference is taken, so that a NaN there does not reach the gradient.
    error = (output - torch.where(valid, target, output.detach())).square()
    return error.sum() / valid.sum().clamp(min=1)


def silog_loss(
    prediction: Float[Tensor, "*shape"], target: Float[Tensor, "*shape"], lam: float = 0.5
) -> Float[Tensor, ""]:
    """sqrt(mean d^2 - lam (mean d)^2), d = log target - log prediction, over the entries with target > 0.

    The scale-invariant loss of depth maps: with lam = 1 a factor on the prediction changes nothing.
    Predictions are at least 0.001 here; the loss is at least 1e-6, and 0 without a valid entry. Raises
    ValueError for shapes that differ or a lam outside [0, 1].
    """
    if prediction.shape != target.shape:
        raise ValueError(
            f"prediction and target must have one shape, got {tuple(prediction.shape)} and"
            f" {tuple(target.shape)}."
        )
    if not 0 <= lam <= 1:
        raise ValueError(f"lam must lie in [0, 1], got {lam}.")
    if prediction.dtype in (torch.float16, torch.bfloat16):
        prediction = prediction.float()
    valid = target > 0
    truth = torch.where(valid, target, 1.0).to(prediction.dtype).log()
    d = torch.where(valid, truth - prediction.clamp(min=CLOSEST).log(), 0.0)
    count = valid.sum().clamp(min=1)
    variance = d.square().sum() / count - lam * (d.sum() / count).square()
    return variance.clamp(min=TINY).sqrt() * valid.any()


class Residual(nn.Module):
    """x + convolutions of 3x3, 3x3 and 1x1 with ReLUs between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 1),
        )  # fmt: skip

    def forward(self, x: Float[Tensor, "batch d h w"]) -> Float[Tensor, "batch d h w"]:
        return x + self.layers(x)


class Reconstruction(NamedTuple):
    """What the tokeniser makes of its input, the loss to train it with, and the tokens between."""

    output: Float[Tensor, "batch channels height width"]
    loss: Float[Tensor, ""]
    tokens: Int[Tensor, "batch tokens"]


class MaskedVQVAE(nn.Module):
    """A convolutional VQ-VAE of dense outputs, whose pixels may be unknown: images of masks or depths to a
    square of tokens, in row-major order, and back.

    loss = mean over valid pixels of (output - target)^2 + commitment * mean |z - code|^2, z the encoder's
    output. Give it `mask_augment(x)` and target x, and it learns to fill in what is missing.

    Shapes: x and target (batch, channels, size, size) with unknown pixels 0, `valid` of the same shape bool;
    tokens (batch, (size / stride)^2). `codebook` is the (codes, dim) table for a `SoftToken`.

    Defaults: the authors' network for masks of 64 pixels, that is 128 codes of dim 512, stride 16, 2 residual
    blocks, decay 0.99 and commitment 0.25; `width` doubles with every halving of the image. For depth maps
    they take stride 32. Theirs lets unused codes be; here they restart.

    Raises: ValueError for a stride that is not a power of 2 of at least 2 that divides size, sizes below 1,
    inputs of another shape or dtype, an empty batch, NaN, or tokens that do not fit.
    """

    def __init__(
        self,
        size: int = 64,
        channels: int = 1,
        stride: int = 16,
        codes: int = 128,
        dim: int = 512,
        width: int = 16,
        blocks: int = 2,
        decay: float = 0.99,
        commitment: float = 0.25,
    ) -> None:
        super().__init__()
        check_positive(size=size, channels=channels, codes=codes, dim=dim, width=width)
        if stride < 2 or stride & (stride - 1) or size % stride:
            raise ValueError(
                f"stride must be a power of 2 of at least 2 that divides size, got {stride} for size {size}."
            )
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {decay}.")
        self.shape = (channels, size, size)
        self.side = size // stride
        self.commitment = commitment
        widths = [width << i for i in range(stride.bit_length() - 1)]
        down: list[nn.Module] = []
        for before, after in zip([channels, *widths[:-1]], widths, strict=True):
            down += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
        up: list[nn.Module] = []
        for before, after in zip([widths[-1], *widths[:0:-1]], widths[::-1], strict=True):
            up += [nn.ConvTranspose2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
        top = widths[-1]
        self.encoder = nn.Sequential(*down, *(Residual(top) for _ in range(blocks)), nn.Conv2d(top, dim, 1))
        self.decoder = nn.Sequential(
            nn.Conv2d(dim, top, 1), nn.ReLU(), *(Residual(top) for _ in range(blocks)), *up,
            nn.Conv2d(width, channels, 1),
        )  # fmt: skip
        self.quantiser = Codebook(codes, dim, decay)

    @property
    def codebook(self) -> Float[Tensor, "codes dim"]:
        return self.quantiser.vectors

    def forward(
        self,
        x: Float[Tensor, "batch channels height width"],
        target: Float[Tensor, "batch channels height width"] | None = None,
        valid: Bool[Tensor, "batch channels height width"] | None = None,
    ) -> Reconstruction:
        codes, tokens, commitment = self.quantiser(self._features(x))
        output = self._decoded(codes)
        target = x if target is None else target
        valid = torch.ones_like(target, dtype=torch.bool) if valid is None else valid
        if target.shape != x.shape or valid.shape != x.shape:
            raise ValueError(
                f"target and valid must have shape {tuple(x.shape)}, got {tuple(target.shape)} and"
                f" {tuple(valid.shape)}."
            )
        return Reconstruction(
            output, masked_mse(output, target, valid) + self.commitment * commitment, tokens
        )

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "batch channels height width"]) -> Int[Tensor, "batch tokens"]:
        """The tokens of x, without a gradient and without a change to the codebook."""
        return self.quantiser.nearest(self._features(x))

    def decode(self, tokens: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch channels height width"]:
        """What the tokens stand for."""
        if tokens.ndim != 2 or tokens.shape[1] != self.side**2 or tokens.is_floating_point():
            raise ValueError(
                f"tokens must be whole numbers of shape (batch, {self.side**2}), got {tuple(tokens.shape)} of"
                f" {tokens.dtype}."
            )
        _check_range(tokens, len(self.codebook))
        return self._decoded(self.codebook[tokens])

    def decode_soft(
        self, logits: Float[Tensor, "batch tokens codes"], temperature: float = 1.0
    ) -> Float[Tensor, "batch channels height width"]:
        """What the soft tokens of the logits stand for; a gradient flows to the logits."""
        if logits.shape[1:] != (self.side**2, len(self.codebook)):
            raise ValueError(
                f"logits must have shape (batch, {self.side**2}, {len(self.codebook)}), got"
                f" {tuple(logits.shape)}."
            )
        return self._decoded(soft_token(logits, self.codebook, temperature))

    def _features(self, x: Tensor) -> Float[Tensor, "batch tokens dim"]:
        return self.encoder(check_inputs(x, self.shape)).flatten(2).transpose(1, 2)

    def _decoded(self, codes: Float[Tensor, "batch tokens dim"]) -> Tensor:
        return self.decoder(codes.transpose(1, 2).unflatten(2, (self.side, self.side)))


def _check_range(tokens: Tensor, size: Tensor | int) -> None:
    if values_visible(tokens) and bool(((tokens < 0) | (tokens >= size)).any()):
        raise ValueError(
            f"tokens must lie in their vocabularies, got values from {int(tokens.min())} to"
            f" {int(tokens.max())}."
        )


class Reader(nn.Module):
    """Pre-norm decoder block: attention to the tokens so far, attention to the image, then an MLP."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(dim) for _ in range(4))
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.query, self.memory, self.cross = (
            nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        )  # fmt: skip
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], image: Float[Tensor, "batch patches dim"]
    ) -> Float[Tensor, "batch tokens dim"]:
        q, k, v = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        x = x + self.out(self._attend(q, k, v, causal=True))
        k, v = self.memory(self.norm3(image)).chunk(2, dim=-1)
        x = x + self.cross(self._attend(self.query(self.norm2(x)), k, v, causal=False))
        return x + self.mlp(self.norm4(x))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Float[Tensor, "batch tokens dim"]:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2)


class Generated(NamedTuple):
    """The likeliest tokens, each counted from 0 in its own vocabulary, and by vocabulary the logits of its
    slots (batch, slots, size) for `MaskedVQVAE.decode_soft`."""

    tokens: Int[Tensor, "batch slots"]
    logits: dict[str, Tensor]


class AiTSmall(nn.Module):
    """A small encoder-decoder transformer that answers several tasks about an image in tokens of one joint
    vocabulary, and reads its own answers as soft tokens.

        model = AiTSmall((1, 32, 32), {"coordinate": 33, "class": 3, "mask": 128, "depth": 128},
                         {"depth": ["depth"] * 16, "object": ["coordinate"] * 4 + ["class"] + ["mask"] * 16},
                         soft=("mask", "depth"))
        model.loss(images, depth_tokens, "depth").backward()
        depth = tokeniser.decode_soft(model.generate(images, "depth").logits["depth"])

    A task is a sequence of slots, each of which names its vocabulary. Training is by cross-entropy over the
    joint vocabulary with the true tokens as inputs. At generation the logits of a slot are cut to its own
    vocabulary, and vocabularies in `soft` are read as soft tokens, others as the likeliest token. The output
    layer is tied to the embeddings, as the authors have it. They also add a loss of the decoded output,
    `silog_loss` for depth or Dice and squared error for masks, to which `own(logits)` leads:
    `silog_loss(tokeniser.decode_soft(model.own(model(images, tokens, "depth"), "depth")["depth"]), depth)`.

    Shapes: images (batch, channels, height, width), height and width multiples of 4; tokens (batch, slots)
    whole numbers that count from 0 in each vocabulary; joint logits (batch, slots, all vocabularies).

    Defaults: dim 64, 4 heads, 2 blocks each in encoder and decoder behind two strided convolutions; the
    paper has a Swin transformer, then 6 blocks each of dim 256.

    Raises: ValueError for unknown vocabularies or tasks, empty tasks, images or tokens of another shape or
    dtype, tokens outside their vocabulary, a dim that `heads` does not divide, an empty batch, or NaN.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        vocabularies: Mapping[str, int],
        tasks: Mapping[str, Sequence[str]],
        soft: Collection[str] = (),
        dim: int = 64,
        heads: int = 4,
        depth: int = 2,
    ) -> None:
        super().__init__()
        self.input_shape = check_shape(input_shape)
        if len(self.input_shape) != 3 or self.input_shape[1] % 4 or self.input_shape[2] % 4:
            raise ValueError(
                "images must have shape (channels, height, width) with multiples of 4, got"
                f" {self.input_shape}."
            )
        check_positive(**vocabularies)
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}.")
        if dim < 1 or heads < 1 or dim % heads:
            raise ValueError(f"dim must be a positive multiple of heads, got dim {dim} and heads {heads}.")
        for name, kinds in {**tasks, "soft": soft}.items():
            unknown = sorted(set(kinds) - set(vocabularies))
            if unknown or (name in tasks and not kinds):
                raise ValueError(
                    f"{name} must name vocabularies of {sorted(vocabularies)}, got {unknown or 'none'}."
                )
        self.tasks = {name: tuple(kinds) for name, kinds in tasks.items()}
        self.soft = frozenset(soft)
        self.vocabularies: dict[str, slice] = {}
        size = 0
        for kind, count in vocabularies.items():
            self.vocabularies[kind] = slice(size, size + count)
            size += count
        patches = self.input_shape[1] * self.input_shape[2] // 16
        longest = max(map(len, self.tasks.values()))
        self.stem = nn.Sequential(
            nn.Conv2d(self.input_shape[0], dim // 2, 3, stride=2, padding=1), nn.GELU(),
            nn.Conv2d(dim // 2, dim, 3, stride=2, padding=1),
        )  # fmt: skip
        self.place = nn.Parameter(0.02 * torch.randn(patches, dim))
        self.encoder = nn.Sequential(*(Block(dim, heads, 0.0) for _ in range(depth)), nn.LayerNorm(dim))
        self.start = nn.Parameter(0.02 * torch.randn(len(self.tasks), dim))
        self.position = nn.Parameter(0.02 * torch.randn(len(self.tasks), longest, dim))
        self.embedding = nn.Parameter(0.02 * torch.randn(size, dim))
        self.bias = nn.Parameter(torch.zeros(size))
        self.decoder = nn.ModuleList(Reader(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def forward(
        self,
        images: Float[Tensor, "batch channels height width"],
        tokens: Int[Tensor, "batch slots"],
        task: str,
    ) -> Float[Tensor, "batch slots vocabulary"]:
        """Joint logits of every slot, given the true tokens of those before it."""
        joint = self._joint(tokens, task, len(images))
        return self._decode(self._encode(images), self.embedding[joint[:, :-1]], task)

    def loss(
        self,
        images: Float[Tensor, "batch channels height width"],
        tokens: Int[Tensor, "batch slots"],
        task: str,
    ) -> Float[Tensor, ""]:
        """Mean cross-entropy of the tokens over the joint vocabulary."""
        logits = self(images, tokens, task)
        return F.cross_entropy(logits.flatten(0, 1), self._joint(tokens, task, len(images)).flatten())

    def own(self, logits: Float[Tensor, "batch slots vocabulary"], task: str) -> dict[str, Tensor]:
        """Joint logits of a task cut to what each slot may say: by vocabulary (batch, slots, size)."""
        kinds = self._kinds(task)
        slots = {kind: [i for i, other in enumerate(kinds) if other == kind] for kind in kinds}
        return {kind: logits[:, rows, self.vocabularies[kind]] for kind, rows in slots.items()}

    @torch.no_grad()
    def generate(
        self, images: Float[Tensor, "batch channels height width"], task: str, soft: bool = True
    ) -> Generated:
        """The answer, slot by slot; with soft=False every slot is read as its likeliest token."""
        memory = self._encode(images)
        read = memory.new_empty(len(images), 0, memory.shape[-1])
        answers, logits = [], []
        for kind in self._kinds(task):
            joint = self._decode(memory, read, task)[:, -1]
            own, table = joint[:, self.vocabularies[kind]], self.embedding[self.vocabularies[kind]]
            answers.append(own.argmax(dim=-1))
            logits.append(joint)
            token = soft_token(own, table) if soft and kind in self.soft else table[answers[-1]]
            read = torch.cat([read, token[:, None].to(read.dtype)], dim=1)
        return Generated(torch.stack(answers, dim=1), self.own(torch.stack(logits, dim=1), task))

    def _kinds(self, task: str) -> tuple[str, ...]:
        if task not in self.tasks:
            raise ValueError(f"task must be one of {sorted(self.tasks)}, got {task!r}.")
        return self.tasks[task]

    def _joint(self, tokens: Tensor, task: str, batch: int) -> Int[Tensor, "batch slots"]:
        """The tokens' places in the joint vocabulary."""
        slices = [self.vocabularies[kind] for kind in self._kinds(task)]
        if tokens.shape != (batch, len(slices)) or tokens.is_floating_point():
            raise ValueError(
                f"tokens of {task} must be whole numbers of shape ({batch}, {len(slices)}), got"
                f" {tuple(tokens.shape)} of {tokens.dtype}."
            )
        first = torch.tensor([s.start for s in slices], device=tokens.device)
        _check_range(tokens, torch.tensor([s.stop for s in slices], device=tokens.device) - first)
        return tokens + first

    def _encode(self, images: Tensor) -> Float[Tensor, "batch patches dim"]:
        patches = self.stem(check_inputs(images, self.input_shape)).flatten(2).transpose(1, 2)
        return self.encoder(patches + self.place)

    def _decode(
        self, memory: Float[Tensor, "batch patches dim"], read: Float[Tensor, "batch n dim"], task: str
    ) -> Float[Tensor, "batch n+1 vocabulary"]:
        """Joint logits after the start of the task and after each of the tokens read."""
        which = list(self.tasks).index(task)
        x = torch.cat([self.start[which].to(read.dtype).expand(len(read), 1, -1), read], dim=1)
        x = x + self.position[which, : x.shape[1]]
        for block in self.decoder:
            x = block(x, memory)
        return F.linear(self.norm(x), self.embedding, self.bias)
