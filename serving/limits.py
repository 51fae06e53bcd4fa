"""What one request may ask for; announced at /v1/limits, by which the client splits its batches."""

from typing import Annotated

from pydantic import Field

from ..settings import Settings

Count = Annotated[int, Field(ge=1)]


class Limits(Settings):
    """Limits of one request."""

    max_body_bytes: Count = 64 * 2**20
    """Bytes of a request body."""
    max_items: Count = 256
    """Objects in one call of /v1/embeddings."""
    max_neighbours: Count = 1000
    """`k` of a search or a prediction."""
    max_image_side: Count = 512
    """Pixels on a side."""
    max_wavelengths: Count = 32_768
    """Pixels of a spectrum."""
