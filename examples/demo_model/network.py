"""Qwen2.5-VL's network for training: the published parameter names, pictures of one grid batched together.

Hugging Face's modules run each window of each picture by itself, which is most of the time at this size. The numbers
are the same; ``tests/unit/demo_model`` compares them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.demo_model import layout, pointwise
from examples.demo_model.layout import Grid


class RMSNorm(nn.Module):
    """Root mean square norm over the last dimension."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return pointwise.rms_norm(x, self.weight)


def attend(q_BHTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, bias: Tensor | None) -> Tensor:
    """Softmax attention in plain matrix products, whose backward pass on a CPU is several times the fused one's."""
    scores = torch.matmul(q_BHTD * q_BHTD.shape[-1] ** -0.5, k_BHTD.transpose(-1, -2))
    if bias is not None:
        scores = scores + bias
    return torch.matmul(scores.softmax(-1), v_BHTD)


class GatedMLP(nn.Module):
    """SwiGLU."""

    def __init__(self, width: int, inner: int, bias: bool) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=bias)
        self.up_proj = nn.Linear(width, inner, bias=bias)
        self.down_proj = nn.Linear(inner, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(pointwise.swiglu(self.gate_proj(x), self.up_proj(x)))
        return out


class TowerAttention(nn.Module):
    """Attention among the patches of each window, or of the whole picture."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(layout.TOWER_WIDTH, 3 * layout.TOWER_WIDTH)
        self.proj = nn.Linear(layout.TOWER_WIDTH, layout.TOWER_WIDTH)

    def forward(self, x_BND: Tensor, cos: Tensor, sin: Tensor, lengths: tuple[int, ...]) -> Tensor:
        batch, num_patches, width = x_BND.shape
        qkv = self.qkv(x_BND).view(batch, num_patches, 3, layout.TOWER_HEADS, -1).permute(2, 0, 3, 1, 4)
        q, k = pointwise.rotate(qkv[0], cos, sin), pointwise.rotate(qkv[1], cos, sin)
        pieces = [torch.split(x, list(lengths), 2) for x in (q, k, qkv[2])]
        mixed = [attend(q_part, k_part, v_part, None) for q_part, k_part, v_part in zip(*pieces, strict=True)]
        joined = mixed[0] if len(mixed) == 1 else torch.cat(mixed, dim=2)
        out: Tensor = self.proj(joined.transpose(1, 2).reshape(batch, num_patches, width))
        return out


class TowerBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1 = RMSNorm(layout.TOWER_WIDTH)
        self.norm2 = RMSNorm(layout.TOWER_WIDTH)
        self.attn = TowerAttention()
        self.mlp = GatedMLP(layout.TOWER_WIDTH, layout.TOWER_MLP, bias=True)

    def forward(self, x_BND: Tensor, cos: Tensor, sin: Tensor, lengths: tuple[int, ...]) -> Tensor:
        x_BND = x_BND + self.attn(self.norm1(x_BND), cos, sin, lengths)
        out: Tensor = x_BND + self.mlp(self.norm2(x_BND))
        return out


class PatchEmbed(nn.Module):
    """The published weight spans two equal frames of a still picture; summing it over them halves the work."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv3d(3, layout.TOWER_WIDTH, (2, layout.PATCH, layout.PATCH), bias=False)

    def forward(self, patches: Tensor) -> Tensor:
        return F.linear(patches.flatten(2), self.proj.weight.sum(2).flatten(1))


class Merger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        inner = layout.TOWER_WIDTH * layout.MERGE**2
        self.ln_q = RMSNorm(layout.TOWER_WIDTH)
        self.mlp = nn.Sequential(nn.Linear(inner, inner), nn.GELU(), nn.Linear(inner, layout.TEXT_WIDTH))

    def forward(self, x_BND: Tensor) -> Tensor:
        batch, num_patches, _ = x_BND.shape
        out: Tensor = self.mlp(self.ln_q(x_BND).reshape(batch, num_patches // layout.MERGE**2, -1))
        return out


class Tower(nn.Module):
    """Patches (B, N, 3, 14, 14), normalised, in the tower's order -> embeddings (B, N / 4, D) in window order."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed()
        self.blocks = nn.ModuleList(TowerBlock() for _ in range(layout.TOWER_DEPTH))
        self.merger = Merger()

    def forward(self, patches: Tensor, grid: Grid) -> Tensor:
        angles = tower_angles(grid)
        cos, sin = angles.cos(), angles.sin()
        _, window_lengths = layout.windows(grid)
        x_BND = self.patch_embed(patches)
        for index, block in enumerate(self.blocks):
            full = index in layout.FULL_ATTENTION_BLOCKS
            x_BND = block(x_BND, cos, sin, (x_BND.shape[1],) if full else window_lengths)
        out: Tensor = self.merger(x_BND)
        return out


class TextAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        head = layout.TEXT_WIDTH // layout.TEXT_HEADS
        self.q_proj = nn.Linear(layout.TEXT_WIDTH, layout.TEXT_HEADS * head)
        self.k_proj = nn.Linear(layout.TEXT_WIDTH, layout.TEXT_KV_HEADS * head)
        self.v_proj = nn.Linear(layout.TEXT_WIDTH, layout.TEXT_KV_HEADS * head)
        self.o_proj = nn.Linear(layout.TEXT_HEADS * head, layout.TEXT_WIDTH, bias=False)

    def forward(self, x_BTD: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        batch, length, _ = x_BTD.shape
        heads = [p(x_BTD).view(batch, length, -1, 64).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)]
        q, k = pointwise.rotate(heads[0], cos, sin), pointwise.rotate(heads[1], cos, sin)
        repeats = layout.TEXT_HEADS // layout.TEXT_KV_HEADS
        k, v = k.repeat_interleave(repeats, 1), heads[2].repeat_interleave(repeats, 1)
        mixed = attend(q, k, v, mask)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))
        return out


class TextLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(layout.TEXT_WIDTH)
        self.self_attn = TextAttention()
        self.post_attention_layernorm = RMSNorm(layout.TEXT_WIDTH)
        self.mlp = GatedMLP(layout.TEXT_WIDTH, layout.TEXT_MLP, bias=False)

    def mix(self, x_BTD: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        out: Tensor = x_BTD + self.self_attn(self.input_layernorm(x_BTD), cos, sin, mask)
        return out

    def transform(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class TextModel(nn.Module):
    """Token ids (B, T), visual embeddings for the picture tokens, M-RoPE positions (3, B, T), bias (B, 1, T, T)."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab_size, layout.TEXT_WIDTH)
        self.layers = nn.ModuleList(TextLayer() for _ in range(layout.TEXT_DEPTH))
        self.norm = RMSNorm(layout.TEXT_WIDTH)

    def forward(
        self,
        ids: Tensor,
        visual: Tensor,
        is_visual: Tensor,
        positions: Tensor,
        mask: Tensor,
        asked: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Return the normed outputs of the last layer at rows and places ``asked`` (S, D), and the first's (B, T, D).

        The last layer's matrices, most of its work, run for the tokens asked for alone.
        """
        x_BTD = self.embed_tokens(ids).to(visual.dtype).masked_scatter(is_visual[..., None], visual)
        angles = text_angles(positions)
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        early = x_BTD
        for index, layer in enumerate(self.layers):
            x_BTD = layer.mix(x_BTD, cos, sin, mask)
            if index + 1 < len(self.layers):
                x_BTD = layer.transform(x_BTD)
            early = x_BTD if index == 0 else early
        return self.norm(self.layers[-1].transform(x_BTD[asked])), early


class Network(nn.Module):
    """The tower and the language model; its state dict prefixed with ``model.`` is Hugging Face's."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.visual = Tower()
        self.language_model = TextModel(vocab_size)


def tower_angles(grid: Grid) -> Tensor:
    """Return rotary angles (N, head / 2) of the patches: first half by row, second by column."""
    quarter = layout.TOWER_WIDTH // layout.TOWER_HEADS // 4
    frequencies = layout.TOWER_ROPE_BASE ** (-torch.arange(quarter) / quarter)
    places = torch.from_numpy(layout.patch_order(grid)).float()
    return (places[:, :, None] * frequencies).flatten(1)


def text_angles(positions: Tensor) -> Tensor:
    """Return M-RoPE angles (B, T, head / 2) from positions (3, B, T): sections by time, row and column."""
    half = layout.TEXT_WIDTH // layout.TEXT_HEADS // 2
    frequencies = layout.TEXT_ROPE_BASE ** (-torch.arange(half) / half)
    axis = torch.repeat_interleave(torch.arange(3), torch.tensor(layout.MROPE_SECTION))
    return positions.float()[axis].permute(1, 2, 0) * frequencies
