"""Every test also checks every shape: jaxtyping's import hook with beartype, installed before the package is imported."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from jaxtyping import install_import_hook

install_import_hook("armillary", "beartype.beartype")
