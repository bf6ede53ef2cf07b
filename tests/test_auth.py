"""Who may call: API keys and what they are scoped to, and the keyless principal of development mode."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

import httpx
import psycopg2
import pytest

from app.config import Config
from app.errors import StoreUnavailable
from app.identity import keys as auth
from app.identity.keys import KnownKeys
from app.storage.run_store import Database, Principal, Registry
from app.wiring import Services
from tests.conftest import StackMaker, execute
from tests.harness import ROOT, Stack, eventually, free_port, problem
from workers.agents.emit import emit
from workers.loading import record_of

ORIGIN = "https://console.example.com"
START = {"agent": "emit", "input": {"count": 3, "type": "custom.tick"}}
UNKNOWN = "run_00000000000000000000000000"


@dataclass(frozen=True)
class Guarded:
    """A server that wants keys, without a worker: its runs stay pending."""

    stack: Stack
    registry: Registry

    def client(self, tenant: str, user: str) -> httpx.Client:
        """A client with a fresh key."""
        key = self.registry.create_key(Principal(tenant, user))
        return httpx.Client(base_url=self.stack.url, headers={"Authorization": f"Bearer {key}"})


@pytest.fixture(scope="module")
def guarded(module_stack: StackMaker) -> Iterator[Guarded]:
    stack = module_stack(RUNTAIL_DEV="", CORS_ORIGINS=f"{ORIGIN}, http://localhost:3000")
    with closing(Services.for_web(Config.from_env(stack.env))) as services:
        services.registry.put_agent(record_of(emit))
        stack.start_web()
        yield Guarded(stack, services.registry)


@pytest.fixture
def ada(guarded: Guarded) -> Iterator[httpx.Client]:
    with guarded.client("acme", "ada") as client:
        yield client


@pytest.fixture
def bob(guarded: Guarded) -> Iterator[httpx.Client]:
    """Another user of Ada's tenant."""
    with guarded.client("acme", "bob") as client:
        yield client


# Keys.

PROTECTED = [
    ("POST", "/runs"),
    ("GET", "/runs"),
    ("GET", f"/runs/{UNKNOWN}"),
    ("DELETE", f"/runs/{UNKNOWN}"),
    ("GET", f"/runs/{UNKNOWN}/events"),
    ("GET", f"/events?runs={UNKNOWN}"),
    ("GET", "/admin/feed"),
    ("POST", f"/runs/{UNKNOWN}/cancel"),
    ("POST", "/runs/cancel"),
    ("POST", f"/runs/{UNKNOWN}/input"),
    ("POST", f"/runs/{UNKNOWN}/approvals/apr_1"),
    ("GET", "/approvals"),
    ("POST", f"/runs/{UNKNOWN}/erase"),
    ("GET", "/agents"),
    ("GET", "/metrics"),
]


@pytest.mark.parametrize(("method", "path"), PROTECTED)
def test_without_a_key_nothing_is_answered(guarded: Guarded, method: str, path: str) -> None:
    answer = guarded.stack.http.request(method, path)
    problem(answer, 401, "unauthorized")
    assert answer.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "header",
    [
        b"Bearer rt_00000000_unknown",
        b"Bearer",
        b"Basic dXNlcjpwYXNz",
        b"rt_00000000_unknown",
        b"Bearer \xff\xfe",
        b"Bearer " + b"x" * 7_000,
        b"",
        b"null",
    ],
)
def test_an_unknown_key_or_a_malformed_header_is_refused(guarded: Guarded, header: bytes) -> None:
    answer = guarded.stack.http.get("/runs", headers={"Authorization": header})
    problem(answer, 401, "unauthorized")
    assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_metrics_are_for_administrators(guarded: Guarded, ada: httpx.Client) -> None:
    problem(ada.get("/metrics"), 404, "not_found")
    key = guarded.registry.create_key(Principal("acme", "root", admin=True))
    answer = guarded.stack.http.get("/metrics", headers={"Authorization": f"Bearer {key}"})
    assert answer.status_code == 200
    assert "runtail_open_windows" in answer.text


def test_who_is_unknown_learns_nothing_about_the_request(guarded: Guarded) -> None:
    http = guarded.stack.http
    problem(http.post("/runs", content=b"{", headers={"Content-Type": "application/json"}), 401, "unauthorized")
    problem(http.post("/runs", json={"agent": "nobody"}), 401, "unauthorized")
    problem(http.post("/runs", json={"x": "y" * 1_500_000}), 401, "unauthorized")
    problem(http.get("/runs?limit=x"), 401, "unauthorized")
    problem(http.get(f"/runs/{UNKNOWN}/events?since_seq=x"), 401, "unauthorized")
    problem(http.get(f"/runs/{UNKNOWN}/events", headers={"Accept": "text/html"}), 401, "unauthorized")


