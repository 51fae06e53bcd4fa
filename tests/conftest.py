"""Every test also checks every shape: jaxtyping hooks into the import of the package, with beartype."""

import os
import sys
from pathlib import Path

# For what tests of several folders share.
sys.path.append(str(Path(__file__).parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Models this small are ten times slower on several threads, which wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
from jaxtyping import install_import_hook
from torch import Tensor

install_import_hook("armillary", "beartype.beartype")


@pytest.fixture
def elsewhere() -> tuple[AbstractContextManager[Any], Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """A context in which tensors may be on a device apart, and what moves a tensor there and back."""
    from .pretended_device import Elsewhere, PretendDevice

    return PretendDevice(), Elsewhere, lambda tensor: tensor.values
