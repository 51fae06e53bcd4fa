"""Chained decoding: samples of many tokens at once, each drawn given those drawn before it.

The decoder predicts each token on its own, given what the encoder sees: one pass gives every token's distribution, but
tokens drawn from one pass do not agree with each other. So a few are drawn in each of several stages, and from then on
the encoder sees them beside the observed ones. Which come first: those the model is surest of (MaskGIT: Chang et al.
2022, arXiv 2202.04200), or any.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..tokenizers.token_places import TokenPlaces
from .hashed_numbers import hashed_uniform, mix
from .masked_transformer import MaskedTransformer
from .token_batch import TokenBatch, join_grids

Order = Literal["random", "maskgit"]
CHOICE_TEMPERATURE = 4.5
"""Weight of the Gumbel noise on the confidence by which `maskgit` chooses, at the first stage; it falls to zero at the
last (Chang et al.'s code)."""
LOGITS_AT_ONCE = 2**24
"""Numbers of one piece of logits: 64 MiB."""
LATER = 1e4
"""Added to the rank of a token that refines another: more than any confidence."""
_CODE, _CHOICE, _ORDER, _INPUTS = range(4)
"""Streams of random numbers: which code, which places by confidence, which in random order, which inputs."""


@dataclass(frozen=True)
class ChainSettings:
    """How samples are drawn. Raises ValueError for a setting that means nothing."""

    num_samples: int = 1
    """Of each object."""
    seed: int = 0
    order: Order = "maskgit"
    """`maskgit` begins with the tokens that the model is surest of, which makes likely values likelier; `random` draws
    from the distribution that the model's conditionals define, errors of their own included."""
    num_stages: int = 8
    """Passes of encoder and decoder; 1 draws all tokens independently."""
    temperature: float = 1.0
    """Logits are divided by it."""
    top_p: float = 1.0
    """Codes are drawn from the most probable ones that hold this much (Holtzman et al. 2020, arXiv 1904.09751)."""
    guidance: float = 1.0
    """Above 1, samples keep closer to what was observed: logits are those without it plus `guidance` times what it adds
    (Ho & Salimans 2022, arXiv 2207.12598)."""
    max_inputs: int | None = None
    """Most tokens that the encoder sees; of more, a random part is taken, anew at each stage."""

    def __post_init__(self) -> None:
        for name in ("num_samples", "num_stages", "max_inputs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, found {value}")
        if self.order not in get_args(Order):
            raise ValueError(f"order must be one of {list(get_args(Order))}, found {self.order!r}")
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature must be positive, found {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], found {self.top_p}")
        if not (self.guidance >= 0 and math.isfinite(self.guidance)):
            raise ValueError(f"guidance must not be negative, found {self.guidance}")
        if self.guidance != 1 and self.num_stages < 2:
            raise ValueError(
                f"guidance compares with what follows from generated tokens alone, so it needs num_stages of at least "
                f"2, found {self.num_stages}"
            )


@dataclass(frozen=True, eq=False)
class Wanted:
    """The tokens to generate for B objects, T each: of one modality or several, in one sequence.

    `tokens` are their places, without codes. Each is of one of the `sorts` (vocabulary, low, high): its code lies in
    [low, high) of that vocabulary. `refines` tells which mean nothing without another: these come later.
    """

    tokens: TokenBatch
    sort: Int[Tensor, " T"]
    sorts: Sequence[tuple[int, int, int]]
    refines: Bool[Tensor, " T"]

    @classmethod
    def of(cls, places: Sequence[TokenPlaces], vocabularies: Mapping[str, int]) -> "Wanted":
        """The tokens that are always there, of the same objects in each modality."""
        grids = [replace(part.grid, mask=part.always) for part in places]
        tokens, _ = join_grids(grids, vocabularies, places[0].grid.object_id)
        sorts = [
            (vocabularies[part.grid.modality.vocabulary], low, high)
            for part in places
            for low, high in zip(part.low.tolist(), part.high.tolist(), strict=True)
        ]
        known = {sort: number for number, sort in enumerate(dict.fromkeys(sorts))}
        refines = [part.refines != torch.arange(len(part.refines)) for part in places]
        return cls(tokens, torch.tensor([known[sort] for sort in sorts]), list(known), torch.cat(refines))


@torch.no_grad()
def generate_tokens(
    transformer: MaskedTransformer,
    observed: TokenBatch,
    wanted: Wanted,
    keys: Int[Tensor, " B"],
    settings: ChainSettings,
    batch_size: int = 64,
) -> Int[Tensor, "S B T"]:
    """Codes of `num_samples` samples of the wanted tokens of each object; zero where none is wanted.

    `keys` name the objects: with the seed they alone decide the random numbers, so that samples depend neither on
    `batch_size`, the number of samples that pass through the model at once, nor on the other objects.
    """
    num_objects, num_tokens = wanted.tokens.codes.shape
    device = transformer.device
    samples = torch.arange(settings.num_samples)
    of_samples = mix(keys[:, None] + mix(samples)).flatten()
    vectors = transformer.codes.all_vectors()
    codes = torch.zeros(num_objects * settings.num_samples, num_tokens, dtype=torch.long)
    for rows in torch.arange(len(codes)).split(batch_size):
        objects = rows // settings.num_samples
        tokens, num_observed = _joined(observed, wanted.tokens, objects)
        chain = _Chain(
            transformer, vectors, tokens.to(device), num_observed, wanted, of_samples[rows].to(device), settings
        )
        codes[rows] = chain.run().cpu()
    return codes.view(num_objects, settings.num_samples, num_tokens).transpose(0, 1)


class _Chain:
    """The chains of R samples: what is drawn so far, and the next stage."""

    def __init__(
        self,
        transformer: MaskedTransformer,
        vectors: Float[Tensor, "V D"],
        tokens: TokenBatch,
        num_observed: int,
        wanted: Wanted,
        keys: Int[Tensor, " R"],
        settings: ChainSettings,
    ):
        self.transformer, self.vectors, self.settings, self.keys = transformer, vectors, settings, keys
        self.places, self.num_observed = tokens, num_observed
        self.sort, self.sorts, self.refines = wanted.sort.to(keys.device), wanted.sorts, wanted.refines.to(keys.device)
        self.codes = tokens.codes.clone()
        self.is_known = tokens.mask.clone()
        """Observed, or drawn."""
        self.is_known[:, num_observed:] = False
        self.is_wanted = tokens.mask & ~self.is_known

    def run(self) -> Int[Tensor, "R T"]:
        """All stages, one after the other; the codes."""
        total = self.is_wanted.sum(1)
        num_stages = min(self.settings.num_stages, max(1, int(total.max())))
        for stage in range(num_stages):
            # Few at first, when little is known, and more and more: the cosine schedule of MaskGIT.
            left = torch.floor(total * math.cos(math.pi / 2 * (stage + 1) / num_stages)).long()
            undrawn = (self.is_wanted & ~self.is_known).sum(1)
            # At least one a stage.
            left = torch.minimum(left, undrawn - 1) if stage < num_stages - 1 else torch.zeros_like(left)
            self._draw(stage, num_stages, undrawn - left.clamp(min=0))
        return self.codes[:, self.num_observed :]

    def _draw(self, stage: int, num_stages: int, counts: Int[Tensor, " R"]) -> None:
        """Draw so many more tokens of each sample."""
        places, valid = self._candidates(counts)
        targets = self.places.take(places, valid)
        inputs = self._inputs(stage, self.is_known)
        hidden = self._hidden(inputs, targets)
        unguided = None
        if self.settings.guidance != 1 and stage > 0:
            of_generated = self.is_known.clone()
            of_generated[:, : self.num_observed] = False
            unguided = self._hidden(self._inputs(stage, of_generated), targets)
        chance = self._uniform(stage, _CODE).gather(1, places)
        codes, confidence = self._codes(hidden, unguided, places, valid, chance)
        if self.settings.order == "maskgit":
            noise = -torch.log(-torch.log(self._uniform(stage, _CHOICE).gather(1, places)))
            confidence = confidence + CHOICE_TEMPERATURE * (1 - (stage + 1) / num_stages) * noise
            later = LATER * self.refines[(places - self.num_observed).clamp(min=0)]
            rank = torch.where(valid, later - confidence, torch.inf).argsort(1).argsort(1)
            valid = valid & (rank < counts[:, None])
        self.codes.scatter_(1, places, torch.where(valid, codes, self.codes.gather(1, places)))
        self.is_known.scatter_(1, places, valid | self.is_known.gather(1, places))

    def _candidates(self, counts: Int[Tensor, " R"]) -> tuple[Int[Tensor, "R C"], Bool[Tensor, "R C"]]:
        """Places that may be drawn: by `maskgit` any that is left, else as many as are wanted, in random order."""
        undrawn = self.is_wanted & ~self.is_known
        order = self._uniform(0, _ORDER)
        order[:, self.num_observed :] += self.refines
        if self.settings.order == "maskgit":
            order, counts = torch.zeros_like(order), undrawn.sum(1)
        places = torch.where(undrawn, order, torch.inf).argsort(dim=1, stable=True)[:, : max(1, int(counts.max()))]
        within = torch.arange(places.shape[1], device=places.device) < counts[:, None]
        return places, within & undrawn.gather(1, places)

    def _inputs(self, stage: int, is_seen: Bool[Tensor, "R N"]) -> TokenBatch:
        """What the encoder sees: tokens that are seen, within the budget, without padding that no sample needs.

        Beyond the budget, what was observed goes before what was generated; but these have half of it, if they want it.
        """
        order = self._uniform(stage, _INPUTS)
        budget = self.settings.max_inputs
        if budget is not None:
            observed = is_seen[:, : self.num_observed].sum(1)
            generated = is_seen.sum(1) - observed
            of_generated = torch.minimum(generated, (budget - observed).clamp(min=budget // 2))
            is_first = torch.arange(order.shape[1], device=order.device) < self.num_observed
            order = torch.where(is_seen, order, torch.inf)
            ranks = torch.cat([half.argsort(1).argsort(1) for half in order.split(self._halves(), 1)], 1)
            is_seen = is_seen & (ranks < torch.where(is_first, (budget - of_generated)[:, None], of_generated[:, None]))
        longest = max(1, int(is_seen.sum(1).max()))
        # In the order of the sequence: sums are then the same for the same tokens, whatever else there is.
        places = (~is_seen).int().argsort(dim=1, stable=True)[:, :longest]
        return replace(self.places, codes=self.codes, mask=is_seen).take(
            places, torch.ones_like(places, dtype=torch.bool)
        )

    def _halves(self) -> list[int]:
        return [self.num_observed, self.places.codes.shape[1] - self.num_observed]

    def _hidden(self, inputs: TokenBatch, targets: TokenBatch) -> Float[Tensor, "R C D"]:
        return self.transformer.decode(self.transformer.encode(inputs, self.vectors), inputs.mask, targets)

    def _codes(
        self,
        hidden: Float[Tensor, "R C D"],
        unguided: Float[Tensor, "R C D"] | None,
        places: Int[Tensor, "R C"],
        valid: Bool[Tensor, "R C"],
        chance: Float[Tensor, "R C"],
    ) -> tuple[Int[Tensor, "R C"], Float[Tensor, "R C"]]:
        """A code for each place, and the logarithm of its probability; sort by sort, a piece at a time."""
        codes, confidence = torch.zeros_like(places), torch.zeros_like(chance)
        sort = self.sort[(places - self.num_observed).clamp(min=0)]
        for number, (vocabulary, low, high) in enumerate(self.sorts):
            here = (valid & (sort == number)).nonzero()
            # Of the sort's own codes alone: the logits are most of the work.
            first = self.transformer.codes.offsets[vocabulary]
            table = (self.vectors[first + low : first + high] * self.transformer.codes.output_scale).to(hidden.dtype).T
            for rows, columns in (part.T for part in here.split(max(1, LOGITS_AT_ONCE // (high - low)))):
                logits = (hidden[rows, columns] @ table).float()
                if unguided is not None:
                    alone = (unguided[rows, columns] @ table).float()
                    logits = alone + self.settings.guidance * (logits - alone)
                chosen, log_probability = draw_codes(
                    logits, chance[rows, columns], self.settings.temperature, self.settings.top_p
                )
                codes[rows, columns], confidence[rows, columns] = low + chosen, log_probability
        return codes, confidence

    def _uniform(self, stage: int, stream: int) -> Float[Tensor, "R N"]:
        """A number for each place; those of what is wanted do not depend on what was observed."""
        numbers = hashed_uniform(self.keys, self._halves()[1], self.settings.seed, stage, stream)
        of_observed = hashed_uniform(self.keys, self.num_observed, self.settings.seed, stage, stream + 4)
        return torch.cat([of_observed, numbers], 1)


def draw_codes(
    logits: Float[Tensor, "Q V"], chance: Float[Tensor, " Q"], temperature: float = 1.0, top_p: float = 1.0
) -> tuple[Int[Tensor, " Q"], Float[Tensor, " Q"]]:
    """One code of each row, where `chance` (uniform in (0, 1)) falls in its distribution; and its log probability."""
    probability = (logits / temperature).softmax(1)
    if top_p < 1:
        probability = nucleus(probability, top_p)
    cumulative = probability.cumsum(1)
    total = cumulative[:, -1:]
    # Below the total in spite of rounding, so that a code without probability is never drawn.
    goal = torch.minimum(chance[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    codes = torch.searchsorted(cumulative, goal, right=True)
    return codes[:, 0], (probability.gather(1, codes) / total)[:, 0].log()


def nucleus(probability: Float[Tensor, "Q V"], top_p: float) -> Float[Tensor, "Q V"]:
    """The probabilities of the fewest codes that hold `top_p` of the whole, the most probable ones; else zero."""
    ordered, codes = probability.sort(dim=1, descending=True)
    before = ordered.cumsum(1) - ordered
    return torch.zeros_like(probability).scatter(1, codes, torch.where(before < top_p, ordered, 0.0))


def _joined(first: TokenBatch, second: TokenBatch, rows: Int[Tensor, " R"]) -> tuple[TokenBatch, int]:
    """These rows of two batches of the same objects as one, and how many tokens come from the first."""
    first, second = first.rows(rows).packed(), second.rows(rows)
    joined = TokenBatch(
        codes=torch.cat([first.codes, second.codes], 1),
        mask=torch.cat([first.mask, second.mask], 1),
        positions=torch.cat([first.positions, second.positions], 1),
        slots=torch.cat([first.slots, second.slots + len(first.slot_vocabularies)], 1),
        slot_vocabularies=torch.cat([first.slot_vocabularies, second.slot_vocabularies]),
        instruments=torch.cat([first.instruments, second.instruments], 1),
    )
    return joined, first.codes.shape[1]
