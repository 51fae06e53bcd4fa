"""Vectors of tokens, not pooled: their mean is the embedding, and earlier layers stand beside each other."""

import pytest
import torch


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
