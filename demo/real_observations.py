"""The real objects of the demo, from the files that ship with Armillary (`data/real/README.md`)."""

from ..data.observations import ImageObservation, Observation, ScalarObservation, SpectrumObservation
from ..data.readers.catalogues import read_sdss_galaxies
from ..data.readers.desi import read_desi, read_redrock
from ..data.readers.images import cut_out, find_sources, read_image
from ..data.readers.manga import read_manga
from ..data.readers.mosaics import HSC_ZERO_POINT
from ..data.readers.sdss import read_sdss_spec
from ..data.real_files import real_file

DESI_GALAXY = "39633345008634465"
MAX_SOURCES = 120


def read_real_galaxies() -> list[ScalarObservation]:
    """Redshifts and magnitudes (SDSS, 2MASS) of 5,000 real galaxies."""
    return read_sdss_galaxies(real_file("sdss-galaxies-5000.fits"))


def read_real_images(size: int) -> ImageObservation:
    """Cutouts of `size` pixels around the brightest sources of the real HSC field, sky and ids as the reader gives."""
    paths = {band: real_file(f"hsc-10054-{band}.fits") for band in "gri"}
    frame = read_image(paths, "image/hsc", zero_point=HSC_ZERO_POINT, object_id="hsc-10054")
    sources = find_sources(frame, margin=size // 2, max_sources=MAX_SOURCES)
    return cut_out(frame, sources.center, size)


def read_real_spectra() -> list[SpectrumObservation]:
    """The DESI galaxy, the DESI fibres with light, an SDSS star, and galaxies of MaNGA, each file by its reader."""
    return [
        read_desi(real_file("desi-coadd-4-80613.fits")),
        read_desi(real_file("desi-coadd-sv3-dark-26065.fits")),
        read_sdss_spec(real_file("sdss-spec-0266-51602-0031.fits")),
        read_manga(real_file("manga-spectra.fits.gz")),
    ]


def read_desi_redshift() -> float:
    """Redshift of the real DESI galaxy, as redrock fitted it."""
    return float(read_redrock(real_file("desi-redrock-4-80613.fits")).values[0])


def read_all(image_size: int) -> list[Observation]:
    """Every real observation of the demo."""
    return [*read_real_galaxies(), read_real_images(image_size), *read_real_spectra()]


def is_shown(object_id: str) -> bool:
    """Whether an object is a real one the report shows, and so must not be trained on."""
    return object_id == DESI_GALAXY or object_id.startswith(("hsc-10054", "0266-51602", "manga"))