def test_who_is_unknown_is_not_told_which_agents_there_are(guarded: Guarded, ada: httpx.Client) -> None:
    assert '"emit"' not in guarded.stack.http.get("/openapi.json").text
    assert '"emit"' in ada.get("/openapi.json").text
    assert '"emit"' not in guarded.stack.http.get("/openapi.json").text, "also once somebody else was told"


def test_what_is_the_same_for_everybody_needs_no_key(guarded: Guarded) -> None:
    for path in ("/", "/healthz", "/readyz", "/schema/events.json", "/openapi.json", "/docs/"):
        assert guarded.stack.http.get(path).status_code == 200, path


@pytest.mark.parametrize("query", ["verbose", "ts=1764460800", "exclude=ping&exclude=log"])
def test_a_probe_may_have_parameters_of_its_own(guarded: Guarded, query: str) -> None:
    for path in ("/healthz", "/readyz", "/schema/events.json"):
        assert guarded.stack.http.get(f"{path}?{query}").status_code == 200, path


# The keys that a process remembers.


class CountedRegistry(Registry):
    """The registry, with the number of times that it was asked for a key."""

    asked = 0

    def principal(self, key: str) -> Principal | None:
        self.asked += 1
        return super().principal(key)


@pytest.fixture
def registry(apart: Services) -> CountedRegistry:
    return CountedRegistry(apart.database)


def _ask(keys: KnownKeys, key: str, times: int = 100) -> set[Principal | None]:
    with ThreadPoolExecutor(20) as callers:
        return set(callers.map(keys.principal, [key] * times))


def test_a_storm_of_requests_with_one_key_asks_postgres_once(registry: CountedRegistry) -> None:
    ann = Principal("acme", "ann")
    keys, key = KnownKeys(registry), registry.create_key(ann)
    assert _ask(keys, key) == {ann}
    assert registry.asked == 1


