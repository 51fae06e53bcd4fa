"""What one request may ask for; announced at /v1/limits, by which the client splits its batches."""

from typing import Annotated

from pydantic import Field

from ..settings import Settings

Count = Annotated[int, Field(ge=1)]


class Limits(Settings):
    """Limits of one request."""

    max_body_bytes: Count = 64 * 2**20
    """Bytes of a request body."""
    max_bytes_in_flight: Count = 2**30
    """Bytes of all bodies that are read and worked on at once; more wait briefly, then are refused (429)."""
    max_items: Count = 256
    """Objects in one call of /v1/embeddings or /v1/predict."""
    max_neighbours: Count = 1000
    """`k` of a search or a prediction."""
    max_image_side: Count = 512
    """Pixels on a side."""
    max_wavelengths: Count = 32_768
    """Pixels of a spectrum."""
