"""The report card as a whole: with tokenizers whose faults are known, and with real ones from end to end."""

import io
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from armillary.data.modalities import modality
from armillary.data.observations import ImageObservation, ObservationError, SpectrumObservation
from armillary.data.simulation.sky import SimulatedSky, SkySettings
from armillary.data.simulation.write_sky import write_simulated_dataset
from armillary.settings import SettingsError
from armillary.tokenizers.coefficients import CoefficientsTokenizer, CoefficientsTokenizerSettings
from armillary.tokenizers.token_grid import TokenGrid
from armillary.training.tokenizer_report import report
from armillary.training.tokenizer_report.another_camera import bands_within, measure_another_camera, pixels_within
from armillary.training.tokenizer_report.charts import economy_chart, held_out_chart
from armillary.training.tokenizer_report.example_pictures import choose_examples, image_examples, spectrum_examples
from armillary.training.tokenizer_report.held_out_instrument import measure_held_out, most_different
from armillary.training.tokenizer_report.page import BEGIN, END, insert_between_markers
from armillary.training.tokenizer_report.pixel_measures import PixelMeasures
from armillary.training.tokenizer_report.pixel_summary import score_of, summarise
from armillary.training.tokenizer_report.report_parts import ReportParts
from armillary.training.tokenizer_report.settings import HeldOutInstrument, TokenizerReportSettings
from armillary.training.tokenizer_report.simulated_truth import SimulatedTruth
from armillary.training.tokenizer_report.training_record import read_training_record
from armillary.training.tokenizer_report.value_measures import measure_values

SKY = SkySettings(
    num_objects=48,
    modalities=("image/legacysurvey", "spectrum/sdss", "scalar/redshift", "scalar/sdss_r"),
    image_sizes={"image/legacysurvey": 24},
    seed=2,
    shard_size=48,
)


class Stub:
    """A tokenizer with one token for each object, that answers with pixels which the test decides."""

    kind = "any"

    def __init__(self, answer):
        self.answer = answer
        self.settings = SimpleNamespace(model_dump_json=lambda: "{}")
        self.num_encoded = 0

    def state_dict(self):
        return {}

    def to(self, device):
        return self

    def save_pretrained(self, folder):
        raise NotImplementedError

    def vocabulary_size(self, modality):
        return 8

    def code_features(self, modality):
        return torch.eye(8)

    def code_numbers(self, modality):
        return torch.zeros(8, 0)

    def encode(self, observation):
        self.told = observation
        self.num_encoded += len(observation)
        count = len(observation)
        codes = torch.arange(count)[:, None] % 8
        mask = torch.ones(count, 1, dtype=torch.bool)
        return TokenGrid(
            observation.modality, observation.object_id, codes, mask, torch.zeros(count, 1, 4), torch.zeros(count, 3)
        )

    def decode(self, tokens, target=None):
        return target._unchecked(flux=self.answer(self.told, target))

    def validity(self, tokens, target):
        return torch.where(target.mask, 0.9, 0.2)


@pytest.fixture(scope="module")
def sky():
    return SimulatedSky(SKY).batch(range(48))


@pytest.fixture(scope="module")
def truth():
    return SimulatedTruth(SKY)


def summary_of(tokenizer, observation, truth, batch_size=20):
    measures = PixelMeasures(tokenizer, truth, 3.0)
    for start in range(0, len(observation), batch_size):
        measures.add(observation.select(slice(start, start + batch_size)))
    return summarise(measures, {}, 18.0, ())


@pytest.mark.parametrize("name", ["image/legacysurvey", "spectrum/sdss"])
def test_a_tokenizer_that_answers_the_truth_has_chi2_one_and_no_bias(sky, truth, name):
    found = summary_of(Stub(lambda told, target: truth.pixels(target)), sky[name], truth)
    for place in ("all", "source"):
        assert found["chi2"][place]["mean"] == pytest.approx(1, abs=0.03)
        assert found["chi2"][place]["rms_error"] == 0
    assert score_of(found, "true", "tokens")["r2"] == 1
    assert score_of(found, "observed", "tokens") == score_of(found, "observed", "true") | {"by": "tokens"}
    for half in found["flux_bias"]["halves"]:
        assert half["pooled"] == half["median"] == 0
    assert found["mask_auc"] == 1
    assert found["decoded"] == 1


