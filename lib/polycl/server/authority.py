"""Who says who somebody is: the file of users of a small site, or the identity provider (OpenID Connect) of a large.

Both take a name and a password, as 3D Slicer has nothing else, and give a token; the provider's are its own, signed by
keys that are fetched from it. All methods block, and may be called by several threads.
"""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jwt
import requests

from polycl.accounts import Accounts, Role
from polycl.errors import PolyclError
from polycl.server.connection import Identity
from polycl.server.tokens import Tokens
from polycl.settings import Settings

ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
"""Signatures with a public key. Never `none`, nor HS256, with which a public key would pass for a secret."""
TIMEOUT_S = 5.0
DISCOVERY_S = 3600.0
LEEWAY_S = 30.0
"""How far clocks may differ."""
ROLES: Mapping[str, Role] = {
    **{f"polycl-{role}": role for role in Role},
    "monailabel-user": Role.READER,
    **{f"monailabel-{role}": role for role in Role if role is not Role.READER},
}
"""Names of roles at a provider: ours, and those that MONAI Label has by default."""


class Unauthorized(PolyclError):
    """Nobody is known by this name and password."""

    status = 401


class NoRole(PolyclError):
    """The user is known, but not to this server."""

    status = 403


class ProviderError(PolyclError):
    """The identity provider does not answer, or not as it should."""

    status = 503
    retry_after = 10


@dataclass(frozen=True)
class Granted:
    """A token for `seconds`, and whose it is."""

    token: str
    seconds: float
    identity: Identity


class Authority(Protocol):
    """Where names and tokens are known."""

    @property
    def realm(self) -> str:
        """The address of the provider, if there is one."""
        ...

    def sign_in(self, name: str, password: str) -> Granted:
        """Unauthorized for a wrong name or password, NoRole for somebody who has none, ProviderError."""
        ...

    def identify(self, token: str) -> Identity | None:
        """Whose token this is; None if it is not valid, or no longer. ProviderError."""
        ...


def authority_of(settings: Settings) -> Authority | None:
    """The provider if one is set, else the file of users if it has any; None if nobody has to sign in."""
    if settings.oidc_issuer:
        return Provider(settings)
    accounts = Accounts(settings.users)
    return SmallSite(accounts, settings.sign_in_hours * 3600) if accounts.all() else None


class SmallSite:
    """The file of users. A change of role, password or name counts from the next request on."""

    realm = ""

    def __init__(self, accounts: Accounts, seconds: float) -> None:
        self._accounts = accounts
        self._tokens = Tokens[tuple[str, str]](seconds)

    def sign_in(self, name: str, password: str) -> Granted:
        """See `Authority`."""
        account = self._accounts.check(name, password)
        if account is None:
            raise Unauthorized("this name and password do not belong together")
        token = self._tokens.new((name, account.password))
        return Granted(token, self._tokens.seconds, Identity(name, Role.named(account.role)))

    def identify(self, token: str) -> Identity | None:
        """See `Authority`."""
        name, password = self._tokens.get(token) or ("", "")
        account = self._accounts.all().get(name)
        if account is None or account.password != password:
            return None
        return Identity(name, Role.named(account.role))


class Provider:
    """An OpenID Connect provider, such as Keycloak. It is first asked when somebody first signs in."""

    def __init__(self, settings: Settings) -> None:
        assert settings.oidc_issuer
        self.realm = settings.oidc_issuer.rstrip("/")
        self._settings = settings
        self._lock = threading.Lock()
        self._found: tuple[float, dict[str, Any], jwt.PyJWKClient] | None = None

    def sign_in(self, name: str, password: str) -> Granted:
        """See `Authority`. By the resource owner password grant (RFC 6749, 4.3), as MONAI Label does it."""
        form = {"grant_type": "password", "client_id": self._settings.oidc_client, "scope": "openid"}
        form |= {"username": name, "password": password}
        url = str(self.discovered()[0].get("token_endpoint"))
        try:
            answer = requests.post(url, data=form, timeout=TIMEOUT_S, allow_redirects=False)
            given = answer.json()
        except (requests.RequestException, ValueError) as error:
            raise ProviderError("the identity provider cannot be reached") from error
        if answer.status_code in (400, 401):
            raise Unauthorized("this name and password do not belong together")
        if answer.status_code != 200 or not isinstance(given, dict):
            raise ProviderError("the identity provider gave no token")
        token = str(given.get("access_token"))
        claims = self._claims(token)
        if claims is None:
            raise ProviderError("the identity provider gave a token that is not for this server")
        identity = self._identity(claims)
        if identity is None:
            raise NoRole("this account has no role on this server")
        return Granted(token, max(0.0, claims["exp"] - time.time()), identity)

    def identify(self, token: str) -> Identity | None:
        """See `Authority`."""
        claims = self._claims(token)
        return None if claims is None else self._identity(claims)

    def _claims(self, token: str) -> dict[str, Any] | None:
        """What a token says; None unless the issuer signed it, for us, and it is still valid."""
        try:
            algorithm = jwt.get_unverified_header(token).get("alg")
            if algorithm not in ALGORITHMS:  # before anything is fetched for its sake
                return None
            said, keys = self.discovered()
            key = keys.get_signing_key_from_jwt(token)
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=ALGORITHMS,
                issuer=str(said["issuer"]),  # with its slash at the end, if it has one
                audience=self._settings.oidc_audience,
                leeway=LEEWAY_S,
                options={"require": ["exp", "iat", "iss", "aud"]},
            )
            return claims
        except jwt.PyJWKClientConnectionError as error:
            raise ProviderError("the identity provider cannot be reached") from error
        except jwt.PyJWTError:
            return None

    def _identity(self, claims: Mapping[str, Any]) -> Identity | None:
        name = claims.get("preferred_username") or claims.get("sub")
        listed: Any = claims
        for part in self._settings.oidc_roles.split("."):
            listed = listed.get(part) if isinstance(listed, Mapping) else None
        names = listed if isinstance(listed, list) else []
        roles = [ROLES[role] for role in names if isinstance(role, str) and role in ROLES]
        return Identity(str(name), max(roles)) if roles and name else None

    def discovered(self) -> tuple[dict[str, Any], jwt.PyJWKClient]:
        """What the provider says of itself (OpenID Connect Discovery 1.0), and its keys; asked for once an hour.

        ProviderError.
        """
        with self._lock:
            now = time.monotonic()
            if self._found is None or now - self._found[0] > DISCOVERY_S:
                said = self._discover()
                self._found = now, said, jwt.PyJWKClient(str(said["jwks_uri"]), timeout=TIMEOUT_S)
            return self._found[1], self._found[2]

    def _discover(self) -> dict[str, Any]:
        url = f"{self.realm}/.well-known/openid-configuration"
        try:
            answer = requests.get(url, timeout=TIMEOUT_S, allow_redirects=False)
            answer.raise_for_status()
            said = answer.json()
        except (requests.RequestException, ValueError) as error:
            raise ProviderError("the identity provider cannot be reached") from error
        if not isinstance(said, dict) or str(said.get("issuer")).rstrip("/") != self.realm:
            raise ProviderError("the identity provider says that it is another one")
        scheme = self.realm.partition(":")[0]
        for name in ("jwks_uri", "token_endpoint"):
            if not str(said.get(name)).startswith(f"{scheme}://"):
                raise ProviderError(f"the identity provider names no {name} that can be used")
        return said
