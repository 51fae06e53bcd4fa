"""What an import takes from one FITS file of a survey: its spectra, and the redshifts that lie beside them."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

from ...settings import Settings
from ..observations import Observation, ObservationError, ScalarObservation, SpectrumObservation
from .desi import desi_batches, desi_exposure_batches, read_redrock, redrock_file, redshifts_of_targets
from .fits_files import open_fits
from .joined_redshifts import joined_redshifts
from .manga import manga_batches, read_manga_redshift
from .sdss import boss_plate_batches, boss_redshift_file, read_boss_redshifts


class FibreSettings(Settings):
    """Which fibres of a file are wanted."""

    targets_only: bool = True
    """Leave out fibres on blank sky and those not assigned."""


class DesiSettings(FibreSettings):
    """What is read of a DESI file."""

    arms: tuple[Literal["B", "R", "Z"], ...] = ("B", "R", "Z")
    """Arms that a file must have; fewer where a camera was off."""


class ExposureSettings(DesiSettings):
    """What is made of several exposures of one target."""

    combine: bool = True
    """One spectrum of each target; else each exposure is an object of its own, TARGETID-EXPID."""


class PlateSettings(FibreSettings):
    """What is made of a plate."""

    estimate_noise: bool = False
    """Of files cut down to the flux plane: take the noise from the scatter of neighbouring pixels."""


def read_desi_coadd(piece: Path, settings: Settings | None) -> Iterator[Observation]:
    """Spectra of a coadd file, and the redshifts of the `redrock` file beside it, if there is one.

    Raises ObservationError as `desi_batches` and `read_redrock` do, and if the files have no target in common.
    """
    wanted = settings if isinstance(settings, DesiSettings) else DesiSettings()
    spectra = desi_batches(piece, targets_only=wanted.targets_only, arms=wanted.arms)
    yield from _with_redshifts(piece, spectra, redrock_file(piece), read_redrock, redshifts_of_targets)


def read_desi_spectra(piece: Path, settings: Settings | None) -> Iterator[Observation]:
    """Spectra of a file of single exposures, and the redshifts beside it, as `read_desi_coadd`."""
    wanted = settings if isinstance(settings, ExposureSettings) else ExposureSettings()
    spectra = desi_exposure_batches(piece, combine=wanted.combine, targets_only=wanted.targets_only, arms=wanted.arms)
    yield from _with_redshifts(piece, spectra, redrock_file(piece), read_redrock, redshifts_of_targets)


def read_plate(piece: Path, settings: Settings | None) -> Iterator[Observation]:
    """Spectra of an `spPlate` file, and the redshifts of its `spZbest` file, if there is one.

    Raises ObservationError as `boss_plate_batches` and `read_boss_redshifts` do, and if they have no fibre in common.
    """
    wanted = settings if isinstance(settings, PlateSettings) else PlateSettings()
    spectra = boss_plate_batches(piece, estimate_noise=wanted.estimate_noise, targets_only=wanted.targets_only)
    yield from _with_redshifts(piece, spectra, boss_redshift_file(piece), read_boss_redshifts, joined_redshifts)


def read_manga_piece(piece: Path, settings: Settings | None) -> Iterator[Observation]:
    """Spectra of a datacube's spaxels, or of a file of rows with their redshifts. Raises ObservationError."""
    yield from manga_batches(piece)
    with open_fits(piece) as file:
        has_redshifts = file.has("Z")
    if has_redshifts:
        yield read_manga_redshift(piece)


def _with_redshifts(
    piece: Path,
    spectra: Iterable[SpectrumObservation],
    redshift_file: Path | None,
    read: Callable[[Path], ScalarObservation],
    join: Callable[[SpectrumObservation, ScalarObservation], ScalarObservation | None],
) -> Iterator[Observation]:
    redshifts = None if redshift_file is None else read(redshift_file)
    num_joined = 0
    for observation in spectra:
        yield observation
        joined = None if redshifts is None else join(observation, redshifts)
        if joined is not None:
            num_joined += len(joined)
            yield joined
    if redshifts is not None and not num_joined:
        raise ObservationError(
            f"{redshift_file}: expected redshifts of the objects in {piece}, found none of them among {len(redshifts)}"
        )