@pytest.mark.parametrize("name", ["image/legacysurvey", "spectrum/sdss"])
def test_a_tokenizer_that_echoes_has_chi2_zero_and_the_noise_as_its_error(sky, truth, name):
    found = summary_of(Stub(lambda told, target: target.flux), sky[name], truth)
    assert found["chi2"]["all"]["mean"] == 0
    assert found["chi2"]["all"]["rms_error"] == pytest.approx(1, abs=0.02)
    assert score_of(found, "true", "tokens")["r2"] == score_of(found, "true", "observed")["r2"]


def test_a_tokenizer_that_brightens_by_two_percent_is_found_out_in_every_band_and_bin(sky, truth):
    found = summary_of(Stub(lambda told, target: 1.02 * truth.pixels(target)), sky["image/legacysurvey"], truth)
    biases = [*found["flux_bias"]["bins"], *(b for of in found["flux_bias"]["by_band"].values() for b in of)]
    assert len(biases) > 8
    assert all(b["pooled"] == pytest.approx(0.02, abs=1e-5) for b in biases)
    assert all(b["median"] == pytest.approx(0.02, abs=1e-5) for b in biases)


def test_an_error_on_bright_pixels_alone_is_seen_in_their_bin_alone(sky, truth):
    def answer(told, target):
        true = truth.pixels(target)
        sigma = target.inverse_variance.clamp(min=1e-30).rsqrt()
        return torch.where(true * target.inverse_variance.sqrt() >= 10, true + 2 * sigma, true)

    found = summary_of(Stub(answer), sky["image/legacysurvey"], truth)
    for entry in found["by_signal_to_noise"]:
        assert entry["rms_error"] == pytest.approx(2.0 if entry["low"] >= 10 else 0.0, abs=1e-3)


def test_scores_do_not_depend_on_the_batches(sky, truth):
    tokenizer = Stub(lambda told, target: 0.9 * target.flux)
    one = summary_of(tokenizer, sky["spectrum/sdss"], truth, 48)
    many = summary_of(tokenizer, sky["spectrum/sdss"], truth, 7)
    for key in ("chi2", "by_magnitude", "flux_bias", "by_signal_to_noise"):
        np.testing.assert_allclose(numbers(one[key]), numbers(many[key]), rtol=1e-5, atol=1e-6)


def numbers(value):
    if isinstance(value, dict):
        return [n for item in value.values() for n in numbers(item)]
    if isinstance(value, list):
        return [n for item in value for n in numbers(item)]
    return [value] if isinstance(value, int | float) and math.isfinite(value) else []


def test_padding_of_spectra_is_no_pixel_in_the_mask_auc(sky):
    short = sky["spectrum/sdss"].select([0, 1])
    wavelength = torch.cat([short.wavelength, torch.zeros(2, 500, dtype=torch.float64)], 1)
    parts = {name: torch.cat([getattr(short, name), torch.zeros(2, 500)], 1) for name in ("flux", "inverse_variance")}
    mask = torch.cat([short.mask, torch.zeros(2, 500, dtype=torch.bool)], 1)
    padded = SpectrumObservation(
        short.modality, short.object_id, wavelength=wavelength, mask=mask, resolving_power=torch.ones(2, mask.shape[1]),
        **parts,
    )  # fmt: skip
    tokenizer = Stub(lambda told, target: target.flux)
    assert summary_of(tokenizer, padded, None)["num_masked_pixels"] == int((~short.mask).sum())


def by_numbers_of(told, target):
    """Keeps flux over a number of the instrument it is told of, and multiplies with that of the target's."""
    if isinstance(target, ImageObservation):
        before, after = (
            torch.tensor([o.card.band(b).wavelength for b in o.bands])[:, None, None] for o in (told, target)
        )
    else:
        before, after = (o.wavelength.float() for o in (told, target))
    return told.flux / before * after


@pytest.mark.parametrize("name", ["image/legacysurvey", "spectrum/sdss"])
def test_a_tokenizer_that_listens_is_misled_when_encoding_and_one_that_does_not_is_not(sky, truth, name):
    other = None if name.startswith("image") else sky[name].card.model_copy(update={"wavelength_min": 7000.0})
    batches = [sky[name].select(slice(0, 10)), sky[name].select(slice(10, 24))]
    deaf = Stub(lambda told, target: told.flux)
    found = measure_held_out(Stub(by_numbers_of), deaf, batches, truth, other, 3.0)
    errors = {variant: scores["source"]["rms_error"] for variant, scores in found["variants"].items()}
    assert found["num_objects"] == 24
    assert found["ratio"]["source"] == pytest.approx(1, abs=1e-3)
    assert errors["wrong when encoding"] > 1.2 * errors["never seen"]
    assert errors["wrong when decoding"] > 1.2 * errors["never seen"]
    assert errors["wrong throughout"] == pytest.approx(errors["never seen"], rel=1e-3)
    found = measure_held_out(deaf, deaf, batches, truth, other, 3.0)
    assert len({scores["all"]["rms_error"] for scores in found["variants"].values()}) == 1


