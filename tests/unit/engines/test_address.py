import base64

import pytest

from ollama_batch.engines._address import is_loopback, parse_base_url, parse_ollama_host
from ollama_batch.engines.ollama import OllamaEngine
from ollama_batch.engines.openai import OpenAIEngine
from ollama_batch.errors import ConfigError


# The table of ollama envconfig/config_test.go (TestHost), and what clients make of addresses to bind to.
@pytest.mark.parametrize(
    ("value", "url"),
    [
        (None, "http://127.0.0.1:11434"),
        ("", "http://127.0.0.1:11434"),
        ("1.2.3.4", "http://1.2.3.4:11434"),
        (":1234", "http://127.0.0.1:1234"),
        ("1.2.3.4:5678", "http://1.2.3.4:5678"),
        ("http://1.2.3.4", "http://1.2.3.4"),
        ("https://1.2.3.4", "https://1.2.3.4"),
        ("https://1.2.3.4:443", "https://1.2.3.4"),
        ("http://1.2.3.4:4321", "http://1.2.3.4:4321"),
        ("example.com", "http://example.com:11434"),
        ("example.com:1234", "http://example.com:1234"),
        ("http://example.com", "http://example.com"),
        ("https://example.com/ollama", "https://example.com/ollama"),
        ("example.com/ollama", "http://example.com:11434/ollama"),
        ("example.com:1234/ollama/", "http://example.com:1234/ollama"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("0.0.0.0:5678", "http://127.0.0.1:5678"),
        ("[::1]", "http://[::1]:11434"),
        ("[::1]:1337", "http://[::1]:1337"),
        ("::1", "http://[::1]:11434"),
        ("[::]:1337", "http://[::1]:1337"),
        ("[0001:002:003:0004::1]:1337", "http://[0001:002:003:0004::1]:1337"),
        ('"1.2.3.4:1337"', "http://1.2.3.4:1337"),
        ("'1.2.3.4'", "http://1.2.3.4:11434"),
        (" 1.2.3.4 ", "http://1.2.3.4:11434"),
        ("HTTP://1.2.3.4:80", "http://1.2.3.4"),
        (":66000", "http://127.0.0.1:11434"),
        (":-1", "http://127.0.0.1:11434"),
        ("https://1.2.3.4:notaport", "https://1.2.3.4"),
        ("ollama.com", "https://ollama.com"),
    ],
)
def test_ollama_host_is_read_as_ollama_reads_it(value: str | None, url: str) -> None:
    assert parse_ollama_host(value).url == url


@pytest.mark.parametrize("value", ["ftp://host", "two words", "unix:///run/ollama.sock"])
def test_an_impossible_ollama_host_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match="base_url"):
        parse_ollama_host(value)


@pytest.mark.parametrize("value", ["localhost:8000", "", "http://", "http://h:99999", "http://h/?a=1", "h"])
def test_a_base_url_needs_scheme_and_host(value: str) -> None:
    with pytest.raises(ConfigError, match="base_url"):
        parse_base_url(value)


def test_credentials_are_used_and_not_shown() -> None:
    for address in (
        parse_ollama_host("https://me:s%40cret@example.com"),
        parse_base_url("https://me:s%40cret@example.com"),
    ):
        assert address.url == "https://example.com"
        assert address.authorization == "Basic " + base64.b64encode(b"me:s@cret").decode()


def test_credentials_do_not_stand_in_error_messages() -> None:
    for parse in (parse_base_url, parse_ollama_host):
        with pytest.raises(ConfigError) as caught:
            parse("ftp://me:secret@example.com")
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("a.localhost", True),
        ("10.0.0.1", False),
        ("example.com", False),
        ("localhost.example.com", False),
    ],
)
def test_loopback_is_known_without_a_name_server(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_ollama_engine_takes_its_address_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", "gpu-box:5000")
    assert OllamaEngine().address == "http://gpu-box:5000"
    assert OllamaEngine("other").address == "http://other:11434"
    monkeypatch.delenv("OLLAMA_HOST")
    assert OllamaEngine().address == "http://127.0.0.1:11434"


@pytest.mark.parametrize("url", ["http://h:8000", "http://h:8000/", "http://h:8000/v1", "http://h:8000/v1/"])
def test_the_v1_suffix_may_be_there_or_not(url: str) -> None:
    assert OpenAIEngine(url).address == "http://h:8000"
    assert OllamaEngine(url).address == "http://h:8000"


def test_repr_shows_no_credentials() -> None:
    assert "secret" not in repr(OllamaEngine("http://me:secret@h:1", api_key="secret"))
    assert "secret" not in repr(OpenAIEngine("http://me:secret@h:1", api_key="secret"))
