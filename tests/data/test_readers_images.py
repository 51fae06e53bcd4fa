"""Images: the real HSC field, and frames made here with a known truth."""

import numpy as np
import pytest
import torch
from astropy.io import fits
from astropy.nddata import Cutout2D
from astropy.wcs import WCS

from armillary.data.observations import ObservationError
from armillary.data.readers.image_noise import point_source_depth, sky_noise
from armillary.data.readers.images import cut_out, cut_out_sky, find_sources, read_image
from armillary.data.readers.mosaics import HSC_ZERO_POINT
from armillary.data.real_files import real_file

PATHS = {band: real_file(f"hsc-10054-{band}.fits") for band in "gri"}


@pytest.fixture(scope="module")
def field():
    return read_image(PATHS, "image/hsc", zero_point=HSC_ZERO_POINT, object_id="10054")


def write(path, pixels, **header):
    hdu = fits.PrimaryHDU(pixels.astype(np.float32))
    for key, value in header.items():
        hdu.header[key] = value
    hdu.writeto(path)
    return path


def sky_header(scale=0.168, shift=0.0):
    return {
        "CTYPE1": "RA---TAN",
        "CTYPE2": "DEC--TAN",
        "CRVAL1": 150.0,
        "CRVAL2": 2.0,
        "CRPIX1": 31.0 + shift,
        "CRPIX2": 26.0,
        "CD1_1": -scale / 3600,
        "CD2_2": scale / 3600,
        "CD1_2": 0.0,
        "CD2_1": 0.0,
        "RADESYS": "ICRS",
    }


# ---- frames ----------------------------------------------------------------------------------------------------------


def test_counts_become_nanomaggies_by_the_zero_point(field):
    with fits.open(PATHS["r"]) as hdus:
        expected = hdus[0].data * 10 ** (-0.4 * (27.0 - 22.5))
    assert field.image.bands == ("g", "r", "i")
    np.testing.assert_allclose(field.image.flux[0, 1], expected, rtol=1e-5)
    assert field.wcs is None


def test_the_depth_of_the_field_is_the_published_one_of_its_layer(field):
    """Aihara et al. 2022: 27.4, 27.1 and 26.9 mag in g, r and i; a wrong zero point would move all three alike."""
    assert field.image.depth[0].tolist() == pytest.approx([27.4, 27.1, 26.9], abs=0.2)


def test_number_counts_of_the_field_are_those_of_the_sky(field):
    """About 4e4 galaxies per square degree and magnitude at i = 24.5 (Capak et al. 2007), within cosmic variance."""
    magnitude = find_sources(field).magnitude()[:, 2]
    area = (512 * 0.168 / 3600) ** 2
    assert 2e4 < ((magnitude > 24) & (magnitude < 25)).sum() / area < 8e4


def test_the_noise_is_that_of_the_sky_and_not_of_the_sources(field):
    pixels = field.image.flux[0, 0].numpy()
    sigma = field.image.inverse_variance[0, 0, 0, 0].item() ** -0.5
    below = pixels[pixels < np.median(pixels)] - np.median(pixels)
    assert sigma == pytest.approx(np.sqrt(np.mean(below**2)), rel=0.15)
    assert sigma < 0.1 * pixels.std()


def test_without_a_unit_the_zero_point_must_be_given():
    with pytest.raises(
        ObservationError, match=r"hsc-10054-g\.fits: states no flux unit \(BUNIT = None\); give zero_point"
    ):
        read_image(PATHS, "image/hsc")


@pytest.mark.parametrize("unit, scale", [("nanomaggy", 1.0), ("nJy", 1 / 3631)])
def test_a_stated_unit_gives_the_zero_point_and_a_contradiction_is_an_error(tmp_path, unit, scale):
    pixels = np.random.default_rng(0).normal(size=(8, 9))
    path = write(tmp_path / "g.fits", pixels, BUNIT=unit)
    np.testing.assert_allclose(read_image({"g": path}, "image/hsc").image.flux[0, 0], pixels * scale, rtol=1e-4)
    with pytest.raises(ObservationError, match="means a zero point of"):
        read_image({"g": path}, "image/hsc", zero_point=27.0)


