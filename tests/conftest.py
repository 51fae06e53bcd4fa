"""Every test also checks every shape: jaxtyping hooks into the import of the package, with beartype."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from jaxtyping import install_import_hook

install_import_hook("armillary", "beartype.beartype")
