"""A checkpoint in the smallest: a real model of two numbers, made in no time; only its `encoder` space."""

import numpy as np
import torch

from armillary.data.modalities import modality
from armillary.data.observations import ScalarObservation
from armillary.models.embeddings import EmbeddingTable
from armillary.models.foundation import FoundationModel
from armillary.models.masked_transformer import MaskedTransformer, MaskedTransformerConfig
from armillary.serving.index.embedding_index import EmbeddingIndex
from armillary.tokenizers.scalar import ScalarTokenizer, ScalarTokenizerSettings

REDSHIFT, MASS = "scalar/redshift", "scalar/stellar_mass"


def redshifts(count=20):
    """As many objects, whose redshifts differ."""
    ids = [f"object-{number}" for number in range(count)]
    return ScalarObservation(modality(REDSHIFT), ids, np.linspace(0.01, 1.0, count).astype(np.float32))


def save_tiny_checkpoint(folder):
    """Save a model of random weights, and return it."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    values = {REDSHIFT: rng.uniform(0, 1, 500), MASS: rng.normal(10, 1, 500)}
    tokenizer = ScalarTokenizer(ScalarTokenizerSettings(num_codes=16)).fit(values)
    modalities = (modality(REDSHIFT), modality(MASS))
    features = {known.vocabulary: tokenizer.code_features(known) for known in modalities}
    config = MaskedTransformerConfig(
        encoder_blocks=1,
        decoder_blocks=1,
        width=32,
        num_heads=4,
        vocabularies={name: len(codes) for name, codes in features.items()},
        code_feature_sizes={name: codes.shape[1] for name, codes in features.items()},
    )
    transformer = MaskedTransformer(config)
    transformer.codes.set_features(features)
    FoundationModel({"scalar": tokenizer}, transformer.eval(), modalities).save(folder)
    return FoundationModel.load(folder)


def save_tiny_index(folder, model, count=20):
    """Save an index of the redshifts of as many objects."""
    embeddings = model.embed([redshifts(count)], "encoder")
    table = EmbeddingTable(
        object_id=embeddings.object_id,
        modality=(REDSHIFT,) * count,
        ra=np.full(count, 10.0),
        dec=np.full(count, 5.0),
        vectors=embeddings.numpy().astype(np.float16),
        space="encoder",
        model_id=model.model_id,
    )
    EmbeddingIndex.build(table).save(folder)
