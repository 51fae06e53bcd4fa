"""The explorer in headless Chromium: what a visitor does and sees, with no error in the console and no other host."""

import io
import re
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from astropy.io import fits
from fake_model import FakeModel, embedding_table, images, spectra
from http_bodies import encoded
from live_server import running
from PIL import Image

from armillary.data.dataset import ObservationDataset
from armillary.data.dataset_writer import write_dataset
from armillary.serving.app import create_app
from armillary.serving.index.embedding_index import EmbeddingIndex
from armillary.serving.maps import map_keeper

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = Path("/usr/bin/chromium")
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"there is no {CHROMIUM}")

FLAGS = [
    *("--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--no-sandbox", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
NUM_OBJECTS = 40
TIMEOUT_MS = 60_000
"""Software WebGL on a busy machine is slow."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """An index and the dataset behind it: 40 objects with images, of which 30 have spectra and 35 a redshift."""
    folder = tmp_path_factory.mktemp("explorer")
    observed = [images(NUM_OBJECTS, side=16), spectra(30, length=300)]
    write_dataset(folder / "sky", observed)
    labels = {
        "object_id": [f"object-{i}" for i in range(35)],
        "scalar/redshift": np.linspace(0.01, 0.4, 35),
        "scalar/stellar_mass": np.full(35, np.nan),
    }
    EmbeddingIndex.build(embedding_table(FakeModel(), observed), labels).save(folder / "index")
    return EmbeddingIndex.load(folder / "index"), ObservationDataset(folder / "sky")


@pytest.fixture(scope="module")
def url(world):
    index, dataset = world
    with running(create_app(FakeModel(), index, dataset=dataset)) as address:
        yield address


@pytest.fixture(scope="module")
def playwright():
    with sync_api.sync_playwright() as started:
        yield started


@pytest.fixture(scope="module")
def browser(playwright):
    started = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
    yield started
    started.close()


class Visit:
    """A page that keeps what went wrong on it and whom it asked."""

    def __init__(self, browser, **options):
        self.context = browser.new_context(viewport={"width": 1280, "height": 860}, **options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(TIMEOUT_MS)
        self.errors, self.hosts = [], set()
        self.page.on("console", lambda said: said.type in ("error", "warning") and self.errors.append(said.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))

    def open(self, address):
        self.page.goto(address)
        self.page.wait_for_selector("html[data-ready=true]")

    def parameter(self, name):
        return re.search(rf"[?&]{name}=([^&]*)", self.page.url)


@pytest.fixture
def visit(browser):
    made = Visit(browser)
    yield made
    made.context.close()


def shown_objects(page):
    return [button.get_attribute("data-object") for button in page.query_selector_all("#neighbour-list button")]


def test_a_click_on_the_map_shows_image_spectrum_properties_and_neighbours(visit, url, world):
    visit.open(url)
    page = visit.page
    assert page.inner_text("#welcome-title") == f"{NUM_OBJECTS} objects"
    assert page.eval_on_selector_all("#colour option", "all => all.map(one => one.value)") == [
        "scalar/redshift",  # no stellar mass: nobody's is known
        "modalities",
        "none",
    ]
    number = world[0].manifest.num_objects // 2
    page.mouse.move(*page.evaluate(f"armillary.screenPosition('map', {number})"))
    page.wait_for_selector("#tip:not([hidden])")
    page.mouse.down()
    page.mouse.up()
    page.wait_for_selector("#object:not([hidden])")
    name = page.inner_text("#object-id")
    assert name.startswith("object-")
    assert visit.parameter("object")[1] == name
    page.wait_for_selector("#images img[data-state=there]")
    assert page.eval_on_selector("#images img", "image => image.naturalWidth") >= 100
    found, index = shown_objects(page), world[0]
    expected = index.search(index.vector(name)[None], 12, target_modality="image/hsc", exclude=[name])
    assert found == expected.object_id[0].tolist()
    page.wait_for_selector("#neighbour-list img[data-state=there]")
    assert page.inner_text("#prediction-rows tr:first-child th") == "redshift"
    sync_api.expect(page.locator("#prediction-rows td").nth(1)).to_contain_text(re.compile(r"^0\.\d+"))
    assert visit.errors == []
    assert visit.hosts - {""} == {urlsplit(url).netloc}  # "" are pictures within the page


def test_a_link_restores_object_colour_and_view_and_the_spectrum_is_drawn(visit, url):
    visit.open(f"{url}/?object=object-7&colour=modalities&view=sky")
    page = visit.page
    page.wait_for_selector("#spectrum-plot canvas")
    assert page.inner_text("#object-id") == "object-7"
    assert page.input_value("#colour") == "modalities"
    assert page.is_visible("#sky")
    assert not page.is_visible("#map")
    assert {"all", "hsc"} == set(page.inner_text("#scale-classes").split())
    sync_api.expect(page.locator("#spectrum-note")).to_contain_text("known redshift 0.0903")
    drawn = np.asarray(Image.open(io.BytesIO(page.locator("#spectrum-plot").screenshot())).convert("L"))
    assert drawn.std() > 8  # lines and axes, not an empty box
    assert visit.errors == []


def test_a_click_on_the_sky_shows_the_object_that_is_there(visit, url, world):
    visit.open(f"{url}/?view=sky")
    page = visit.page
    number = page.evaluate(
        "fetch('/v1/collections/objects/map/points?object_id=object-11').then(a => a.json())"
        ".then(found => found.points[0].number)"
    )
    page.mouse.click(*page.evaluate(f"armillary.screenPosition('sky', {number})"))
    sync_api.expect(page.locator("#object-id")).to_have_text("object-11")
    ra, dec = world[0].position_of("object-11")
    assert f"{ra:.5f}" in page.inner_text("#object-place")
    assert f"{dec:.5f}" in page.inner_text("#object-place")
    assert visit.errors == []


def upload(page, name, content, bands=None):
    page.set_input_files("#upload-file", {"name": name, "mimeType": "application/octet-stream", "buffer": content})
    page.wait_for_selector("#upload-dialog[open]")
    page.select_option("#upload-modality", "image/hsc")
    if bands is not None:
        page.fill("#upload-bands", bands)
    page.click("#upload-dialog .primary")


@pytest.mark.parametrize("kind", ["fits", pytest.param("npy", marks=pytest.mark.slow)])
def test_an_uploaded_file_shows_what_is_like_it(visit, url, kind):
    visit.open(url)
    page = visit.page
    if kind == "fits":
        content = visit.context.request.get(f"{url}/v1/objects/object-9/image.fits?modality=image/hsc").body()
    else:
        file = io.BytesIO()
        np.save(file, images(NUM_OBJECTS, side=16).flux[9].numpy())
        content = file.getvalue()
    upload(page, f"mine.{kind}", content, "g,r" if kind == "npy" else None)
    sync_api.expect(page.locator("#object-id")).to_contain_text(f"mine.{kind}")
    page.wait_for_selector("#neighbour-list button")
    assert shown_objects(page)[0] == "object-9"
    assert "1.000" in page.inner_text("#neighbour-list li:first-child")
    page.click("#neighbour-list li:first-child button")
    sync_api.expect(page.locator("#object-id")).to_have_text("object-9")
    assert visit.errors == []


@pytest.mark.slow
def test_a_file_that_is_none_shows_what_the_server_says(visit, url):
    visit.open(url)
    upload(visit.page, "broken.npy", b"this is no array", "g,r")
    sync_api.expect(visit.page.locator("#notice")).to_contain_text("not a .npy file")


@pytest.mark.slow
def test_a_fits_image_without_a_unit_is_read_by_the_zero_point_that_is_given(visit, url):
    file = io.BytesIO()
    fits.PrimaryHDU(images(NUM_OBJECTS, side=16).flux[9].numpy() * 100).writeto(file)
    visit.open(url)
    page = visit.page
    upload(page, "counts.fits", file.getvalue(), "g,r")
    sync_api.expect(page.locator("#notice")).to_contain_text("states no unit of flux")
    page.set_input_files("#upload-file", {"name": "counts.fits", "mimeType": "", "buffer": file.getvalue()})
    page.wait_for_selector("#upload-dialog[open]")
    page.select_option("#upload-modality", "image/hsc")
    page.fill("#upload-bands", "g,r")
    page.fill("#upload-zero", "27.5")  # a hundred counts are a nanomaggy
    page.click("#upload-dialog .primary")
    sync_api.expect(page.locator("#object-id")).to_contain_text("counts.fits")
    page.wait_for_selector("#neighbour-list button")
    assert shown_objects(page)[0] == "object-9"


@pytest.mark.slow
def test_keys_walk_search_and_change_the_view(visit, url):
    visit.open(f"{url}/?object=object-3")
    page = visit.page
    page.wait_for_selector("#neighbour-list button")
    around = shown_objects(page)
    for key, expected in (("ArrowRight", around[0]), ("ArrowRight", around[1]), ("ArrowLeft", around[0])):
        page.keyboard.press(key)
        sync_api.expect(page.locator("#object-id")).to_have_text(expected)
    page.keyboard.press("ArrowUp")
    sync_api.expect(page.locator("#object-id")).to_have_text(around[1])
    page.keyboard.press("/")
    page.keyboard.type("object-2")
    page.wait_for_selector("#search-list li")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    sync_api.expect(page.locator("#object-id")).to_have_text("object-2")
    page.keyboard.press("/")
    page.keyboard.type("10.4 5.0")
    page.keyboard.press("Enter")
    sync_api.expect(page.locator("#object-id")).to_have_text("object-4")
    page.keyboard.press("v")
    assert visit.parameter("view")[1] == "map"
    page.keyboard.press("?")
    page.wait_for_selector("#help-dialog[open]")
    page.keyboard.press("Escape")
    assert not page.query_selector("#help-dialog[open]")
    assert visit.errors == []


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_follows_the_system_and_its_own_switch(browser, url, scheme):
    visit = Visit(browser, color_scheme=scheme)
    visit.open(url)
    page = visit.page
    other = {"light": "dark", "dark": "light"}[scheme]
    assert page.get_attribute("html", "data-theme") == scheme
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.keyboard.press("t")
    assert page.get_attribute("html", "data-theme") == other
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
    page.reload()
    page.wait_for_selector("html[data-ready=true]")
    assert page.get_attribute("html", "data-theme") == other
    assert visit.errors == []
    visit.context.close()


@pytest.mark.slow
def test_a_generated_spectrum_is_laid_over_the_measured_one(visit, url):
    asked = []

    def generate(route):
        asked.append(route.request.post_data_json)
        arrays = {
            name: encoded(np.full(50, value), dtype)
            for name, value, dtype in (("mean", 1.5, "float32"), ("lower", 1.2, "float32"), ("upper", 1.8, "float32"))
        }
        answer = {
            "mean": arrays["mean"],
            "interval": {"level": 0.68, "lower": arrays["lower"], "upper": arrays["upper"]},
            "mask": encoded(np.ones(50), "bool"),
            "wavelength": encoded(np.linspace(4000, 9000, 50), "float64"),
        }
        route.fulfill(json=answer)

    page = visit.page
    page.route("**/v1/generate", generate)
    visit.open(f"{url}/?object=object-7")
    page.wait_for_selector("#spectrum-plot canvas")
    before = page.locator("#spectrum-plot canvas").screenshot()
    page.click("#generate")
    sync_api.expect(page.locator("#spectrum-note")).to_contain_text("from the images alone")
    assert asked[0]["target"] == "spectrum/desi"
    assert [one["modality"] for one in asked[0]["observations"]] == ["image/hsc"]
    assert page.locator("#spectrum-plot canvas").screenshot() != before
    assert "generated" in page.inner_text("#spectrum-plot")
    assert visit.errors == []


@pytest.mark.slow
def test_a_phone_needs_no_sideways_scrolling(playwright, browser, url):
    context = browser.new_context(**playwright.devices["Pixel 5"])
    page = context.new_page()
    page.goto(f"{url}/?object=object-3")
    page.wait_for_selector("#neighbour-list img[data-state=there]")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    context.close()


@pytest.mark.slow
def test_a_key_is_asked_for_once(browser, world):
    index, dataset = world
    with running(create_app(FakeModel(), index, dataset=dataset, api_key="open-sesame")) as address:
        visit = Visit(browser)
        page = visit.page
        page.goto(f"{address}/?object=object-3")
        page.wait_for_selector("#key-dialog[open]")
        page.fill("#key", "wrong")
        page.keyboard.press("Enter")
        page.wait_for_selector("#key-dialog[open]")
        page.fill("#key", "open-sesame")
        page.keyboard.press("Enter")
        page.wait_for_selector("#images img[data-state=there]")
        assert page.evaluate("sessionStorage.getItem('armillary-key')") == "open-sesame"
        assert page.evaluate("localStorage.length") == 0
        page.reload()
        page.wait_for_selector("html[data-ready=true]")
        assert not page.query_selector("#key-dialog[open]")
        assert "open-sesame" not in page.url
        visit.context.close()


@pytest.mark.slow
def test_without_webgl_the_map_is_drawn_all_the_same(playwright, url, world):
    started = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-3d-apis"])
    visit = Visit(started)
    visit.open(f"{url}/?view=map")
    page = visit.page
    assert page.evaluate("document.createElement('canvas').getContext('webgl')") is None
    page.wait_for_timeout(500)
    page.mouse.click(*page.evaluate("armillary.screenPosition('map', 5)"))
    page.wait_for_selector("#object:not([hidden])")
    drawn = np.asarray(Image.open(io.BytesIO(page.locator("#map").screenshot())).convert("L"))
    assert drawn.std() > 1
    started.close()


@pytest.mark.slow
def test_an_index_without_a_dataset_can_be_looked_at(browser, world):
    with running(create_app(FakeModel(), world[0])) as address:
        visit = Visit(browser)
        visit.open(f"{address}/?object=object-3")
        page = visit.page
        page.wait_for_selector("#neighbour-list button")
        assert page.inner_text("#object-id") == "object-3"
        assert not page.is_visible("#spectra")
        visit.context.close()


@pytest.mark.slow
def test_an_index_that_is_too_large_for_a_map_can_be_searched(visit, url, monkeypatch):
    monkeypatch.setattr(map_keeper, "MOST_OBJECTS", 10)
    visit.open(url)
    page = visit.page
    assert not page.is_visible("#views")
    page.fill("#search-box", "object-3")
    page.keyboard.press("Enter")
    sync_api.expect(page.locator("#object-id")).to_have_text("object-3")
    page.wait_for_selector("#images img[data-state=there]")
    assert len(shown_objects(page)) == 12


@pytest.mark.slow
def test_a_map_of_an_index_that_has_changed_is_loaded_anew(browser, world, tmp_path):
    index, dataset = world
    index.save(tmp_path / "index")
    changing = EmbeddingIndex.load(tmp_path / "index")
    with running(create_app(FakeModel(), changing, dataset=dataset)) as address:
        visit = Visit(browser)
        visit.open(address)
        page = visit.page
        changing.remove(["object-0"])
        page.mouse.click(*page.evaluate("armillary.screenPosition('map', 20)"))
        sync_api.expect(page.locator("#welcome-title, #object-id").first).to_be_attached()
        sync_api.expect(page.locator("#map-note")).to_contain_text(f"{NUM_OBJECTS - 1} objects")
        visit.context.close()
