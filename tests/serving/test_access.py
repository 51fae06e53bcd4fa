"""Who may ask for what: keys and scopes at the door, without a restart, and no word of a request on the disk."""

import http.client
import json
import re
import sys
import time
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

import httpx
import pytest
from fake_model import FakeModel, images, spectra
from http_bodies import assert_problem, typed_image
from starlette.testclient import TestClient

from armillary.data.dataset import ObservationDataset
from armillary.data.dataset_writer import write_dataset
from armillary.serving.app import OPEN_PATHS, create_app
from armillary.serving.middleware.access import needed_scope
from armillary.serving.middleware.access_keys import CHECK_SECONDS, AccessKeys
from armillary.serving.middleware.keys_file import add_key, revoke_key

REFUSED = (401, 403)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keys.jsonl"


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


def keys_of_all_scopes(path):
    return {scope: one_key(path, scope) for scope in ("read", "write", "admin")}


def one_key(path, scope="read", **more):
    return add_key(path, (scope,), **more)[1]


@pytest.mark.parametrize(
    "method, asked, scope",
    [
        ("GET", "/livez", None),
        ("HEAD", "/docs", None),
        ("GET", "/explorer/explorer.js", None),
        ("GET", "/problems/unauthorized", None),
        ("DELETE", "/docs", "write"),
        ("POST", "/explorer/explorer.js", "write"),
        ("GET", "/explorer", "read"),
        ("GET", "/livez/", "read"),
        ("GET", "/v1/models", "read"),
        ("GET", "/metrics", "read"),
        ("OPTIONS", "/v1/models", "read"),
        ("POST", "/v1/embeddings", "read"),
        ("POST", "/v1/predict", "read"),
        ("POST", "/v1/generate", "read"),
        ("POST", "/v1/collections/objects/search", "read"),
        ("POST", "/v1/probes/p-1/predict", "read"),
        ("POST", "/v2/models/armillary/infer", "read"),
        ("POST", "/v2/models/armillary/versions/1/infer", "read"),
        ("PUT", "/v1/embeddings", "write"),
        ("DELETE", "/v1/collections/objects/search", "write"),
        ("POST", "/v1/probes", "write"),
        ("POST", "/v1/jobs", "write"),
        ("DELETE", "/v1/probes/p-1", "write"),
        ("POST", "/v1/collections/objects/search/more", "write"),
        ("POST", "/v1/embeddings\n", "write"),
        ("POST", "/v1/what-is-not-there-yet", "write"),
        ("BREW", "/v1/models", "write"),
        ("GET", "/v1/admin", "admin"),
        ("POST", "/v1/admin/index", "admin"),
        ("GET", "/v1/administrators", "read"),
    ],
)
def test_the_scope_that_a_request_needs(method, asked, scope):
    assert needed_scope(method, asked, OPEN_PATHS) == scope


def test_without_keys_every_route_answers(model, index):
    with TestClient(create_app(model, index)) as http:
        assert http.get("/v1/models").status_code == 200


def test_without_a_key_nothing_of_what_is_served_is_told(model, index, path):
    one_key(path)
    app = create_app(model, index, access=AccessKeys(path))
    with TestClient(app) as http:
        for open_path in OPEN_PATHS:
            assert http.get(open_path, follow_redirects=False).status_code not in REFUSED, open_path
        asked = [(method, place) for place, methods in app.openapi()["paths"].items() for method in methods]
        closed = [(method, place) for method, place in asked if not place.startswith((*OPEN_PATHS[:4], "/problems/"))]
        assert len(closed) > 8
        for method, place in [*closed, ("post", "/livez"), ("get", "/v1/nothing"), ("delete", "/v1/admin/keys")]:
            refused = http.request(method, place)
            assert_problem(refused, 401, "unauthorized", says="expected one key, found none")
            assert refused.headers["www-authenticate"] == 'Bearer realm="armillary"'
            assert model.model_id not in refused.text
    assert model.num_calls == 0


@pytest.mark.parametrize(
    "headers",
    [
        lambda key: [("Authorization", f"Bearer {key}")],
        lambda key: [("Authorization", f"bearer  {key}")],
        lambda key: [("X-API-Key", key)],
        lambda key: [("X-API-Key", key), ("Authorization", f"Bearer {key}")],
        lambda key: [("X-API-Key", key), ("Authorization", "Basic cHJveHk6cGFzcw==")],
    ],
)
def test_a_key_is_taken_from_either_header(model, index, path, headers):
    key = one_key(path)
    with TestClient(create_app(model, index, access=AccessKeys(path))) as http:
        assert http.get("/v1/models", headers=headers(key)).status_code == 200


