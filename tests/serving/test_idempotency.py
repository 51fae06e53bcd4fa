"""Whose an `Idempotency-Key` is: of the caller's access key, where the server has keys."""

import pytest
from starlette.testclient import TestClient

from armillary.serving.app import create_app
from armillary.serving.middleware.access_keys import AccessKeys
from armillary.serving.middleware.keys_file import add_key

WORD = "night-1"
PROBE = {
    "label": "scalar/redshift",
    "modality": "image/hsc",
    "examples": [{"object_id": f"object-{n}", "value": n / 100} for n in range(40)],
}
JOB = {"object_ids": ["object-1", "object-2"], "modality": "image/hsc", "k": 2}


@pytest.mark.parametrize("address, body", [("/v1/probes", PROBE), ("/v1/jobs?kind=neighbours", JOB)])
def test_two_callers_with_keys_of_their_own_may_choose_the_same_word(model, index, tmp_path, address, body):
    path = tmp_path / "keys.jsonl"
    ada, bea = (add_key(path, ("write",))[1] for _ in range(2))
    with TestClient(create_app(model, index, state=tmp_path / "state", access=AccessKeys(path))) as http:

        def post(key, more=""):
            sent = {**body, "note": more} if "label" in body else {**body, "k": 2 + len(more)}
            return http.post(address, json=sent, headers={"X-API-Key": key, "Idempotency-Key": WORD})

        first, other = post(ada), post(bea)
        assert first.status_code == other.status_code
        assert first.status_code in (201, 202)
        assert first.json()["id"] != other.json()["id"]
        assert "idempotency-replayed" not in other.headers
        assert post(bea, "x").status_code == 409
        for answer, key in ((first, ada), (other, bea)):
            again = post(key)
            assert again.json()["id"] == answer.json()["id"]
            assert again.headers["idempotency-replayed"] == "true"


def test_a_job_is_seen_by_whoever_may_read_as_the_page_on_access_says(model, index, tmp_path):
    path = tmp_path / "keys.jsonl"
    ada, bea = add_key(path, ("write",))[1], add_key(path, ("read",))[1]
    with TestClient(create_app(model, index, state=tmp_path / "state", access=AccessKeys(path))) as http:
        made = http.post("/v1/jobs?kind=neighbours", json=JOB, headers={"X-API-Key": ada}).json()
        seen = http.get(f"{made['links']['self']}?wait=20", headers={"X-API-Key": bea})
        assert seen.json()["phase"] == "COMPLETED"
        assert http.get(f"{made['links']['self']}/result", headers={"X-API-Key": bea}).status_code == 200
        assert http.delete(made["links"]["self"], headers={"X-API-Key": bea}).status_code == 403
