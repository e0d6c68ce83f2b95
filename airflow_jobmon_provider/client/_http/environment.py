"""What a process's environment says about the way to a server: its proxy and its CA bundle, decided once.

Worker and triggerer must go the same way, and their HTTP libraries read the environment by rules of their
own. So neither does: both transports are given what is decided here, by rules that users of ``requests`` know
(``http_proxy``, ``https_proxy``, ``all_proxy`` and ``no_proxy``, in either case; ``REQUESTS_CA_BUNDLE``, then
``CURL_CA_BUNDLE``). Nobody reads ``~/.netrc``: credentials come from the settings only.
"""

from __future__ import annotations

import functools
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from requests.adapters import DEFAULT_CA_BUNDLE_PATH
from requests.utils import get_environ_proxies, prepend_scheme_if_needed, select_proxy

from airflow_jobmon_provider.client.exceptions import ConfigError, UnreadableCertificate
from airflow_jobmon_provider.client.redaction import shown
from airflow_jobmon_provider.client.settings import Settings, basic_authorization

Stamps = tuple[tuple[int, int, int] | None, ...]


@dataclass(frozen=True)
class Proxy:
    """A proxy that requests go through.

    :param address: such as ``http://proxy.example:3128``, without credentials.
    :param authorization: value of a ``Proxy-Authorization`` header; None: it wants none. Never shown.
    """

    address: str
    authorization: str | None = field(default=None, repr=False)

    @property
    def headers(self) -> Mapping[str, str]:
        """What is sent to the proxy, and only to it."""
        return {} if self.authorization is None else {"Proxy-Authorization": self.authorization}


@dataclass(frozen=True)
class Way:
    """How to reach one server.

    :param proxy: through which; None: directly.
    :param verify: True: check its certificate against the CAs of certifi and of the system; the path of a
        file or folder: against the CAs in it; False: do not.
    :param client_cert: path of the certificate that the server may ask for; None: there is none.
    :param client_key: path of its key; None: it is in the same file.
    :param tls: whether the server is asked over https.
    """

    proxy: Proxy | None
    verify: bool | str
    client_cert: str | None
    client_key: str | None
    tls: bool

    @property
    def proxy_address(self) -> str | None:
        """Address of the proxy, without credentials; None: there is none."""
        return None if self.proxy is None else self.proxy.address

    @property
    def files(self) -> tuple[str, ...]:
        """Paths of what ``make_context`` reads, which may be renewed while it is in use."""
        if not self.tls:
            return ()
        named = [path for path in (self.client_cert, self.client_key) if path]
        if isinstance(self.verify, str):
            named.append(self.verify)
        elif self.verify:
            system = ssl.get_default_verify_paths()
            named += [path for path in (DEFAULT_CA_BUNDLE_PATH, system.cafile, system.capath) if path]
        return tuple(named)

    def stamps(self) -> Stamps:
        """Return what changes when one of the files is renewed. Blocking: it asks the file system."""
        return tuple(_stamp(path) for path in self.files)

    def make_context(self) -> ssl.SSLContext:
        """Return how to check the server's certificate. Blocking: it reads the files.

        :raises UnreadableCertificate: one of them cannot be read.
        """
        context = self._trusting()
        context.set_alpn_protocols(["http/1.1"])
        if self.client_cert:
            try:
                # With a password, if only a wrong one, OpenSSL does not ask for that of an encrypted key.
                context.load_cert_chain(self.client_cert, self.client_key, password="")
            except OSError as error:  # of the ssl module, too
                paths = f"{self.client_cert} and {self.client_key}" if self.client_key else self.client_cert
                raise _unreadable(f"client certificate {paths}", error) from None
        return context

    def _trusting(self) -> ssl.SSLContext:
        if self.verify is False:
            context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            return context
        bundle = DEFAULT_CA_BUNDLE_PATH if self.verify is True else self.verify
        folder = os.path.isdir(bundle)
        try:
            context = ssl.create_default_context(
                cafile=None if folder else bundle, capath=bundle if folder else None
            )
        except OSError as error:
            named = f"CA bundle (verify of the connection, REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE) {bundle}"
            raise _unreadable(named, error) from None
        if self.verify is True:
            context.load_default_certs()
        return context


def way_to(settings: Settings) -> Way:
    """Return how to reach a server from this process, as settings and environment say.

    :raises ConfigError: the environment names a proxy that the transports cannot use.
    """
    certificate = (settings.client_cert, settings.client_key)
    return _way(settings.service_url, settings.verify, *certificate, tuple(map(os.environ.get, _READ)))


# What is read of the environment, by requests' functions, too.
_READ = (
    *("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"),
    *("no_proxy", "NO_PROXY", "REQUEST_METHOD", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
)


@functools.lru_cache(maxsize=64)  # thousands of triggers start at the same moment
def _way(
    service_url: str,
    verify: bool | str,
    cert: str | None,
    key: str | None,
    environment: tuple[str | None, ...],
) -> Way:
    if verify is True:
        verify = environment[-2] or environment[-1] or True
    tls = urlsplit(service_url).scheme == "https"
    return Way(_proxy_to(service_url), verify, cert, key, tls)


def _proxy_to(service_url: str) -> Proxy | None:
    given = select_proxy(service_url, get_environ_proxies(service_url))
    if not given:
        return None
    hint = (
        "an address such as http://proxy.example:3128 can be used; correct the variable, or name"
        f" {urlsplit(service_url).hostname} in NO_PROXY to go without a proxy"
    )
    which = f"the proxy that http_proxy, https_proxy or all_proxy of the environment names for {service_url}"
    try:
        url = urlsplit(str(prepend_scheme_if_needed(given, "http")))  # type: ignore[no-untyped-call]
        port, host = url.port, url.hostname
    except ValueError:  # of requests' InvalidURL and LocationParseError, too
        raise ConfigError(f"{which} cannot be read: {hint}") from None
    if url.scheme.lower() != "http":
        raise ConfigError(f"{which} has the scheme {shown(url.scheme)}, which is not supported: {hint}")
    if not host:
        raise ConfigError(f"{which} cannot be read: {hint}")
    authorization = None
    if url.username:
        authorization = basic_authorization(unquote(url.username), unquote(url.password or ""))
    host = f"[{host}]" if ":" in host else host
    return Proxy(f"http://{host}:{port or 80}", authorization)


def _stamp(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _unreadable(what: str, error: OSError) -> UnreadableCertificate:
    return UnreadableCertificate(
        f"the {what} cannot be read: {error.strerror or error}; is it there, and PEM?"
    )
