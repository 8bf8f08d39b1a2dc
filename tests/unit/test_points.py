"""The list of named points is complete: nothing writes, syncs, renames or locks without one."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import ollama_batch
from ollama_batch._points import POINTS, SERVER_POINTS, listen, reached

ROOT = Path(ollama_batch.__file__).parent

# Places whose writes no run depends on, each with its reason.
EXEMPT = {
    "testing": "fakes and toy models for tests: a lost file is made anew",
    "aris/synthetic.py": "made-up exports: a lost file is made anew",
    "_demo.py": "the demo's input, made before its run begins",
    "journal/verify.py": "a private temporary database that ends with its process",
    "tokens/state.py": "learned counts: a lost file is learned again",
    "tokens/vocabulary.py": "a cache of vocabulary files, checked by their sums",
    "engines/_managed_server.py": "the log of a server, in a process that knows no run",
    "engines/managed.py:_default_log": "removes logs of earlier servers",
    "aris/_store.py": "a private temporary database that ends with its process",
    "analysis": "tables and reports about runs, and a private temporary database",
    "cli.py:_forget": "writes to the null device",
    **{
        f"server/store.py:{name}": "in a transaction of Store._write, which has the points"
        for name in (
            *("_insert", "secret", "delete_file", "expire_files", "add_batch", "change", "end_upload"),
            "expire_uploads",
        )
    },
    "journal/lock.py:is_held": "looks whether a lock is held and keeps nothing",
}

WRITING_SQL = re.compile(r"^\s*(BEGIN[^;]*;)?\s*(COMMIT|INSERT|UPDATE|DELETE|REPLACE|CREATE|DROP|ALTER)\b")
OS_CALLS = {
    "replace",
    "rename",
    "renames",
    "unlink",
    "remove",
    "link",
    "fsync",
    "fdatasync",
    "truncate",
    "ftruncate",
}
PATH_CALLS = {"rename", "unlink", "write_text", "write_bytes", "touch", "hardlink_to", "symlink_to"}
CREATING_FLAGS = {"O_CREAT", "O_WRONLY", "O_RDWR", "O_APPEND", "O_TRUNC"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources() -> Iterator[tuple[str, ast.Module]]:
    for file in sorted(ROOT.rglob("*.py")):
        yield file.relative_to(ROOT).as_posix(), ast.parse(file.read_text(encoding="utf-8"))


def own_nodes(function: Function) -> Iterator[ast.AST]:
    """The nodes of a function without those of the functions inside it; lambdas belong to it."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        yield node
        waiting += [
            c for c in ast.iter_child_nodes(node) if not isinstance(c, ast.FunctionDef | ast.AsyncFunctionDef)
        ]


def is_writing_text(node: ast.AST) -> bool:
    if isinstance(node, ast.JoinedStr):
        return any(is_writing_text(part) for part in node.values)
    return (
        isinstance(node, ast.Constant) and isinstance(node.value, str) and bool(WRITING_SQL.match(node.value))
    )


