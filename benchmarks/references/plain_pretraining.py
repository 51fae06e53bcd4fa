"""Masked multimodal pretraining as it is usually written in eager PyTorch, to compare ours with.

Ours, from scratch, in the manner of public code for 4M (Mizrahi et al. 2023, arXiv 2312.06647): one sample after the
other is masked on the CPU, each modality has tensors and embeddings of its own, all tokens are embedded before those in
the budgets are chosen, attention is three lines with a dense mask, and the loss goes modality by modality. Widths,
blocks, heads and feed-forward layers are those of `SIZES`. One thing is kinder than usual: the padding of an image that
no object of the batch needs is dropped before anything is embedded.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from armillary.data.instruments import INSTRUMENT_FEATURES
from armillary.data.modalities import Modality
from armillary.data.token_loader import TokenSamples
from armillary.models.masked_transformer import SIZES

ALPHAS = (0.01, 0.1, 1.0, 10.0)
"""Concentrations of the Dirichlet distribution of a sample's budgets, one drawn evenly for each sample."""
NUM_FREQUENCIES = 16
"""Of the sines and cosines of each of the four numbers of a position."""
INPUT, TARGET = 1, 2
FAR = -1e30
"""Logarithm of the weight of what is not visible. A row that sees nothing then sees all, and is padding itself."""


class MaskedModality(NamedTuple):
    """One modality of a batch: the valid tokens of each object, padded to the longest, and what each is for.

    `codes` and `role` (INPUT, TARGET or 0) are [B, L], `positions` [B, L, 4], `instrument` [B, F].
    """

    codes: Tensor
    role: Tensor
    positions: Tensor
    instrument: Tensor


class PlainPretraining:
    """Model, masks and optimiser. `size` is a name or (encoder blocks, decoder blocks, width, heads); `vocabularies`
    maps the names of vocabularies to their number of codes."""

    def __init__(
        self,
        size: str | tuple[int, int, int, int],
        vocabularies: Mapping[str, int],
        modalities: Sequence[Modality],
        num_inputs: int,
        num_targets: int,
        device: torch.device | str,
        *,
        precision: str = "32-true",
        learning_rate: float = 1e-3,
        weight_decay: float = 0.05,
        decoder_self_attention: bool = True,
    ):
        self.device = torch.device(device)
        self.budgets = num_inputs, num_targets
        self.autocast = {"32-true": False, "bf16-mixed": True}[precision]
        shape = SIZES[size] if isinstance(size, str) else size
        model = PlainMaskedTransformer(shape, vocabularies, modalities, self.budgets, decoder_self_attention)
        self.model = model.to(self.device)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=weight_decay
        )
        self.losses: dict[str, float] = {}
        """Of the last step, by modality: nats."""

    def step(self, samples: TokenSamples, random: np.random.Generator) -> float:
        """Mask, move, predict, and take one step of the optimiser; returns the loss: nats of a target, on average."""
        masked = mask_samples(samples, *self.budgets, random)
        modalities = [MaskedModality(*(tensor.to(self.device) for tensor in part)) for part in masked]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            loss, self.losses = self.model(modalities)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss.item()


def mask_samples(
    samples: TokenSamples, num_inputs: int, num_targets: int, random: np.random.Generator
) -> list[MaskedModality]:
    """Draw inputs and targets of one sample after the other, and collate them modality by modality."""
    stored = [(c.numpy(), p.numpy()) for c, p in zip(samples.codes, samples.positions, strict=True)]
    parts = []
    for codes, _ in stored:
        shape = len(samples), max(1, int((codes >= 0).sum(1).max()))
        parts.append((np.zeros(shape, np.int64), np.zeros(shape, np.uint8), np.zeros((*shape, 4), np.float32)))
    for row in range(len(samples)):
        places = [np.flatnonzero(codes[row] >= 0) for codes, _ in stored]
        counts = np.array([len(place) for place in places])
        of_inputs = draw_budgets(counts, min(num_inputs, max(0, counts.sum() - 1)), random)
        of_targets = draw_budgets(counts - of_inputs, num_targets, random)
        for column in np.flatnonzero(counts):
            (codes, role, positions), place, count = parts[column], places[column], counts[column]
            codes[row, :count] = stored[column][0][row, place]
            positions[row, :count] = stored[column][1][row, place]
            order, most = random.permutation(count), of_inputs[column]
            role[row, order[:most]] = INPUT
            role[row, order[most : most + of_targets[column]]] = TARGET
    return [
        MaskedModality(*map(torch.from_numpy, arrays), instrument)
        for arrays, instrument in zip(parts, samples.instrument, strict=True)
    ]


