"""What answers say to browsers, and which sites may ask."""

import pytest
import uvicorn
from fake_model import FakeModel
from fastapi.responses import HTMLResponse
from http_bodies import assert_problem
from starlette.testclient import TestClient

from armillary.serving.app import create_app
from armillary.serving.middleware.cross_site import LOCAL_HOSTS
from armillary.serving.middleware.security_headers import HEADERS

SITE = "https://sky.example.org"


class Broken(FakeModel):
    def embed(self, observations, space="aligned"):
        raise RuntimeError("broken")


@pytest.mark.parametrize(
    "method, place, status",
    [
        ("GET", "/livez", 200),
        ("GET", "/docs", 200),
        ("GET", "/v1/models", 401),
        ("GET", "/problems/no-such-kind", 404),
        ("POST", "/v1/embeddings", 500),
        ("OPTIONS", "/v1/embeddings", 405),
    ],
)
def test_every_answer_bears_them_whatever_its_status(method, place, status):
    key = {} if status == 401 else {"X-API-Key": "secret"}
    body = {"input": {"modality": "scalar/redshift", "data": 0.2}, "space": "encoder"} if method == "POST" else None
    with TestClient(create_app(Broken(), api_key="secret")) as http:
        answer = http.request(method, place, headers=key, json=body, follow_redirects=False)
    assert answer.status_code == status
    for name, value in HEADERS.items():
        assert answer.headers.get_list(name) == [value], name
    (policy,) = answer.headers.get_list("Content-Security-Policy")
    assert "frame-ancestors 'none'" in policy
    assert "default-src 'none'" in policy


def test_a_page_keeps_its_own_policy_and_cache_rule_and_cannot_be_framed(model):
    app = create_app(model)
    own = {"Content-Security-Policy": "script-src 'self'; ", "Cache-Control": "public, max-age=60"}

    @app.get("/page")
    def page() -> HTMLResponse:
        return HTMLResponse("<p>", headers=own)

    @app.get("/framed")
    def framed() -> HTMLResponse:
        return HTMLResponse("<p>", headers={"Content-Security-Policy": f"frame-ancestors {SITE}"})

    with TestClient(app) as http:
        answer = http.get("/page")
        assert answer.headers["Content-Security-Policy"] == "script-src 'self'; frame-ancestors 'none'"
        assert answer.headers["Cache-Control"] == "public, max-age=60"
        assert http.get("/framed").headers["Content-Security-Policy"] == f"frame-ancestors {SITE}"


def test_no_header_names_the_software(model, run, monkeypatch):
    import http.client

    plain = uvicorn.Config
    monkeypatch.setattr(uvicorn, "Config", lambda *a, **k: plain(*a, **k, server_header=False))
    with run(create_app(model)) as url:
        connection = http.client.HTTPConnection(url.removeprefix("http://"))
        connection.request("GET", "/livez")
        names = {name.lower() for name, _ in connection.getresponse().getheaders()}
        connection.close()
    assert "x-content-type-options" in names
    assert not names & {"server", "x-powered-by", "via"}


def preflight(http, origin=SITE, method="POST", headers="authorization, content-type"):
    asked = {"Origin": origin, "Access-Control-Request-Method": method, "Access-Control-Request-Headers": headers}
    return http.options("/v1/embeddings", headers=asked)


def test_no_other_site_may_ask_unless_it_is_listed(model):
    with TestClient(create_app(model)) as http:
        for answer in (preflight(http), http.get("/v1/limits", headers={"Origin": SITE})):
            assert not [name for name in answer.headers if name.startswith("access-control")]
        assert preflight(http).status_code == 405