def test_a_lie_that_the_tokenizer_refuses_is_said_so(sky, truth):
    class Refusing(Stub):
        def encode(self, observation):
            if observation.wavelength[0, 0] < 3700:
                raise ObservationError("spectrum/sdss, object a: too blue")
            return super().encode(observation)

    tokenizer = Refusing(lambda told, target: told.flux)
    batches = [sky["spectrum/sdss"].select([0, 1])]
    found = measure_held_out(tokenizer, tokenizer, batches, truth, modality("spectrum/desi").card, 3.0)
    assert found["refused"]["wrong throughout"] == "spectrum/sdss, object a: too blue"
    assert list(found["variants"]) == ["never seen", "trained on"]


def test_the_most_different_spectrograph_is_the_one_of_another_range():
    desi, sdss = modality("spectrum/desi").card, modality("spectrum/sdss").card
    red = sdss.model_copy(update={"name": "red", "wavelength_min": 6000.0})
    assert most_different(sdss, [desi, red, sdss]) == red
    assert most_different(sdss, [sdss]) is None


def test_tokens_of_one_camera_are_compared_with_what_another_saw():
    names = ("image/legacysurvey", "image/hsc")
    settings = SkySettings(num_objects=12, modalities=names, image_sizes=dict.fromkeys(names, 24), seed=2)
    seen, wanted = SimulatedSky(settings).batch(range(12)).values()
    truth = SimulatedTruth(settings)
    brighter = Stub(lambda told, target: truth.pixels(target) * (1.1 if told.modality != target.modality else 1.0))
    batches = [(seen.select(slice(n, n + 6)), {"image/hsc": wanted.select(slice(n, n + 6))}) for n in (0, 6)]

    found = measure_another_camera(brighter, batches, truth, 3.0)["image/hsc"]

    assert found["num_objects"] == 12
    assert found["is_sharper"]
    assert found["error"] == pytest.approx(0.1, rel=1e-4)
    assert found["bias"] == pytest.approx(0.1, rel=1e-4)
    assert found["own_error"] == 0
    assert 0 < found["noise"] < 1
    # Both are of 24 pixels: of the Legacy Survey's 6.3 arcsec, and HSC's 4.0.
    assert pixels_within(wanted, seen).all()
    margin = seen.psf_fwhm.amax(1)[0]
    within = pixels_within(seen, wanted)[0, 0]
    side = int(within.sum(0).max())
    assert side * 0.262 == pytest.approx(24 * 0.168 - 2 * margin.item(), abs=2 * 0.262)
    assert torch.equal(within, within.flip(0))
    blue = ImageObservation(modality("image/sdss"), ["a"], torch.zeros(1, 5, 8, 8), "ugriz")
    assert bands_within(blue, seen.card).tolist() == [False, True, True, True, True]


def test_values_are_scored_against_scalars_own_errors(sky):
    class Shifted(Stub):
        def bins(self, modality):
            return torch.zeros(8), torch.ones(8)

        def decode(self, tokens, target=None):
            return SimpleNamespace(values=self.told.values + 2 * self.told.error, mask=self.told.mask)

    magnitudes = sky["scalar/sdss_r"]
    found = measure_values(Shifted(None), [magnitudes.select(slice(0, 30)), magnitudes.select(slice(30, None))])
    assert found["rms_error"] == pytest.approx(2, rel=1e-4)
    assert found["num_objects"] == 48
    assert found["bits"] == pytest.approx(3)
    assert found["outside"] == pytest.approx(2 / 8, abs=0.03)  # codes 0 and 7 of the stub's eight


