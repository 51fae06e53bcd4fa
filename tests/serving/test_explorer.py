"""The explorer in headless Chromium: what a visitor does and sees, with no error in the console and no other host."""

import csv
import io
import json
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
from armillary.data.simulation.record import RECORD
from armillary.serving.app import create_app
from armillary.serving.formats.table_answers import CSV, OBJECT_ID, table_answer, table_of
from armillary.serving.index.embedding_index import EmbeddingIndex
from armillary.serving.maps import map_keeper
from armillary.serving.schemas.common import Provenance

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
    """An index and the dataset behind it: 40 objects with images, of which 30 have spectra and 35 a redshift.

    The last five are simulated.
    """
    folder = tmp_path_factory.mktemp("explorer")
    pictures = images(NUM_OBJECTS, side=16)
    names = [f"{'object' if i < 35 else 'sim-0'}-{i}" for i in range(NUM_OBJECTS)]
    observed = [pictures.renamed(names), spectra(30, length=300)]
    write_dataset(folder / "sky", observed)
    (folder / "sky" / RECORD).write_text(json.dumps({"settings": {"seed": 0}}))
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
    return [tile.get_attribute("data-object") for tile in page.query_selector_all("#neighbour-list .tile")]


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


@pytest.mark.slow
def test_what_is_simulated_is_said_to_be_wherever_it_is_shown(visit, url):
    visit.open(f"{url}/?object=sim-0-36")
    page = visit.page
    page.wait_for_selector("#neighbour-list .tile")
    assert page.inner_text("#object-id .simulated") == "simulated"
    assert page.query_selector_all("#object-place a") == []  # archives have another sky
    tiles = page.query_selector_all("#neighbour-list .tile")
    is_said = {tile.get_attribute("data-object"): tile.query_selector(".simulated") is not None for tile in tiles}
    assert is_said == {name: name.startswith("sim-0-") for name in is_said}
    assert set(is_said.values()) == {True, False}
    answer = visit.context.request.get(f"{url}/v1/collections/objects/map/points?object_id=sim-0-38").json()
    page.mouse.move(*page.evaluate(f"armillary.screenPosition('sky', {answer['points'][0]['number']})"))
    sync_api.expect(page.locator("#tip")).to_contain_text("sim-0-38, simulated")
    page.keyboard.press("m")
    sync_api.expect(page.locator("#marks-more .simulated")).to_have_text("sim")
    page.fill("#search-box", "sim-0")
    sync_api.expect(page.locator("#search-list .simulated")).to_have_count(5)
    page.click("#neighbour-list .tile:not(:has(.simulated))")
    sync_api.expect(page.locator("#object-id")).to_have_text(re.compile("^object-[0-9]+$"))
    assert page.query_selector_all("#object-place a") != []
    assert visit.errors == []


def test_marks_by_key_and_button_rank_the_collection_and_live_in_the_address(visit, url, world):
    visit.open(f"{url}/?object=object-3")
    page = visit.page
    page.wait_for_selector("#neighbour-list .tile")
    around = shown_objects(page)
    page.keyboard.press("m")
    page.click(f"[data-mark=more][data-of={around[0]}]")
    page.focus(f"#neighbour-list [data-object={around[-1]}]")
    page.keyboard.press("l")
    page.keyboard.press("r")
    page.wait_for_selector("#ranking-list .tile")
    index = world[0]
    query = index.vector("object-3") + index.vector(around[0])
    query = query / 2 - index.vector(around[-1])
    found = [one.get_attribute("data-object") for one in page.query_selector_all("#ranking-list .tile")]
    left_out = ["object-3", around[0], around[-1]]
    expected = index.search(query[None] / np.linalg.norm(query), 50, target_modality="image/hsc", exclude=left_out)
    assert found == expected.object_id[0].tolist()
    assert len(found) == NUM_OBJECTS - 3
    page.click(f"[aria-label='{around[0]}: no longer more like this']")
    sync_api.expect(page.locator("#marks-more li")).to_have_count(1)
    assert visit.parameter("more")[1] == "object-3"
    assert visit.parameter("less")[1] == around[-1]
    assert visit.errors == []