def test_a_listed_site_may_ask_with_a_key_and_others_may_not(model):
    app = create_app(model, api_key="secret", cors_origins=[SITE])
    with TestClient(app, raise_server_exceptions=False) as http:
        allowed = preflight(http)
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == SITE
        assert "POST" in allowed.headers["access-control-allow-methods"]
        assert "Authorization" in allowed.headers["access-control-allow-headers"]
        assert allowed.headers["x-content-type-options"] == "nosniff"
        assert allowed.headers["x-request-id"]
        for other in ("https://elsewhere.example.org", "http://sky.example.org", f"{SITE}.evil.org", "null"):
            assert "access-control-allow-origin" not in preflight(http, other).headers, other
        assert "access-control-allow-origin" not in http.get("/livez", headers={"Origin": "null"}).headers
        # Also errors can be read by the page that asked: refusals and faults.
        refused = http.get("/v1/limits", headers={"Origin": SITE})
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, SITE)
        given = http.get("/v1/limits", headers={"Origin": SITE, "X-API-Key": "secret"})
        assert given.status_code == 200
        assert "X-Request-Id" in given.headers["access-control-expose-headers"]
        # A browser sends no cookie along, and no cache mixes up the sites.
        assert "access-control-allow-credentials" not in given.headers
        assert "Origin" in given.headers["vary"]


def test_the_page_of_a_listed_site_can_read_a_fault(index):
    body = {"input": {"modality": "scalar/redshift", "data": 0.2}, "space": "encoder"}
    with TestClient(create_app(Broken(), index, cors_origins=[SITE])) as http:
        answer = http.post("/v1/embeddings", json=body, headers={"Origin": SITE})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (500, SITE)


@pytest.mark.parametrize(
    "headers, is_refused",
    [
        ({"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example.org"}, True),
        ({"Sec-Fetch-Site": "cross-site"}, True),
        # Another port of this machine is the same site, but not the same page.
        ({"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1:9000"}, True),
        ({"Sec-Fetch-Site": "cross-site", "Origin": SITE}, False),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "http://testserver"}, False),
        ({"Sec-Fetch-Site": "none"}, False),
        ({}, False),
    ],
)
def test_a_page_that_is_not_listed_cannot_make_a_browser_post(model, headers, is_refused):
    body = {"input": {"modality": "scalar/redshift", "data": 0.2}, "space": "encoder"}
    with TestClient(create_app(model, cors_origins=[SITE])) as http:
        answer = http.post("/v1/embeddings", json=body, headers=headers)
        assert http.get("/v1/limits", headers=headers).status_code == 200
    if is_refused:
        assert_problem(answer, 403, "cross-site")
    else:
        assert answer.status_code == 200
    assert model.num_calls == (0 if is_refused else 1)


@pytest.mark.parametrize(
    "host, is_refused",
    [
        ("localhost", False),
        ("LOCALHOST:8000", False),
        ("127.0.0.1:8000", False),
        ("[::1]:8000", False),
        ("evil.example.org", True),
        ("evil.example.org:8000", True),
        ("localhost.evil.example.org", True),
        ("127.0.0.1.evil.example.org:80", True),
        ("localhost:80@evil.example.org", True),
        ("", True),
    ],
)
def test_a_local_server_answers_to_local_names_alone(model, host, is_refused):
    with TestClient(create_app(model, hosts=LOCAL_HOSTS)) as http:
        answer = http.get("/v1/models", headers={"Host": host})
    if is_refused:
        assert_problem(answer, 403, "cross-site", says="this server is called 127.0.0.1 or [::1] or localhost")
        assert model.model_id not in answer.text
    else:
        assert answer.status_code == 200


@pytest.mark.parametrize("origin", [SITE, "http://localhost:5173", "http://[::1]:80", "*"])
def test_origins_that_are_understood(model, origin):
    with TestClient(create_app(model, cors_origins=[origin])) as http:
        answer = http.get("/livez", headers={"Origin": SITE if origin == "*" else origin})
    assert answer.headers["access-control-allow-origin"] == origin


@pytest.mark.parametrize("origin", ["sky.example.org", f"{SITE}/", f"{SITE}/map", "null", "https://*.example.org", ""])
def test_what_is_no_origin_stops_the_server_at_its_start(model, origin):
    with pytest.raises(ValueError, match="expected an origin such as"):
        create_app(model, cors_origins=[origin])