def draw_budgets(counts: np.ndarray, budget: int, random: np.random.Generator) -> np.ndarray:
    """How many of `counts` tokens to take of each modality: Dirichlet shares of the budget, the rest evenly."""
    wanted, present = np.zeros_like(counts), counts > 0
    if present.any():
        shares = random.dirichlet(np.full(present.sum(), random.choice(ALPHAS)))
        wanted[present] = np.minimum(shares * budget, counts[present])
    left = counts - wanted
    return wanted + random.multivariate_hypergeometric(left, min(budget - wanted.sum(), left.sum()))


class PlainMaskedTransformer(nn.Module):
    """Embed everything, choose, encode, decode, and predict modality by modality."""

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        vocabularies: Mapping[str, int],
        modalities: Sequence[Modality],
        budgets: tuple[int, int],
        has_self: bool,
    ):
        super().__init__()
        encoder_blocks, decoder_blocks, width, num_heads = shape
        self.names = [modality.name for modality in modalities]
        self.table_of = [list(vocabularies).index(modality.vocabulary) for modality in modalities]
        self.budgets = budgets
        self.tables = nn.ModuleList(nn.Embedding(count, width) for count in vocabularies.values())
        self.modality = nn.Embedding(len(modalities), width)
        self.position = nn.Linear(4 * 2 * NUM_FREQUENCIES, width)
        self.instrument = nn.Sequential(nn.Linear(len(INSTRUMENT_FEATURES), width), nn.GELU(), nn.Linear(width, width))
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.encoder = nn.ModuleList(PlainBlock(width, num_heads, True, False) for _ in range(encoder_blocks))
        self.encoder_norm = nn.LayerNorm(width)
        self.decoder = nn.ModuleList(PlainBlock(width, num_heads, has_self, True) for _ in range(decoder_blocks))
        self.decoder_norm = nn.LayerNorm(width)
        periods = torch.logspace(math.log10(0.02), math.log10(400.0), NUM_FREQUENCIES)
        self.register_buffer("frequencies", 2 * math.pi / periods)
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            elif isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)

    def forward(self, modalities: Sequence[MaskedModality]) -> tuple[Tensor, dict[str, float]]:
        """Mean loss of the targets, and that of each modality."""
        tokens, places = zip(*(self.embed(number, part) for number, part in enumerate(modalities)), strict=True)
        all_places = torch.cat(places, 1)
        slots = torch.cat([torch.full_like(part.codes, number) for number, part in enumerate(modalities)], 1)
        codes, role = (torch.cat([getattr(part, name) for part in modalities], 1) for name in ("codes", "role"))

        index, is_valid = first_true(role == INPUT, self.budgets[0])
        x = take(torch.cat(tokens, 1) + all_places, index)
        mask = additive(is_valid[:, None, :].expand(-1, index.shape[1], -1))
        for block in self.encoder:
            x = block(x, mask)
        encoded = self.encoder_norm(x)

        index, is_target = first_true(role == TARGET, self.budgets[1])
        y = self.mask_token + take(all_places, index)
        target_slots, target_codes = slots.gather(1, index), codes.gather(1, index)
        # Targets see those of their own modality.
        same = target_slots[:, :, None] == target_slots[:, None, :]
        self_mask = additive(same & is_target[:, None, :])
        cross_mask = additive(is_valid[:, None, :].expand(-1, index.shape[1], -1))
        for block in self.decoder:
            y = block(y, self_mask, encoded, cross_mask)
        y = self.decoder_norm(y)

        total, losses = y.new_zeros(()).float(), {}
        for number, name in enumerate(self.names):
            here = is_target & (target_slots == number)
            if here.any():
                logits = F.linear(y[here], self.tables[self.table_of[number]].weight).float()
                loss = F.cross_entropy(logits, target_codes[here])
                losses[name] = loss.item()
                total = total + loss * here.sum()
        return total / is_target.sum().clamp(min=1), losses

    def embed(self, number: int, part: MaskedModality) -> tuple[Tensor, Tensor]:
        """Vectors [B, L, D] of the codes of one modality, and of where and with what they were measured."""
        angles = part.positions[..., None] * self.frequencies
        position = self.position(torch.cat([angles.sin(), angles.cos()], -1).flatten(-2))
        of_modality = self.modality.weight[number] + self.instrument(part.instrument)
        return self.tables[self.table_of[number]](part.codes), position + of_modality[:, None]


