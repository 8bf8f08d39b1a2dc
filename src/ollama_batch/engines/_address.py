"""Where an engine listens: `OLLAMA_HOST` in all its forms, base URLs, and credentials taken out of them."""

from __future__ import annotations

import base64
import ipaddress
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final
from urllib.parse import unquote, urlsplit

from ollama_batch.errors import ConfigError

OLLAMA_PORT: Final = 11434
USUAL_URLS: Final = ("http://127.0.0.1:11434", "http://localhost:11434")
_SCHEME_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Address:
    """A server's root: `url` without credentials or a last slash, and the `authorization` the URL carried."""

    url: str
    scheme: str
    host: str
    authorization: str | None = None

    @property
    def is_loopback(self) -> bool:
        """Whether the host is this machine by its name or number."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether `host` names this machine without asking a name server."""
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name.partition("%")[0]).is_loopback
    except ValueError:
        return False


def parse_ollama_host(text: str | None) -> Address:
    """The server that an `OLLAMA_HOST` value (or a base URL) means; None and "" mean this machine.

    Takes host, host:port, :port, scheme, path and IPv6, with quotes and space around them, by the rules of
    Ollama's envconfig/config.go: the port is 11434, but 80 or 443 where http or https is written out, also in
    place of a port that is no valid number. 0.0.0.0 and [::], which servers bind to, become loopback.
    """
    value = (text or "").strip().strip("\"'").strip()
    if value == "ollama.com":
        value = "https://ollama.com"
    scheme, separator, rest = value.partition("://")
    if separator:
        scheme = scheme.lower()
        default_port = _SCHEME_PORTS.get(scheme, OLLAMA_PORT)
    else:
        scheme, rest, default_port = "http", value, OLLAMA_PORT
    if scheme not in _SCHEME_PORTS:
        raise ConfigError(f"base_url {redact(value)!r}: the scheme must be http or https")
    authority, _, path = rest.partition("/")
    userinfo, _, hostport = authority.rpartition("@")
    host, port_text = _split_port(hostport)
    port = default_port
    if port_text:
        port = int(port_text) if port_text.isdecimal() and int(port_text) <= 65535 else default_port
    bound = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - read, not bound to
    host = bound.get(host, host)
    return _address(scheme, host, port, path, userinfo)


def parse_base_url(text: str) -> Address:
    """The server of a full base URL (http or https, with a host). Raises ConfigError for any other text."""
    value = text.strip()
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError as exc:
        raise ConfigError(f"base_url {redact(value)!r} is no valid URL: {exc}") from exc
    if parts.scheme not in _SCHEME_PORTS or not parts.hostname:
        raise ConfigError(
            f"base_url {redact(value)!r}: expected http://host:port or https://host, with a scheme"
        )
    if parts.query or parts.fragment:
        raise ConfigError(f"base_url {redact(value)!r}: a query or fragment has no meaning here")
    userinfo = parts.netloc.rpartition("@")[0]
    return _address(parts.scheme, parts.hostname, port, parts.path, userinfo)


def serve_line(url: str, variables: Mapping[str, str] = MappingProxyType({})) -> str:
    """The line for a shell on this machine that starts an Ollama which listens at `url`, with `variables`."""
    where = {} if url in USUAL_URLS else {"OLLAMA_HOST": urlsplit(url).netloc}
    settings = [f"{name}={shlex.quote(value)}" for name, value in {**where, **variables}.items()]
    return " ".join([*settings, "ollama serve"])


def redact(url: str) -> str:
    """`url` without the user and password in it, for messages."""
    scheme, separator, rest = url.rpartition("://")
    authority, slash, path = rest.partition("/")
    return f"{scheme}{separator}{authority.rpartition('@')[2]}{slash}{path}"


def _split_port(hostport: str) -> tuple[str, str]:
    if hostport.startswith("["):
        host, _, rest = hostport[1:].partition("]")
        return host, rest.removeprefix(":")
    if hostport.count(":") > 1:  # an IPv6 address without brackets
        return hostport, ""
    host, _, port = hostport.partition(":")
    return host, port


def _address(scheme: str, host: str, port: int | None, path: str, userinfo: str) -> Address:
    if any(character.isspace() for character in host) or not host.isprintable():
        raise ConfigError(f"base_url: {host!r} is no host name")
    shown = f"[{host}]" if ":" in host else host
    suffix = "" if port in (None, _SCHEME_PORTS[scheme]) else f":{port}"
    tail = path.strip("/")
    url = f"{scheme}://{shown}{suffix}" + (f"/{tail}" if tail else "")
    authorization = None
    if userinfo:
        plain = ":".join(unquote(part) for part in userinfo.partition(":")[::2])
        authorization = "Basic " + base64.b64encode(plain.encode()).decode("ascii")
    return Address(url=url, scheme=scheme, host=host, authorization=authorization)
