"""Alignment: contrastive training brings the views of the same object together.

The objective stands in `align_objective.py`, what it sees of an object in `align_views.py`, the losses and the head in
`models/`. This file reads the settings and puts a run together.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from lightning.fabric import Fabric
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from ..data.modalities import Modality
from ..data.observations import NUM_TURNS
from ..data.staging import stage_tokens
from ..data.token_loader import TokenLoader, TokenSource
from ..data.token_store import TokenStore
from ..data.turned_tokens import open_turned
from ..models.alignment import AlignmentHeadSettings, head_for
from ..models.alignment_encoders import EncoderChoice
from ..models.alignment_losses import LossName
from ..models.alignment_views import Views, group_by_view, parse_views
from ..models.foundation import FoundationModel
from ..settings import Settings
from .align_objective import AlignObjective
from .align_validation import Validation
from .align_views import make_pairs, rows_of_views
from .encoded_views import EncodedRow, encode_rows, encoded_bytes
from .loop import Finished, LoopSettings, leave, make_fabric, train
from .records import describe_versions
from .run_record import keep_settings
from .token_sources import make_loader, open_sources, read_ids

ENCODED = "encoded"
"""Folder below the run's, for the frozen encoder's vectors."""


class AlignSettings(Settings):
    """Settings of `armillary align`."""

    checkpoint: str
    """Checkpoint of a pretrained model."""
    tokens: str
    run: str
    """Run folder; the aligned checkpoint is written to `<run>/checkpoint`."""
    views: Views = parse_views(["image", "spectrum"])
    """What is brought together: a list of kinds (image, spectrum, coefficients, photometry), or names with lists of
    kinds, modalities and patterns: {image: [image], spectrum: [spectrum/desi], colours: [scalar/sdss_*]}."""
    pair_weights: dict[str, NonNegativeFloat] = Field(default_factory=dict)
    """Weights of pairs of views in the loss, by name in the order of the views: {image-spectrum: 2}; others have 1."""
    across_surveys: NonNegativeFloat = 0.5
    """Weight of pairs of two surveys of one view, of objects that both have seen; 0 for none."""
    loss: LossName = "infonce"
    encoder: EncoderChoice = "frozen"
    """What of the encoder is trained: nothing, its last blocks, or a new encoder for each view."""
    num_unfrozen_blocks: PositiveInt = 2
    """Blocks that `last_blocks` trains."""
    encoder_learning_rate: PositiveFloat = 0.1
    """Learning rate of what is trained of the encoder, as a share of loop.learning_rate."""
    aligned_width: PositiveInt = 64
    num_blocks: int = Field(default=1, ge=0)
    """Blocks of a view's pooling."""
    initial_scale: float = Field(default=10.0, ge=1, le=100)
    """Inverse temperature to begin with."""
    num_tokens: PositiveInt = 64
    """Tokens of a view that a step sees, drawn anew each time: an object never looks the same twice."""
    micro_batch: PositiveInt | None = None
    """Objects of a process that are encoded at once, where not all find room: the gradient stays the same."""
    cache_gib: NonNegativeFloat = 4.0
    """A frozen encoder sees each object once and whole, if the vectors take no more disk than this; 0: never. They are
    kept in `<run>/encoded` while the run lasts, and steps draw among them."""
    turns: int = Field(default=1, ge=1, le=NUM_TURNS)
    """Images are seen in so many ways that they may lie, one drawn for each step; tokenize with as many. Where the
    frozen encoder's vectors are kept alone: each way takes the images' share of `cache_gib`. Not staged."""
    stage_tokens: str | None = None
    """A folder on a disk of each node, to which tokens are copied before they are read (`data/staging.py`); it may hold
    environment variables: $TMPDIR/tokens."""
    held_out: str | None = None
    """A file of object ids, one in a line, that no step may see."""
    validation: str | None = None
    """A file of object ids, all of them held out: the state that finds their views best is what the run ends with."""
    validate_every: PositiveInt = 100
    """Steps between two validations."""
    loop: LoopSettings = LoopSettings()

    @model_validator(mode="after")
    def _has_two_views(self) -> "AlignSettings":
        if len(self.views) < 2:
            raise ValueError(f"views: expected at least two, found {list(self.views)}")
        if self.loop.accumulate > 1:
            raise ValueError("loop.accumulate would divide the batch, and the negatives with it; micro_batch does not")
        return self