@pytest.mark.parametrize(
    "headers, says",
    [
        (lambda key: [("Authorization", "Bearer wrong")], "the key is not known"),
        (lambda key: [("Authorization", f"Bearer {key}x")], "the key is not known"),
        (lambda key: [("Authorization", f"Bearer {key.upper()}")], "the key is not known"),
        (lambda key: [("X-API-Key", "\xe9".encode())], "the key is not known"),
        (lambda key: [("Authorization", key)], "found none"),
        (lambda key: [("Authorization", f"Basic {key}")], "found none"),
        (lambda key: [("Authorization", "Bearer "), ("X-API-Key", "")], "found none"),
        (lambda key: [("Cookie", f"key={key}")], "found none"),
        (lambda key: [("X-API-Key", "other"), ("Authorization", f"Bearer {key}")], "found several that differ"),
        (lambda key: [("Authorization", "Bearer x"), ("Authorization", f"Bearer {key}")], "found several that differ"),
    ],
)
def test_what_is_no_key_is_refused(model, index, path, headers, says):
    key = one_key(path)
    with TestClient(create_app(model, index, access=AccessKeys(path))) as http:
        refused = http.get("/v1/models", headers=headers(key))
        assert_problem(refused, 401, "unauthorized", says=says)
        assert ('error="invalid_token"' in refused.headers["www-authenticate"]) == (says == "the key is not known")
        assert key not in refused.text
        # Neither in the address.
        assert_problem(http.get("/v1/models", params={"api_key": key, "key": key}), 401, "unauthorized")


def test_a_hash_of_the_file_is_no_key(model, index, path):
    added, _ = add_key(path)
    with TestClient(create_app(model, index, access=AccessKeys(path))) as http:
        assert http.get("/v1/models", headers=bearer(added.sha256)).status_code == 401


def test_each_scope_opens_its_routes_and_those_below(model, index, path):
    keys = keys_of_all_scopes(path)
    app = create_app(model, index, access=AccessKeys(path))

    # Routes that stand for those of other files.
    @app.post("/v1/things")
    def make() -> dict[str, bool]:
        return {"made": True}

    @app.get("/v1/admin/things")
    def administer() -> dict[str, bool]:
        return {"administered": True}

    requests = [("GET", "/v1/models"), ("POST", "/v1/embeddings"), ("POST", "/v1/things"), ("GET", "/v1/admin/things")]
    statuses = {}
    with TestClient(app) as http:
        for scope, key in keys.items():
            statuses[scope] = [
                http.request(method, place, headers=bearer(key), json={"input": typed_image()}).status_code
                for method, place in requests
            ]
        refused = http.post("/v1/things", headers=bearer(keys["read"]))
    assert statuses == {"read": [200, 200, 403, 403], "write": [200, 200, 200, 403], "admin": [200] * 4}
    assert_problem(refused, 403, "forbidden", says="this request needs the scope write; the key k-")
    assert refused.json()["detail"].endswith("has read")
    assert 'error="insufficient_scope", scope="write"' in refused.headers["www-authenticate"]


def test_a_refused_request_is_not_carried_out(model, index, path):
    keys = keys_of_all_scopes(path)
    app = create_app(model, index, access=AccessKeys(path))
    made = []

    @app.post("/v1/things")
    def make() -> dict[str, bool]:
        made.append(1)
        return {"made": True}

    with TestClient(app) as http:
        http.post("/v1/things")
        http.post("/v1/things", headers=bearer(keys["read"]))
        assert not made
        http.post("/v1/things", headers=bearer(keys["write"]))
        assert made


def test_under_a_prefix_the_scope_is_that_of_the_route(model, index, path):
    keys = keys_of_all_scopes(path)
    app = create_app(model, index, access=AccessKeys(path))

    @app.get("/v1/admin/things")
    def administer() -> dict[str, bool]:
        return {"administered": True}

    with TestClient(app, root_path="/sky") as http:
        headers = bearer(keys["read"])
        assert http.get("/sky/v1/admin/things", headers=headers).status_code == 403
        assert http.get("/v1/admin/things", headers=headers).status_code == 403
        assert http.get("/sky/v1/models", headers=headers).status_code == 200
        assert http.get("/sky/livez").status_code == 200