def test_coefficients_have_a_codebook_for_each_token_and_errors_of_about_their_noise():
    names = ("coefficients/gaia_bp_rp",)
    settings = SkySettings(
        num_objects=220, modalities=names, star_fraction=1.0, quasar_fraction=0.0, magnitude_limit=16.0
    )
    observation = SimulatedSky(settings).batch(range(220))[names[0]]
    tokenizer = CoefficientsTokenizer(CoefficientsTokenizerSettings(num_tokens=3, num_codes=64)).fit(
        lambda: iter([observation])
    )
    found = measure_values(tokenizer, [observation.select(slice(0, 100)), observation.select(slice(100, 220))])
    sizes = [book["all"]["vocabulary"] for book in found["codebooks"].values()]
    assert len(sizes) == 4
    assert found["bits"] == pytest.approx(sum(math.log2(size) for size in sizes))
    assert all(book["all"]["num_tokens"] == 220 for book in found["codebooks"].values())
    assert found["rms_error"] > 0.5
    assert found["r2"] > 0.9


def test_charts_are_pictures_of_the_curve_and_of_instruments_held_out():
    point = {"modality": "image/hsc", "chi2_source": 1.1, "redshift_reconstruction": 0.5, "redshift_tokens": None}
    points = [{"label": str(n), "tokens": n, "rms_error": 1 / n} | point for n in (16, 64, 256)]
    variants = {name: {"source": {"rms_error": 1.0}} for name in ("trained on", "never seen", "wrong throughout")}
    for content in (economy_chart(points), held_out_chart({"image/hsc": {"variants": variants}})):
        with Image.open(io.BytesIO(content)) as picture:
            assert min(picture.size) > 100


def test_examples_are_chosen_by_their_rank_and_not_by_hand():
    chi2 = np.array([5.0, 1.0, np.nan, 3.0, 2.0, 4.0])
    assert choose_examples(chi2, (0.0, 0.5, 1.0)) == [1, 3, 0]
    assert choose_examples(chi2[:1], (0.0, 0.5, 1.0)) == [0]
    assert choose_examples(chi2[2:3], (0.5,)) == []


@pytest.mark.parametrize(
    ("name", "draw"), [("image/legacysurvey", image_examples), ("spectrum/sdss", spectrum_examples)]
)
def test_pictures_of_examples_are_pictures(sky, truth, name, draw):
    observation = sky[name].select([0, 3])
    for true in (truth.pixels(observation), None):
        with Image.open(io.BytesIO(draw(observation, observation, true, ["chi2 1", "chi2 2"]))) as picture:
            assert min(picture.size) > 200


def test_a_part_is_measured_once_and_again_if_anything_changed_or_it_is_damaged(tmp_path):
    calls = []

    def measure():
        calls.append(1)
        return {"value": math.nan, "list": (1.0, math.inf), 3: "x"}

    parts = ReportParts(tmp_path / "parts")
    first = parts.get("a/b", {"rows": [1]}, measure)
    assert first == {"value": None, "list": [1.0, None], "3": "x"}
    assert parts.get("a/b", {"rows": [1]}, measure) == first
    assert len(calls) == 1
    parts.get("a/b", {"rows": [2]}, measure)
    assert len(calls) == 2
    (path,) = (tmp_path / "parts").iterdir()
    path.write_text(path.read_text()[:-20])
    assert parts.get("a/b", {"rows": [2]}, measure) == first
    assert len(calls) == 3


def test_the_page_replaces_what_is_between_its_markers_and_nothing_else():
    made = insert_between_markers(None, "one\n", "docs.md")
    text = made.replace("# Tokenizers", "# Ours\n\nWords.") + "\nMore words.\n"
    again = insert_between_markers(text, "two\n", "docs.md")
    assert again == text.replace("one", "two")


@pytest.mark.parametrize("text", ["no markers", END + BEGIN, BEGIN + BEGIN + END])
def test_a_page_without_its_markers_is_left_alone(text):
    with pytest.raises(ValueError, match=r"docs\.md: expected the lines"):
        insert_between_markers(text, "one", "docs.md")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "data"
    write_simulated_dataset(SKY, folder)
    held_out = folder.parent / "held-out.txt"
    held_out.write_text("".join(f"sim-2-{row}\n" for row in range(0, 48, 2)))
    return folder


@pytest.fixture
def settings(dataset, tmp_path):
    return TokenizerReportSettings(
        data=str(dataset),
        tokenizers="tokenizers",
        report=str(tmp_path / "report"),
        held_out=str(dataset.parent / "held-out.txt"),
        modalities=("image/legacysurvey", "spectrum/sdss"),
        batch_size=10,
        baseline_objects=12,
        real_files=False,
        docs=str(tmp_path / "docs" / "tokenizers.md"),
    )


