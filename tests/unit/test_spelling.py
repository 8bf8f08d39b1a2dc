"""Messages of the library in the spelling of the command line."""

from __future__ import annotations

import argparse

import pytest

from ollama_batch._arguments import make_parser
from ollama_batch._spelling import _FLAGS, _PHRASES, as_options

CASES = [
    ("num_ctx=512, max_tokens=1024: the context", "--num-ctx 512, --max-tokens 1024: the context"),
    ("timeout=-1.0: must be", "--timeout -1.0: must be"),
    ("or give trim=", "or give --trim"),
    (
        "raise num_ctx, lower max_tokens, or set trim",
        "raise --num-ctx, lower --max-tokens, or set --trim",
    ),
    ("raise the conversation limit or", "raise --conversation-limit or"),
    ("(num_ctx 4,096 less max_tokens 32)", "(num_ctx 4,096 less max_tokens 32)"),
    ("turn think off or raise max_tokens", "set --think off or raise --max-tokens"),
    ("its own API instead (OllamaEngine, --api ollama)", "its own API instead (--api ollama)"),
    ("give another output=, or say overwrite=True: then", "give another -o, or say --overwrite: then"),
    ("start over with output=...: then", "start over with -o ...: then"),
    (
        'row_models="ignore" sends it there, allow_models= takes more',
        "--ignore-row-models sends it there, --allow-model takes more",
    ),
    ('(on_invalid="skip" goes on)', "(--on-invalid skip goes on)"),
    ("ConversationPolicy(low=0.6, high=0.5): low is above", "--low 0.6, --high 0.5: low is above"),
    ("ConversationPolicy(limit=0): must", "--conversation-limit 0: must"),
    ("(and no smaller limit=), or", "(and no smaller --limit), or"),
    ("BatchRunner(num_ctx=...)", "--num-ctx ..."),
    ("BatchRunner(keep_alive=...)", "BatchRunner(keep_alive=...)"),
    ("/data/limit=3/in.jsonl exists", "/data/limit=3/in.jsonl exists"),
    ("http://host/v1?model=m&trim=x", "http://host/v1?model=m&trim=x"),
    ("message='none.txt': cannot be read", "--template 'none.txt': cannot be read"),
    ("criteria= has {work}, which", "--criteria has {work}, which"),
    ("omit='shoe': must be one of", "--omit shoe: must be one of"),
    ("message has {nam}, which is", "--template has {nam}, which is"),
    ("cv_tokens=9: since message has no {sections}", "--cv-tokens 9: since --template has no {sections}"),
    ("an assistant message has tool_calls", "an assistant message has tool_calls"),
    ("X cannot think; set think=False and leave", "X cannot think; set --think off and leave"),
    ("run the same call again: it sends", "run the same command again: it sends"),
    ("and 3 more in report.notes", "and 3 more in the log above"),
    ("give codes= that tell them apart", "give --code that tell them apart"),
    ("to_parquet() needs pyarrow", "--parquet needs pyarrow"),
    ("is no field that OllamaEngine knows: remove it", "is no field that the engine knows: remove it"),
    (
        "correct its name, or give it to all requests with OpenAIEngine(extra_body=...)",
        "correct its name",
    ),
    ("stops in 5m00s (recover_timeout) and can", "stops in 5m00s (--recover-timeout) and can"),
    ("gives up in 29m55s (load_timeout)", "gives up in 29m55s (--load-timeout)"),
    ("load_timeout=0: must be", "--load-timeout 0: must be"),
    ("elsewhere: give that folder as models=", "elsewhere: set the variable OLLAMA_MODELS to that folder"),
    ("install Ollama, or give its place with binary=", "install Ollama, or put it on the PATH"),
    ("recover_timeout=-1: must be", "--recover-timeout -1: must be"),
    ("'a.jsonl' does not exist; a single prompt goes in a list: [prompt]", "'a.jsonl' does not exist"),
    (
        'a size, as in VramGuard(limit="15GiB"), or say how much there is (VramGuard(total="16GiB"))',
        "a size, as in --vram-limit 15GiB",
    ),
    ('a lower one, as in RamGuard(limit="90%")', "a lower one, as in --ram-limit 90%"),
    ("run the same\n             call again", "run the same command again"),
    ("rows=0: give a whole number above 0", "--for 0: give a whole number above 0"),
    ("hours=0: give a number above 0", "--hours 0: give a number above 0"),
    (
        "free memory, or give guards= other limits, then run the same call again",
        "free memory, or give --vram-limit or --ram-limit another value, then run the same command again",
    ),
    ("my_limit=3 and a-limit=4", "my_limit=3 and a-limit=4"),
]


@pytest.mark.parametrize(("said", "read"), CASES, ids=[said[:24] for said, _ in CASES])
def test_arguments_become_options_and_nothing_else_changes(said: str, read: str) -> None:
    assert as_options(said) == read
    assert as_options(read) == read, "what is in the spelling already stays"


def test_every_option_that_is_named_is_one() -> None:
    commands = ("run", "export-failed", "analyze", "aris", "aris-back", "doctor")
    parser = make_parser(dict.fromkeys(commands, lambda _: 0))
    group = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    options = [action for each in commands for action in group.choices[each]._actions]
    known = {word for action in options for word in action.option_strings}
    named = {
        word for text in (*_FLAGS.values(), *_PHRASES.values()) for word in text.split() if word[0] == "-"
    }
    assert named <= known


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (["run", "in.jsonl", "-o", "out.jsonl", "--toyy"], "--toyy (did you mean --toy?)"),
        (["aris", "e.json", "-o", "b.jsonl", "--omitt=name"], "--omitt=name (did you mean --omit?)"),
        (["aris", "e.json", "-o", "b.jsonl", "--omitt", "x"], "--omitt x (did you mean --omit?)"),
        (["status", "run.db", "extra", "--zzz"], "extra --zzz\n"),
    ],
)
def test_a_mistyped_option_is_told_with_the_one_that_is_near(
    line: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        make_parser({name: lambda _: 0 for name in ("run", "aris", "status")}).parse_args(line)
    assert f"ollama-batch {line[0]}: error: unrecognized arguments: {told}" in capsys.readouterr().err