def test_an_expired_key_is_refused_and_told_why(model, index, path):
    end = datetime.now(UTC) + timedelta(seconds=1.2)
    key = one_key(path, expires=end)
    with TestClient(create_app(model, index, access=AccessKeys(path))) as http:
        time.sleep(1.3)
        refused = http.get("/v1/models", headers=bearer(key))
        assert_problem(refused, 401, "unauthorized", says="expired at")
        assert 'error="invalid_token"' in refused.headers["www-authenticate"]


def test_keys_are_rotated_and_revoked_while_the_server_runs(model, index, path, run):
    old, old_key = add_key(path)
    wait = CHECK_SECONDS + 0.2
    with run(create_app(model, index, access=AccessKeys(path))) as url, httpx.Client(base_url=url) as http:
        assert http.get("/v1/models", headers=bearer(old_key)).status_code == 200
        _, new_key = add_key(path)
        time.sleep(wait)
        assert [http.get("/v1/models", headers=bearer(key)).status_code for key in (old_key, new_key)] == [200, 200]
        revoke_key(path, old.id)
        time.sleep(wait)
        assert [http.get("/v1/models", headers=bearer(key)).status_code for key in (old_key, new_key)] == [401, 200]
        assert "was revoked at" in http.get("/v1/models", headers=bearer(old_key)).json()["detail"]
        path.write_text("{")
        time.sleep(wait)
        assert [http.get("/v1/models", headers=bearer(key)).status_code for key in (old_key, new_key)] == [401, 200]


def test_the_single_key_has_every_scope_alone_or_beside_a_file(model, index, path):
    key = one_key(path)
    for access, status in ((None, 401), (AccessKeys(path), 200)):
        with TestClient(create_app(model, index, api_key="secret", access=access)) as http:
            assert http.get("/v1/models", headers=bearer("secret")).status_code == 200
            assert http.delete("/v1/admin/nothing", headers=bearer("secret")).status_code == 404
            assert http.get("/v1/models", headers=bearer(key)).status_code == status
    with TestClient(create_app(model, index, api_key="schlüssel")) as http:
        assert http.get("/v1/models", headers={"X-API-Key": "schlüssel".encode()}).status_code == 200


@pytest.mark.parametrize(
    "client, headers, is_open",
    [
        (("127.0.0.1", 5), {}, True),
        (("::1", 5), {}, True),
        (("10.0.0.7", 5), {}, False),
        (("127.0.0.1", 5), {"X-Forwarded-For": "127.0.0.1"}, False),
        (("127.0.0.1", 5), {"Forwarded": "for=10.0.0.7"}, False),
        (("testclient", 5), {}, False),
    ],
)
def test_metrics_are_read_without_a_key_from_this_machine_alone(model, path, client, headers, is_open):
    key = one_key(path)
    with TestClient(create_app(model, access=AccessKeys(path)), client=client) as http:
        assert (http.get("/metrics", headers=headers).status_code == 401) != is_open
        assert http.get("/metrics", headers=headers | bearer(key)).status_code == 200
        assert http.post("/metrics").status_code == 401
        assert http.get("/v1/models", headers=headers).status_code == 401


def test_a_websocket_is_refused(model, path):
    from starlette.websockets import WebSocketDisconnect

    key = one_key(path, "admin")
    app = create_app(model, access=AccessKeys(path))

    @app.websocket("/v1/live")
    async def live(socket) -> None:
        await socket.accept()

    with (
        TestClient(app) as http,
        pytest.raises(WebSocketDisconnect),
        http.websocket_connect("/v1/live", headers=bearer(key)),
    ):
        pass


def test_openapi_says_which_operations_need_a_key_and_which_scope(model, index, path):
    one_key(path)
    with TestClient(create_app(model, index, access=AccessKeys(path))) as http:
        document = http.get("/openapi.json").json()
    assert set(document["components"]["securitySchemes"]) == {"bearer", "header"}
    assert document["paths"]["/livez"]["get"]["security"] == []
    assert "401" not in document["paths"]["/livez"]["get"]["responses"]
    post = document["paths"]["/v1/embeddings"]["post"]
    assert post["security"] == [{"bearer": ["read"]}, {"header": ["read"]}]
    assert list(post["responses"]) == sorted(post["responses"])
    for status, kind in (("401", "unauthorized"), ("403", "forbidden"), ("429", "busy")):
        assert kind in post["responses"][status]["description"]
        assert list(post["responses"][status]["content"]) == ["application/problem+json"]


