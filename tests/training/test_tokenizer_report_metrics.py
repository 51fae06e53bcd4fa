"""Metrics of the report card against closed forms, scikit-learn and slow references."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from sklearn.decomposition import PCA
from sklearn.metrics import r2_score, roc_auc_score

from armillary.data.instruments import instrument
from armillary.data.modalities import Modality, modality
from armillary.data.observations import ImageObservation, ObservationError, SpectrumObservation
from armillary.data.simulation.sky import SimulatedSky, SkySettings
from armillary.data.token_shards import object_key
from armillary.tokenizers.token_grid import TokenGrid
from armillary.training.tokenizer_report.codebook import CodeCounts, code_use, perplexity
from armillary.training.tokenizer_report.codes_of_sources import tokens_on
from armillary.training.tokenizer_report.flux_bias import flux_bias, median_with_error
from armillary.training.tokenizer_report.photometry import magnitudes, object_flux, object_magnitude
from armillary.training.tokenizer_report.pixel_scores import (
    PixelSums,
    object_chi2,
    object_psnr,
    ratio_of_sums,
    sum_pixels,
)
from armillary.training.tokenizer_report.principal_components import PrincipalComponents
from armillary.training.tokenizer_report.rank_area import RankArea, probability_bins
from armillary.training.tokenizer_report.redshift_probe import (
    NUM_HASHED,
    image_features,
    probe_redshift,
    spectrum_features,
    token_features,
)
from armillary.training.tokenizer_report.simulated_truth import SimulatedTruth
from armillary.training.tokenizer_report.source_pixels import signal_to_noise
from armillary.training.tokenizer_report.wrong_metadata import on_grid_of, with_bands_shifted

SKY = SkySettings(
    num_objects=12,
    modalities=("image/legacysurvey", "spectrum/sdss"),
    image_sizes={"image/legacysurvey": 32},
    seed=11,
)


@pytest.fixture(scope="module")
def sky():
    return SimulatedSky(SKY).batch(range(12))


@pytest.fixture(scope="module")
def images(sky):
    return sky["image/legacysurvey"]


@pytest.fixture(scope="module")
def spectra(sky):
    return sky["spectrum/sdss"]


def random_pixels(seed, shape=(6, 3, 8, 8)):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator)


def test_r2_over_batches_is_that_of_scikit_learn_over_all_pixels():
    flux, made = 3 + random_pixels(0), 3 + random_pixels(0) + 0.3 * random_pixels(1)
    chosen = random_pixels(2) > -0.5
    ones = torch.ones_like(flux)
    sums = PixelSums()
    for rows in (slice(0, 1), slice(1, 4), slice(4, 6)):
        sums += sum_pixels(flux[rows], made[rows], ones[rows], chosen[rows])
    assert sums.r2 == pytest.approx(r2_score(flux[chosen].double(), made[chosen].double()), abs=1e-9)


def test_chi2_of_pure_noise_is_one_whatever_its_size():
    sigma = torch.exp(random_pixels(3, (4, 100, 100)))
    flux = sigma * random_pixels(4, (4, 100, 100))
    everywhere = torch.ones(flux.shape, dtype=torch.bool)
    sums = sum_pixels(flux, torch.zeros_like(flux), sigma**-2, everywhere)
    assert sums.mean_chi2 == pytest.approx(1, abs=5 * math.sqrt(2 / flux.numel()))
    chi2, count = object_chi2(flux, torch.zeros_like(flux), sigma**-2, everywhere)
    assert chi2.sum().item() == pytest.approx(sums.chi2)
    assert count.tolist() == [10_000.0] * 4


def test_pixels_that_are_not_chosen_count_nowhere():
    flux, made, ones = random_pixels(5), random_pixels(6), torch.ones(6, 3, 8, 8)
    chosen = random_pixels(7) > 0
    spoilt = torch.where(chosen, made, 1e30)
    assert sum_pixels(flux, spoilt, ones, chosen) == sum_pixels(flux, made, ones, chosen)
    torch.testing.assert_close(object_chi2(flux, spoilt, ones, chosen), object_chi2(flux, made, ones, chosen))
    torch.testing.assert_close(object_psnr(flux, spoilt, chosen), object_psnr(flux, made, chosen))


def test_psnr_of_an_error_of_a_hundredth_of_the_peak_is_40_db():
    flux = torch.zeros(2, 1, 4, 4)
    flux[:, :, 1, 2] = 50.0
    sign = torch.where(random_pixels(8, (2, 1, 4, 4)) > 0, 1.0, -1.0)
    made = flux + 0.5 * sign
    made[1] = flux[1]
    found = object_psnr(flux, made, torch.ones(2, 1, 4, 4, dtype=torch.bool))
    assert found[0].item() == pytest.approx(40)
    assert found[1].isnan()


def test_scores_without_pixels_are_not_numbers_and_not_errors():
    assert math.isnan(PixelSums().r2)
    assert math.isnan(PixelSums().mean_chi2)
    assert all(math.isnan(number) for number in ratio_of_sums(np.zeros(0), np.zeros(0)))


def test_the_standard_error_of_a_ratio_is_the_scatter_over_repetitions():
    rng = np.random.default_rng(0)
    ratios, errors = [], []
    for _ in range(500):
        size = rng.gamma(2.0, 1.0, 200)
        ratio, error = ratio_of_sums(1.5 * size + 0.3 * size * rng.standard_normal(200), size)
        ratios.append(ratio)
        errors.append(error)
    assert np.mean(ratios) == pytest.approx(1.5, abs=0.005)
    assert np.mean(errors) == pytest.approx(np.std(ratios), rel=0.1)


def test_the_standard_error_of_a_median_is_the_scatter_over_repetitions():
    rng = np.random.default_rng(1)
    found = np.array([median_with_error(rng.standard_normal(300)) for _ in range(500)])
    assert found[:, 1].mean() == pytest.approx(found[:, 0].std(), rel=0.1)


def test_the_bias_of_images_brightened_by_two_percent_is_two_percent_in_every_bin(images):
    everywhere = torch.ones(images.flux.shape, dtype=torch.bool)
    reference = object_flux(images, images.flux, everywhere).numpy()
    made = object_flux(images, 1.02 * images.flux, everywhere).numpy()
    magnitude = magnitudes(torch.from_numpy(reference)).numpy()
    bins = flux_bias(made.ravel(), reference.ravel(), magnitude.ravel(), [-math.inf, 17.0, 19.0, math.inf])
    assert len(bins) > 1
    for found in bins:
        assert found.pooled == pytest.approx(0.02, abs=1e-6)
        assert found.median == pytest.approx(0.02, abs=1e-6)
    assert sum(found.num_sources for found in bins) == int((reference > 0).sum())


def test_a_bin_holds_its_brightest_magnitude_and_not_its_faintest():
    flux = np.array([1.0, 1.0, 1.0, -1.0, 1.0])
    magnitude = np.array([17.0, 18.0, np.nan, 17.5, 16.999])
    bins = flux_bias(flux, flux, magnitude, [17.0, 18.0, 19.0])
    assert [(b.brightest, b.num_sources) for b in bins] == [(17.0, 1), (18.0, 1)]


def test_the_flux_of_an_image_is_the_light_within_the_aperture():
    card = modality("image/legacysurvey")
    flux = torch.zeros(1, 1, 41, 41)
    flux[0, 0, 20, 20 + 11] = 5.0  # 2.9 arcsec from the middle
    flux[0, 0, 20 + 12, 20] = 7.0  # 3.1 arcsec
    flux[0, 0, 20, 20] = 1.0
    image = ImageObservation(card, ["a"], flux, ["r"])
    assert object_flux(image, flux, image.mask).tolist() == [[6.0]]
    assert object_magnitude(image, flux, image.mask).item() == pytest.approx(22.5 - 2.5 * math.log10(6))


def test_the_magnitude_of_a_spectrum_of_constant_f_nu_is_that_of_its_f_nu():
    card = instrument("sdss")
    wavelength = card.wavelength()
    f_nu = 10 ** (-0.4 * (18.0 + 48.6))
    flux = torch.from_numpy(f_nu * 2.99792458e18 / wavelength**2 * 1e17)[None].float()
    spectrum = SpectrumObservation(modality("spectrum/sdss"), ["a"], flux, wavelength, torch.ones_like(flux))
    assert object_magnitude(spectrum, flux, spectrum.mask).item() == pytest.approx(18.0, abs=0.02)
    width = np.gradient(wavelength)
    expected = float((flux[0].double().numpy() * width).sum())
    assert object_flux(spectrum, flux, spectrum.mask).item() == pytest.approx(expected, rel=1e-6)


def test_uniform_codes_have_the_perplexity_of_the_codebook_and_one_code_has_one():
    counts = CodeCounts(7)
    counts.add(torch.arange(7).repeat(5))
    assert counts.summary()["perplexity"] == pytest.approx(7)
    assert counts.summary()["use"] == 1
    assert perplexity(np.array([0, 12, 0])) == pytest.approx(1)
    assert code_use(np.array([0, 12, 0, 1])) == pytest.approx(0.5)
    assert math.isnan(perplexity(np.zeros(4, np.int64)))


def test_the_correction_brings_the_perplexity_of_a_small_sample_nearer_to_the_truth():
    rng = np.random.default_rng(2)
    counts = np.bincount(rng.integers(1000, size=3000), minlength=1000)
    plain, corrected = perplexity(counts), perplexity(counts, correct=True)
    assert plain < 900 < corrected <= 1000


@pytest.mark.parametrize("spread", [0.0, 0.5, 3.0])
def test_the_area_is_that_of_scikit_learn(spread):
    rng = np.random.default_rng(3)
    is_valid = rng.uniform(size=5000) < 0.9
    logit = (2 + spread * rng.standard_normal(5000) + 1.5 * spread * is_valid).round(2)
    probability = torch.from_numpy(1 / (1 + np.exp(-logit))).float()
    area = RankArea()
    for rows in np.array_split(np.arange(5000), 3):
        area.add(probability[rows], torch.from_numpy(is_valid[rows]))
    assert area.area == pytest.approx(roc_auc_score(is_valid, probability_bins(probability)), abs=1e-12)
    assert area.area == pytest.approx(roc_auc_score(is_valid, probability), abs=1e-3)


def test_the_area_takes_certainty_and_is_unknown_with_one_kind_of_pixel():
    area = RankArea()
    area.add(torch.tensor([1.0, 0.5]), torch.tensor([True, True]))
    assert math.isnan(area.area)
    area.add(torch.tensor([0.0, 1.0]), torch.tensor([False, False]))
    assert area.area == pytest.approx((1 + 0.5 + 1 + 0) / 4)


def test_the_light_of_a_real_image_is_found_by_a_gaussian_as_wide_as_the_psf():
    card = modality("image/legacysurvey")
    flux = random_pixels(9, (2, 1, 40, 40)) + 2
    image = ImageObservation(card, ["a", "b"], flux, ["r"], torch.full(flux.shape, 4.0))
    sigma = image.psf_fwhm[0, 0].item() / 2.3548 / image.card.pixel_scale
    expected = gaussian_filter(flux[1, 0].numpy().astype(float), sigma, truncate=3.0)
    found = signal_to_noise(image, None)[1, 0].numpy() / 2
    np.testing.assert_allclose(found[8:-8, 8:-8], expected[8:-8, 8:-8], atol=0.02)


def test_masked_pixels_and_edges_do_not_darken_the_smoothed_light(images, spectra):
    for observation in (images, spectra):
        flat = torch.ones_like(observation.flux)
        mask = random_pixels(10, tuple(flat.shape)) > 0
        arguments = {"mask": mask, "inverse_variance": flat}
        if isinstance(observation, ImageObservation):
            dim = ImageObservation(observation.modality, observation.object_id, flat, observation.bands, **arguments)
        else:
            wavelength = observation.wavelength
            dim = SpectrumObservation(observation.modality, observation.object_id, flat, wavelength, **arguments)
        torch.testing.assert_close(signal_to_noise(dim, None), mask.float())


@pytest.mark.parametrize("name", ["image/legacysurvey", "spectrum/sdss"])
def test_what_was_observed_is_the_truth_plus_noise_of_its_inverse_variance(sky, name):
    observation = sky[name].select([7, 2, 9])
    true = SimulatedTruth(SKY).pixels(observation)
    error = ((observation.flux - true) * observation.inverse_variance.sqrt())[observation.mask]
    assert error.mean().item() == pytest.approx(0, abs=5 / math.sqrt(len(error)))
    assert error.square().mean().item() == pytest.approx(1, abs=5 * math.sqrt(2 / len(error)))


def test_random_instruments_have_a_truth_too():
    settings = SKY.model_copy(update={"random_cameras": 1, "random_spectrographs": 1})
    sky = SimulatedSky(settings)
    for name in ("image/random_000", "spectrum/random_000"):
        observation = sky.observe(sky.objects(range(3)), name)
        true = SimulatedTruth(settings).pixels(observation)
        error = ((observation.flux - true) * observation.inverse_variance.sqrt())[observation.mask]
        assert error.square().mean().item() == pytest.approx(1, abs=5 * math.sqrt(2 / len(error)))


def test_objects_of_another_sky_have_no_truth_here(images):
    with pytest.raises(
        ObservationError, match="object sim-12-3: expected an object of the simulated sky, sim-11-<row>"
    ):
        SimulatedTruth(SKY).rows(["sim-11-0", "sim-12-3"])


def test_a_dataset_that_is_not_simulated_has_no_truth_and_a_damaged_record_is_named(tmp_path):
    assert SimulatedTruth.of_dataset(tmp_path) is None
    (tmp_path / "simulation.json").write_text("[]")
    with pytest.raises(ObservationError, match=r"simulation\.json: expected the record of a simulated sky"):
        SimulatedTruth.of_dataset(tmp_path)


def test_bands_take_the_numbers_of_the_next_one_and_pixels_stay(images):
    part = images.select([0, 1])
    wrong = with_bands_shifted(part)
    for place, band in enumerate(part.card.bands):
        other = part.card.bands[(place + 1) % len(part.card.bands)]
        lied = wrong.card.bands[place]
        assert lied.name == band.name
        assert (lied.wavelength, lied.width) == (other.wavelength, other.width)
    torch.testing.assert_close(wrong.psf_fwhm, part.psf_fwhm.roll(-1, 1))
    torch.testing.assert_close(wrong.depth, part.depth.roll(-1, 1))
    torch.testing.assert_close(wrong.flux, part.flux)
    torch.testing.assert_close(wrong.inverse_variance, part.inverse_variance)


def test_a_band_whose_next_one_was_not_observed_takes_the_cards_numbers(images):
    card = images.card
    part = ImageObservation(images.modality, ["a"], images.flux[:1, :2], [card.bands[0].name, card.bands[1].name])
    wrong = with_bands_shifted(part)
    assert wrong.psf_fwhm[0, 1].item() == pytest.approx(card.bands[2].psf_fwhm)


def test_a_camera_of_one_band_has_no_other_numbers_to_take(images):
    alone = Modality("image/alone", images.card.model_copy(update={"bands": images.card.bands[:1]}))
    with pytest.raises(ValueError, match="image/alone: expected several bands"):
        with_bands_shifted(ImageObservation(alone, ["a"], images.flux[:1, :1], [images.card.bands[0].name]))


def test_the_other_spectrographs_range_is_stretched_over_the_pixels(spectra):
    desi = instrument("desi")
    wrong = on_grid_of(spectra, desi)
    assert wrong.wavelength[0, 0].item() == pytest.approx(desi.wavelength_min)
    assert wrong.wavelength[0, -1].item() == pytest.approx(desi.wavelength_max)
    assert (wrong.wavelength.diff(dim=1) > 0).all()
    torch.testing.assert_close(wrong.flux, spectra.flux)
    expected = desi.resolving_power_at(wrong.wavelength[0].numpy())
    np.testing.assert_allclose(wrong.resolving_power[0].numpy(), expected, rtol=1e-6)


def test_a_token_is_on_a_source_if_it_is_the_nearest_to_a_source_pixel(images):
    part = images.select([0, 1])
    size, scale = part.flux.shape[-1], part.card.pixel_scale
    middles = (torch.arange(4) - 1.5) * 8 * scale
    y, x = torch.meshgrid(middles, middles, indexing="ij")
    positions = torch.zeros(2, 17, 4)
    positions[:, 1:, 0], positions[:, 1:, 1] = x.flatten(), y.flatten()
    positions[:, 0, 2] = 8.7  # the token of a band
    mask = torch.ones(2, 17, dtype=torch.bool)
    mask[1, 5] = False
    tokens = TokenGrid(
        part.modality, part.object_id, torch.zeros(2, 17, dtype=torch.long), mask, positions, torch.zeros(2, 3)
    )
    is_source = random_pixels(11, tuple(part.flux.shape)) > 2.8
    expected = torch.zeros(2, 17, dtype=torch.bool)
    for row in range(2):
        for band, i, j in is_source[row].nonzero().tolist():
            del band
            place = torch.tensor([(j - (size - 1) / 2) * scale, (i - (size - 1) / 2) * scale])
            distance = (positions[row, 1:, :2] - place).norm(dim=1)
            expected[row, 1 + int(distance.argmin())] = True
    found = tokens_on(tokens, part, is_source)
    assert 3 < expected.sum() < 30
    assert torch.equal(found[mask], expected[mask])


def test_a_window_is_on_a_source_if_it_is_the_nearest_to_a_source_pixel(spectra):
    places = torch.linspace(8.2, 9.1, 10)
    positions = torch.zeros(len(spectra), 11, 4)
    positions[:, 1:, 2] = places
    mask = torch.ones(len(spectra), 11, dtype=torch.bool)
    codes = torch.zeros(len(spectra), 11, dtype=torch.long)
    tokens = TokenGrid(spectra.modality, spectra.object_id, codes, mask, positions, torch.zeros(len(spectra), 3))
    is_source = random_pixels(12, tuple(spectra.flux.shape)) > 3.2
    nearest = (spectra.wavelength.log()[:, :, None] - places).abs().argmin(2)
    expected = torch.zeros_like(mask)
    for row, pixel in is_source.nonzero().tolist():
        expected[row, 1 + int(nearest[row, pixel])] = True
    assert torch.equal(tokens_on(tokens, spectra, is_source), expected)


def test_a_probe_finds_what_features_hold_and_nothing_in_noise():
    rng = np.random.default_rng(4)
    redshift = rng.uniform(0.01, 0.5, 400)
    ids = [f"o-{i}" for i in range(400)]
    features = {"good": np.stack([redshift, rng.standard_normal(400)], 1), "noise": rng.standard_normal((400, 5))}
    found = probe_redshift(features, ids, redshift, (50, 10_000))
    assert found["label_counts"][0] == 50
    assert len(found["label_counts"]) == 2
    assert found["label_counts"][1] + found["num_test"] == 400
    # Constant among the training objects but for rounding, and not among the others.
    constant = np.stack([np.full(400, 0.3), 1e-8 * rng.standard_normal(400)], 1)
    features["good"] = np.concatenate([features["good"], constant], 1).astype(np.float32)
    tested = [i for i, name in enumerate(ids) if (object_key(name) >> 20) % 2]
    features["good"][tested[:5], 2:] = 0.7
    found = probe_redshift(features, ids, redshift, (50, 10_000))
    for probe in ("ridge", "trees"):
        assert found["r2"]["good"][probe][-1] > 0.95
        assert found["r2"]["noise"][probe][-1] < 0.1


def test_stars_and_distant_quasars_are_not_probed_and_few_objects_neither():
    redshift = np.concatenate([np.full(100, 0.0001), np.full(100, 2.5), np.full(10, 0.2)])
    ids = [f"o-{i}" for i in range(210)]
    assert probe_redshift({"a": np.ones((210, 1))}, ids, redshift, (50,)) is None


def test_features_of_images_and_spectra_ignore_pixels_that_are_not_valid(images, spectra):
    for observation, features in ((images, image_features), (spectra, spectrum_features)):
        spoilt = torch.where(observation.mask, observation.flux, 1e6)
        before = features(observation.flux, observation.mask, observation)
        np.testing.assert_array_equal(features(spoilt, observation.mask, observation), before)
        assert np.isfinite(before).all()


def test_hashed_features_of_tokens_keep_scalar_products():
    vocabulary, num_tokens = 50, 400
    table = random_pixels(13, (vocabulary, 20))
    codes = torch.randint(vocabulary, (8, num_tokens), generator=torch.Generator().manual_seed(14))
    codes[:, : num_tokens // 2] = codes[0, : num_tokens // 2]  # objects have something in common
    mask = torch.ones(8, num_tokens, dtype=torch.bool)
    tokens = TokenGrid(
        modality("image/hsc"), [str(i) for i in range(8)], codes, mask, torch.zeros(8, num_tokens, 4), torch.zeros(8, 3)
    )
    full = (table[codes]).flatten(1).double().numpy()
    assert full.shape[1] > NUM_HASHED
    hashed = token_features(tokens, table).astype(float)
    assert hashed.shape == (8, NUM_HASHED)
    norm = (full**2).sum(1).mean()
    np.testing.assert_allclose(hashed @ hashed.T / norm, full @ full.T / norm, atol=6 / math.sqrt(NUM_HASHED))


def test_as_many_components_as_the_data_have_reconstruct_them_and_fewer_do_as_scikit_learn_does(images):
    ids = [str(i) for i in range(30)]
    shape = (1, 12, 12)
    basis = random_pixels(15, (3, 144)) * torch.tensor([[5.0], [3.0], [1.0]])
    flux = (random_pixels(16, (30, 3)) @ basis).view(30, *shape)
    observation = ImageObservation(images.modality, ids, flux, ["r"], torch.ones(30, *shape))
    torch.testing.assert_close(PrincipalComponents(observation, 3).reconstruct(observation), flux, atol=1e-3, rtol=1e-3)
    found = PrincipalComponents(observation, 2).reconstruct(observation).flatten(1).numpy()
    oracle = PCA(2).fit(flux.flatten(1).numpy())
    expected = oracle.inverse_transform(oracle.transform(flux.flatten(1).numpy()))
    np.testing.assert_allclose(found, expected, atol=0.02)
