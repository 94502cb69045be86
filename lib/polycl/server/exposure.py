"""Who can reach the server, and whether they have to sign in. Light: checked before MONAI Label is imported."""

import ipaddress
from urllib.parse import urlsplit

from polycl.accounts import Accounts
from polycl.errors import InputError
from polycl.settings import Settings

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


def must_sign_in(settings: Settings) -> bool:
    """Whether there is an identity provider, or a user. InputError for a file of users that is damaged."""
    return bool(settings.oidc_issuer or Accounts(settings.users).all())


def check_exposure(host: str, settings: Settings, insecure_public: bool) -> None:
    """InputError where people elsewhere could reach a server that lets everybody in, unless that is meant.

    Also for an identity provider over plain http: anybody on the way to it could sign in as anyone.
    """
    issuer = urlsplit(settings.oidc_issuer or "")
    if issuer.scheme == "http" and not is_loopback(issuer.hostname or ""):
        raise InputError("POLYCL_OIDC_ISSUER must be an https address")
    if not must_sign_in(settings) and not is_loopback(host) and not insecure_public:
        raise InputError(
            f"on {host} everybody who reaches this machine could read the studies: add users with `polycl users add`, "
            "set POLYCL_OIDC_ISSUER, or say --insecure-public if something in front of it asks people to sign in"
        )


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine reach a server that listens on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() in LOOPBACK


def known_hosts(host: str, settings: Settings) -> frozenset[str] | None:
    """Names that a browser may know a server by that lets everybody in; None for any."""
    more = {name.strip().lower() for name in settings.hosts.split(",") if name.strip()}
    if not more and not is_loopback(host):
        return None
    return LOOPBACK | more | {host.lower()}