def test_openapi_of_a_server_without_keys_speaks_of_none(model, index):
    with TestClient(create_app(model, index)) as http:
        document = http.get("/openapi.json").json()
    assert "securitySchemes" not in document["components"]
    post = document["paths"]["/v1/embeddings"]["post"]
    assert "security" not in post
    assert "401" not in post["responses"]
    assert "cross-site" in post["responses"]["403"]["description"]
    assert "403" not in document["paths"]["/v1/models"]["get"]["responses"]


# Words of a request as paths. The hook sees every file that this process opens, lists, makes or removes.

CANARY = "canary-of-access"
_SEEN: list[str] | None = None


def _watch(event, arguments):
    if _SEEN is not None and event.split(".")[0] in ("open", "os", "shutil", "glob", "pathlib"):
        found = [str(argument) for argument in arguments if CANARY in str(argument)]
        _SEEN.extend(f"{event} {argument}" for argument in found)


sys.addaudithook(_watch)


def test_no_id_or_name_of_a_request_reaches_the_disk(index, tmp_path, run):
    global _SEEN
    state = tmp_path / "state"
    state.mkdir()
    secret = tmp_path / CANARY
    secret.write_text("what nobody shall read")
    words = [
        f"../{CANARY}",
        f"..\\{CANARY}",
        f"../../{tmp_path.name}/{CANARY}",
        str(secret),
        f"//{secret}",
        f"....//....//{CANARY}",
        f"{CANARY}\x00.json",
        f"file://{secret}",
        f"%2e%2e%2f{CANARY}",
        f"..%c0%af{CANARY}",
    ]
    write_dataset(tmp_path / "sky", [images(4), spectra(4)])
    app = create_app(FakeModel(), index, dataset=ObservationDataset(tmp_path / "sky"), state=state)
    operations = [
        (method.upper(), place, [p["name"] for p in operation.get("parameters", ()) if p["in"] == "query"])
        for place, methods in app.openapi()["paths"].items()
        for method, operation in methods.items()
    ]
    named = [(method, place) for method, place, _ in operations if "{" in place]
    assert len(named) >= 4
    statuses, texts = [], []
    with run(app) as url:
        # httpx would resolve the dots itself; this client sends what it is told.
        connection = http.client.HTTPConnection(url.removeprefix("http://"))

        def ask(method, address, body=None):
            content = None if body is None else json.dumps(body)
            connection.request(method, address, content, {} if body is None else {"Content-Type": "application/json"})
            answer = connection.getresponse()
            texts.append(answer.read().decode("utf-8", "replace"))
            statuses.append(answer.status)

        _SEEN = []
        try:
            for word in words:
                everywhere = dict.fromkeys(("object_id", "modality", "label", "property", "target", "space"), word)
                for encoded in (quote(word, safe=""), quote(word, safe="/")):
                    for method, place in named:
                        body = None if method in ("GET", "DELETE") else everywhere
                        ask(method, re.sub(r"\{[^}]*\}", lambda _, encoded=encoded: encoded, place), body)
                    for place in ("/", "/explorer/", "/explorer/vendor/", "/docs/", "/static/"):
                        ask("GET", place + encoded)
                    for method, place, parameters in operations:
                        if method == "GET":
                            filled = re.sub(r"\{[^}]*\}", "x", place)
                            ask("GET", f"{filled}?{'&'.join(f'{name}={encoded}' for name in parameters)}")
                ask("POST", "/v1/embeddings", {"input": [{"object_id": word}], "model": word})
                ask("POST", "/v1/embeddings", {"input": typed_image(object_id=word)})
                ask("POST", "/v1/predict", {"property": word, "object_id": word})
        finally:
            seen, _SEEN = _SEEN, None
            connection.close()
    assert seen == []
    assert len(statuses) > 200
    assert 404 in statuses
    assert 500 not in statuses
    assert not any("what nobody shall read" in text for text in texts)


def test_the_watch_over_the_disk_sees_what_is_opened(tmp_path):
    global _SEEN
    _SEEN = []
    try:
        (tmp_path / CANARY).write_text("")
        (tmp_path / CANARY).unlink()
        (tmp_path / CANARY).mkdir()
    finally:
        seen, _SEEN = _SEEN, None
    assert [entry.split()[0] for entry in seen] == ["open", "os.remove", "os.mkdir"]