def test_a_key_is_looked_up_again_after_a_while_and_one_that_was_removed_is_refused_then(
    registry: CountedRegistry, apart: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, key = KnownKeys(registry), registry.create_key(Principal("acme", "ann"))
    monkeypatch.setattr(auth, "KEY_CACHE_SECONDS", 0.5)
    assert keys.principal(key) is not None
    execute(apart.config.database_url, "DELETE FROM api_keys")
    assert keys.principal(key) is not None
    eventually(lambda: keys.principal(key) is None, what="the end of the key")


def test_a_key_that_was_just_made_works_at_once(registry: CountedRegistry, apart: Services) -> None:
    keys, key = KnownKeys(registry), registry.create_key(Principal("acme", "ann"))
    execute(apart.config.database_url, "UPDATE api_keys SET key_hash = 'x' || key_hash")
    assert keys.principal(key) is None
    execute(apart.config.database_url, "UPDATE api_keys SET key_hash = substr(key_hash, 2)")
    assert keys.principal(key) is not None


def test_the_keys_that_are_remembered_are_bounded_and_only_hashes(
    registry: CountedRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "KEY_CACHE_MAX", 2)
    keys, made = KnownKeys(registry), [registry.create_key(Principal("acme", "ann")) for _ in range(3)]
    for key in made:
        keys.principal(key)
    assert len(keys._found) == 2
    assert not any(key in repr(vars(keys)) for key in made)
    keys.principal(made[-1])
    assert registry.asked == 3
    keys.principal(made[0])
    assert registry.asked == 4


def test_while_postgres_is_away_everybody_who_asks_is_told() -> None:
    database = Database(f"postgresql://127.0.0.1:{free_port()}/none", 1)
    keys = KnownKeys(Registry(database))
    with ThreadPoolExecutor(5) as callers:
        outcomes = [callers.submit(keys.principal, "rt_1") for _ in range(5)]
    assert all(isinstance(outcome.exception(), StoreUnavailable) for outcome in outcomes)
    assert not keys._asking


def test_a_key_opens_the_door_whatever_the_case_of_its_scheme(guarded: Guarded) -> None:
    key = guarded.registry.create_key(Principal("acme", "case"))
    for scheme in ("Bearer", "bearer", "BEARER"):
        assert guarded.stack.http.get("/runs", headers={"Authorization": f"{scheme} {key}"}).status_code == 200


def test_only_a_hash_of_a_key_is_stored(guarded: Guarded) -> None:
    key = guarded.registry.create_key(Principal("acme", "hash"))
    with closing(psycopg2.connect(guarded.stack.env["DATABASE_URL"])) as connection:
        cursor = connection.cursor()
        cursor.execute("SELECT api_keys::text FROM api_keys WHERE user_id = 'hash'")
        ((row,),) = cursor.fetchall()
    secret = key.split("_", 2)[2]
    assert len(secret) >= 32
    assert key not in row
    assert secret not in row
    assert guarded.registry.create_key(Principal("acme", "hash")) != key


def test_the_key_of_a_principal_is_found_again_and_a_similar_one_is_not(guarded: Guarded) -> None:
    principal = Principal("acme", "admin", admin=True)
    key = guarded.registry.create_key(principal)
    assert guarded.registry.principal(key) == principal
    for other in (key[:-1], key + "x", key.upper(), "", "\ud800"):
        assert guarded.registry.principal(other) is None


# Scope.


def test_a_user_does_not_see_the_runs_of_another(guarded: Guarded, ada: httpx.Client, bob: httpx.Client) -> None:
    run_id = ada.post("/runs", json=START).json()["run_id"]
    with guarded.client("other", "ada") as namesake:
        for stranger in (bob, namesake):
            problem(stranger.get(f"/runs/{run_id}"), 404, "run_not_found")
            problem(stranger.get(f"/runs/{run_id}/events"), 404, "run_not_found")
            problem(stranger.post(f"/runs/{run_id}/cancel"), 404, "run_not_found")
            problem(stranger.delete(f"/runs/{run_id}"), 404, "run_not_found")
            assert run_id not in stranger.get("/runs").text
    assert ada.get(f"/runs/{run_id}").json()["status"] == "pending"
    assert ada.get("/runs").json()["runs"][0]["run_id"] == run_id


def test_two_keys_of_one_user_see_the_same_runs(guarded: Guarded, ada: httpx.Client) -> None:
    run_id = ada.post("/runs", json=START).json()["run_id"]
    with guarded.client("acme", "ada") as again:
        assert again.get(f"/runs/{run_id}").status_code == 200


def test_an_idempotency_key_belongs_to_its_user(guarded: Guarded, ada: httpx.Client, bob: httpx.Client) -> None:
    with guarded.client("other", "ada") as namesake:
        runs = set()
        for number, client in enumerate((ada, bob, namesake)):
            body = {**START, "metadata": {"number": number}}
            answers = [client.post("/runs", json=body, headers={"Idempotency-Key": "shared"}) for _ in range(2)]
            assert [answer.status_code for answer in answers] == [202, 202]
            assert answers[0].json() == answers[1].json()
            runs.add(answers[0].json()["run_id"])
    assert len(runs) == 3


def test_a_session_name_does_not_join_two_users(ada: httpx.Client, bob: httpx.Client) -> None:
    mine = ada.post("/runs", json={**START, "session_id": "shared"}).json()["run_id"]
    theirs = bob.post("/runs", json={**START, "session_id": "shared"}).json()["run_id"]
    query = {"session": "shared"}
    assert [run["run_id"] for run in ada.get("/runs", params=query).json()["runs"]] == [mine]
    assert [run["run_id"] for run in bob.get("/runs", params=query).json()["runs"]] == [theirs]


def test_a_pending_run_without_a_worker_can_be_followed_and_cancelled(ada: httpx.Client) -> None:
    run_id = ada.post("/runs", json=START).json()["run_id"]
    assert ada.post(f"/runs/{run_id}/cancel").json()["status"] == "cancelled"
    events = ada.get(f"/runs/{run_id}/events", headers={"Accept": "application/json"}).json()["events"]
    assert [event["type"] for event in events] == ["run.created", "run.cancelled"]


# Development mode.


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "localhost:8000", "127.0.0.1:1", "[::1]:8000", "[::1]"])
def test_in_development_a_caller_on_this_machine_needs_no_key(live: Stack, host: str) -> None:
    assert live.http.get("/runs", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example.com",
        "evil.example.com:8000",
        "localhost.evil.com",
        "127.0.0.1.evil.com",
        "192.168.1.7:8000",
        "0.0.0.0",
    ],
)
def test_in_development_a_name_that_resolves_here_is_not_this_machine(live: Stack, host: str) -> None:
    problem(live.http.get("/runs", headers={"Host": host}), 401, "unauthorized")
    problem(live.http.post("/runs", json=START, headers={"Host": host}), 401, "unauthorized")


