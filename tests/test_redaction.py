"""Secrets by their names: in objects, in texts, on command lines; and what only looks like one is kept."""

import time
from random import Random
from typing import Any

import pytest

from runtail.journal import ARGUMENTS_CHARS, fingerprint, stored_arguments
from runtail.redaction import REDACTED, preview, redact, redact_all, redact_text, shown
from runtail.secret_names import is_secret
from tests.speed import here

SECRET_NAMES = [
    "oauth2Token", "OAUTH2TOKEN", "db2Password", "PASSWORD2", "s3Secret", "2faToken", "userPW", "dbPw2",
    "pwd", "PGPWD", "userPwd", "dbpwd", "pwdHash", "auth",
    "x-auth", "basicAuth", "authHeader", "auth_code", "oauth", "jwt",
    "idJwt", "jwtToken", "JWTToken", "otp", "otpCode", "totp",
    "otp_code", "user_otp", "signature", "x-hub-signature", "hmacSignature", "sig",
    "user_tokens_by_id", "userTokensById", "refresh-tokens", "tokensByUserId", "access_tokens", "API_KEY",
    "apiKeys", "x-api-key", "STRIPE_KEY", "stripeSecretKey", "encryptionKey", "signing.key",
    "AWS_SECRET_ACCESS_KEY", "private-key", "Proxy-Authorization", "Set-Cookie", "cookies", "session_cookie",
    "dbPassword2", "password_v2", "passwords", "mysqlPasswd", "bearer", "clientCredentials",
    "SENTRY_DSN", "card-number", "cardNumber", "user.token", "userSsn",
]  # fmt: skip
HARMLESS_NAMES = [
    "author", "authors", "authority", "authenticated", "coauthor", "signature_date",
    "signatureDate", "signatureAlgorithm", "signed", "function_signature", "tokens_used", "tokenCount",
    "token_type", "maxTokens", "password_changed_at", "passwordPolicy", "has_password", "needsPassword",
    "passed", "passenger", "compass", "assignment", "design", "significant",
    "signal", "public_key", "publicKeys", "primary_key", "key", "monkey",
    "keyboard", "sigma", "authorName", "secretary_name", "tokenizer", "passage",
    "optional", "option", "cookie_count", "PWDX", "pinned",
]  # fmt: skip
SECRET_TEXTS = [
    ("postgres://app:{}@db:5432/x?sslmode=require", "postgres://app:[redacted]@db:5432/x?sslmode=require"),
    ("redis://:{}@cache/0", "redis://:[redacted]@cache/0"),
    ("https://{}@github.com/a/b.git", "https://[redacted]@github.com/a/b.git"),
    ("https://a.example/x?user=ann&token={}&page=2", "https://a.example/x?user=ann&token=[redacted]&page=2"),
    ("/cb?X-Amz-Signature={}", "/cb?X-Amz-Signature=[redacted]"),
    ("Authorization: Bearer {}", "Authorization: [redacted]"),
    ("curl -H 'Authorization: token {}' https://a.example", "curl -H 'Authorization: [redacted]' https://a.example"),
    ("got Bearer {} from ann", "got Bearer [redacted] from ann"),
    ("Cookie: a={}; b={}", "Cookie: [redacted]"),
    ("mysql --password={} -h db", "mysql --password=[redacted] -h db"),
    ("login --user ann --password {} --force", "login --user ann --password [redacted] --force"),
    ('login --api-key "{} and more"', 'login --api-key "[redacted]"'),
    ("PGPASSWORD={} psql", "PGPASSWORD=[redacted] psql"),
    ('{{"password": "{}", "n": 1}}', '{"password": "[redacted]", "n": 1}'),
    ("pwd: {}", "pwd: [redacted]"),
    ("user[password]={}&user[name]=ann", "user[password]=[redacted]&user[name]=ann"),
    ("dsn=postgresql://u:{}@h/db", "dsn=[redacted]"),
    ("X-Api-Key: {}", "X-Api-Key: [redacted]"),
    ("otp={} for ann", "otp=[redacted] for ann"),
    ("note: token={}, please", "note: token=[redacted], please"),
    ("see https://a.example/?jwt={}#top", "see https://a.example/?jwt=[redacted]"),
]
HARMLESS_TEXTS = [
    "author=ann",
    "tokens: 12",
    "input_tokens=12&output_tokens=3",
    "signature_date: 2026-07-03",
    "The password is not what you think it is.",
    "ssh -p 22 host",
    "http://127.0.0.1:8000/runs?since=2026-01-01T00:00:00Z",
    "mailto:ann@example.com",
    "ann@example.com:80 and git@github.com:a/b.git",
    "a token of our appreciation",
    "basic needs",
    "12:30 author: Ann",
]


@pytest.mark.parametrize("name", SECRET_NAMES)
def test_a_name_of_a_secret_is_one_however_it_is_spelled(name: str) -> None:
    assert is_secret(name)
    for value in ("s3cret", 123456, {"deep": ["s3cret"]}):
        if "tokens" not in name.lower() or isinstance(value, str):
            assert redact([{"a": {name: value}}]) == [{"a": {name: REDACTED}}]


@pytest.mark.parametrize("name", HARMLESS_NAMES)
def test_a_name_that_only_looks_like_one_is_kept(name: str) -> None:
    assert redact({name: "value"}) == {name: "value"}
    assert redact_text(f"{name}=value") == f"{name}=value"