class PlainBlock(nn.Module):
    """Pre-norm block: self-attention, attention to a context, feed-forward."""

    def __init__(self, width: int, num_heads: int, has_self: bool, has_context: bool):
        super().__init__()
        self.self_norm, self.context_norm, self.mlp_norm = (nn.LayerNorm(width) for _ in range(3))
        self.self_attention = PlainAttention(width, num_heads) if has_self else None
        self.context_attention = PlainAttention(width, num_heads) if has_context else None
        hidden = 32 * math.ceil(8 * width / 3 / 32)
        self.gate, self.up = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(
        self, x: Tensor, mask: Tensor, context: Tensor | None = None, context_mask: Tensor | None = None
    ) -> Tensor:
        """Masks are additive: [B, N, N] and [B, N, M]."""
        if self.self_attention is not None:
            normed = self.self_norm(x)
            x = x + self.self_attention(normed, normed, mask)
        if self.context_attention is not None:
            x = x + self.context_attention(self.context_norm(x), context, context_mask)
        normed = self.mlp_norm(x)
        return x + self.down(F.silu(self.gate(normed)) * self.up(normed))


class PlainAttention(nn.Module):
    """Multi-head attention with the matrix of all pairs."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads, self.scale = num_heads, (width // num_heads) ** -0.5
        self.to_query, self.to_output = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.to_key_value = nn.Linear(width, 2 * width, bias=False)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        """Attend from `x` [B, N, D] to `context` [B, M, D]; `mask` [B, N, M] is added to the logits."""
        query = self.to_query(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        key_value = self.to_key_value(context).unflatten(-1, (2, self.num_heads, -1))
        key, value = key_value.permute(2, 0, 3, 1, 4)
        logits = query @ key.transpose(-2, -1) * self.scale
        weights = (logits + mask[:, None].to(logits.dtype)).softmax(-1)
        return self.to_output((weights @ value).transpose(1, 2).flatten(2))


def first_true(is_chosen: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Places [B, T] of the chosen of each row, padded, and which are valid."""
    index = (~is_chosen).int().argsort(dim=1, stable=True)[:, :count]
    return index, is_chosen.gather(1, index)


def take(vectors: Tensor, index: Tensor) -> Tensor:
    """Vectors [B, L, D] at places [B, T]."""
    return vectors.gather(1, index[..., None].expand(-1, -1, vectors.shape[-1]))


def additive(is_visible: Tensor) -> Tensor:
    """Zero where a vector is visible, FAR elsewhere."""
    return torch.zeros(is_visible.shape, device=is_visible.device).masked_fill(~is_visible, FAR)
