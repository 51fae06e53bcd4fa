"""The foundation model as users meet it: observations in; embeddings, reconstructions and predictions out.

One folder, the checkpoint, holds all that is needed to serve it: the tokenizers, the masked transformer, the alignment
head, the instrument cards, and what made it. Nothing in it is pickled.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from ..data.modalities import Modality
from ..data.observations import Observation, ObservationError
from ..data.observe import Measurements, as_observations
from ..data.token_shards import object_keys
from ..tokenizers.coefficients import CoefficientsTokenizer
from ..tokenizers.image import ImageTokenizer
from ..tokenizers.pretrained import PretrainedError, resolve_folder, write_folder
from ..tokenizers.scalar import ScalarTokenizer
from ..tokenizers.spectrum import SpectrumTokenizer
from ..tokenizers.token_grid import TokenGrid, Tokenizer, empty_positions
from .alignment import AlignmentHead
from .alignment_views import view_of
from .embeddings import Embeddings
from .generated import GeneratedObservations, blank_observation
from .generation import ChainSettings, Order, Wanted, generate_tokens
from .masked_transformer import MaskedTransformer, MaskedTransformerConfig
from .token_batch import TokenBatch, join_grids
from .token_embeddings import TOKEN_SPACE, TokenEmbeddings

CHECKPOINT_FORMAT = 1
TOKENIZER_TYPES: dict[str, type[Any]] = {
    "image": ImageTokenizer,
    "spectrum": SpectrumTokenizer,
    "coefficients": CoefficientsTokenizer,
    "scalar": ScalarTokenizer,
}


@dataclass(frozen=True, eq=False)
class ScalarPrediction:
    """The predicted distribution of one scalar for B objects, over the bins [V] of its tokenizer.

    `low` and `high` are the bounds of each bin, in the scalar's unit; `probabilities` sum to one for each object.
    """

    modality: Modality
    object_id: tuple[str, ...]
    probabilities: Float[Tensor, "B V"]
    low: Float[Tensor, " V"]
    high: Float[Tensor, " V"]

    def quantile(self, share: float) -> Float[Tensor, " B"]:
        """The value below which `share` of the probability lies, linear within bins."""
        cumulative = self.probabilities.double().cumsum(1)
        goal = torch.full((len(cumulative), 1), share, dtype=torch.float64) * cumulative[:, -1:]
        bin_index = torch.searchsorted(cumulative, goal).clamp(max=cumulative.shape[1] - 1)
        mass = self.probabilities.double().gather(1, bin_index)
        below = cumulative.gather(1, bin_index) - mass
        within = ((goal - below) / mass.clamp(min=1e-12)).clamp(0, 1)[:, 0]
        low, high = self.low[bin_index[:, 0]], self.high[bin_index[:, 0]]
        return low + within * (high - low)

    def median(self) -> Float[Tensor, " B"]:
        """Median of each object's distribution."""
        return self.quantile(0.5)

    def interval(self, level: float) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        """The central interval that holds `level` of the probability."""
        return self.quantile((1 - level) / 2), self.quantile((1 + level) / 2)