@pytest.mark.parametrize("host", ["", "a b", "localhost:x", "[::1", "evil.com/../localhost", "localhost@evil.com"])
def test_in_development_a_malformed_host_opens_nothing(live: Stack, host: str) -> None:
    answer = live.http.get("/runs", headers={"Host": host})
    assert answer.status_code in (400, 401)


def test_in_development_a_wrong_key_is_still_wrong(live: Stack) -> None:
    for sent in ("Bearer nonsense", "Bearer", ""):
        problem(live.http.get("/runs", headers={"Authorization": sent}), 401, "unauthorized")


def test_a_foreign_page_cannot_start_runs_through_the_browser_of_a_developer(live: Stack) -> None:
    preflight = live.http.options(
        "/runs",
        headers={
            "Origin": "https://evil.example.com",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type",
        },
    )
    assert not any(name.lower().startswith("access-control-") for name in preflight.headers)
    # What needs no preflight is not JSON.
    simple = live.http.post(
        "/runs", content=b"{}", headers={"Content-Type": "text/plain", "Origin": "https://evil.example.com"}
    )
    problem(simple, 403, "origin_not_allowed")


FOREIGN_PAGES = [
    {"Origin": "https://evil.example.com"},
    {"Origin": "http://localhost:1"},
    {"Origin": "null"},
    {"Origin": ""},
    {"Origin": "http://127.0.0.1.evil.example.com"},
    {"Origin": "file://"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
    {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"},
]


@pytest.mark.parametrize("page", FOREIGN_PAGES, ids=str)
def test_in_development_a_page_of_another_site_reaches_nothing(live: Stack, page: dict[str, str]) -> None:
    """A POST without a body needs no preflight."""
    run_id = live.http.post("/runs", json={"agent": "emit", "input": {"count": 1}}).json()["run_id"]
    live.ended(run_id)
    for path in (f"/runs/{run_id}/cancel", f"/runs/{run_id}/erase", "/runs?client_run_id=x"):
        problem(live.http.post(path, headers=page), 403, "origin_not_allowed")
    for path in ("/runs", f"/runs/{run_id}/events", "/approvals", "/metrics", "/agents"):
        answer = live.http.get(path, headers={**page, "Accept": "application/json"})
        assert answer.status_code == 403, path
    assert live.read(run_id)["status"] == "completed"


def test_in_development_pages_of_this_server_and_links_to_it_are_the_developers(live: Stack) -> None:
    own = {"Origin": live.url, "Sec-Fetch-Site": "same-origin"}
    assert live.http.post("/runs", json=START, headers=own).status_code == 202
    assert live.http.get("/runs", headers={"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"}).status_code == 200
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert live.http.get("/runs", headers=link).status_code == 200
    problem(live.http.post("/runs", json=START, headers=link), 403, "origin_not_allowed")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-Forwarded-For", "203.0.113.9"),
        ("X-Forwarded-For", "127.0.0.1"),
        ("X-Forwarded-Proto", "https"),
        ("Forwarded", "for=127.0.0.1"),
        ("Via", "1.1 tunnel"),
        ("X-Real-IP", "127.0.0.1"),
        ("CF-Connecting-IP", "203.0.113.9"),
        ("CF-Ray", "1"),
        ("Tailscale-User-Login", "ann"),
        ("X-Original-Forwarded-For", "203.0.113.9"),
        ("True-Client-IP", "203.0.113.9"),
        ("x-forwarded-port", "443"),
    ],
)
def test_in_development_what_a_tunnel_passes_on_needs_a_key(live: Stack, name: str, value: str) -> None:
    problem(live.http.get("/runs", headers={name: value}), 401, "unauthorized")
    problem(live.http.post("/runs", json=START, headers={name: value}), 401, "unauthorized")


def test_in_development_a_named_origin_is_the_developers(stack: StackMaker) -> None:
    named = stack(CORS_ORIGINS="http://localhost:3000")
    named.start_web()
    assert named.http.get("/runs", headers={"Origin": "http://localhost:3000"}).status_code == 200
    problem(named.http.get("/runs", headers={"Origin": "http://localhost:3001"}), 403, "origin_not_allowed")


