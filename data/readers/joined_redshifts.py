"""Redshifts that a survey keeps in a file of their own, joined to its spectra by object."""

from collections.abc import Sequence

from ..observations import ScalarObservation, SpectrumObservation


def joined_redshifts(
    spectra: SpectrumObservation, redshifts: ScalarObservation, names: Sequence[str] | None = None
) -> ScalarObservation | None:
    """The redshifts of these spectra, with the ids and positions that the spectra have.

    `names` says under which id the redshift of each spectrum is found, by default its own. A spectrum without a
    redshift is left out; None if no spectrum has one.
    """
    row_of = {name: row for row, name in enumerate(redshifts.object_id)}
    wanted = spectra.object_id if names is None else names
    kept = [row for row, name in enumerate(wanted) if name in row_of]
    if not kept:
        return None
    found = redshifts.select([row_of[wanted[row]] for row in kept])
    return ScalarObservation(
        redshifts.modality,
        [spectra.object_id[row] for row in kept],
        found.values,
        found.mask,
        found.error,
        ra=spectra.ra[kept],
        dec=spectra.dec[kept],
    )