def align(settings: AlignSettings) -> Finished:
    """Run (or go on with) alignment; the checkpoint with the head is written to `<run>/checkpoint`.

    Raises ValueError where settings, tokens and ids do not fit together.
    """
    model = FoundationModel.load(settings.checkpoint)
    held_out = read_ids(settings.held_out)
    validation = read_ids(settings.validation)
    if validation - held_out:
        raise ValueError(
            f"{settings.validation}: {len(validation - held_out)} of its {len(validation)} objects are not held out "
            f"({settings.held_out or 'held_out is not set'}), so that steps would train on them"
        )
    source = open_sources(stage_tokens(settings.tokens, settings.stage_tokens), model.tokenizers, held_out)[0]
    store = source.store
    groups = group_by_view(settings.views, store.modalities, str(store.folder))
    trained = _objects_of_two_views(store, groups, source.chosen)
    if len(trained) < 2:
        raise ValueError(
            f"{store.folder}: expected objects with two views of {list(groups)} that are not held out, "
            f"found {len(trained)}"
        )
    groups = {view: [m for m in group if store.has(m.name)[trained].any()] for view, group in groups.items()}
    rows = rows_of_views(settings.views, [m for group in groups.values() for m in group])
    pairs = make_pairs(rows, settings.pair_weights, settings.across_surveys)
    validated = _objects_of_two_views(store, groups, _are_among(store, validation)) if validation else None
    if validated is not None and not len(validated):
        raise ValueError(f"{settings.validation}: no object of {store.folder} with two views of {list(groups)}")

    fabric = make_fabric(settings.loop)
    torch.manual_seed(settings.loop.seed)
    model.head = head_for(
        model.transformer,
        AlignmentHeadSettings(
            aligned_width=settings.aligned_width,
            num_blocks=settings.num_blocks,
            views=settings.views,
            loss=settings.loss,
            initial_scale=settings.initial_scale,
            encoder=settings.encoder,
            num_unfrozen_blocks=settings.num_unfrozen_blocks if settings.encoder == "last_blocks" else 0,
        ),
    )
    model.transformer.to(fabric.device)
    model.head.to(fabric.device)
    run = Path(settings.run)
    keep_settings(run, settings, fabric.global_rank)
    seen = trained if validated is None else np.union1d(trained, validated)
    kept = _encoded(fabric, model, store, seen, rows, settings)
    encoded, turned = (kept[0], kept[1:]) if kept else (None, [])
    objective = AlignObjective(
        model,
        _loader(fabric, store, trained, groups, settings),
        rows,
        pairs,
        num_tokens=settings.num_tokens,
        seed=settings.loop.seed,
        micro_batch=settings.micro_batch,
        encoder_learning_rate=settings.encoder_learning_rate,
        encoded=encoded,
        turned=turned,
        validation=None
        if validated is None
        else Validation(model, store, validated, rows, settings.across_surveys > 0, encoded),
        validate_every=settings.validate_every,
    )
    finished = train(fabric, objective, settings.loop, run, title="align")
    if fabric.is_global_zero:
        record: dict[str, Any] = {"align": settings.model_dump(mode="json"), "align_metrics": finished.metrics}
        if finished.best_step is not None:
            record["align_step"] = finished.best_step
        model.head.eval()
        model.record = {**model.record, **record, **describe_versions()}
        model.save(run / "checkpoint")
        shutil.rmtree(run / ENCODED, ignore_errors=True)
    leave(fabric)
    return finished


def _are_among(store: TokenStore, ids: set[str]) -> Any:
    found = store.find(sorted(ids))
    among = np.zeros(len(store), dtype=bool)
    among[found[found >= 0]] = True
    return among


def _objects_of_two_views(
    store: TokenStore, groups: dict[str, list[Modality]], chosen: Any
) -> Int64[np.ndarray, " objects"]:
    """Those of the chosen objects that have at least two views."""
    num_views = sum(np.any([store.has(m.name) for m in group], 0).astype(int) for group in groups.values())
    return np.flatnonzero(chosen & (num_views >= 2))


def _loader(
    fabric: Fabric,
    store: TokenStore,
    objects: Int64[np.ndarray, " objects"],
    groups: dict[str, list[Modality]],
    settings: AlignSettings,
) -> TokenLoader:
    chosen = np.zeros(len(store), dtype=bool)
    chosen[objects] = True
    names = [m.name for group in groups.values() for m in group]
    return make_loader(fabric, [TokenSource(store, chosen)], settings.loop, names)


def _encoded(
    fabric: Fabric,
    model: FoundationModel,
    store: TokenStore,
    objects: Int64[np.ndarray, " objects"],
    rows: dict[str, dict[str, list[Modality]]],
    settings: AlignSettings,
) -> list[dict[str, EncodedRow]]:
    """The frozen encoder's vectors of these objects, of images also as they are turned; none unless they are to be
    kept. Raises ValueError if they are not, and images are to be turned."""
    of_all = {row: modalities for of_view in rows.values() for row, modalities in of_view.items()}
    names = [m.name for modalities in of_all.values() for m in modalities]
    turned = open_turned(store, settings.turns, settings.tokens)
    size = encoded_bytes(store, objects, names, model.transformer.config.width)
    of_turned = [[m.name for m in of_store.modalities if m.kind == "image" and m.name in names] for of_store in turned]
    for of_store, images in zip(turned, of_turned, strict=True):
        size += encoded_bytes(of_store, objects, images, model.transformer.config.width)
    if settings.encoder != "frozen" or size > settings.cache_gib * 2**30:
        if turned:
            raise ValueError(
                f"turns: {settings.turns} asks for encoder: frozen and cache_gib of at least {size / 2**30:.1f}, found "
                f"{settings.encoder} and {settings.cache_gib}"
            )
        return []
    folder = Path(settings.run) / ENCODED
    encoded = [encode_rows(fabric, model, store, objects, of_all, folder)]
    for number, (of_store, images) in enumerate(zip(turned, of_turned, strict=True), 1):
        chosen = {name: of_all[name] for name in images}
        encoded.append(encode_rows(fabric, model, of_store, objects, chosen, folder / f"turned-{number}"))
    return encoded
