"""The demonstration behind `ollama-batch demo`: an export of invented candidates, evaluated, ranked and put
back, on a real engine.

The engine is llama.cpp with a toy model of random weights, so everything but the meaning of the answers
is real. Everything is made here from a seed; nothing is downloaded.
"""

from __future__ import annotations

import asyncio
import json
import sys
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Final

from ollama_batch.errors import ConfigError, MissingExtraError

TOY: Final = "toy"
NUM_CTX: Final = 8192
LEAST: Final = 4
"""Of so many synthetic candidates at least one has something to judge by."""
MADE: Final = ("export.json", "requests.jsonl", "schema.json", "ranking.csv", "evaluated.json", "report.html")
MARK: Final = "DEMO.txt"
NEEDED: Final = {
    "embedded": "xllamacpp",
    "aris": "ijson",
    "structured": "json_repair",
    "report": "jinja2",
}


def run_demo(folder: Path, *, rows: int = 200) -> int:
    """Run the demonstration, leaving its files in `folder`; 0 if every row got an answer, 1 if not.

    Raises MissingExtraError without the extras embedded, aris, structured and report, and ConfigError for a
    folder that holds files of the same names which are no demonstration's. A run that was stopped half way
    raises as any other run does; the same call goes on with it.
    """
    _check_extras()
    if rows < LEAST:
        raise ConfigError(
            f"--rows {rows}: of fewer than {LEAST} candidates nobody may have anything to judge by"
        )
    from ollama_batch.analysis import analyze
    from ollama_batch.aris import (
        PraxisEvaluation,
        PraxisTemplate,
        rank,
        read_candidates,
        to_requests,
        write_evaluations,
        write_requests,
    )
    from ollama_batch.aris.synthetic import write_export
    from ollama_batch.engines.embedded import EmbeddedEngine
    from ollama_batch.runner import BatchRunner

    _check_folder(folder)
    export, source, output = (
        folder / name for name in ("export.json", "requests.jsonl", "evaluations.jsonl")
    )
    _forget_finished(output)

    _step(1, "An export of candidate profiles, as Aris writes them; nobody in it exists")
    write_export(export, rows, overwrite=True)
    candidates = read_candidates(export)
    requests = to_requests(candidates, PraxisTemplate())
    write_requests(requests, source, overwrite=True)
    (folder / "schema.json").write_text(json.dumps(PraxisEvaluation.model_json_schema(), indent=2) + "\n")
    _say(f"{candidates.quality}")
    _say(f"{requests.counts.made} requests; {requests.counts.empty} profiles have nothing to judge by")

    _step(2, "The run")
    _say(_TOY)
    engine = EmbeddedEngine.toy(num_ctx=NUM_CTX)
    try:
        runner = BatchRunner(model=TOY, engine=engine, num_ctx=NUM_CTX, response_model=PraxisEvaluation)
        report = runner.run(source, output=output, overwrite=True)
    finally:
        asyncio.run(engine.aclose())
    _say(f"\n{report}")

    _step(3, "The ranking (meaningless, as said)")
    journal = output.with_name(f"{output.name}.run.db")
    ranking = rank(journal)
    ranking.to_csv(folder / "ranking.csv", overwrite=True)
    for candidate in islice(ranking.candidates, 3):
        _say(f"  {candidate.rank}. {candidate.custom_id}  {candidate.recommendation}  {candidate.score:.2f}")

    _step(4, "Back into the export, and a page to look at")
    _say(str(write_evaluations(export, journal, folder / "evaluated.json", overwrite=True)))
    labels = ["Strong Yes", "Yes", "Maybe", "No", "Strong No"]
    analyze(journal, fields={"recommendation": labels}).to_html(folder / "report.html", overwrite=True)

    _say(f"\nFiles in {folder}:")
    for path in sorted(folder.iterdir()):
        _say(f"  {path.name:<26} {path.stat().st_size:>11,} bytes")
    _say(_NEXT.format(source=source, output=folder / "mine.jsonl", schema=folder / "schema.json"))
    return 0 if report.ok else 1


def _check_extras() -> None:
    missing = [extra for extra, module in NEEDED.items() if find_spec(module) is None]
    if missing:
        raise MissingExtraError(
            f'the demonstration needs more: pip install ".[{",".join(missing)}]" in the project\'s folder'
        )


def _check_folder(folder: Path) -> None:
    """Make the folder; nobody's files are written over but those of an earlier demonstration."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--folder {folder}: is a file")
    foreign = [name for name in MADE if (folder / name).exists()]
    if foreign and not (folder / MARK).exists():
        raise ConfigError(
            f"--folder {folder}: holds {foreign[0]}, which is no demonstration's; give another folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).write_text("Made by `ollama-batch demo`, which may write over the files here.\n")


def _forget_finished(output: Path) -> None:
    """Remove what a finished demonstration left, so that the next shows more than that it is finished."""
    from ollama_batch.journal import RunJournal

    journal = output.with_name(f"{output.name}.run.db")
    if not journal.exists():
        return
    with RunJournal.open_readonly(journal) as earlier:
        if earlier.state != "finished" or earlier.identity.get("model") != TOY:
            return
    journal.unlink()
    output.unlink(missing_ok=True)


_TOY = """\
*** TOY MODEL: random weights, the answers mean nothing. ***
The engine is a real llama.cpp; the run, its report and its files are real.
Ctrl-C stops it, and the same command goes on where it stopped.
"""

_NEXT = """
With your own Ollama, the same requests and real answers:

  ollama pull gemma3:12b
  ollama-batch run {source} -o {output} --schema {schema} --model gemma3:12b

With your own export, first `ollama-batch aris EXPORT.json -o requests.jsonl`. Step by step, in Python:
notebooks/02_aris_evaluation.ipynb"""


def _step(number: int, title: str) -> None:
    _say(f"\n{number}. {title}\n")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