@pytest.mark.parametrize("within", ["PW", "PWD", "JWT", "PASS", "KEY", "7PW9", "9JWT0", "0PWD1"])
def test_no_id_names_a_secret_whatever_letters_it_has(within: str) -> None:
    """Keys of idempotency are such: a run's id, a colon, and a number."""
    randomly = Random(within)
    for _ in range(500):
        id = list("".join(randomly.choices("0123456789ABCDEFGHJKMNPQRSTVWXYZ", k=24)))
        start = randomly.randrange(len(id) - len(within))
        id[start : start + len(within)] = within
        text = f"run_01{''.join(id)}:8"
        assert redact_text(text) == text


@pytest.mark.parametrize("count", [12, 1.5, None, {"input": 1, "output": 2}, [1, 2]])
def test_tokens_that_are_numbers_are_counts(count: Any) -> None:
    assert redact({"tokens": count, "user_tokens_by_id": {"1": "x"}}) == {
        "tokens": count,
        "user_tokens_by_id": REDACTED,
    }
    assert redact({"tokens": ["abc"]}) == {"tokens": REDACTED}


@pytest.mark.parametrize(("text", "redacted"), SECRET_TEXTS)
def test_a_secret_within_a_text_is_replaced(text: str, redacted: str) -> None:
    assert redact_text(text.format("s3cret-V4lue", "more")) == redacted


@pytest.mark.parametrize("text", HARMLESS_TEXTS)
def test_a_text_that_names_no_secret_is_left_as_it_is(text: str) -> None:
    assert redact_text(text) == text


def test_what_looks_like_a_token_or_a_key_needs_no_name() -> None:
    jwt = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbm4ifQ.c2lnbmF0dXJl"
    assert redact_text(f"it is {jwt}, I think") == f"it is {REDACTED}, I think"
    assert "MIIE" not in redact_text("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----")


@pytest.mark.parametrize(
    ("argv", "redacted"),
    [
        (["tool", "--password", "x1", "--verbose"], ["tool", "--password", REDACTED, "--verbose"]),
        (["tool", "--authToken", "x1"], ["tool", "--authToken", REDACTED]),
        (["tool", "--password=x1"], ["tool", f"--password={REDACTED}"]),
        (["curl", "-H", "Authorization: Bearer x1y2z3"], ["curl", "-H", f"Authorization: {REDACTED}"]),
        (["env", "MY_TOKEN=x1", "tool"], ["env", f"MY_TOKEN={REDACTED}", "tool"]),
        (["ssh", "-p", "22", "--author", "ann"], ["ssh", "-p", "22", "--author", "ann"]),
    ],
)
def test_a_list_is_read_as_a_command_line(argv: list[str], redacted: list[str]) -> None:
    assert redact_all(list(argv)) == redacted


def test_previews_and_summaries_hold_no_secret_in_a_text() -> None:
    assert preview("see https://a.example/?token=s3cret")["preview"] == f"see https://a.example/?token={REDACTED}"
    assert shown({"url": "redis://:s3cret@h", "pwd": "x", "n": 1}) == f"url=redis://:{REDACTED}@h, pwd={REDACTED}, n=1"


def test_redacting_takes_time_in_proportion() -> None:
    """No text makes a pattern go back and forth."""
    hostile = [
        "eyJ-" * 16_000,
        "eyJaaaaaa " * 6_500,
        "eyJ" + "a" * 65_000,
        "eyJaaaaaa." * 6_500,
        "a" * 65_000,
        "a=" * 30_000,
        "--a " * 16_000,
        "http://" * 9_000,
        "http://a:" * 7_000,
        "password=" * 7_000,
        '"' * 65_000,
        "Authorization:" * 4_500,
        "eyJaaaaa." * 7_000,
        "_" * 65_000,
        "aA" * 32_000,
        " " * 65_000 + "=",
        "-----BEGIN PRIVATE KEY-----" * 2_000,
    ]
    for text in hostile:
        started = time.process_time()
        redact_text(text)
        is_secret(text)
        taken = time.process_time() - started
        assert taken < here(1.0), text[:20]


def test_of_a_long_argument_no_more_than_what_may_be_shown_is_read() -> None:
    started = time.process_time()
    for value in (
        "a=" * 2_000_000,
        {"deep": ["eyJ-" * 1_000_000]},
        ["x"] * 2_000_000,
        dict.fromkeys(map(str, range(99_999))),
    ):
        assert shown({"value": value, "password": "p"})
    assert shown({str(n): "a" * 100 for n in range(99_999)})
    taken = time.process_time() - started
    assert taken < here(1.0)


def test_a_fingerprint_is_that_of_the_version_before() -> None:
    """A run that was suspended then finds its calls."""
    arguments = {"args": ("ann",), "kwargs": {"password": "s3cret"}}
    assert fingerprint("tool", "login", arguments) == "b90288ecba889809161f3ec2c58ca8a4"
    assert fingerprint("tool", "login", arguments) != fingerprint("tool", "login", {**arguments, "kwargs": {}})


def test_stored_arguments_are_redacted_and_bounded() -> None:
    stored = stored_arguments({"args": ["--otp=123456"], "kwargs": {"password": "s3cret", "n": 1}})
    assert stored == {"args": [f"--otp={REDACTED}"], "kwargs": {"password": REDACTED, "n": 1}}
    assert stored_arguments("x" * ARGUMENTS_CHARS) == f"<{ARGUMENTS_CHARS + 2} characters>"
