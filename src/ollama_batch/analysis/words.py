"""The words that a response model gives a field, as the journal of its run has them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def words_of(settings: Mapping[str, Any], path: str) -> Sequence[str]:
    """The words that the answers of a run with these `settings` can have at `path`, as its response model
    spells them; none where it has no model, or one that lists none there.
    """
    form = settings.get("response_model")
    schema = form.get("schema") if isinstance(form, Mapping) else None
    if not isinstance(schema, Mapping):
        return ()
    nodes = list(_parts(schema, schema))
    for name in path.split("."):
        nodes = [part for node in nodes for below in _below(node, name) for part in _parts(below, schema)]
    listed = [word for node in nodes for word in (*_list(node.get("enum")), node.get("const"))]
    return list(dict.fromkeys(word for word in listed if isinstance(word, str)))


def _below(node: Mapping[str, Any], name: str) -> Iterator[Any]:
    properties = node.get("properties")
    if isinstance(properties, Mapping) and name in properties:
        yield properties[name]
    if name.isdecimal():
        yield node.get("items")


def _parts(
    node: Any, root: Mapping[str, Any], followed: set[str] | None = None
) -> Iterator[Mapping[str, Any]]:
    """A schema, and those that it refers to or chooses from; each reference is followed once."""
    if not isinstance(node, Mapping):
        return
    followed = set() if followed is None else followed
    yield node
    reference = node.get("$ref")
    if isinstance(reference, str) and reference.startswith("#/") and reference not in followed:
        followed.add(reference)
        target: Any = root
        for name in reference[2:].split("/"):
            target = target.get(name) if isinstance(target, Mapping) else None
        yield from _parts(target, root, followed)
    for choice in ("anyOf", "oneOf", "allOf"):
        for each in _list(node.get(choice)):
            yield from _parts(each, root, followed)


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else ()
