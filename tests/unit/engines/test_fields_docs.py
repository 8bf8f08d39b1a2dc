from pathlib import Path

from ollama_batch.engines.fields import render_docs

DOCS = Path(__file__).parents[3] / "docs" / "body-fields.md"


def test_the_documented_table_is_the_one_that_is_used() -> None:
    """Regenerate with: python -m ollama_batch.engines.fields > docs/body-fields.md"""
    assert DOCS.read_text(encoding="utf-8") == render_docs()
