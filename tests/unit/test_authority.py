"""Tokens of an identity provider: a real one's, on this machine, and those that others make."""

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from polycl.accounts import Role
from polycl.server.authority import NoRole, Provider, ProviderError, Unauthorized
from polycl.server.connection import Identity
from polycl.server.tokens import TRIES, WINDOW_S, Tokens, TooManyTries, Tries
from polycl.settings import Settings

pytestmark = pytest.mark.unit

KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)


class Issuer:
    """A provider with one key and one user, jane with the password "right". `asked` lists the paths asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.says: dict[str, Any] = {}
        self.roles = ["polycl-annotator", "offline_access"]
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *arguments: Any) -> None:
                pass

            def do_GET(self) -> None:
                issuer.asked.append(self.path)
                self.answer(200, issuer.discovery() if "openid" in self.path else {"keys": [issuer.jwk()]})

            def do_POST(self) -> None:
                issuer.asked.append(self.path)
                form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                right = form["grant_type"] == ["password"] and form["username"] == ["jane"]
                if right and form["password"] == ["right"]:
                    self.answer(200, {"access_token": issuer.token(), "token_type": "Bearer"})
                else:
                    self.answer(401, {"error": "invalid_grant"})

            def answer(self, status: int, value: object) -> None:
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps(value).encode())

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/realms/ct"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def discovery(self) -> dict[str, Any]:
        said = {"issuer": self.url, "jwks_uri": f"{self.url}/keys", "token_endpoint": f"{self.url}/token"}
        return said | self.says

    def jwk(self) -> dict[str, Any]:
        public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(KEY.public_key()))
        return {**public, "kid": "one", "use": "sig", "alg": "RS256"}

    def claims(self, **others: Any) -> dict[str, Any]:
        now = int(time.time())
        claims = {"iss": self.url, "aud": "polycl", "iat": now, "exp": now + 300, "sub": "42"}
        claims |= {"preferred_username": "jane", "realm_access": {"roles": self.roles}}
        return {name: value for name, value in (claims | others).items() if value is not None}

    def token(self, key: Any = KEY, algorithm: str = "RS256", kid: str = "one", **others: Any) -> str:
        return jwt.encode(self.claims(**others), key, algorithm=algorithm, headers={"kid": kid})


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    running = Issuer()
    yield running
    running.server.shutdown()
    running.server.server_close()


@pytest.fixture
def provider(issuer: Issuer, tmp_path: Path) -> Provider:
    return Provider(Settings(state=tmp_path, oidc_issuer=issuer.url))


def public_pem() -> bytes:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return KEY.public_key().public_bytes(serialization.Encoding.PEM, form)


def test_a_token_of_the_issuer_is_accepted(issuer: Issuer, provider: Provider) -> None:
    assert provider.identify(issuer.token()) == Identity("jane", Role.ANNOTATOR)
    assert provider.identify(issuer.token(aud=["account", "polycl"])) == Identity("jane", Role.ANNOTATOR)
    assert provider.identify(issuer.token(preferred_username=None)) == Identity("42", Role.ANNOTATOR)


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": "another"},
        {"aud": None},
        {"iss": "https://id.example.org"},
        {"iss": None},
        {"exp": int(time.time()) - 120},
        {"exp": None},
        {"iat": int(time.time()) + 3600},
        {"nbf": int(time.time()) + 3600},
        {"realm_access": {"roles": ["offline_access", "admin"]}},
        {"realm_access": {"roles": "polycl-admin"}},
        {"realm_access": ["polycl-admin"]},
        {"realm_access": None},
    ],
    ids=str,
)
def test_a_token_that_is_not_for_us(issuer: Issuer, provider: Provider, claims: dict[str, Any]) -> None:
    assert provider.identify(issuer.token(**claims)) is None


def test_a_token_that_somebody_else_signed(issuer: Issuer, provider: Provider) -> None:
    assert provider.identify(issuer.token(OTHER_KEY)) is None
    assert provider.identify(issuer.token(kid="another")) is None
    header, body, signature = issuer.token().split(".")
    changed = jwt.utils.base64url_encode(json.dumps(issuer.claims(preferred_username="admin")).encode()).decode()
    assert provider.identify(f"{header}.{changed}.{signature}") is None
    assert provider.identify(f"{header}.{body}.") is None


def test_algorithms_are_pinned(issuer: Issuer, provider: Provider) -> None:
    assert provider.identify(issuer.token(None, "none")) is None
    # The public key as a secret, which PyJWT itself refuses to sign with.
    header = jwt.utils.base64url_encode(json.dumps({"alg": "HS256", "typ": "JWT", "kid": "one"}).encode())
    body = jwt.utils.base64url_encode(json.dumps(issuer.claims()).encode())
    signature = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).sign(
        header + b"." + body, public_pem()
    )
    forged = b".".join((header, body, jwt.utils.base64url_encode(signature))).decode()
    assert provider.identify(forged) is None
    assert issuer.asked == []


@pytest.mark.parametrize("text", ["", "x", "a.b.c", "é.b.c", "." * 5000, "e30.e30.e30"])
def test_what_is_no_token(provider: Provider, text: str) -> None:
    assert provider.identify(text) is None


def test_the_best_role_counts(issuer: Issuer, provider: Provider) -> None:
    issuer.roles = ["polycl-reader", "monailabel-reviewer"]
    assert provider.identify(issuer.token()) == Identity("jane", Role.REVIEWER)
    issuer.roles = ["monailabel-user"]
    assert provider.identify(issuer.token()) == Identity("jane", Role.READER)


def test_where_roles_stand_can_be_set(issuer: Issuer, tmp_path: Path) -> None:
    flat = Provider(Settings(state=tmp_path, oidc_issuer=issuer.url + "/", oidc_roles="groups", oidc_audience="ct"))
    assert flat.identify(issuer.token(aud="ct", groups=["polycl-admin"])) == Identity("jane", Role.ADMIN)


def test_keys_are_fetched_once(issuer: Issuer, provider: Provider) -> None:
    for _ in range(3):
        provider.identify(issuer.token())
    provider.identify(issuer.token(kid="made up"))
    assert [path.rpartition("/")[2] for path in issuer.asked] == ["openid-configuration", "keys"]


def test_a_password_is_asked_of_the_provider(issuer: Issuer, provider: Provider) -> None:
    granted = provider.sign_in("jane", "right")
    assert granted.identity == Identity("jane", Role.ANNOTATOR)
    assert 200 < granted.seconds <= 300
    assert provider.identify(granted.token) == granted.identity
    with pytest.raises(Unauthorized):
        provider.sign_in("jane", "wrong")
    issuer.roles = []
    with pytest.raises(NoRole):
        provider.sign_in("jane", "right")


@pytest.mark.parametrize(
    "says",
    [{"issuer": "https://id.example.org"}, {"jwks_uri": "file:///etc/passwd"}, {"token_endpoint": None}],
    ids=str,
)
def test_a_provider_that_is_another_one(issuer: Issuer, provider: Provider, says: dict[str, Any]) -> None:
    issuer.says = says
    with pytest.raises(ProviderError):
        provider.identify(issuer.token())


def test_a_provider_that_is_down(issuer: Issuer, provider: Provider) -> None:
    token = issuer.token()
    issuer.server.shutdown()
    issuer.server.server_close()
    with pytest.raises(ProviderError, match="cannot be reached"):
        provider.identify(token)
    with pytest.raises(ProviderError, match="cannot be reached"):
        provider.sign_in("jane", "right")


def test_tokens_expire() -> None:
    now = [0.0]
    tokens = Tokens[str](100.0, lambda: now[0])
    long, short = tokens.new("a"), tokens.new("b", 10.0)
    assert (tokens.get(long), tokens.get(short), tokens.get("other"), tokens.get("")) == ("a", "b", None, None)
    now[0] = 11.0
    assert (tokens.get(long), tokens.get(short)) == ("a", None)
    tokens.drop(long)
    assert tokens.get(long) is None


def test_one_may_try_again_later_and_elsewhere() -> None:
    now = [1000.0]
    tries = Tries(lambda: now[0])
    for _ in range(TRIES):
        tries.check("jane", "a")
        tries.failed("jane", "a")
    with pytest.raises(TooManyTries):
        tries.check("jane", "a")
    tries.check("jane", "b")
    now[0] += WINDOW_S + 1
    tries.check("jane", "a")
    tries.failed("jane", "a")
    tries.check("jane", "a")
    tries.succeeded("jane", "a")
