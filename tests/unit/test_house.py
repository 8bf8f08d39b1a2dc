"""The rules of the house that a machine can check: rooms, light imports, the public list, the error tree."""

from __future__ import annotations

import ast
import importlib
import inspect
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

import ollama_batch
from ollama_batch import errors
from ollama_batch.types import Completion, InvalidRow

PACKAGE = Path(ollama_batch.__file__).parent
REPOSITORY = Path(__file__).parents[2]

# From left to right. A file imports from its own room and from those on lines above its own; rooms that stand
# side by side on a line know nothing of each other. The first pattern that fits a file says where it lives.
ROOMS: list[dict[str, tuple[str, ...]]] = [
    {"ground floor": ("__init__", "types", "errors", "events", "_points", "_thinking", "memory/sample")},
    {"toy model": ("testing/toy", "testing/_toy_words")},
    {"token counts": ("tokens/*",)},
    {"trimming": ("trim/*",), "ordering": ("ordering/*",), "control": ("control/*",)},
    {
        "requests in": (
            "jsonl",
            "sources",
            "_strict_json",
            "_chat_line",
            "_items",
            "_pumps",
            "_stream_source",
            "_sizes",
        ),
        "engines": ("engines/*",),
        "journal": ("journal/*", "records"),
        "fakes for tests": ("testing/*",),
    },
    {"memory": ("memory/*",), "structured answers": ("structured/*",)},
    {
        "what a person sees": (
            "_text",
            "_error_groups",
            "_sheet",
            "_new_file",
            "_histogram",
            "_minute",
            "savings",
            "_reuse",
            "_usage",
            "_memory_tally",
            "_memory_words",
            "_trouble_tally",
            "_trouble_words",
            "_layout",
            "_next_steps",
            "_load",
            "_load_note",
            "metrics",
            "_views",
            "progress",
            "hooks/*",
            "_summary",
            "report",
        )
    },
    {"doctor": ("doctor/*",), "analysis": ("analysis/*",), "aris": ("aris/*",)},
    {
        "runner": ("runner",),
        "command line": (
            "cli",
            "_analyze_command",
            "_arguments",
            "_aris_back_command",
            "_aris_command",
            "_asked",
            "_command_words",
            "_demo",
            "_doctor_command",
            "_engine_options",
            "_guard_options",
            "_notify_option",
            "_option_values",
            "_parser",
            "_restart_option",
            "_serve_command",
            "_spelling",
            "_status_command",
            "_submit_command",
            "_trouble_options",
        ),
        "server": ("server/*",),
        "a run": ("*",),
    },
]
ORDER = ("a run", "runner", "server", "command line")
"""The rooms of the last line stand in this order; "a run" holds every file that is named nowhere else."""

HEAVY = (
    "rich",
    "tiktoken",
    "pynvml",
    "pandas",
    "xllamacpp",
    "gguf",
    "numpy",
    "IPython",
    "prometheus_client",
    "opentelemetry",
    "ijson",
    "pyarrow",
    "jinja2",
)
ON_USE = (*HEAVY, "aiohttp", "httpx_aiohttp", "httpx", "pydantic", "tenacity", "sqlite3", "orjson")


def modules() -> list[str]:
    return sorted(
        file.relative_to(PACKAGE).with_suffix("").as_posix()
        for file in PACKAGE.rglob("*.py")
        if "__pycache__" not in file.parts
    )


def tree(module: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))


def place(module: str) -> tuple[int, str]:
    """How far to the right a module's room lies, and which room it is."""
    for rank, line in enumerate(ROOMS):
        for room, patterns in line.items():
            if any(fnmatch(module, pattern) for pattern in patterns):
                return (rank + ORDER.index(room), room) if room in ORDER else (rank, room)
    raise AssertionError(module)


def imported(node: ast.ImportFrom) -> Iterator[str]:
    """The modules of ours that a from-import names."""
    assert node.level == 0, "imports are absolute"
    if node.module is None or node.module.split(".")[0] != "ollama_batch":
        return
    base = node.module.removeprefix("ollama_batch").strip(".").replace(".", "/")
    for alias in node.names:
        inner = f"{base}/{alias.name}".lstrip("/")
        if (PACKAGE / f"{inner}.py").exists():
            yield inner
        elif (PACKAGE / base / "__init__.py").exists():
            yield f"{base}/__init__".lstrip("/")
        else:
            yield base


def all_imports(module: str) -> set[str]:
    nodes = ast.walk(tree(module))
    return {name for node in nodes if isinstance(node, ast.ImportFrom) for name in imported(node)}


def first_imports(module: str) -> set[str]:
    """What importing the module imports at once: not inside functions, not for type checkers."""
    found: set[str] = set()
    waiting: list[ast.stmt] = list(tree(module).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.ImportFrom):
            found.update(imported(node))
        elif isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
            waiting += [*node.body, *node.orelse]
        elif isinstance(node, ast.Try):
            waiting += node.body
    return found