def test_nan_pixels_are_masked_and_the_rest_is_kept(tmp_path):
    pixels = np.random.default_rng(0).normal(size=(8, 9))
    pixels[2:4, 3] = np.nan
    frame = read_image({"g": write(tmp_path / "g.fits", pixels)}, "image/hsc", zero_point=22.5)
    assert np.array_equal(frame.image.mask[0, 0].numpy(), np.isfinite(pixels))


def test_inverse_variance_files_are_converted_with_the_flux(tmp_path):
    pixels, ivar = np.random.default_rng(0).normal(size=(2, 8, 9)) ** 2
    ivar[0, 0] = 0
    paths = [write(tmp_path / name, array) for name, array in (("g.fits", pixels), ("ivar.fits", ivar))]
    frame = read_image({"g": paths[0]}, "image/hsc", zero_point=27.0, inverse_variance={"g": paths[1]})
    np.testing.assert_allclose(
        frame.image.flux**2 * frame.image.inverse_variance, (pixels**2 * ivar)[None, None], rtol=1e-4
    )
    assert (~frame.image.mask).nonzero().tolist() == [[0, 0, 0, 0]]
    with pytest.raises(ObservationError, match="inverse variances in"):
        read_image({"g": paths[0]}, "image/hsc", zero_point=27.0, inverse_variance={"r": paths[1]})


def test_images_that_do_not_fit_together_are_errors(tmp_path):
    random = np.random.default_rng(0)
    small = write(tmp_path / "small.fits", random.normal(size=(8, 9)))
    here = write(tmp_path / "here.fits", random.normal(size=(51, 61)), **sky_header())
    there = write(tmp_path / "there.fits", random.normal(size=(51, 61)), **sky_header(shift=2))
    coarse = write(tmp_path / "coarse.fits", random.normal(size=(51, 61)), **sky_header(scale=0.4))
    for paths, problem in (
        ({"g": here, "r": small}, r"small\.fits: .*shape \[51, 61\], found \[8, 9\]"),
        ({"g": here, "r": there}, r"there\.fits: must show the same place"),
        ({"g": coarse}, r"coarse\.fits: pixels must be 0\.168 arcsec wide"),
        ({"u": here}, r"hsc has no band 'u'"),
        ({}, "at least one band"),
    ):
        with pytest.raises(ObservationError, match=problem):
            read_image(paths, "image/hsc", zero_point=27.0)
    with pytest.raises(ObservationError, match="expected an image modality"):
        read_image({"g": here}, "spectrum/desi", zero_point=27.0)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_image_is_an_error_that_names_it(tmp_path, share):
    content = PATHS["r"].read_bytes()
    copy = tmp_path / "cut.fits"
    copy.write_bytes(content[: int(share * 1051456)])
    with pytest.raises(ObservationError, match=r"cut\.fits"):
        read_image({**PATHS, "r": copy}, "image/hsc", zero_point=27.0)


# ---- cutouts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [32, 33])
def test_cutouts_hold_the_pixels_around_their_center(field, size):
    centers = np.array([[100.2, 200.7], [40.0, 300.0]])
    cutouts = cut_out(field, centers, size, ["a", "b"])
    assert cutouts.flux.shape == (2, 3, size, size)
    assert cutouts.object_id == ("a", "b")
    for row, (y, x) in enumerate(centers):
        local = cutouts.center[row].double().numpy()
        assert np.abs(local - (size - 1) / 2).max() <= 0.5
        top, left = np.round(np.array([y, x]) - local).astype(int)
        assert torch.equal(cutouts.flux[row], field.image.flux[0, :, top : top + size, left : left + size])
    assert cutouts.mask.all()
    assert torch.equal(cutouts.depth, field.image.depth.expand(2, -1))


def test_a_cutout_beyond_the_edge_is_masked_there(field):
    cutout = cut_out(field, np.array([[0.0, 511.0]]), 21)
    assert cutout.mask[0, :, 10:, :11].all()
    assert not cutout.mask[0, :, :10].any()
    assert not cutout.mask[0, :, :, 11:].any()
    assert torch.equal(cutout.flux[0, :, 10:, :11], field.image.flux[0, :, :11, 501:])


def test_a_cutout_off_the_frame_names_its_object(field):
    with pytest.raises(ObservationError, match=r"object far: no valid pixel"):
        cut_out(field, np.array([[50.0, 50.0], [900.0, 50.0]]), 20, ["near", "far"])


