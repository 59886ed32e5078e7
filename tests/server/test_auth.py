"""Who may ask: nothing but `/health` without a key, whatever a request looks like."""

from __future__ import annotations

import asyncio
import base64
import hmac

import pytest

from forerun.server.app import create_app
from forerun.server.auth import ApiKey, read_key_file, tenant_salt
from forerun.types import InvalidInputError

KEYS = (ApiKey.of("alice", "alice-key-1"), ApiKey.of("bob", "bob-key-22"), ApiKey.of("carol", "carol-key-3"))
ALICE = {"authorization": "Bearer alice-key-1"}


def routes_of(app):
    """(path, method) of every route, however it came into the application."""
    found, waiting = set(), list(app.router.routes)
    while waiting:
        route = waiting.pop()
        inner = getattr(route, "routes", None) or getattr(getattr(route, "original_router", None), "routes", None)
        waiting.extend(inner or ())
        found |= {(route.path, method) for method in getattr(route, "methods", None) or ()}
    return sorted(found)


def test_every_route_needs_a_key(with_app):
    async def body():
        async with with_app(keys=KEYS) as (client, app):
            routes = routes_of(app)
            paths = {path for path, _ in routes}
            assert paths >= {
                "/", "/page/{name}", "/v1/models", "/v1/models/{model:path}", "/v1/completions", "/v1/chat/completions", "/v1/responses", "/tokenize",
                "/detokenize", "/health", "/ready", "/version", "/metrics", "/openapi.json", "/v1/engine",
            }, paths  # fmt: skip
            assert set((await client.get("/openapi.json", headers=ALICE)).json()["paths"]) <= {path.replace(":path", "") for path in paths}
            for path, method in routes:
                address = path.replace("{model:path}", "tiny").replace("{name}", "icon.svg")
                for headers in ({}, {"authorization": "Bearer wrong-key-1"}):
                    reply = await client.request(method, address, headers=headers)
                    assert reply.status_code == (200 if path == "/health" else 401), (method, path)
                    assert reply.headers["x-request-id"].startswith("req-")
                    if path != "/health" and method != "HEAD":
                        assert reply.json()["error"]["code"] == "invalid_api_key"
                assert (await client.request(method, address, headers=ALICE)).status_code != 401, (method, path)

    asyncio.run(body())


PATHS = ["//v1/models", "/v1%2fmodels", "/v1/models/", "/health/", "/health/../v1/models", "/health%2f../v1/models", "/HEALTH", "/health;x", "/health%00", "/./health", "/docs", "/nowhere", "*"]
TRICKS = [
    {"x-http-method-override": "GET"}, {"x-original-url": "/health"}, {"x-rewrite-url": "/health"}, {"x-forwarded-prefix": "/health"},
    {"x-forwarded-for": "127.0.0.1"}, {"authorization": "Bearer "}, {"authorization": "Bearer"}, {"authorization": ""}, {"authorization": "bearer  "},
    {"authorization": "alice-key-1"}, {"authorization": "Basic alice-key-1"}, {"authorization": "Basic " + base64.b64encode(b"alice-key-1:").decode()},
    {"authorization": "Bearer alice-key-1x"}, {"authorization": "Bearer alice-key-"}, {"authorization": "Bearer " + KEYS[0].digest.hex()}, {"cookie": "alice-key-1"},
    {"authorization": "Bearer \udce9".encode("utf-8", "surrogateescape").decode("latin-1")},
]  # fmt: skip


def test_no_path_and_no_header_gets_around_it(with_app):
    async def body():
        async with with_app(keys=KEYS) as (client, _):
            for path in PATHS:
                assert await status(client, path) == 401, path
            for headers in TRICKS:
                assert await status(client, "/v1/models", list(headers.items())) == 401, headers
            both = [("authorization", "Bearer alice-key-1"), ("authorization", "Bearer wrong-key-1")]
            assert await status(client, "/v1/models", both) == 401
            assert await status(client, "/v1/models", [("authorization", "bEaReR alice-key-1")]) == 200

    asyncio.run(body())


async def status(client, path, headers=(), **scope):
    """Of a request that no client would clean up before it sends it: the application gets this scope."""
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    raw = [(b"host", b"127.0.0.1"), *((name.encode(), value.encode("latin-1")) for name, value in headers)]
    if "host" in scope:
        raw[0] = (b"host", scope.pop("host"))
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http", "path": path, "raw_path": path.encode(),
        "query_string": b"", "root_path": "", "headers": raw, "server": ("127.0.0.1", 80), "client": ("127.0.0.1", 1), "state": {},
    } | scope  # fmt: skip
    await client._transport.app(scope, receive, send)
    return sent[0].get("status", sent[0]["type"])


def test_host_header_tricks(with_app):
    """A Host header that would change what a rebuilt URL says decides nothing about keys, and on loopback it must be ours."""

    async def body():
        async with with_app(keys=KEYS, allowed_hosts=None) as (client, _):
            for host in (b"127.0.0.1/health?", b"a/b?c", b"x#", b"health", b"evil.example/health#"):
                assert await status(client, "/v1/models", host=host) == 401
                assert await status(client, "/v1/models", host=host, root_path="/health") == 401
                assert await status(client, "/v1/models", root_path="/v1", host=host) == 401
        async with with_app() as (client, _):
            for host in (b"evil.example", b"127.0.0.1.evil.example", b"127.0.0.1/health?", b"localhost@evil", b"", b"[::1", b"[::1]x", b"127.0.0.1:80:80", b"127.0.0.1:x"):
                assert await status(client, "/v1/models", host=host) == 421, host
                assert await status(client, "/health", host=host) == 421, host
            for host in (b"127.0.0.1", b"localhost:8000", b"LOCALHOST", b"[::1]:8000", b"127.0.0.1:1"):
                assert await status(client, "/v1/models", host=host) == 200, host
            assert await status(client, "/v1/models", [("host", "127.0.0.1")]) == 421  # two of them

    asyncio.run(body())