@pytest.mark.parametrize("module", [name for name in modules() if name != "__init__"])
def test_a_file_imports_only_its_room_and_rooms_to_its_left(module: str) -> None:
    rank, room = place(module)
    for name in all_imports(module):
        there, other = place(name)
        assert other == room or there < rank, f"{module} ({room}) imports {name} ({other})"


def test_no_file_imports_itself_by_a_detour() -> None:
    graph = {module: first_imports(module) - {module} for module in modules()}
    done: set[str] = set()

    def walk(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module not in done:
            for name in graph[module]:
                walk(name, (*path, module))
            done.add(module)

    for module in graph:
        walk(module, ())


def test_only_the_runner_and_the_command_line_know_an_engine_by_name() -> None:
    for module in modules():
        if place(module)[1] in ("a run", "what a person sees", "memory"):
            named = {name for name in all_imports(module) if name.startswith("engines/")}
            assert named <= {"engines/base"}, module


def test_every_pattern_of_the_table_still_names_a_file() -> None:
    for line in ROOMS:
        for patterns in line.values():
            for pattern in patterns:
                assert any(fnmatch(module, pattern) for module in modules()), pattern


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import ollama_batch", ON_USE),
        ("from ollama_batch import BatchRunner, BatchRequest", (*HEAVY, "aiohttp")),
        ("from ollama_batch import VramGuard, RamGuard, recommend", (*ON_USE, "psutil")),
        ("import ollama_batch.cli", ON_USE),
        ("import ollama_batch.hooks", ON_USE),
        ("import ollama_batch.analysis", (*HEAVY, "aiohttp", "httpx")),
        ("import ollama_batch.testing.plugin", (*HEAVY, "aiohttp", "httpx", "pydantic")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_import_loads_nothing_that_is_needed_only_sometimes(code: str, absent: tuple[str, ...]) -> None:
    # Where click is installed (uvicorn needs it), httpx imports its own command line, which imports rich.
    without_click = "import sys\nsys.modules['click'] = None\n"
    told = subprocess.run(
        [sys.executable, "-c", f"{without_click}{code}\nprint(*sys.modules)"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    loaded = set(told.stdout.split())
    assert "ollama_batch" in loaded
    assert loaded.isdisjoint(absent), sorted(loaded & set(absent))


# The public list


def test_the_public_list_is_what_the_module_offers() -> None:
    assert len(set(ollama_batch.__all__)) == len(ollama_batch.__all__)
    for name in ollama_batch.__all__:
        assert getattr(ollama_batch, name) is not None
        assert name in dir(ollama_batch)
    for_checkers = {
        alias.asname or alias.name
        for node in tree("__init__").body
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for each in node.body
        if isinstance(each, ast.ImportFrom)
        for alias in each.names
    }
    assert for_checkers | {"__version__"} == set(ollama_batch.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = ollama_batch.no_such_name  # type: ignore[attr-defined]  # that is the point


def test_the_version_is_that_of_the_package() -> None:
    from importlib.metadata import version

    assert ollama_batch.__version__ == version("ollama-batch")


@pytest.mark.parametrize("name", [name for name in ollama_batch.__all__ if name != "__version__"])
def test_a_public_name_has_a_docstring_of_its_own_and_is_in_the_reference(name: str) -> None:
    value = getattr(ollama_batch, name)
    if inspect.isclass(value):
        assert value.__doc__ is not None
        assert not value.__doc__.startswith(f"{name}("), "a dataclass's made-up docstring is none"
    reference = (REPOSITORY / "docs" / "reference.md").read_text(encoding="utf-8")
    assert f"`{name}`" in reference


@pytest.mark.parametrize(
    "package", ["analysis", "aris", "doctor", "engines", "hooks", "journal", "memory", "server", "testing"]
)
def test_a_package_offers_what_it_lists(package: str) -> None:
    module = importlib.import_module(f"ollama_batch.{package}")
    for name in module.__all__:
        assert getattr(module, name) is not None


def test_everything_public_has_a_docstring() -> None:
    bare = []
    for module in modules():
        top = tree(module)
        if ast.get_docstring(top) is None:
            bare.append(module)
        waiting: list[tuple[str, ast.AST]] = [(module, node) for node in top.body]
        while waiting:
            where, node = waiting.pop()
            if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if node.name.startswith("_"):
                continue
            if ast.get_docstring(node) is None and not any(
                "overload" in ast.unparse(d) for d in node.decorator_list
            ):
                inherited = where.rpartition(":")[2].startswith("_")
                if not inherited:
                    bare.append(f"{where}:{node.name}")
            if isinstance(node, ast.ClassDef):
                waiting += [(f"{where}:{node.name}", each) for each in node.body]
    assert bare == []


# Errors


def drawn_tree() -> dict[str, str]:
    """The name of each error in the drawing of errors.py, with the name it hangs under."""
    assert errors.__doc__ is not None
    above: list[str] = []
    parents: dict[str, str] = {}
    for line in errors.__doc__.splitlines():
        found = re.match(r"^    ((?:[│├└─ ] ?)*)([A-Z]\w+)", line)
        if found is None:
            continue
        depth = len(found[1]) // 4
        above[depth:] = [found[2]]
        if depth:
            parents[found[2]] = above[depth - 1]
    return parents


def error_classes() -> list[type[BaseException]]:
    return [
        value
        for value in vars(errors).values()
        if inspect.isclass(value) and issubclass(value, BaseException) and value.__module__ == errors.__name__
    ]


def test_the_error_tree_is_the_one_that_is_drawn() -> None:
    real = {
        error.__name__: error.__bases__[0].__name__
        for error in error_classes()
        if issubclass(error, errors.OllamaBatchError) and error is not errors.OllamaBatchError
    }
    assert drawn_tree() == real
    outside = {error for error in error_classes() if not issubclass(error, errors.OllamaBatchError)}
    assert outside == {errors.RunInterrupted}
    assert not issubclass(errors.RunInterrupted, Exception)


def test_no_error_of_ours_is_defined_elsewhere() -> None:
    private = {
        "LineError",
        "JsonFault",
        "Abandoned",
        "Refusal",
        "_NotOneFileError",
        "Unfit",
        "_Twice",
        "ApiFault",
    }  # caught by us, never seen by a user
    for module in modules():
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.ClassDef) and module != "errors":
                bases = {ast.unparse(base) for base in node.bases}
                if any(base.endswith(("Error", "Exception")) for base in bases):
                    assert node.name in private, f"{module}: {node.name}"


def samples() -> list[BaseException]:
    """One error of each class, every field of it filled."""
    row = InvalidRow("in.jsonl", 3, "invalid_type", "is a list", "a", "body.messages")
    completion = Completion(output="text", body={}, finish_reason="length", usage=None)
    made: list[BaseException] = []
    for error in error_classes():
        made.append(_sample(error, row, completion))
    return made


def _sample(error: type[Any], row: InvalidRow, completion: Completion) -> BaseException:
    if issubclass(error, errors.InputError):
        return error("refused", [row], 7)
    if issubclass(error, errors.JournalMismatchError):
        return error("differs", "run.db", {"model": ("a", "b")})
    if issubclass(error, errors.JournalError):
        return error("no", "run.db")
    if issubclass(error, errors.ContextTooLargeError):
        return error(900, 800, "too long")
    if issubclass(error, errors.OutcomeError):
        return error("useless", completion)
    if issubclass(error, errors.EngineError):
        return error("broken", status=503, param="seed", retry_after_s=1.5)
    if issubclass(error, errors.RunStoppedError | errors.RunInterrupted):
        return error("stopped", {"ok": 1})
    return error("wrong")


@pytest.mark.parametrize("error", samples(), ids=lambda error: type(error).__name__)
def test_an_error_survives_another_process_with_all_it_carries(error: BaseException) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert str(error)
    assert vars(again) == vars(error)


def test_an_error_code_names_one_class() -> None:
    codes: dict[str, type] = {}
    for error in error_classes():
        code = vars(error).get("code")
        # The root's own code is that of errors nobody has told apart: servers' failures.
        if code is not None and error is not errors.EngineError:
            assert code not in codes, (error, codes[code])
            assert re.fullmatch(r"[a-z]+(_[a-z]+)*", code)
            codes[code] = error
    assert len(codes) > 10


# The repository


def test_no_source_file_is_too_long_to_read() -> None:
    lengths = {module: len((PACKAGE / f"{module}.py").read_text().splitlines()) for module in modules()}
    assert {module: length for module, length in lengths.items() if length > 420} == {}


def repository_files() -> Iterator[Path]:
    # A list, so that nothing a tool has left in the folder is looked at.
    for name in ("src", "tests", "docs", "benchmarks", "notebooks", ".ci"):
        yield from (file for file in (REPOSITORY / name).rglob("*") if file.is_file())
    yield from (file for file in REPOSITORY.iterdir() if file.is_file())


def test_nothing_names_a_place_of_one_machine() -> None:
    # Taken apart, so that this file does not name them either.
    machine = re.compile(
        r"(?<![\w.])/(?:wo" + r"rk|ro" + r"ot|ho" + r"me/\w+|Us" + r"ers/\w+)/|\.\./sha" + r"red"
    )
    ours = [
        file
        for file in repository_files()
        if "__pycache__" not in file.parts
        and "out" not in file.relative_to(REPOSITORY).parts
        and file.suffix in {".py", ".md", ".toml", ".yaml", ".yml", ".json", ".ipynb", ".sh", ".txt", ""}
    ]
    assert len(ours) > 100
    for file in ours:
        found = machine.search(file.read_text(encoding="utf-8", errors="replace"))
        assert found is None, f"{file.relative_to(REPOSITORY)}: {found and found[0]}"
