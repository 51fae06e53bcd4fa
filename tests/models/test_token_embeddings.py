"""Vectors of tokens, not pooled: their mean is the embedding, and earlier layers stand beside each other."""

from dataclasses import replace

import pytest
import torch

from armillary.models.embeddings import EmbeddingsError
from armillary.models.token_embeddings import layers_of, modalities_of


def test_the_mean_over_tokens_is_the_encoders_embedding(model, sky):
    tokens = model.embed_tokens([sky["image/hsc"], sky["scalar/redshift"]])
    expected = model.embed([sky["image/hsc"], sky["scalar/redshift"]], "encoder")
    assert tokens.object_id == expected.object_id
    assert tokens.modalities == expected.modalities
    torch.testing.assert_close(tokens.pooled().vectors, expected.vectors, atol=1e-5, rtol=1e-4)


def test_layers_stand_side_by_side_and_unknown_ones_are_named(model, sky):
    given = [sky["image/hsc"], sky["scalar/redshift"]]
    width = model.transformer.config.width
    both = model.embed_tokens(given, layers=(0, 1))
    assert both.vectors.shape[2] == 2 * width
    assert both.space == "encoder tokens 0+1"
    torch.testing.assert_close(both.vectors[..., :width], model.embed_tokens(given, layers=(0,)).vectors)
    with pytest.raises(ValueError, match=r"between 0 and .*found \[99\]"):
        model.embed_tokens(given, layers=(99,))


def test_tokens_side_by_side_are_one_vector_whose_space_names_them(model, sky):
    image, redshift = sky["image/hsc"], sky["scalar/redshift"]
    redshift = redshift.select(range(len(redshift) - 1))
    tokens = model.embed_tokens([redshift, image], layers=(0, 1))
    found = tokens.side_by_side()
    width = tokens.vectors.shape[2]
    torch.testing.assert_close(found.vectors[:, width : 2 * width], tokens.vectors[:, 1] * tokens.mask[:, 1:2])
    lacking = found.object_id.index(image.object_id[-1])
    assert not found.vectors[lacking, :width].any()
    assert found.vectors[0, :width].any()
    count = tokens.mask.shape[1] - 1
    assert found.space == f"encoder tokens 0+1 of scalar/redshift+image/hsc*{count}"
    assert modalities_of(found.space) == ("scalar/redshift", "image/hsc")
    assert layers_of(found.space) == (0, 1)
    assert modalities_of(tokens.space) == modalities_of("encoder") == modalities_of(None) == ()
    assert tokens.rows([1]).side_by_side().space == found.space
    with pytest.raises(EmbeddingsError, match="columns must name the modality of each"):
        replace(tokens, columns=()).side_by_side()