@pytest.fixture
def stubs(monkeypatch):
    """Tokenizers that answer with a blurred echo, in the place of those in any folder."""
    found = {kind: Stub(lambda told, target: 0.95 * told.flux) for kind in ("image", "spectrum")}
    monkeypatch.setattr(report, "load_tokenizers", lambda folder: found)
    return found


@pytest.fixture
def undrawn(monkeypatch):
    """Pictures cost most of the time of a small report: none is drawn."""
    for name in ("image_examples", "spectrum_examples"):
        monkeypatch.setattr(report, name, lambda *arguments: b"")
    monkeypatch.setattr(report, "_charts", lambda results: {"economy": b""})


def test_only_held_out_objects_are_measured_and_the_report_says_so(settings, stubs):
    found = report.tokenizer_report(settings)
    for name in settings.modalities:
        ids = found["pixels"][name]["object_id"]
        assert sorted(ids) == sorted(f"sim-2-{row}" for row in range(0, 48, 2))
        assert score_of(found["pixels"][name], "observed", "components")["num_pixels"] > 0
    folder = Path(settings.report)
    assert json.loads((folder / "report.json").read_text()) == found
    page = (folder / "report.md").read_text()
    assert "on held-out objects" in page
    assert "What the tokenizers of image and spectrum were trained on is not known here." in page
    docs = Path(settings.docs)
    for text, place in ((page, folder), (docs.read_text(), docs.parent)):
        shown = [part.split(")")[0] for part in text.split("](")[1:]]
        assert len(shown) == 5
        assert all((place / name).is_file() for name in shown)


def test_an_interrupted_report_goes_on_with_what_is_missing(settings, stubs, undrawn):
    whole = stubs["spectrum"].encode

    def interrupt(observation):
        raise KeyboardInterrupt

    stubs["spectrum"].encode = interrupt
    with pytest.raises(KeyboardInterrupt):
        report.tokenizer_report(settings)
    stubs["spectrum"].encode = whole
    before = stubs["image"].num_encoded
    found = report.tokenizer_report(settings)
    # What is encoded again are the examples to draw.
    assert stubs["image"].num_encoded - before <= 6
    assert stubs["spectrum"].num_encoded >= 24
    before = stubs["spectrum"].num_encoded
    assert report.tokenizer_report(settings) == found
    assert stubs["spectrum"].num_encoded - before <= 6


def test_components_of_another_dataset_are_the_baseline_where_all_objects_are_measured(settings, stubs, undrawn):
    alone = settings.model_copy(update={"held_out": None, "modalities": ("image/legacysurvey",)})
    found = report.tokenizer_report(alone)
    assert not score_of(found["pixels"]["image/legacysurvey"], "observed", "components")
    found = report.tokenizer_report(alone.model_copy(update={"baseline_data": settings.data}))
    assert score_of(found["pixels"]["image/legacysurvey"], "observed", "components")["r2"] > 0


def test_other_objects_or_limits_are_measured_anew(settings, stubs, undrawn):
    report.tokenizer_report(settings)
    before = stubs["image"].num_encoded
    found = report.tokenizer_report(settings.model_copy(update={"source_sigma": 5.0}))
    assert stubs["image"].num_encoded - before >= 24
    assert found["pixels"]["image/legacysurvey"]["source_sigma"] == 5.0


def test_budgets_make_a_curve_and_instruments_held_out_a_table(settings, stubs, undrawn):
    more = {
        "economy": ({"label": "half", "tokenizers": "half"},),
        "held_out_instruments": ({"modality": "image/legacysurvey", "tokenizers": "a", "control": "b"},),
    }
    found = report.tokenizer_report(TokenizerReportSettings(**(settings.model_dump() | more)))
    assert [(p["label"], p["modality"]) for p in found["economy"]] == [
        ("this one", "image/legacysurvey"),
        ("this one", "spectrum/sdss"),
        ("half", "image/legacysurvey"),
        ("half", "spectrum/sdss"),
    ]
    assert found["held_out_instruments"]["image/legacysurvey"]["ratio"]["all"] == 1
    text = Path(settings.report, "report.md").read_text()
    assert "## Token economy" in text
    assert "## Instruments held out" in text


def write_training_settings(folder, kind, data, modalities, held_out):
    (folder / kind).mkdir(parents=True)
    content = {"data": str(data), "modalities": modalities, "held_out": None if held_out is None else str(held_out)}
    (folder / kind / "settings.yaml").write_text(json.dumps(content))