def test_cutouts_by_sky_position_are_those_of_astropy(tmp_path):
    pixels = np.random.default_rng(0).normal(size=(51, 61))
    path = write(tmp_path / "g.fits", pixels, **sky_header())
    frame = read_image({"g": path}, "image/hsc", zero_point=22.5)
    wcs = WCS(fits.getheader(path))
    place = wcs.pixel_to_world(np.array([20.0, 33.0]), np.array([17.0, 30.0]))
    cutouts = cut_out_sky(frame, place.ra.deg, place.dec.deg, 11)
    for row, position in enumerate(place):
        expected = Cutout2D(pixels, position, 11, wcs=wcs).data
        np.testing.assert_allclose(cutouts.flux[row, 0], expected, rtol=1e-6)
    np.testing.assert_allclose(cutouts.ra, place.ra.deg, atol=1e-9)
    np.testing.assert_allclose(cutouts.dec, place.dec.deg, atol=1e-9)


def test_a_frame_without_wcs_cannot_be_cut_by_sky_position(field):
    with pytest.raises(ObservationError, match="no WCS"):
        cut_out_sky(field, np.array([150.0]), np.array([2.0]), 20)


# ---- sources ---------------------------------------------------------------------------------------------------------


def frame_with_sources(tmp_path, places, fluxes, sigma=0.001):
    """Point sources of known flux (nanomaggies) on Gaussian noise, through the PSF of HSC's g band."""
    random, width = np.random.default_rng(0), 0.79 / 2.3548 / 0.168
    y, x = np.mgrid[:200, :220]
    pixels = random.normal(scale=sigma, size=y.shape) + 0.01
    for (row, column), flux in zip(places, fluxes, strict=True):
        pixels += flux * np.exp(-((y - row) ** 2 + (x - column) ** 2) / 2 / width**2) / (2 * np.pi * width**2)
    return read_image({"g": write(tmp_path / "g.fits", pixels)}, "image/hsc", zero_point=22.5)


def test_sources_are_found_where_they_are_with_their_flux(tmp_path):
    places, fluxes = [(50.0, 60.0), (120.4, 30.7), (150.0, 180.0)], [2.0, 5.0, 0.5]
    found = find_sources(frame_with_sources(tmp_path, places, fluxes))
    assert len(found) == 3
    np.testing.assert_allclose(found.center, np.array(places)[[1, 0, 2]], atol=0.15)
    np.testing.assert_allclose(found.flux[:, 0], [5.0, 2.0, 0.5], rtol=0.1)
    np.testing.assert_allclose(found.magnitude()[:, 0], 22.5 - 2.5 * np.log10(found.flux[:, 0]), rtol=1e-5)


def test_margin_and_number_of_sources_are_respected(tmp_path):
    frame = frame_with_sources(tmp_path, [(50.0, 60.0), (120.0, 6.0), (150.0, 180.0)], [2.0, 5.0, 0.5])
    assert len(find_sources(frame, margin=20)) == 2
    assert find_sources(frame, margin=20, max_sources=1).flux[0, 0] == pytest.approx(2.0, rel=0.1)


def test_pure_noise_has_no_source(tmp_path):
    found = find_sources(frame_with_sources(tmp_path, [], []))
    assert len(found) == 0
    assert found.flux.shape == (0, 1)
    assert found.magnitude().shape == (0, 1)


def test_the_noise_of_known_noise_is_found_beneath_sources(tmp_path):
    frame = frame_with_sources(tmp_path, [(50.0, 60.0), (120.0, 30.0)], [20.0, 50.0])
    sky, sigma = sky_noise(frame.image.flux[0, 0].numpy(), frame.image.mask[0, 0].numpy())
    assert sky == pytest.approx(0.01, abs=1e-4)
    assert sigma == pytest.approx(0.001, rel=0.05)


def test_the_depth_of_white_noise_is_that_of_the_observation(tmp_path):
    """`ImageObservation.noise` turns a depth into the noise of a pixel; the measured depth turns it back."""
    frame = frame_with_sources(tmp_path, [], [])
    assert frame.image.noise()[0, 0].item() == pytest.approx(0.001, rel=0.1)
    assert np.isnan(point_source_depth(np.zeros((9, 9)), np.ones((9, 9), bool), 4.0))
