"""The registry of modalities."""

import pytest

from armillary.data.modalities import MODALITIES, modality


def test_names_are_unique_and_say_their_kind():
    names = [m.name for m in MODALITIES]
    assert len(set(names)) == len(names)
    assert all(m.name.startswith(m.kind + "/") for m in MODALITIES)


def test_every_modality_is_found_by_name_and_states_a_unit_and_a_description():
    for declared in MODALITIES:
        assert modality(declared.name) is declared
        assert declared.unit
        assert declared.description


def test_images_share_a_vocabulary_spectra_another_and_each_scalar_has_its_own():
    scalars = [m.vocabulary for m in MODALITIES if m.kind == "scalar"]
    assert {m.vocabulary for m in MODALITIES if m.kind == "image"} == {"image"}
    assert {m.vocabulary for m in MODALITIES if m.kind == "spectrum"} == {"spectrum"}
    assert len(set(scalars)) == len(scalars)


def test_a_misspelt_modality_names_the_nearest():
    with pytest.raises(LookupError, match="nearest known is 'spectrum/desi'"):
        modality("spectrum/dessi")


def test_an_image_has_no_quantity():
    with pytest.raises(TypeError, match="image/hsc"):
        _ = modality("image/hsc").quantity
    assert modality("scalar/sdss_g").quantity.unit == "AB mag"
