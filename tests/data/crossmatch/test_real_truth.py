"""Cross-matching held against truth: real galaxies with redshifts in two catalogues; a copy with known answers."""

import numpy as np
import pytest
from astropy.table import Table

from armillary.data.crossmatch.match import crossmatch
from armillary.data.crossmatch.sky_sources import SkySource, read_sky_table
from armillary.data.crossmatch.sky_table import SkyTable
from armillary.data.crossmatch.sphere import moved
from armillary.data.real_files import real_file

from .conftest import perturbed


@pytest.fixture(scope="module")
def galaxies():
    """The 5,000 SDSS galaxies and GLADE+ around them, each with its redshifts."""
    path, glade_path = real_file("sdss-galaxies-5000.fits"), real_file("gladeplus-near-sdss.fits")
    sdss = read_sky_table(SkySource(path, "sdss", object_id=None, ra="RA", dec="DEC"))
    rows = Table.read(glade_path, 1)
    _, once = np.unique(rows["GLADE"], return_index=True)  # two galaxies come twice
    columns = {name: np.array(rows[name][once]) for name in rows.colnames}
    glade = SkyTable("glade", columns["GLADE"], columns["RA"], columns["DEC"])
    return sdss, glade, np.array(Table.read(path, 1)["Z"], dtype=float), columns["Z"].astype(float)


def test_real_galaxies_find_their_own_redshift_in_the_other_catalogue(galaxies):
    """Purity and completeness over 99.5 %, with redshift as the judge, which the matcher does not see.

    Two entries tell of one galaxy if their redshifts agree within 0.01 (GLADE+'s are up to 3 % off). What should be
    found: galaxies that have an entry of agreeing redshift within 10 arcsec; 2 arcsec is the radius searched.
    """
    sdss, glade, z_sdss, z_glade = galaxies
    matches = crossmatch(sdss, glade, 2.0)
    agrees = np.abs(z_sdss[matches.left_row] - z_glade[matches.right_row]) < 0.01
    near = crossmatch(sdss, glade, 10.0, mode="all")
    should = np.unique(near.left_row[np.abs(z_sdss[near.left_row] - z_glade[near.right_row]) < 0.01])
    assert len(should) > 4250
    assert agrees.mean() > 0.995
    assert np.isin(should, matches.left_row[agrees]).mean() > 0.995


def test_real_galaxies_have_no_business_with_those_a_few_arcmin_away(galaxies):
    """The same catalogue moved by 2 arcmin: whatever matches then, matches by chance."""
    sdss, glade, _, _ = galaxies
    shifted = SkyTable("shifted", glade.object_id, glade.ra, glade.dec + 2 / 60)
    assert len(crossmatch(sdss, shifted, 2.0)) < 0.001 * len(crossmatch(sdss, glade, 2.0))


def test_both_engines_give_the_same_pairs_of_real_galaxies(galaxies):
    sdss, glade, _, _ = galaxies
    tree, lsdb = (crossmatch(sdss, glade, 60.0, mode="all", engine=engine) for engine in ("tree", "lsdb"))
    assert len(tree) > 4800
    for name in ("left_row", "right_row", "separation"):
        assert getattr(tree, name).tobytes() == getattr(lsdb, name).tobytes()


@pytest.mark.parametrize("engine", ["tree", "lsdb"])
def test_a_perturbed_copy_is_matched_to_its_original(engine):
    """A square degree of 20,000 objects, seen again 15 years later; it lies across right ascension zero.

    Half have a counterpart, with errors of 0.1 to 0.3 arcsec on each axis; in its place the other half has as many
    strangers. Every tenth moves by some 0.2 arcsec a year.
    """
    random = np.random.default_rng(0)
    count, seen = 20_000, np.arange(10_000)
    ra, dec = random.uniform(-0.5, 0.5, count) % 360, random.uniform(-0.5, 0.5, count)
    pm_ra, pm_dec = random.normal(0, 200, (2, count)) * (random.uniform(size=count) < 0.1)
    later = moved(ra[seen], dec[seen], pm_ra[seen], pm_dec[seen], -15.0)
    right_ra, right_dec = perturbed(random, *later, random.uniform(0.1, 0.3, (len(seen), 1)))
    right_ra = np.append(right_ra, random.uniform(-0.5, 0.5, count - len(seen)) % 360)
    right_dec = np.append(right_dec, random.uniform(-0.5, 0.5, count - len(seen)))
    order = random.permutation(count)
    left = SkyTable("gaia", np.arange(count), ra, dec, pm_ra, pm_dec, epoch=2016.0)
    right = SkyTable("old", np.arange(count), right_ra[order], right_dec[order], epoch=2001.0)
    matches = crossmatch(left, right, 1.0, engine=engine)
    is_true = order[matches.right_row] == matches.left_row
    assert is_true.sum() / len(seen) > 0.995
    assert is_true.mean() > 0.995
    # One without a counterpart meets a stranger by chance: 10,000 of each, 10,000 per square degree, within an arcsec.
    by_chance = 10_000 * 10_000 * np.pi / 3600**2
    assert abs((~is_true).sum() - by_chance) < 5 * np.sqrt(by_chance)
    unmoved = SkyTable("gaia", np.arange(count), ra, dec)
    still = crossmatch(unmoved, right, 1.0, engine=engine)
    assert (order[still.right_row] == still.left_row).sum() / len(seen) < 0.92
