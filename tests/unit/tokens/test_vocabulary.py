"""Where a vocabulary comes from. Real names and addresses, small files: the checksums are made to match."""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import tiktoken

from ollama_batch.errors import ConfigError, VocabularyMissingError
from ollama_batch.tokens import EstimateCounter, TiktokenCounter, default_counter
from ollama_batch.tokens import vocabulary as vocabularies
from ollama_batch.tokens._encodings import EncodingSpec, specs
from tokens_support import ranks_file, sha256, small_encoding, write

DATA = ranks_file()
O200K = "fb374d419588a4632f3f557e76b4b70aebbca790"
CL100K = "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without vocabularies, on which o200k_base is a small one."""
    real = specs()
    small = replace(real["o200k_base"], sha256=sha256(DATA))
    known = {"o200k_base": small, "cl100k_base": real["cl100k_base"]}
    monkeypatch.setattr(vocabularies, "spec_of", known.__getitem__)
    monkeypatch.setattr(vocabularies, "specs", lambda: known)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(vocabularies, "_PACKAGES", (("package_with_words", "inside"),))
    return tmp_path


def no_network(*_: object, **__: object) -> bytes:
    raise AssertionError("asked the network")


def test_tiktoken_still_names_its_files_as_the_packages_do() -> None:
    assert specs()["o200k_base"].file_names == (O200K, "o200k_base.tiktoken")
    assert specs()["cl100k_base"].file_names == (CL100K, "cl100k_base.tiktoken")
    assert {"r50k_base", "p50k_base", "o200k_harmony"} <= set(specs())
    assert "gpt2" not in specs()  # made from two files of another form


def test_reading_what_tiktoken_knows_changes_nothing_of_it() -> None:
    before = tiktoken.registry.ENCODINGS.copy(), dict(os.environ)
    vocabularies.find("o200k_base")
    specs.cache_clear()
    specs()
    assert (tiktoken.registry.ENCODINGS, dict(os.environ)) == before
    from tiktoken_ext import openai_public

    assert openai_public.load_tiktoken_bpe is tiktoken.load.load_tiktoken_bpe


@pytest.mark.parametrize("name", [O200K, "o200k_base.tiktoken", "any-name"])
def test_a_given_file_counts(machine: Path, name: str) -> None:
    counter = TiktokenCounter(vocabulary=write(machine / name, DATA))
    assert counter.source == "tiktoken:o200k_base"
    assert counter.count_text("xyz") == 3
    assert "xyz" not in DATA.decode()


@pytest.mark.parametrize("name", [O200K, "o200k_base.tiktoken"])
def test_a_given_folder_counts(machine: Path, name: str) -> None:
    write(machine / "words" / name, DATA)
    assert TiktokenCounter("o200k_base", vocabulary=machine / "words").place == "given"
    assert TiktokenCounter(vocabulary=machine / "words").source == "tiktoken:o200k_base"


def test_a_folder_without_the_file_is_a_clear_error(machine: Path) -> None:
    (machine / "words").mkdir()
    with pytest.raises(ConfigError, match=rf"no file called {O200K} or o200k_base.tiktoken"):
        default_counter(encoding="o200k_base", vocabulary=machine / "words")


def test_a_missing_file_is_a_clear_error(machine: Path) -> None:
    with pytest.raises(ConfigError, match="no such file or folder"):
        default_counter(vocabulary=machine / "nothing")


def test_a_damaged_file_is_a_clear_error_and_never_an_estimate(machine: Path) -> None:
    damaged = write(machine / O200K, DATA[:-10])
    with pytest.raises(ConfigError, match="damaged"):
        default_counter(vocabulary=damaged)
    with pytest.raises(ConfigError, match="should be the vocabulary of o200k_base and is damaged"):
        default_counter(encoding="o200k_base", vocabulary=damaged)
    assert damaged.exists()


def test_another_encodings_file_is_named(machine: Path) -> None:
    with pytest.raises(ConfigError, match=r"should be the vocabulary of cl100k_base and is .* o200k_base"):
        TiktokenCounter("cl100k_base", vocabulary=write(machine / "file", DATA))


def test_tiktokens_cache_is_found_under_its_sha1_name(machine: Path) -> None:
    write(machine / "cache" / O200K, DATA)
    counter = default_counter()
    assert isinstance(counter, TiktokenCounter)
    assert counter.place == "tiktoken's cache"


