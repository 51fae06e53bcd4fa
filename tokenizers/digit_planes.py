"""Numbers as digits, the most significant first, several digits to a token.

Each of D latent numbers has nested cells: `base` cells of equal mass, each cut into `base` smaller ones, and so on. A
digit says which of the smaller cells holds the number. All digits of all numbers are sorted by how much error they
remove on average, and every few of them make one token; so a prefix of the tokens is the best description of that
length, and a noisy measurement needs only a short one. (Finite scalar quantisation, Mentzer et al. 2023, arXiv
2309.15505, with learned levels; the order is that of embedded coding, Shapiro 1993, doi 10.1109/78.258085.)
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

REACH = 40.0
"""Standard deviations to which numbers are told apart at least."""


class DigitPlanes(nn.Module):
    """Digits of D numbers in T tokens of `digits_per_token` digits each. `fit` learns cells and order."""

    edges: Tensor
    centers: Tensor
    spreads: Tensor
    number_of: Tensor
    level_of: Tensor

    def __init__(self, num_numbers: int, num_tokens: int, digits_per_token: int, base: int, num_levels: int):
        super().__init__()
        if num_tokens * digits_per_token > num_numbers * num_levels:
            raise ValueError(
                f"{num_numbers} numbers of {num_levels} digits fill {num_numbers * num_levels // digits_per_token} "
                f"tokens of {digits_per_token}, found {num_tokens}"
            )
        self.base, self.num_levels, self.digits_per_token = base, num_levels, digits_per_token
        cells = base**num_levels
        self.register_buffer("edges", torch.linspace(-3, 3, cells + 1).repeat(num_numbers, 1))
        # Of every cell of every level, one after the other: level 0 has one cell, all of the numbers.
        total = sum(base**level for level in range(num_levels + 1))
        self.register_buffer("centers", torch.zeros(num_numbers, total))
        self.register_buffer("spreads", torch.ones(num_numbers, total))
        order = torch.arange(num_tokens * digits_per_token)
        self.register_buffer("number_of", (order % num_numbers).view(num_tokens, -1))
        self.register_buffer("level_of", (order // num_numbers).view(num_tokens, -1))

    @property
    def vocabulary_size(self) -> int:
        """Number of codes of a token."""
        return self.base**self.digits_per_token

    @property
    def num_tokens(self) -> int:
        """T."""
        return len(self.number_of)

    @torch.no_grad()
    def fit(self, grid: Float[Tensor, " G"], counts: Float[Tensor, "D G"], variances: Float[Tensor, " D"]) -> None:
        """Learn cells, their centres, and the order of digits.

        `counts` are histograms: how many values are nearest each point of `grid` (increasing, symmetric), one row for
        each number. `variances` are those of the numbers among all patches, which decide the order.
        """
        base, levels = self.base, self.num_levels
        # A few counts of a Gaussian stand in where hardly any were seen.
        normal = torch.exp(-(grid**2) / 2 / variances[:, None]) * torch.gradient(grid)[0]
        mass = counts.double() + 100 * normal.double() / normal.sum(1, keepdim=True)
        share = mass.cumsum(1) / mass.sum(1, keepdim=True)
        values = grid.double()
        quantiles = torch.linspace(0, 1, base + 1, dtype=torch.float64, device=grid.device)[1:-1]
        inner = values[torch.searchsorted(share, quantiles.expand(len(mass), -1).contiguous()).clamp(max=len(grid) - 1)]
        # Rare patches, such as those of bright stars, hold far more than most.
        reach = torch.maximum(1.5 * self._reach(values, share), REACH * variances.double().sqrt())
        bounds = torch.cat([-reach[:, None], inner, reach[:, None]], 1)
        # Ties leave no room: keep a little between neighbours.
        bounds = torch.cummax(bounds + torch.arange(base + 1, device=grid.device) * 1e-7, 1).values
        scale = inner.abs().amax(1, keepdim=True).clamp(min=1e-6)
        warped = torch.asinh(bounds / scale)
        # Within a cell the smaller ones are even on a scale that is linear at small numbers, logarithmic at large.
        steps = torch.arange(base ** (levels - 1), device=grid.device, dtype=torch.float64) / base ** (levels - 1)
        fine = warped[:, :-1, None] + (warped[:, 1:] - warped[:, :-1])[..., None] * steps
        edges = scale * torch.sinh(torch.cat([fine.flatten(1), warped[:, -1:]], 1))
        self.edges.copy_(edges)
        errors = self._fit_centers(values, mass, edges)
        gains = (errors[:, :-1] - errors[:, 1:]) / errors[:, :1] * variances[:, None]
        # A digit means nothing without those before it.
        gains = torch.cummin(gains, 1).values
        order = gains.flatten().argsort(descending=True, stable=True)[: self.number_of.numel()]
        self.number_of.copy_((order // levels).view_as(self.number_of))
        self.level_of.copy_((order % levels).view_as(self.level_of))

    def forward(self, numbers: Float[Tensor, "Q D"]) -> Int[Tensor, "Q T"]:
        """The tokens' codes of each row of numbers."""
        edges = self.edges[:, 1:-1].contiguous()
        cells = torch.searchsorted(edges, numbers.T.contiguous(), right=True).T
        power = self.base ** (self.num_levels - 1 - self.level_of)
        digits = (cells[:, self.number_of] // power) % self.base
        return (digits * self.strides).sum(-1)

    def decode(
        self, codes: Int[Tensor, "Q T"], mask: Bool[Tensor, "Q T"]
    ) -> tuple[Float[Tensor, "Q D"], Float[Tensor, "Q D"]]:
        """Mean and spread (standard deviation) of the numbers given the valid tokens, a prefix of each row."""
        cell, count = self._cells(codes, mask)
        cell = cell // self.base ** (self.num_levels - count)
        first = (self.base**count - 1) // (self.base - 1)
        place = (first + cell).T
        return self.centers.gather(1, place).T, self.spreads.gather(1, place).T

    def errors(self, numbers: Float[Tensor, "Q D"], codes: Int[Tensor, "Q T"]) -> Float[Tensor, "Q T1"]:
        """Sum of squared errors of the numbers after 0, 1, ..., T tokens."""
        cell, count = self._cells(codes, torch.ones_like(codes, dtype=torch.bool))
        levels = torch.arange(self.num_levels + 1, device=cell.device)
        power = self.base**levels
        place = cell[..., None] // power.flip(0) + (power - 1) // (self.base - 1)
        centers = self.centers.gather(1, place.transpose(0, 1).flatten(1)).unflatten(1, place[:, 0].shape)
        error = (numbers[..., None] - centers.transpose(0, 1)).square()
        gain = (error[..., :-1] - error[..., 1:])[:, self.number_of, self.level_of].sum(-1)
        # From the last one back: so the small errors after many tokens are no differences of large ones.
        left = torch.cat([gain, error.gather(2, count[..., None]).sum(1)], 1)
        return left.flip(1).cumsum(1).flip(1)

    def _cells(
        self, codes: Int[Tensor, "Q T"], mask: Bool[Tensor, "Q T"]
    ) -> tuple[Int[Tensor, "Q D"], Int[Tensor, "Q D"]]:
        """The cell of each number on the finest level, its unknown digits zero, and how many digits are known."""
        digits = (codes[..., None] // self.strides) % self.base
        known = mask[..., None] & torch.ones_like(digits, dtype=torch.bool)
        number = self.number_of.flatten()
        count = codes.new_zeros(len(codes), len(self.edges)).index_add_(1, number, known.flatten(1).long())
        worth = self.base ** (self.num_levels - 1 - self.level_of)
        cell = codes.new_zeros(count.shape).index_add_(1, number, (digits * worth * known).flatten(1))
        return cell, count

    @property
    def strides(self) -> Tensor:
        """What each digit of a token counts for in its code."""
        return self.base ** torch.arange(self.digits_per_token, device=self.edges.device)

    @staticmethod
    def _reach(values: Tensor, share: Tensor) -> Tensor:
        """The largest absolute number seen, each row."""
        low = values[(share < 1e-6).sum(1).clamp(max=len(values) - 1)]
        high = values[(share < 1 - 1e-6).sum(1).clamp(max=len(values) - 1)]
        return torch.maximum(low.abs(), high.abs()).clamp(min=1e-6)

    def _fit_centers(self, values: Tensor, mass: Tensor, edges: Tensor) -> Float[Tensor, "D L1"]:
        """Mean and spread of each cell of each level; returns the mean squared error of each level."""
        errors, first = [], 0
        finest = torch.searchsorted(edges[:, 1:-1].contiguous(), values.expand(len(mass), -1).contiguous(), right=True)
        for level in range(self.num_levels + 1):
            shrink = self.base ** (self.num_levels - level)
            count = self.base**level
            cell = finest // shrink
            zero = mass.new_zeros(len(mass), count)
            weight = zero.scatter_add(1, cell, mass)
            bounds = edges[:, ::shrink]
            middle = (bounds[:, 1:] + bounds[:, :-1]) / 2
            mean = zero.scatter_add(1, cell, mass * values)
            square = zero.scatter_add(1, cell, mass * values**2)
            seen = weight > 1e-6 * mass.sum(1, keepdim=True)
            mean = torch.where(seen, mean / weight.clamp(min=1e-30), middle)
            # A mean of grid points may lie beyond a narrow cell.
            mean = torch.minimum(torch.maximum(mean, bounds[:, :-1]), bounds[:, 1:]) if level else mean
            width = (bounds[:, 1:] - bounds[:, :-1]) / 12**0.5
            variance = torch.where(seen, square / weight.clamp(min=1e-30) - mean**2, width**2).clamp(min=0)
            spread = torch.minimum(variance.sqrt(), width) if level else variance.sqrt()
            self.centers[:, first : first + count] = mean
            self.spreads[:, first : first + count] = spread
            error = mass * (values - mean.gather(1, cell)) ** 2
            errors.append(error.sum(1) / mass.sum(1))
            first += count
        return torch.stack(errors, 1)