@dataclass(eq=False)
class FoundationModel:
    """Tokenizers by kind, the masked transformer and, once aligned, the contrastive head."""

    tokenizers: dict[str, Tokenizer]
    transformer: MaskedTransformer
    modalities: tuple[Modality, ...]
    head: AlignmentHead | None = None
    record: dict[str, Any] = field(default_factory=dict)
    """What made the model: settings, metrics, versions."""
    model_id: str = "unsaved"

    @property
    def device(self) -> torch.device:
        """Where the transformer is."""
        return self.transformer.codes.rows.device

    def modality(self, name: str) -> Modality:
        """One of the model's modalities by name. Raises LookupError."""
        for known in self.modalities:
            if known.name == name:
                return known
        raise LookupError(f"the model has no modality {name!r}; it was trained on {[m.name for m in self.modalities]}")

    def embedding_size(self, space: str = "aligned") -> int:
        """Length of the vectors of a space (`encoder` or `aligned`)."""
        return self._head().settings.aligned_width if space == "aligned" else self.transformer.config.width

    def tokenize(self, observation: Observation) -> TokenGrid:
        """Tokens of one observation. Raises LookupError if the model has no tokenizer for its kind."""
        return self._tokenizer(observation).encode(observation)

    def reconstruct(self, observation: Observation) -> Any:
        """The observation after tokenizing and decoding to its own grid."""
        target = None if observation.modality.kind == "scalar" else observation
        return self._tokenizer(observation).decode(self.tokenize(observation), target)

    def _tokenizer(self, observation: Observation) -> Tokenizer:
        modality = observation.modality
        if modality.kind not in self.tokenizers:
            raise LookupError(f"{modality.name}: the model tokenizes {sorted(self.tokenizers)}, not {modality.kind}")
        return self.tokenizers[modality.kind]

    def join(self, grids: Sequence[TokenGrid]) -> tuple[TokenBatch, tuple[str, ...]]:
        """Token grids as one batch for the transformer, and the ids of its rows."""
        return join_grids(grids, self.transformer.vocabulary_index)

    def embed(self, observations: Measurements, space: str = "aligned", batch_size: int = 64) -> Embeddings:
        """One vector for each object, from whatever modalities it has.

        `observations`: any subset of modalities, each a batch of any objects, or what becomes observations
        (`data/observe.py`). `aligned`: unit vectors of the contrastive space, the normalised sum over an object's
        views; `encoder`: mean of the encoder's vectors. Rows follow the first appearance of each object_id. Raises
        ObservationError if there is nothing to embed.
        """
        given = as_observations(observations, self.modalities)
        if not given:
            raise ObservationError("expected at least one observation, found none")
        return self.embed_grids([self.tokenize(observation) for observation in given], space, batch_size)

    @torch.no_grad()
    def embed_grids(
        self,
        grids: Sequence[TokenGrid],
        space: str = "aligned",
        batch_size: int = 64,
        object_id: Sequence[str] | None = None,
    ) -> Embeddings:
        """`embed` for observations that are tokens already; `object_id` says in which order the rows are."""
        if space == "aligned":
            grids = self._viewable(grids)
        batch, ids = join_grids(grids, self.transformer.vocabulary_index, object_id)
        self.transformer.eval()
        vectors = torch.cat([self._vectors(part, grids, space) for part in _parts(batch, batch_size)])
        names = [grid.modality.name for grid in grids]
        present = torch.stack([(batch.mask & (batch.slots == slot)).any(1) for slot in range(len(grids))], 1)
        if not present.any(1).all():
            row = int((~present.any(1)).nonzero()[0, 0])
            raise ObservationError(f"object {ids[row]}: every value is missing, so there is nothing to embed")
        modalities = tuple(tuple(n for n, here in zip(names, row, strict=True) if here) for row in present.tolist())
        return Embeddings(ids, vectors.float().cpu(), space, self.model_id, modalities)

    def embed_tokens(
        self, observations: Measurements, layers: Sequence[int] = (), batch_size: int = 64
    ) -> TokenEmbeddings:
        """The encoder's vector of each token, not pooled: for attentive probes.

        `layers` are blocks after which to look, 0 before the first; the vectors of several stand one after the other.
        By default those after the last block and its norm. Raises ObservationError as `embed` does, ValueError for a
        block that the encoder does not have.
        """
        given = as_observations(observations, self.modalities)
        if not given:
            raise ObservationError("expected at least one observation, found none")
        return self.embed_token_grids([self.tokenize(o) for o in given], layers, batch_size)

    @torch.no_grad()
    def embed_token_grids(
        self,
        grids: Sequence[TokenGrid],
        layers: Sequence[int] = (),
        batch_size: int = 64,
        object_id: Sequence[str] | None = None,
    ) -> TokenEmbeddings:
        """`embed_tokens` for observations that are tokens already; `object_id` says in which order the rows are."""
        blocks = list(self.transformer.encoder)
        wrong = [layer for layer in layers if not 0 <= layer <= len(blocks)]
        if wrong:
            raise ValueError(f"layers must lie between 0 and {len(blocks)}, found {wrong}")
        batch, ids = join_grids(grids, self.transformer.vocabulary_index, object_id)
        if not batch.mask.any(1).all():
            row = int((~batch.mask.any(1)).nonzero()[0, 0])
            raise ObservationError(f"object {ids[row]}: every value is missing, so there is nothing to embed")
        self.transformer.eval()
        stacks: list[list[nn.Module] | None] = [[*blocks[:layer], nn.Identity()] for layer in layers]
        vectors = [
            torch.cat([self.transformer.encode(part, stack=stack).float() for stack in stacks or [None]], -1).cpu()
            for part in (part.to(self.device) for part in _parts(batch, batch_size))
        ]
        names = [grid.modality.name for grid in grids]
        slots = [set(row[valid].tolist()) for row, valid in zip(batch.slots, batch.mask, strict=True)]
        modalities = tuple(tuple(name for slot, name in enumerate(names) if slot in here) for here in slots)
        space = f"{TOKEN_SPACE} {'+'.join(map(str, layers))}" if layers else TOKEN_SPACE
        columns = tuple(names[slot] for slot in batch.slots[0].tolist())
        return TokenEmbeddings(ids, torch.cat(vectors), batch.mask.cpu(), self.model_id, modalities, space, columns)

    def predict_scalar(self, observations: Measurements, target: str, batch_size: int = 64) -> ScalarPrediction:
        """The masked model's distribution of a scalar for each object, given whatever else is observed.

        Observations of the target itself are left out. Raises LookupError for a scalar the model was not trained on.
        """
        wanted = self.modality(target)
        if wanted.kind != "scalar":
            raise LookupError(f"expected a scalar, found {target}")
        given = [o for o in as_observations(observations, self.modalities) if o.modality.name != target]
        return self.predict_scalar_grids([self.tokenize(o) for o in given], target, batch_size)

    @torch.no_grad()
    def predict_scalar_grids(self, grids: Sequence[TokenGrid], target: str, batch_size: int = 64) -> ScalarPrediction:
        """`predict_scalar` for observations that are tokens already."""
        wanted, scalars = self.modality(target), self.tokenizers["scalar"]
        assert isinstance(scalars, ScalarTokenizer)
        given = [grid for grid in grids if grid.modality.name != target]
        if not given:
            raise ObservationError(f"expected at least one observation other than {target}, found none")
        batch, ids = self.join(given)
        self.transformer.eval()
        probabilities = []
        for part in _parts(batch, batch_size):
            part = part.packed().to(self.device)
            query = self._query(wanted, len(part)).to(self.device)
            probabilities.append(self.transformer.predict(part, query, wanted.vocabulary)[:, 0].cpu())
        low, high = scalars.bins(wanted)
        of_values = torch.cat(probabilities)[:, : len(low)]  # what follows are the codes of errors
        return ScalarPrediction(wanted, ids, of_values / of_values.sum(1, keepdim=True), low, high)

    @torch.no_grad()
    def generate(
        self,
        observations: Measurements,
        targets: Sequence[str],
        *,
        num_samples: int = 1,
        seed: int = 0,
        order: Order = "maskgit",
        num_stages: int = 8,
        temperature: float = 1.0,
        top_p: float = 1.0,
        guidance: float = 1.0,
        like: Sequence[Observation] = (),
        image_size: int | None = None,
        batch_size: int = 64,
    ) -> dict[str, "ScalarPrediction | GeneratedObservations"]:
        """What other modalities of each object may look like, given those observed; by the names in `targets`.

        Of a scalar, the whole predicted distribution. Of images, spectra and coefficients, `num_samples` samples that
        are drawn in `num_stages` stages, all these targets together, so that they agree (`generation.ChainSettings`
        says what `order`, `temperature`, `top_p` and `guidance` do). Samples are a pure function of `seed`, the object
        and what is observed of it. Their pixels are those of the observations in `like`, or of the instrument's card;
        images without one are squares of `image_size` pixels. `batch_size` samples pass through the model at once.

        Observations of the targets themselves are left out. Raises LookupError for a target that the model does not
        have, ObservationError if nothing is left that was observed of an object, ValueError for a wrong setting.
        """
        settings = ChainSettings(
            num_samples, seed, order, num_stages, temperature, top_p, guidance, self._most_inputs()
        )
        wanted = [self.modality(name) for name in targets]
        if not wanted or len(set(targets)) < len(wanted):
            raise ValueError(f"expected at least one target, each once, found {list(targets)}")
        given = [o for o in as_observations(observations, self.modalities) if o.modality.name not in targets]
        if not given:
            raise ObservationError(f"expected at least one observation other than of {list(targets)}, found none")
        found: dict[str, ScalarPrediction | GeneratedObservations] = {}
        for modality in wanted:
            if modality.kind == "scalar":
                found[modality.name] = self.predict_scalar(given, modality.name, batch_size)
        chained = [modality for modality in wanted if modality.kind != "scalar"]
        if chained:
            found |= self._chained(given, chained, settings, like, image_size, batch_size)
        return {name: found[name] for name in targets}

    def _chained(
        self,
        given: Sequence[Observation],
        targets: Sequence[Modality],
        settings: ChainSettings,
        like: Sequence[Observation],
        image_size: int | None,
        batch_size: int,
    ) -> dict[str, "GeneratedObservations"]:
        observed, ids = self.join([self.tokenize(observation) for observation in given])
        if not observed.mask.any(1).all():
            row = int((~observed.mask.any(1)).nonzero()[0, 0])
            raise ObservationError(f"object {ids[row]}: every value is missing, so there is nothing to generate from")
        blanks = [blank_observation(modality, ids, like, image_size) for modality in targets]
        tokenizers = [self._tokenizer(blank) for blank in blanks]
        places = []
        for tokenizer, blank in zip(tokenizers, blanks, strict=True):
            assert isinstance(tokenizer, ImageTokenizer | SpectrumTokenizer | CoefficientsTokenizer)
            places.append(tokenizer.token_places(blank))
        self.transformer.eval()
        codes = generate_tokens(
            self.transformer,
            observed,
            Wanted.of(places, self.transformer.vocabulary_index),
            torch.from_numpy(object_keys(ids)),
            settings,
            batch_size,
        )
        found, parts = {}, codes.split([part.grid.num_tokens for part in places], 2)
        for modality, tokenizer, blank, place, part in zip(targets, tokenizers, blanks, places, parts, strict=True):
            grids = tuple(replace(place.grid, codes=sample.contiguous(), mask=place.always) for sample in part)
            decoded = tuple(tokenizer.decode(grid, blank) for grid in grids)
            found[modality.name] = GeneratedObservations(modality, ids, grids, decoded)
        return found

    def _most_inputs(self) -> int | None:
        """Most tokens that the encoder saw in pretraining, if the record tells."""
        found = self.record.get("pretrain", {}).get("num_inputs")
        return None if found is None else int(found)

    def save(self, folder: str | Path) -> str:
        """Write the checkpoint, whole or not at all; returns and sets `model_id`, a hash of weights and configs."""

        def write(place: Path) -> None:
            for kind, tokenizer in self.tokenizers.items():
                tokenizer.save_pretrained(place / "tokenizers" / kind)
            with _without_progress_bars():
                self.transformer.save_pretrained(place / "transformer")
            if self.head is not None:
                self.head.save_pretrained(place / "alignment")
            records = [modality.record() for modality in self.modalities]
            self.model_id = f"armillary-{_weights_hash(place)}"
            content = {
                "format": CHECKPOINT_FORMAT,
                "model_id": self.model_id,
                "modalities": records,
                "record": self.record,
            }
            (place / "checkpoint.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

        write_folder(folder, write)
        return self.model_id

    @classmethod
    def load(cls, folder_or_hub_id: str | Path, device: str | torch.device = "cpu") -> "FoundationModel":
        """Load a checkpoint from a folder or the Hub. Raises PretrainedError if it is not whole."""
        folder = resolve_folder(folder_or_hub_id)
        path = folder / "checkpoint.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            raise PretrainedError(f"{path}: expected the description of a checkpoint, found: {error}") from None
        if content.get("format") != CHECKPOINT_FORMAT:
            raise PretrainedError(f"{path}: expected format {CHECKPOINT_FORMAT}, found {content.get('format')!r}")
        found = f"armillary-{_weights_hash(folder)}"
        if found != content["model_id"]:
            raise PretrainedError(f"{folder}: the weights are those of {found}, expected {content['model_id']}")
        tokenizers = {
            kind: tokenizer_type.from_pretrained(folder / "tokenizers" / kind).to(device)
            for kind, tokenizer_type in TOKENIZER_TYPES.items()
            if (folder / "tokenizers" / kind).is_dir()
        }
        head = AlignmentHead.from_pretrained(folder / "alignment") if (folder / "alignment").is_dir() else None
        with _without_progress_bars():
            transformer = MaskedTransformer.from_pretrained(folder / "transformer")
        return cls(
            tokenizers=tokenizers,
            transformer=transformer.to(device).eval(),
            modalities=tuple(Modality.from_record(record, str(path)) for record in content["modalities"]),
            head=None if head is None else head.to(device),
            record=content["record"],
            model_id=content["model_id"],
        )

    def _head(self) -> AlignmentHead:
        if self.head is None:
            raise ObservationError("this model has no alignment head: run `armillary align`, or use space='encoder'")
        return self.head

    def _viewable(self, grids: Sequence[TokenGrid]) -> list[TokenGrid]:
        views = self._head().settings.views
        viewable = [grid for grid in grids if view_of(views, grid.modality) is not None]
        if not viewable:
            found = [grid.modality.name for grid in grids]
            members = {view: list(members) for view, members in views.items()}
            raise ObservationError(f"the aligned space has the views {members} only, found {found}")
        return viewable

    def _vectors(self, batch: TokenBatch, grids: Sequence[TokenGrid], space: str) -> Float[Tensor, "B D"]:
        batch = batch.to(self.device)
        if space != "aligned":
            batch = batch.packed()
            encoded = self.transformer.encode(batch)
            weights = batch.mask[..., None].float()
            return (encoded * weights).sum(1) / weights.sum(1).clamp(min=1)
        total = torch.zeros(len(batch), self.embedding_size(), device=self.device)
        head = self._head()
        for view in head.settings.views:
            slots = [slot for slot, grid in enumerate(grids) if view_of(head.settings.views, grid.modality) == view]
            if slots:
                part = batch.only(slots).packed()
                vectors = head(view, head.encode(view, self.transformer, part), part.mask)
                total = total + torch.where(part.mask.any(1, keepdim=True), vectors, 0.0)
        return nn.functional.normalize(total, dim=-1)

    def _query(self, modality: Modality, num_objects: int) -> TokenBatch:
        """One target token of a scalar for each object."""
        return TokenBatch(
            codes=torch.zeros(num_objects, 1, dtype=torch.long),
            mask=torch.ones(num_objects, 1, dtype=torch.bool),
            positions=empty_positions(num_objects, 1),
            slots=torch.zeros(num_objects, 1, dtype=torch.long),
            slot_vocabularies=torch.tensor([self.transformer.vocabulary_index[modality.vocabulary]]),
            instruments=torch.from_numpy(modality.quantity.features()).expand(num_objects, 1, -1),
        )


def new_transformer(
    size: str, tokenizers: Mapping[str, Tokenizer], modalities: Sequence[Modality], base_size: str | None = None
) -> MaskedTransformer:
    """An untrained masked transformer of a named size for these modalities' vocabularies.

    `base_size` is the size at which its learning rate was found.
    """
    features, numbers = {}, {}
    for modality in modalities:
        features[modality.vocabulary] = tokenizers[modality.kind].code_features(modality)
        numbers[modality.vocabulary] = tokenizers[modality.kind].code_numbers(modality)
    transformer = MaskedTransformer(MaskedTransformerConfig.of_size(size, features, base_size, numbers))
    transformer.codes.set_features(features, numbers)
    return transformer


def _parts(batch: TokenBatch, size: int) -> Iterator[TokenBatch]:
    for start in range(0, len(batch), size):
        yield batch.rows(slice(start, start + size))


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Keep transformers from drawing bars for what takes a moment; put its setting back after."""
    was_enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            transformers_logging.enable_progress_bar()


def _weights_hash(folder: Path) -> str:
    """Short hash of all weights and of the configs that say how to read them."""
    digest = hashlib.sha256()
    for path in sorted([*folder.rglob("*.safetensors"), *folder.rglob("config.json")]):
        digest.update(str(path.relative_to(folder)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