def test_an_empty_cache_variable_means_no_cache(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    monkeypatch.setenv("DATA_GYM_CACHE_DIR", str(machine / "cache"))
    write(machine / "cache" / O200K, DATA)
    assert vocabularies.cache_folder() is None
    assert vocabularies.find("o200k_base") is None


def test_a_damaged_cached_file_is_passed_over_with_a_warning(
    machine: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = write(machine / "cache" / O200K, b"<html>")
    with caplog.at_level(logging.WARNING):
        assert isinstance(default_counter(), EstimateCounter)
    assert str(kept) in caplog.text
    assert kept.read_bytes() == b"<html>"


def test_an_installed_package_is_found_and_not_imported(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = machine / "site" / "package_with_words"
    write(package / "__init__.py", b"raise SystemExit('imported')")
    write(package / "inside" / O200K, DATA)
    monkeypatch.syspath_prepend(str(machine / "site"))
    counter = default_counter()
    assert isinstance(counter, TiktokenCounter)
    assert counter.place == "the package package_with_words"
    assert "package_with_words" not in sys.modules


def test_a_namespace_package_is_found_too(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(machine / "site" / "package_with_words" / "inside" / O200K, DATA)
    monkeypatch.syspath_prepend(str(machine / "site"))
    found = vocabularies.find("o200k_base")
    assert found is not None
    assert found.place == "the package package_with_words"


def test_the_order_is_given_then_cache_then_package(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = write(machine / "given", DATA)
    cached = write(machine / "cache" / O200K, DATA)
    write(machine / "site" / "package_with_words" / "inside" / O200K, DATA)
    monkeypatch.syspath_prepend(str(machine / "site"))
    places = [TiktokenCounter(vocabulary=given).place, TiktokenCounter().place]
    cached.unlink()
    assert [*places, TiktokenCounter().place] == [
        "given",
        "tiktoken's cache",
        "the package package_with_words",
    ]


def test_without_a_vocabulary_nothing_is_downloaded_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabularies, "_get", no_network)
    with pytest.raises(VocabularyMissingError, match="download=True"):
        TiktokenCounter()
    assert default_counter().source == "estimate"


def test_an_unknown_encoding_is_refused_with_the_known_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with pytest.raises(ConfigError, match=r"'nonsense'; known are .*cl100k_base, o200k_base"):
        default_counter(encoding="nonsense")


def test_an_encoding_object_needs_no_file() -> None:
    counter = TiktokenCounter(small_encoding("mine"))
    assert counter.source == "tiktoken:mine"
    with pytest.raises(ConfigError, match="vocabulary"):
        TiktokenCounter(small_encoding(), vocabulary="somewhere")


def test_the_same_file_is_loaded_once(machine: Path) -> None:
    path = write(machine / O200K, DATA)
    first, second = vocabularies.given(path), vocabularies.given(path)
    assert first.encoding() is second.encoding()


class Site:
    """A web server with one file; `hold` lets it wait in the middle of it."""

    def __init__(self) -> None:
        self.data = DATA
        self.status = 200
        self.hold = False
        self.over = threading.Event()
        self.asked = 0
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked += 1
                self.send_response(site.status)
                self.send_header("Content-Length", str(len(site.data)))
                self.end_headers()
                self.wfile.write(site.data[:100])
                self.wfile.flush()
                if site.hold:
                    site.over.wait(30)
                    return
                self.wfile.write(site.data[100:])

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/o200k_base.tiktoken"
        self.spec = EncodingSpec("o200k_base", self.url, sha256(DATA))

    def close(self) -> None:
        self.over.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    site = Site()
    monkeypatch.setattr(vocabularies, "spec_of", lambda name: site.spec)
    yield site
    site.close()


def test_an_allowed_download_is_kept_where_tiktoken_looks(machine: Path, site: Site) -> None:
    counter = default_counter(download=True)
    assert isinstance(counter, TiktokenCounter)
    assert counter.place == "downloaded"
    name = hashlib.sha1(site.url.encode()).hexdigest()
    assert [path.name for path in (machine / "cache").iterdir()] == [name]
    assert default_counter(download=True).source == counter.source
    assert site.asked == 1


def test_a_download_that_stalls_ends_at_its_deadline(site: Site) -> None:
    site.hold = True
    started = time.monotonic()
    with pytest.raises(VocabularyMissingError, match="could not be fetched"):
        TiktokenCounter(download=True, download_timeout=0.3)
    assert time.monotonic() - started < 20  # far below the server's patience: the deadline ended it


def test_a_download_that_is_something_else_is_not_kept(machine: Path, site: Site) -> None:
    site.data = b"<html>" + b" " * 200
    with pytest.raises(VocabularyMissingError, match="not the vocabulary"):
        TiktokenCounter(download=True)
    assert not (machine / "cache").exists()


def test_a_failed_download_falls_back_to_the_estimate_with_a_warning(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    site.status = 503
    with caplog.at_level(logging.WARNING):
        assert default_counter(download=True).source == "estimate"
    assert "estimated" in caplog.text


def test_a_download_needs_a_positive_time_and_a_place(monkeypatch: pytest.MonkeyPatch, site: Site) -> None:
    with pytest.raises(ConfigError, match="download_timeout is 0"):
        TiktokenCounter(download=True, download_timeout=0)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    with pytest.raises(VocabularyMissingError, match="TIKTOKEN_CACHE_DIR is empty"):
        TiktokenCounter(download=True)
    assert site.asked == 0


def test_importing_the_package_imports_neither_tiktoken_nor_httpx() -> None:
    code = "import sys, ollama_batch.tokens; print([m for m in ('tiktoken', 'httpx') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