def writing_constants(module: ast.Module) -> set[str]:
    """Names at the top of a module that are bound to SQL that writes, or to a lock between processes."""
    imported = {
        alias.name
        for node in module.body
        if isinstance(node, ast.ImportFrom) and node.module == "filelock"
        for alias in node.names
    }
    return imported & {"FileLock"} | {
        target.id
        for node in module.body
        if isinstance(node, ast.Assign) and is_writing_text(node.value)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def opens_for_writing(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name not in {"open", "fdopen"}:
        return False
    texts = [
        value.value
        for value in [*call.args, *(k.value for k in call.keywords)]
        if isinstance(value, ast.Constant)
    ]
    modes = [text for text in texts if isinstance(text, str) and re.fullmatch(r"[rwaxbt+]{1,4}", text)]
    return any(set(mode) & set("wax+") for mode in modes)


def write_in(node: ast.AST, constants: set[str]) -> str | None:
    """What `node` does that needs a point, or None."""
    if is_writing_text(node):
        return "SQL"
    if isinstance(node, ast.Name) and node.id in constants - {"FileLock"}:
        return f"SQL in {node.id}"
    if isinstance(node, ast.Attribute) and node.attr in CREATING_FLAGS:
        return node.attr
    if not isinstance(node, ast.Call):
        return None
    if opens_for_writing(node):
        return "open for writing"
    if isinstance(node.func, ast.Attribute):
        owner = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
        attribute = node.func.attr
        if owner == "os" and attribute in OS_CALLS:
            return f"os.{attribute}"
        if owner != "os" and (attribute in PATH_CALLS or (attribute == "replace" and len(node.args) == 1)):
            # dataclasses.replace(x, field=...) makes no file
            return None if node.keywords and attribute == "replace" else f".{attribute}"
        if attribute == "commit" and re.search(r"con|db|connection", owner):
            return "commit"
        if attribute == "acquire" and "FileLock" in constants:
            return "lock"
    return None


def calls_reached(function: Function) -> bool:
    return any(
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "reached"
        for node in own_nodes(function)
    )


def unguarded(name: str, module: ast.Module) -> list[str]:
    constants = writing_constants(module)
    found = []
    for function in ast.walk(module):
        if isinstance(function, Function) and f"{name}:{function.name}" not in EXEMPT:
            if calls_reached(function):
                continue
            writes = {what for node in own_nodes(function) if (what := write_in(node, constants)) is not None}
            if writes:
                found.append(f"{name}: {function.name} ({', '.join(sorted(writes))})")
    return found


def test_every_point_is_used_once_in_the_list_and_everywhere_by_a_constant() -> None:
    used: Counter[str] = Counter()
    for name, module in sources():
        for node in ast.walk(module):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "reached":
                assert len(node.args) == 1, name
                assert isinstance(node.args[0], ast.Constant), f"{name}: a point is named by a constant"
                used[str(node.args[0].value)] += 1
    named = [*POINTS, *SERVER_POINTS]
    assert len(set(named)) == len(named)
    assert set(used) == set(named)
    assert {name: n for name, n in used.items() if n > 1} == {}, "one place, one name"


def test_every_function_that_writes_has_a_point() -> None:
    found = [
        line
        for name, module in sources()
        if not any(name == exempt or name.startswith(f"{exempt}/") for exempt in EXEMPT)
        for line in unguarded(name, module)
    ]
    assert found == []


@pytest.mark.parametrize(
    "body",
    [
        "os.replace(a, b)",
        "path.replace(other)",
        "path.unlink()",
        "os.fsync(fd)",
        "path.write_text('x')",
        "open(path, 'w')",
        "path.open('ab')",
        "os.open(path, os.O_RDWR | os.O_CREAT)",
        "con.commit()",
        "con.execute('INSERT INTO t VALUES (1)')",
        "con.execute(f'UPDATE {t} SET a = 1')",
        "con.executescript('BEGIN; CREATE TABLE t (a)')",
        "con.execute(WRITE)",
        "self._lock.acquire(timeout=1)",
    ],
)
def test_a_new_write_without_a_point_is_found(body: str) -> None:
    source = "from filelock import FileLock\nWRITE = 'DELETE FROM t'\ndef f():\n    {}{}\n"
    assert unguarded("new.py", ast.parse(source.format("", body))) != []
    assert unguarded("new.py", ast.parse(source.format("reached('a.point'); ", body))) == []


@pytest.mark.parametrize(
    "body", ["path.open('rb')", "text.replace('a', 'b')", "con.execute('SELECT 1')", "open(p)"]
)
def test_reading_needs_no_point(body: str) -> None:
    assert unguarded("new.py", ast.parse(f"def f():\n    {body}\n")) == []


def test_a_listener_hears_each_point_until_it_is_taken_away() -> None:
    heard: list[str] = []
    listen(heard.append)
    try:
        reached("row.before_send")
    finally:
        listen(None)
    reached("row.after_reply")
    assert heard == ["row.before_send"]