@pytest.mark.parametrize("address", ["0.0.0.0", "[::]"])
def test_development_mode_refuses_to_listen_where_others_could_reach_it(live: Stack, address: str) -> None:
    command = [sys.executable, "-m", "gunicorn", "--bind", f"{address}:{free_port()}", "wsgi:app"]
    done = subprocess.run(command, env=live.env, cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert done.returncode != 0
    assert "listens on loopback only" in done.stderr


# Proxies.


def test_a_forwarded_address_is_not_believed_unless_a_proxy_was_announced(live: Stack, stack: StackMaker) -> None:
    foreign = {"X-Forwarded-For": "203.0.113.9"}
    problem(live.http.get("/runs", headers=foreign), 401, "unauthorized")
    problem(live.http.get("/runs", headers={"X-Forwarded-Host": "evil.example.com"}), 401, "unauthorized")
    behind = stack(TRUSTED_PROXY_HOPS="1")
    behind.start_web()
    problem(behind.http.get("/runs", headers=foreign), 401, "unauthorized")
    # Only the last entry is the proxy's; what stands before it anybody can write.
    problem(behind.http.get("/runs", headers={"X-Forwarded-For": "127.0.0.1, 203.0.113.9"}), 401, "unauthorized")
    assert behind.http.get("/runs", headers={"X-Forwarded-For": "127.0.0.1"}).status_code == 200
    # A tunnel in front of the proxy, on this machine.
    problem(behind.http.get("/runs", headers={"X-Forwarded-For": "203.0.113.9, 127.0.0.1"}), 401, "unauthorized")
    problem(behind.http.get("/runs", headers={"X-Forwarded-For": "127.0.0.1", "Via": "1.1 x"}), 401, "unauthorized")
    problem(behind.http.get("/runs", headers={"X-Forwarded-Host": "evil.example.com"}), 401, "unauthorized")


def test_a_forged_address_does_not_open_a_guarded_server(guarded: Guarded) -> None:
    forged = {
        "X-Forwarded-For": "127.0.0.1",
        "X-Real-IP": "127.0.0.1",
        "Forwarded": "for=127.0.0.1",
        "Host": "localhost",
    }
    problem(guarded.stack.http.get("/runs", headers=forged), 401, "unauthorized")


# CORS.


def test_a_configured_origin_may_read_answers_and_their_headers(ada: httpx.Client) -> None:
    for origin in (ORIGIN, "http://localhost:3000"):
        answer = ada.post("/runs", json=START, headers={"Origin": origin})
        assert answer.headers["Access-Control-Allow-Origin"] == origin
        exposed = set(answer.headers["Access-Control-Expose-Headers"].split(", "))
        assert {"X-Run-Id", "X-Session-Id", "Location"} <= exposed
        vary = {name.strip() for name in answer.headers["Vary"].split(",")}
        assert vary == {"Accept", "Origin"}


def test_windows_and_errors_can_be_read_from_a_configured_origin_too(ada: httpx.Client) -> None:
    run_id = ada.post("/runs", json=START).json()["run_id"]
    ada.post(f"/runs/{run_id}/cancel")
    for answer in (
        ada.get(f"/runs/{run_id}/events", headers={"Origin": ORIGIN}),
        ada.get("/runs/nothing", headers={"Origin": ORIGIN}),
        ada.post("/runs", json={}, headers={"Origin": ORIGIN}),
        ada.get("/runs", headers={"Origin": ORIGIN, "Authorization": "Bearer nonsense"}),
        ada.get("/nothing", headers={"Origin": ORIGIN}),
    ):
        assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN


def test_a_preflight_needs_no_key_and_allows_what_clients_send(guarded: Guarded) -> None:
    run = f"/runs/{UNKNOWN}"
    for method, path in (("POST", "/runs"), ("GET", f"{run}/events"), ("DELETE", run), ("POST", f"{run}/cancel")):
        headers = {
            "Origin": ORIGIN,
            "Access-Control-Request-Method": method,
            "Access-Control-Request-Headers": "authorization, content-type, idempotency-key, last-event-id, prefer",
        }
        answer = guarded.stack.http.options(path, headers=headers)
        assert answer.status_code == 200
        assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert method in answer.headers["Access-Control-Allow-Methods"]
        allowed = {name.strip().lower() for name in answer.headers["Access-Control-Allow-Headers"].split(",")}
        assert {"authorization", "content-type", "idempotency-key", "last-event-id", "prefer"} <= allowed


@pytest.mark.parametrize(
    "origin", ["https://evil.example.com", f"{ORIGIN}.evil.com", "http://console.example.com", "null", f"{ORIGIN}:8443"]
)
def test_another_origin_gets_no_cors_headers(ada: httpx.Client, origin: str) -> None:
    answer = ada.get("/runs", headers={"Origin": origin})
    assert answer.status_code == 200
    assert not any(name.lower().startswith("access-control-") for name in answer.headers)


def test_without_configured_origins_there_are_no_cors_headers(live: Stack) -> None:
    answer = live.http.get("/runs", headers={"Origin": live.url})
    assert not any(name.lower().startswith("access-control-") for name in answer.headers)
