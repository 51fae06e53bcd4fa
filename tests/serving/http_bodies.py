"""Bodies for requests, and a check of problem documents."""

import base64

import numpy as np
from fake_model import images, spectra


def encoded(array, dtype="float32"):
    raw = np.ascontiguousarray(array, np.dtype(dtype).newbyteorder("<")).tobytes()
    return {"data": base64.b64encode(raw).decode(), "shape": list(np.shape(array)), "dtype": dtype}


def typed_image(observation=None, row=0, **changes):
    observation = images() if observation is None else observation
    return {"modality": "image/hsc", "bands": ["g", "r"], **encoded(observation.flux[row].numpy()), **changes}


def typed_spectrum(observation=None, row=0, **changes):
    observation = spectra() if observation is None else observation
    return {
        "modality": "spectrum/desi",
        **encoded(observation.flux[row].numpy()),
        "wavelength": encoded(observation.wavelength[row].numpy(), "float64"),
        "inverse_variance": encoded(observation.inverse_variance[row].numpy()),
        **changes,
    }


def assert_problem(response, status, kind, pointer=None, says=""):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document = response.json()
    assert document["type"] == f"/problems/{kind}"
    assert document["status"] == status
    assert says in document["detail"]
    if pointer is not None:
        assert pointer in [error["pointer"] for error in document["errors"]], document