def test_what_a_line_is_drawn_around_is_selected_and_saved(visit, url, world):
    visit.open(f"{url}/?view=sky")
    page = visit.page
    points = visit.context.request.get(f"{url}/v1/collections/objects/map/points?prefix=&limit=40").json()["points"]
    places = {
        point["object_id"]: page.evaluate(f"armillary.screenPosition('sky', {point['number']})") for point in points
    }
    # They lie in a row along the right ascension: around the three most eastern of them.
    wanted = sorted(places, key=lambda name: places[name][0])[:3]
    left, right = places[wanted[0]][0] - 9, places[wanted[2]][0] + 4
    level = places[wanted[0]][1]
    page.click("#select")
    page.mouse.move(left, level - 30)
    page.mouse.down()
    for corner in ((right, level - 30), (right, level + 30), (left, level + 30)):
        page.mouse.move(*corner)
    page.mouse.up()
    sync_api.expect(page.locator("#selection-title")).to_have_text("Selected: 3")
    sync_api.expect(page.locator("#selection-list button")).to_have_count(3)
    assert page.get_attribute("#select", "aria-pressed") == "false"
    with page.expect_download() as download:
        page.click("#selection-csv")
    rows = list(csv.DictReader(download.value.path().read_text().splitlines()))
    assert sorted(row["object_id"] for row in rows) == sorted(wanted)
    for row in rows:
        np.testing.assert_allclose([float(row["ra"]), float(row["dec"])], world[0].position_of(row["object_id"]))
        known = world[0].labels_of(row["object_id"]).get("scalar/redshift")
        assert row["scalar/redshift"] == ("" if known is None else f"{known:.7g}")
        assert row["is_simulated"] == str(row["object_id"].startswith("sim-")).lower()
    assert sorted(visit.parameter("selected")[1].split("%2C")) == sorted(wanted)
    assert visit.errors == []


@pytest.mark.slow
def test_a_link_restores_marks_ranking_and_selection(visit, url):
    visit.open(f"{url}/?object=object-3&more=object-3&less=object-20&ranked=yes&selected=object-5,object-6,nobody")
    page = visit.page
    page.wait_for_selector("#ranking-list .tile")
    assert page.locator("#marks .chips [data-object]").all_inner_texts() == ["object-3", "object-20"]
    assert page.get_attribute("#ranking-list [data-of=object-5][data-mark=more]", "aria-pressed") == "false"
    assert page.get_attribute("#object-marks [data-mark=more]", "aria-pressed") == "true"
    sync_api.expect(page.locator("#selection-list button")).to_have_text(["object-5", "object-6"])
    ranked = [tile.get_attribute("data-object") for tile in page.query_selector_all("#ranking-list .tile")]
    page.click("#ranking-list .tile")
    sync_api.expect(page.locator("#object-id")).to_have_text(ranked[0])
    page.keyboard.press("ArrowRight")
    sync_api.expect(page.locator("#object-id")).to_have_text(ranked[1])
    page.click("#selection-more")
    sync_api.expect(page.locator("#marks-more li")).to_have_count(3)
    page.click("#marks-clear")
    sync_api.expect(page.locator("#marks")).to_be_hidden()
    page.click("#selection-clear")
    sync_api.expect(page.locator("#selection")).to_be_hidden()
    assert page.url == f"{url}/?object={ranked[1]}"
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
    page.wait_for_selector("#neighbour-list .tile")
    assert shown_objects(page)[0] == "object-9"
    assert "1.000" in page.inner_text("#neighbour-list li:first-child")
    page.click("#neighbour-list li:first-child .tile")
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
    page.wait_for_selector("#neighbour-list .tile")
    assert shown_objects(page)[0] == "object-9"


@pytest.mark.slow
def test_keys_walk_search_and_change_the_view(visit, url):
    visit.open(f"{url}/?object=object-3")
    page = visit.page
    page.wait_for_selector("#neighbour-list .tile")
    around = shown_objects(page)
    for key, expected in (("ArrowRight", around[0]), ("ArrowRight", around[1]), ("ArrowLeft", around[0])):
        page.keyboard.press(key)
        sync_api.expect(page.locator("#object-id")).to_have_text(expected)
    page.keyboard.press("b")
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
        page.wait_for_selector("#neighbour-list .tile")
        assert page.inner_text("#object-id") == "object-3"
        assert not page.is_visible("#spectra")
        assert visit.errors == []
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
        sync_api.expect(page.locator("#map-note")).to_contain_text(f"{NUM_OBJECTS - 1} objects")
        visit.context.close()


