"""What the transformer eats: tokens of all modalities of a batch of objects, in one sequence.

A `TokenBatch` joins the token grids of B objects. Each modality takes a slot; a slot names the vocabulary its codes
belong to and, for each object, the numbers of its instrument. The transformer knows slots and vocabularies, never
surveys by name, so a survey it was not trained on needs no new weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..tokenizers.token_grid import TokenGrid


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """Tokens of B objects, N each, padding included.

    `codes` lie in [0, vocabulary size) of their own vocabulary; `slots` tells the modality of each token (S slots);
    `slot_vocabularies` the vocabulary of each slot, an index into the model's list; `instruments` the
    INSTRUMENT_FEATURES of each object's instruments; `valid_first`: in each row the padding is known to come last;
    `places`: where each token stood before tokens were chosen, which names it for all time.
    """

    codes: Int[Tensor, "B N"]
    mask: Bool[Tensor, "B N"]
    positions: Float[Tensor, "B N P"]
    slots: Int[Tensor, "B N"]
    slot_vocabularies: Int[Tensor, " S"]
    instruments: Float[Tensor, "B S F"]
    valid_first: bool = False
    places: Int[Tensor, "B N"] | None = None

    def __len__(self) -> int:
        return self.codes.shape[0]

    def take(self, indices: Int[Tensor, "B T"], valid: Bool[Tensor, "B T"], valid_first: bool = False) -> "TokenBatch":
        """T tokens of each object, chosen by place in the sequence; those not `valid` become padding."""
        places = indices[..., None].expand(-1, -1, self.positions.shape[-1])
        return TokenBatch(
            codes=self.codes.gather(1, indices),
            mask=self.mask.gather(1, indices) & valid,
            positions=self.positions.gather(1, places),
            slots=self.slots.gather(1, indices),
            slot_vocabularies=self.slot_vocabularies,
            instruments=self.instruments,
            valid_first=valid_first,
            places=None if self.places is None else self.places.gather(1, indices),
        )

    def rows(self, rows: slice | Int[Tensor, " R"]) -> "TokenBatch":
        """Some of the objects; a slice makes no copy."""
        of_objects = ("codes", "mask", "positions", "slots", "instruments", "places")
        values: dict[str, Any] = {name: getattr(self, name) for name in of_objects}
        return replace(self, **{name: value[rows] for name, value in values.items() if value is not None})

    def pinned(self) -> "TokenBatch":
        """The same tokens in memory that a GPU can copy while it works."""
        pinned: dict[str, Any] = {name: tensor.pin_memory() for name, tensor in self._tensors().items()}
        return replace(self, **pinned)

    def packed(self) -> "TokenBatch":
        """The same tokens without padding that no object needs: the valid ones of each first, in their order.

        Slots then differ from object to object: take `only` some of them before.
        """
        longest = max(1, int(self.mask.sum(1).max()))
        indices = (~self.mask).int().argsort(dim=1, stable=True)[:, :longest]
        return self.take(indices, torch.ones_like(indices, dtype=torch.bool), valid_first=True)

    def in_one_row(self, places: Int[Tensor, " V"]) -> "TokenBatch":
        """Tokens of all objects, by their place among the B N, in one row that has a slot for each object's."""
        num_slots = len(self.slot_vocabularies)
        slots = self.slots + num_slots * torch.arange(len(self), device=self.slots.device)[:, None]
        return TokenBatch(
            codes=self.codes.flatten()[places][None],
            mask=self.mask.flatten()[places][None],
            positions=self.positions.flatten(0, 1)[places][None],
            slots=slots.flatten()[places][None],
            slot_vocabularies=self.slot_vocabularies.repeat(len(self)),
            instruments=self.instruments.flatten(0, 1)[None],
        )

    def only(self, chosen_slots: Sequence[int]) -> "TokenBatch":
        """The tokens of these slots alone; the others are dropped."""
        keep = torch.isin(self.slots[0], torch.tensor(chosen_slots, device=self.slots.device))
        columns = keep.nonzero()[:, 0]
        return self.take(
            columns.expand(len(self), -1), torch.ones_like(columns, dtype=torch.bool).expand(len(self), -1)
        )

    def to(self, device: torch.device) -> "TokenBatch":
        """The same tokens on another device."""
        moved: dict[str, Any] = {name: t.to(device, non_blocking=True) for name, t in self._tensors().items()}
        return replace(self, **moved)

    def _tensors(self) -> dict[str, Tensor]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def join_grids(
    grids: Sequence[TokenGrid], vocabularies: Mapping[str, int], object_ids: Sequence[str] | None = None
) -> tuple[TokenBatch, tuple[str, ...]]:
    """Join token grids, each of any objects, into one batch; a modality an object lacks is padding.

    `vocabularies` maps the names of the model's vocabularies to their index. Returns the batch and the object ids of
    its rows: `object_ids`, or all distinct ones in order of first appearance. Raises ValueError for an empty list, a
    vocabulary the model does not have, two grids of one modality, or an object twice in one grid.
    """
    if not grids:
        raise ValueError("expected at least one modality, found none")
    names = [grid.modality.name for grid in grids]
    if len(set(names)) < len(names):
        raise ValueError(f"each modality may come once, found {names}; join observations of one modality by `stack`")
    for grid in grids:
        if grid.modality.vocabulary not in vocabularies:
            raise ValueError(
                f"{grid.modality.name}: the model has no vocabulary {grid.modality.vocabulary!r}; "
                f"it was trained on {sorted(vocabularies)}"
            )
        if len(set(grid.object_id)) < len(grid.object_id):
            raise ValueError(f"{grid.modality.name}: the same object_id stands twice in one batch")
    ids = tuple(object_ids or dict.fromkeys(i for grid in grids for i in grid.object_id))
    row_of = {object_id: row for row, object_id in enumerate(ids)}
    num_objects = len(ids)
    columns: dict[str, list[Tensor]] = {"codes": [], "mask": [], "positions": [], "slots": [], "instruments": []}
    for slot, grid in enumerate(grids):
        rows = torch.tensor([row_of[i] for i in grid.object_id], dtype=torch.long)
        for name in ("codes", "mask", "positions", "instrument"):
            values = getattr(grid, name)
            wide = torch.zeros(num_objects, *values.shape[1:], dtype=values.dtype)
            wide[rows] = values
            columns["instruments" if name == "instrument" else name].append(wide)
        columns["slots"].append(torch.full((num_objects, grid.num_tokens), slot))
    batch = TokenBatch(
        codes=torch.cat(columns["codes"], 1).long(),
        mask=torch.cat(columns["mask"], 1),
        positions=torch.cat(columns["positions"], 1),
        slots=torch.cat(columns["slots"], 1),
        slot_vocabularies=torch.tensor([vocabularies[grid.modality.vocabulary] for grid in grids]),
        instruments=torch.stack(columns["instruments"], 1),
    )
    return batch, ids
