"""Pretraining runs on a machine that has torch, lightning and transformers, but not what surveys and serving need."""

import subprocess
import sys

ABSENT = (
    "astropy",
    "datasets",
    "datasketches",
    "faiss",
    "fastapi",
    "galsim",
    "hpgeom",
    "httpx",
    "lsdb",
    "pandas",
    "sklearn",
    "uvicorn",
)

PRETRAIN = """
import torch
import armillary.training.pretrain
from armillary.data.token_loader import TokenLoader
from armillary.models.foundation import FoundationModel
from armillary.models.masked_transformer import MaskedTransformer, MaskedTransformerConfig

features = {"image": torch.eye(7), "scalar/redshift": torch.eye(5)}
transformer = MaskedTransformer(MaskedTransformerConfig.of_size("nano", features))
transformer.codes.set_features(features)
print(transformer.num_parameters())
"""


def test_pretraining_needs_nothing_of_surveys_and_serving():
    # A module that is None cannot be imported, as if it were not installed.
    without = f"import sys; sys.modules.update(dict.fromkeys({ABSENT}))\n"
    found = subprocess.run([sys.executable, "-c", without + PRETRAIN], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert int(found.stdout) > 1_000_000