@pytest.mark.slow
def test_the_page_writes_texts_into_csv_as_the_server_does(visit, url):
    texts = ["plain", "=1+1", "'quoted", " -2", "@x", "\uff1dy", 'say "a", b', "two\nlines", "a=b", "+1,2"]
    visit.open(url)
    found = [
        visit.page.evaluate("async (text) => (await import('/explorer/selection.js')).cell(text)", t) for t in texts
    ]
    answer = table_answer(table_of([(OBJECT_ID, texts)]), CSV, Provenance(model_id="armillary-0"))
    expected = [row["object_id"] for row in csv.DictReader(io.StringIO(answer.body.decode(), newline=""))]
    assert [row[0] for row in csv.reader(io.StringIO("\r\n".join(found), newline=""))] == expected
    assert expected[:4] == ["plain", "'=1+1", "''quoted", "' -2"]


@pytest.mark.slow
def test_ids_of_a_selection_are_copied(browser, url):
    visit = Visit(browser, permissions=["clipboard-read", "clipboard-write"])
    visit.open(f"{url}/?selected=object-4,object-2")
    visit.page.click("#selection-copy")
    sync_api.expect(visit.page.locator("#selection-note")).to_contain_text("2 ids")
    assert visit.page.evaluate("navigator.clipboard.readText()") == "object-4\nobject-2"
    visit.context.close()


@pytest.mark.slow
def test_a_probe_is_fitted_to_the_marks_where_the_server_keeps_probes(browser, world, tmp_path):
    with running(create_app(FakeModel(), world[0], state=tmp_path)) as address:
        visit = Visit(browser)
        visit.open(f"{address}/?more=object-1,object-2,object-3&less=object-21,object-22,object-23")
        visit.page.click("#marks-probe")
        sync_api.expect(visit.page.locator("#marks-note")).to_contain_text("of 6 marks")
        (probe,) = visit.context.request.get(f"{address}/v1/probes").json()["probes"]
        assert probe["classes"] == ["less", "more"]
        visit.context.close()


@pytest.mark.slow
def test_back_never_leaves_the_page(visit, url):
    visit.open(f"{url}/?object=object-3")
    page = visit.page
    page.wait_for_selector("#neighbour-list .tile")
    assert page.is_disabled("#back")
    page.keyboard.press("b")
    page.keyboard.press("ArrowRight")
    sync_api.expect(page.locator("#object-id")).not_to_have_text("object-3")
    page.keyboard.press("b")
    sync_api.expect(page.locator("#object-id")).to_have_text("object-3")
    assert page.title() == "object-3 · Armillary"
    assert visit.errors == []


@pytest.mark.slow
def test_the_map_moves_to_an_object_that_is_out_of_sight(visit, url):
    visit.open(f"{url}/?view=map")
    page = visit.page
    box = page.locator("#map").bounding_box()

    def is_in_sight(number):
        left, top = page.evaluate(f"armillary.screenPosition('map', {number})")
        return 0 < left - box["x"] < box["width"] and 0 < top - box["y"] < box["height"]

    def until(wanted, number):
        for _ in range(100):
            if is_in_sight(number) == wanted:
                return True
            page.wait_for_timeout(50)
        return False

    number, name = 0, "object-0"  # numbers are in the order of ids
    page.mouse.move(box["x"] + 5, box["y"] + 5)
    for _ in range(3):
        page.mouse.wheel(0, -300)
    assert until(False, number)
    page.fill("#search-box", name)
    page.keyboard.press("Enter")
    assert until(True, number)
    assert visit.errors == []


@pytest.mark.slow
def test_every_control_has_a_name_and_can_be_reached_by_tab(visit, url):
    visit.open(f"{url}/?object=object-3&more=object-3&selected=object-1")
    page = visit.page
    page.wait_for_selector("#neighbour-list .tile")
    page.wait_for_selector("#selection-list button")
    reached = set()
    for _ in range(80):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.outerHTML"))
    controls = page.evaluate(
        """[...document.querySelectorAll('button, select, input, a[href]')]
        .filter(one => one.offsetParent && !one.disabled && one.tabIndex >= 0).map(one => ({html: one.outerHTML,
          name: one.getAttribute('aria-label') || one.innerText.trim() || [...one.labels ?? []].join()}))"""
    )
    assert [one["html"] for one in controls if not one["name"]] == []
    assert [one["html"] for one in controls if one["html"] not in reached] == []