def test_websockets_are_closed(with_app):
    async def body():
        for settings in ({"keys": KEYS}, {}):
            async with with_app(**settings) as (client, _):
                assert await status(client, "/v1/completions", type="websocket") == "websocket.close"
        async with with_app() as (client, _):
            assert await status(client, "/", type="websocket", host=b"evil.example") == "websocket.close"

    asyncio.run(body())


def test_basic_is_for_browsers(with_app):
    async def body():
        async with with_app(keys=KEYS) as (client, _):
            reply = await client.get("/")
            assert (reply.status_code, reply.headers["www-authenticate"].split()[0]) == (401, "Basic")
            assert (await client.get("/v1/models")).headers["www-authenticate"].split()[0] == "Bearer"
            assert (await client.get("/page/icon.svg", auth=("anybody", "bob-key-22"))).status_code == 200
            assert (await client.get("/v1/models", auth=("", "bob-key-22"))).status_code == 200
            assert (await client.get("/v1/models", auth=("bob-key-22", ""))).status_code == 401

    asyncio.run(body())


@pytest.mark.parametrize("given", ["alice-key-1", "carol-key-3", "wrong-key-1", "", None])
def test_every_key_is_compared_whichever_matches(with_app, monkeypatch, given):
    compared, compare = [], hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda one, other: compared.append((len(one), len(other))) or compare(one, other))

    async def body():
        async with with_app(keys=KEYS) as (client, _):
            await client.get("/version", headers={} if given is None else {"authorization": f"Bearer {given}"})

    asyncio.run(body())
    assert compared == [(32, 32)] * len(KEYS)


def test_tenants_share_nothing(with_app, monkeypatch):
    salts = []

    async def body():
        async with with_app(keys=KEYS) as (client, app):
            llm = app.state.forerun.async_llm
            stream = llm.stream
            monkeypatch.setattr(llm, "stream", lambda prompt, params, **more: salts.append(params.cache_salt) or stream(prompt, params, **more))
            for key in ("alice-key-1", "bob-key-22"):
                for salt in ({}, {"cache_salt": "s"}):
                    for path, asked in (
                        ("/v1/completions", {"prompt": "a", "max_tokens": 1}),
                        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}),
                        ("/v1/responses", {"input": "a", "max_output_tokens": 1}),
                    ):
                        reply = await client.post(path, json={"model": "tiny", **asked, **salt}, headers={"authorization": f"Bearer {key}"})
                        assert reply.status_code == 200, reply.text

    asyncio.run(body())
    assert len(salts) == 12 and len(set(salts)) == 4 and None not in salts
    assert all(salts[place : place + 3] == [salts[place]] * 3 for place in range(0, 12, 3))
    assert not any("alice-key-1" in salt or "s" == salt for salt in salts)


def test_salts_cannot_be_named_by_others():
    assert tenant_salt(None, None) is None
    assert tenant_salt(None, "s") != "s"
    assert len({tenant_salt(key, salt) for key in (None, *KEYS) for salt in ("", "s", "s\0")}) == 12


def write(path, text, mode=0o600):
    path.write_text(text)
    path.chmod(mode)
    return path


def test_key_files(tmp_path):
    file = write(tmp_path / "keys", "# ours\n\nalice:alice-key-1\n  bob-key-22  \n")
    assert read_key_file(file) == (ApiKey.of("alice", "alice-key-1"), ApiKey.of("key-4", "bob-key-22"))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601, 0o610])
def test_key_files_that_others_may_open_are_refused(tmp_path, mode):
    with pytest.raises(InvalidInputError, match="chmod 600"):
        read_key_file(write(tmp_path / "keys", "alice-key-1\n", mode))


@pytest.mark.parametrize("text", ["", "# nothing\n\n", "short\n", "a key with spaces\n", "schlüssel-eins\n", "a:alice-key-1\na:other-key-1\n", "alice-key-1\nb:alice-key-1\n"])
def test_key_files_without_good_keys_are_refused_and_never_shown(tmp_path, text):
    with pytest.raises(InvalidInputError) as caught:
        read_key_file(write(tmp_path / "keys", text))
    assert caught.value.field == "api_key_file"
    assert "alice-key-1" not in str(caught.value) and "schl" not in str(caught.value)


def test_key_files_that_are_not_there(tmp_path):
    with pytest.raises(InvalidInputError, match="cannot be read"):
        read_key_file(tmp_path / "none")


def test_no_cors_and_no_pages_from_elsewhere(with_app):
    async def body():
        async with with_app() as (client, _):
            origin = {"origin": "http://evil.example", "access-control-request-method": "POST"}
            for reply in (await client.options("/v1/completions", headers=origin), await client.get("/v1/models", headers=origin)):
                assert not any(name.startswith("access-control") for name in reply.headers)
            assert (await client.get("/docs")).status_code == (await client.get("/redoc")).status_code == 404
            # what a form on another site could send
            for kind in ("text/plain", "application/x-www-form-urlencoded", None):
                headers = {} if kind is None else {"content-type": kind}
                reply = await client.post("/v1/completions", content=b'{"model": "tiny", "prompt": "a"}', headers=headers)
                assert (reply.status_code, reply.json()["error"]["code"]) == (415, "unsupported_media_type")

    asyncio.run(body())


def test_create_app_is_all_that_is_served(with_app):
    """No second application hangs below this one, where these checks would have to be made again."""
    assert callable(create_app)

    async def body():
        async with with_app() as (_, app):
            assert not [route for route in app.routes if type(route).__name__ == "Mount"]

    asyncio.run(body())