def test_objects_that_a_tokenizer_was_trained_on_are_found_out(settings, stubs, undrawn, dataset, tmp_path):
    held_out = tmp_path / "others.txt"
    held_out.write_text("".join(f"sim-2-{row}\n" for row in range(10, 48)))
    folder = tmp_path / "runs"
    write_training_settings(folder, "image", dataset, [], settings.held_out)
    write_training_settings(folder, "spectrum", dataset, ["image/legacysurvey"], held_out)
    found = report.tokenizer_report(settings.model_copy(update={"tokenizers": str(folder)}))
    assert found["seen_objects"] == {"image": 0, "spectrum": 5}  # rows 0, 2, 4, 6 and 8
    assert found["unseen_instruments"] == ["spectrum/sdss"]
    page = Path(settings.report, "report.md").read_text()
    assert "the tokenizers of image saw none of these objects" in page
    assert "**5 of these objects were among those that the spectrum tokenizer was trained on.**" in page


def test_an_instrument_that_was_trained_on_is_not_called_unseen(settings, stubs, undrawn, dataset, tmp_path):
    write_training_settings(tmp_path / "runs", "image", dataset, [], None)
    wanted = HeldOutInstrument(modality="image/legacysurvey", tokenizers=str(tmp_path / "runs"), control="b")
    with pytest.raises(
        ValueError, match="expected tokenizers that never saw image/legacysurvey; they were trained on it"
    ):
        report.tokenizer_report(settings.model_copy(update={"held_out_instruments": (wanted,)}))


def test_a_training_whose_settings_are_damaged_is_named(tmp_path):
    (tmp_path / "image").mkdir()
    (tmp_path / "image" / "settings.yaml").write_text("data: [")
    with pytest.raises(SettingsError, match=r"settings\.yaml: expected the settings of a tokenizer's training"):
        read_training_record(tmp_path, "image")
    assert read_training_record(tmp_path, "spectrum") is None


def test_a_docs_page_without_markers_is_refused_before_anything_is_measured(settings, stubs):
    Path(settings.docs).parent.mkdir()
    Path(settings.docs).write_text("Our words.")
    with pytest.raises(ValueError, match=r"tokenizers\.md: expected the lines"):
        report.tokenizer_report(settings)
    assert Path(settings.docs).read_text() == "Our words."
    assert stubs["image"].num_encoded == 0


def test_a_modality_without_tokenizer_is_an_error_and_nothing_to_hold_out_too(settings, stubs, tmp_path):
    with pytest.raises(ValueError, match=r"no data or no tokenizer for \['spectrum/desi'\]; there are both for"):
        report.tokenizer_report(settings.model_copy(update={"modalities": ("spectrum/desi",)}))
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ObservationError, match="expected ids of held-out objects"):
        report.tokenizer_report(settings.model_copy(update={"held_out": str(tmp_path / "empty.txt")}))
    (tmp_path / "strangers.txt").write_text("sim-9-1\n")
    with pytest.raises(ValueError, match="no held-out object has image/legacysurvey"):
        report.tokenizer_report(settings.model_copy(update={"held_out": str(tmp_path / "strangers.txt")}))


def test_settings_refuse_what_cannot_be():
    with pytest.raises(ValidationError, match="source_sigma"):
        TokenizerReportSettings(data="a", tokenizers="b", report="c", source_sigma=0)


def test_real_tokenizers_are_reported_from_end_to_end(dataset, tokenizer_folder, tmp_path):
    """The tokenizers are untrained: what counts is that every part of the report takes them, real files included."""
    settings = TokenizerReportSettings(
        data=str(dataset),
        tokenizers=str(tokenizer_folder),
        report=str(tmp_path / "report"),
        num_objects=6,
        batch_size=4,
    )
    found = report.tokenizer_report(settings)
    assert set(found["pixels"]) == {"image/legacysurvey", "spectrum/sdss"}
    assert set(found["values"]) == {"scalar/redshift"}
    assert "scalar/sdss_r" in found["left_out"]
    for summary in found["pixels"].values():
        assert summary["num_objects"] == 6
        assert summary["bits"] > 0
        assert sum(book["all"]["num_tokens"] for book in summary["codebooks"].values()) > 0
        assert summary["objects_per_second"]["encode"] > 0
    assert len(found["real"]) == 5
    page = (tmp_path / "report" / "report.md").read_text()
    assert "on all objects" in page
    assert "nan" not in page.lower().replace("manga", "")
