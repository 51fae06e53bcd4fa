"""Tokenizers on another device than the observations: a pretended one, where there is no accelerator."""

import pytest

from ..pretended_device import PretendDevice, move


@pytest.mark.parametrize(
    ("kind", "name", "target"),
    [
        ("image", "image/hsc", "image/hsc"),
        ("image", "image/hsc", "image/legacysurvey"),
        ("spectrum", "spectrum/desi", "spectrum/sdss"),
    ],
)
def test_tokens_and_reconstructions_are_those_of_the_cpu(tokenizers, sky, kind, name, target):
    tokenizer = tokenizers[kind]
    expected = tokenizer.encode(sky[name])
    back = tokenizer.decode(expected, sky[target])
    moved = move(tokenizer)
    with PretendDevice():
        tokens = moved.encode(sky[name])
        found = moved.decode(tokens, sky[target])
    assert tokens.codes.equal(expected.codes)
    assert tokens.mask.equal(expected.mask)
    assert found.mask.equal(back.mask)
    assert (found.flux - back.flux).abs().max() < 1e-4 * back.flux.abs().max()
