"""PraxisTemplate: the head, what users replace, what is left out, the optional sections and their caps."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from aris_support import changed, deep, whole
from ollama_batch import BatchRequest
from ollama_batch.aris import ANSWER_FORMAT, CRITERIA, MESSAGE, Candidate, PraxisTemplate
from ollama_batch.aris.synthetic import synthetic_candidates
from ollama_batch.errors import ConfigError
from ollama_batch.tokens import EstimateCounter

COUNTER = EstimateCounter()


def made(template: PraxisTemplate, candidate: dict[str, Any]) -> BatchRequest:
    request = template.request(Candidate.model_validate(candidate))
    assert request is not None
    return request


def user(candidate: dict[str, Any], **options: Any) -> str:
    return str(made(PraxisTemplate(**options), candidate).messages[1]["content"])


def test_the_head_is_the_same_bytes_for_every_candidate() -> None:
    template = PraxisTemplate()
    requests = [template.request(Candidate.model_validate(each)) for each in synthetic_candidates(60)]
    heads = {request.messages[0]["content"] for request in requests if request is not None}
    assert heads == {CRITERIA}
    assert {request.messages[0]["role"] for request in requests if request is not None} == {"system"}


def test_profile_comes_before_the_form_of_the_answer_which_is_last() -> None:
    text = user(whole())
    assert text.startswith("<profile>\nName: Dana Moreau\n")
    assert text.endswith(f"</profile>\n\n{ANSWER_FORMAT}")


def test_the_form_of_the_answer_names_the_fields_and_words_of_a_praxis_evaluation() -> None:
    for name in ("recommendation", "reasoning", "analysis", "rating", "value"):
        assert f'"{name}":' in ANSWER_FORMAT
    for name in ("educational_pedigree", "company_pedigree", "trajectory", "is_software_engineer"):
        assert f'"{name}": {{' in ANSWER_FORMAT
    assert re.findall(r'"(Strong Yes|Yes|Maybe|No|Strong No)"', ANSWER_FORMAT) == [
        *("Strong Yes", "Yes", "Maybe", "No", "Strong No")
    ]
    assert '"Great", "Good", "Average", "Weak", "None"' in ANSWER_FORMAT


def test_the_criteria_are_about_as_long_as_those_of_the_original() -> None:
    assert 300 <= COUNTER.count_text(CRITERIA) <= 600


def test_a_request_has_the_candidates_id_and_the_settings() -> None:
    assert made(PraxisTemplate(), whole("x")).custom_id == "x"
    assert made(PraxisTemplate(), whole()).params == {"temperature": 0, "max_tokens": 1024}
    assert made(PraxisTemplate.original(), whole()).params == {"temperature": 0.7, "max_tokens": 2000}
    assert made(PraxisTemplate.original(max_tokens=500), whole()).params["max_tokens"] == 500
    template = PraxisTemplate(temperature=None, max_tokens=None, model="m", params={"seed": 1})
    assert made(template, whole()).params == {"model": "m", "seed": 1}
    assert made(PraxisTemplate(), whole()).metadata == {}, "nothing of a person travels beside the prompt"


def test_every_part_can_be_replaced_by_a_text_a_file_or_a_function(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("\ufeffJudge.\n", encoding="utf-8")
    (tmp_path / "m.txt").write_text('{role} / {skills} {"a": 1}\n{answer_format}', encoding="utf-8")
    request = made(
        PraxisTemplate(
            criteria=tmp_path / "c.txt", message=tmp_path / "m.txt", answer_format=lambda: "One word."
        ),
        whole(),
    )
    assert [message["content"] for message in request.messages] == [
        "Judge.\n",
        'Staff Engineer at Fernhill Software / Python, Go {"a": 1}\nOne word.',
    ]
    request = made(PraxisTemplate(message=lambda candidate: f"Who is {candidate.aristotle_id}?"), whole())
    assert request.messages[1]["content"] == "Who is c-1?"
    request = made(PraxisTemplate(criteria="Judge.", message="{work}", answer_format="x"), whole())
    assert request.messages[1]["content"].startswith("- Staff Engineer at Fernhill")


def test_what_a_candidate_says_is_no_template() -> None:
    text = user(changed("gemData.title", "{answer_format} {work} {nobody}"))
    assert "Current role: {answer_format} {work} {nobody} at" in text
    assert text.count(ANSWER_FORMAT) == 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"criteria": ""}, "criteria: must be a text"),
        ({"criteria": Path("none.txt")}, "criteria='none.txt': cannot be read: No such file"),
        ({"message": "{nam}"}, r"message has \{nam\}, which is no part of a profile: there are \{name\}, "),
        (
            {"message": "Judge this one."},
            r"message names nothing of a candidate, so .* put some of \{name\}, ",
        ),
        (
            {"message": "Judge.\n{answer_format}"},
            "names nothing of a candidate, so that all prompts would be",
        ),
        (
            {"message": "Judge {name}.", "omit": ["name"]},
            "names nothing of a candidate that is not omitted, so that all prompts would be the same: put",
        ),
        (
            {"message": "{sections}\nJudge."},
            r"names nothing of a candidate \(\{sections\} is empty without cv_tokens=, swarm_tokens= or",
        ),
        (
            {"message": "{work}", "cv_tokens": 9},
            r"cv_tokens=9: would be in no prompt, since message has no \{sec",
        ),
        (
            {"message": "Hm.", "praxis_tokens": 9},
            r"praxis_tokens=9: would be in no prompt, since message has",
        ),
        ({"answer_format": lambda: None}, "answer_format: must be a text"),
        ({"omit": ["shoe"]}, "omit='shoe': must be one of name, role,"),
        ({"omit": "name"}, r"omit='name': must be a list of parts, as in \['name'\]"),
        ({"cv_tokens": -1}, "cv_tokens=-1: must be 0 or more"),
        ({"max_tokens": 0}, "max_tokens=0: must be 1 or more"),
        ({"temperature": 3}, "temperature=3: must be between 0 and 2"),
    ],
)
def test_a_wrong_option_is_named_when_the_template_is_made(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        PraxisTemplate(**options)


@pytest.mark.parametrize("place", ["name", "role", "location", "work", "education", "skills"])
def test_a_message_that_names_one_thing_of_a_candidate_tells_candidates_apart(place: str) -> None:
    template = PraxisTemplate(message=f"Judge this: {{{place}}}")
    one = changed("gemData.first_name", "Robin")
    one["gemData"].update(
        title="Baker", location="Oslo", skills=["Bread"], work_info=[{"title": "Baker"}], education_info=[]
    )
    assert made(template, one).messages[1] != made(template, whole()).messages[1]


def test_what_needs_no_place_for_the_candidate_is_taken_without_one() -> None:
    """A system prompt is the same for all; sections may be all there is; a function knows what it does."""
    assert made(PraxisTemplate(criteria="Judge kindly."), whole()).messages[0]["content"] == "Judge kindly."
    template = PraxisTemplate(message="Judge.\n{sections}", cv_tokens=50)
    assert made(template, changed("cvData", "Bakes.")).messages[1]["content"].endswith("Bakes.\n</resume>")
    assert made(PraxisTemplate(message=lambda _: "Say yes."), whole()).messages[1]["content"] == "Say yes."


# What is left out


def test_an_omitted_name_is_nowhere() -> None:
    candidate = whole()
    candidate["gemData"]["company"] = "DANA MOREAU Consulting"
    candidate["cvData"] = {
        "name": "Dana Moreau",
        "fullName": "Dana Moreau",
        "linkedin_url": "https://example.com/in/dana-moreau",
        "summary": "Dana wrote it. Moreau, Dana: engineer. For Dana's team.",
        "employer": {"name": "Oakline"},
    }
    text = user(candidate, omit=["name"], cv_tokens=500)
    assert "dana" not in text.lower()
    assert "moreau" not in text.lower()
    assert "Name:" not in text.split("<resume>")[0]
    assert "Current role: Staff Engineer at [name] Consulting\n" in text
    assert "summary: [name] wrote it. [name]: engineer. For [name]'s team.\n" in text
    assert "  name: Oakline\n" in text
    assert "Dana" in user(candidate, cv_tokens=500)


def test_a_word_that_is_also_a_name_stays_in_the_profile() -> None:
    candidate = changed("gemData.first_name", "Art")
    candidate["gemData"]["education_info"][0]["degree"] = "Bachelor of Art"
    assert "Bachelor of Art," in user(candidate, omit=["name"])


@pytest.mark.parametrize("part", ["name", "location", "role", "skills"])
def test_the_line_of_an_omitted_part_is_gone(part: str) -> None:
    label = {"name": "Name:", "location": "Location:", "role": "Current role:", "skills": "Skills:"}[part]
    assert label in user(whole())
    assert label not in user(whole(), omit=[part])


@pytest.mark.parametrize("omit", [(), ("email", "phone", "photo"), ("name",)])
def test_contact_data_is_never_in_a_prompt(omit: tuple[str, ...]) -> None:
    candidate = changed("gemData.location", "Berlin, secret@example.com, +49 30 1234567")
    secrets = {
        **dict.fromkeys(("email", "E-Mail", "workEmail", "phone_number", "mobile", "tel"), "secret"),
        **{key: ["secret"] for key in ("photo", "profile_photo_url", "avatarUrl", "picture", "fax", "dob")},
        "about": "write to secret@example.com or +1 555 010 9999",
        "kept": "mobile development, mail servers",
        "mobile_development": "3 years",
    }
    candidate.update(cvData=secrets, swarmData=[secrets], praxisData={"x": secrets})
    text = user(candidate, omit=omit, cv_tokens=500, swarm_tokens=500, praxis_tokens=500)
    assert "secret" not in text
    assert "555" not in text
    assert "1234567" not in text
    assert text.count("kept: mobile development, mail servers") == 3
    assert text.count("mobile_development: 3 years") == 3
    assert "Location: Berlin, [e-mail], [phone]\n" in text


# Sections

PARTS = {"cv": "resume", "swarm": "enrichment", "praxis": "earlier_analysis"}


@pytest.mark.parametrize(("part", "tag"), PARTS.items())
def test_a_section_is_off_until_it_is_given_tokens(part: str, tag: str) -> None:
    candidate = changed(f"{part}Data", {"said": "this"})
    assert f"<{tag}>" not in user(candidate)
    text = user(candidate, **{f"{part}_tokens": 50})
    assert f"</profile>\n\n<{tag}>\nsaid: this\n</{tag}>\n\n{ANSWER_FORMAT}" in text


@pytest.mark.parametrize("value", [None, "", {}, [], {"a": None, "b": [{}, ""]}, {"email": "x@example.com"}])
def test_a_section_without_anything_to_say_is_not_there(value: Any) -> None:
    assert user(changed("cvData", value), cv_tokens=50) == user(whole())


def test_a_section_is_an_outline_without_what_is_empty_or_unknown() -> None:
    cv = {
        "summary": "Builds\n  things",
        "jobs": [
            {"at": "A", "from": "2012-03-01", "to": "1970-01-01", "note": None},
            {"at": "B"},
            "freelance",
        ],
        "open": True,
        "score": 0.5,
        "nothing": {"x": [None, ""]},
        "zero": 0,
    }
    text = user(changed("cvData", cv), cv_tokens=200)
    assert text.split("<resume>\n")[1].split("</resume>")[0].splitlines() == [
        "summary: Builds things",
        "jobs:",
        *("  -", "    at: A", "    from: 2012-03-01", "    to: unknown", "  -", "    at: B", "  - freelance"),
        "open: yes",
        "score: 0.5",
        "zero: 0",
    ]


@pytest.mark.parametrize("most", [1, 5, 40, 300])
@pytest.mark.parametrize(
    "value", ["word " * 50_000, ["\u6e21" * 30] * 5_000, {f"key {n}": "v" for n in range(9_000)}, deep(60)]
)
def test_a_section_has_at_most_its_tokens_and_a_mark_where_it_was_cut(most: int, value: Any) -> None:
    text = user(changed("swarmData", value), swarm_tokens=most)
    inner = text.split("<enrichment>\n")[1].split("\n</enrichment>")[0] if "<enrichment>" in text else ""
    assert COUNTER.count_text(inner) <= most
    assert inner == "" or inner.endswith("[...]")
    if most >= 40:
        assert inner


def test_the_cap_is_counted_by_the_counter_that_is_given() -> None:
    class Words(EstimateCounter):
        def count_text(self, text: str) -> int:
            return len(text.split())

    text = user(changed("cvData", "one two three four five"), cv_tokens=4, counter=Words())
    assert "<resume>\none two three [...]\n</resume>" in text


def test_where_the_profile_says_nothing_a_section_can() -> None:
    candidate = Candidate.model_validate({"aristotleId": "a", "cvData": {"summary": "Builds things"}})
    assert PraxisTemplate().request(candidate) is None
    request = PraxisTemplate(cv_tokens=50).request(candidate)
    assert request is not None
    text = request.messages[1]["content"]
    assert "Work history, newest first:\nnot given\n" in text
    assert "summary: Builds things" in text
    assert PraxisTemplate(message=lambda _: "").request(candidate) is None


def test_the_message_is_made_of_known_parts() -> None:
    assert PraxisTemplate().message == MESSAGE
    assert PraxisTemplate() == PraxisTemplate()


@pytest.mark.parametrize("option", ["criteria", "message", "answer_format"])
def test_the_name_of_a_file_is_never_taken_for_a_text(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my words.txt").write_text("{work} Judge.")
    for name in ("../cli/crit.txt", "my words.txt"):
        with pytest.raises(ConfigError, match=f"{option}='.*' is the name of a file; .* give Path"):
            PraxisTemplate(**{option: name})
    PraxisTemplate(**{option: Path("my words.txt")})
    PraxisTemplate(**{option: "{work} is in another file.txt"})
    PraxisTemplate(**{option: "Judge {work} by\nrules.txt"})


def test_a_part_of_a_profile_in_the_criteria_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    PraxisTemplate(criteria="Judge {name}, as JSON such as {yes}.")
    assert [record.getMessage() for record in caplog.records] == [
        "criteria= has {name}, which is sent as it is: it belongs in the message"
    ]
