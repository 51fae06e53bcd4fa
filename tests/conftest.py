"""Every test also checks every shape: jaxtyping hooks into the import of the package, with beartype."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Models this small are ten times slower on several threads, which wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from jaxtyping import install_import_hook

install_import_hook("armillary", "beartype.beartype")
