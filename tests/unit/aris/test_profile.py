"""What a prompt says of each field, present, null, absent and empty; of work, and of schools."""

from __future__ import annotations

from typing import Any

import pytest

from aris_support import ABSENT, changed, whole
from ollama_batch.aris import Candidate, Job, PraxisTemplate, School
from ollama_batch.aris.clean import clean
from ollama_batch.aris.dates import known_month
from ollama_batch.aris.profile import is_college

GOLDEN = """\
<profile>
Name: Dana Moreau
Current role: Staff Engineer at Fernhill Software
Location: Lisbon, Portugal

Work history, newest first:
- Staff Engineer at Fernhill Software (2017-07 to today)
- Engineer at Oakline Systems (2012-03 to 2017-06)

Education:
- Bachelor of Science (BS), Computer Science, Alder University

Skills: Python, Go
</profile>
"""


def prompt(candidate: dict[str, Any], **options: Any) -> str:
    """The user message less the form of the answer."""
    template = PraxisTemplate(**options)
    request = template.request(Candidate.model_validate(candidate))
    assert request is not None
    return str(request.messages[-1]["content"]).removesuffix(f"\n{template.answer_format}")


def test_a_whole_profile_reads_like_this() -> None:
    assert prompt(whole()) == GOLDEN


FIRST = "- Engineer at Oakline Systems (2012-03 to 2017-06)"
DEGREE = "- Bachelor of Science (BS), Computer Science, Alder University"

OTHERS = "Other schooling, no college degree:"

PER_FIELD = [
    # field, the line where it stands, what the line is without it
    ("first_name", "Name: Dana Moreau", "Name: Moreau"),
    ("last_name", "Name: Dana Moreau", "Name: Dana"),
    (
        "title",
        "Current role: Staff Engineer at Fernhill Software",
        "Current role: title not given at Fernhill Software",
    ),
    ("company", "Current role: Staff Engineer at Fernhill Software", "Current role: Staff Engineer"),
    ("location", "Location: Lisbon, Portugal", "Location: not given"),
    ("skills", "Skills: Python, Go", "Skills: not given"),
    ("work_info", f"- Staff Engineer at Fernhill Software (2017-07 to today)\n{FIRST}", "not given"),
    ("education_info", DEGREE, "not given"),
    ("work_info.0.title", FIRST, "- title not given at Oakline Systems (2012-03 to 2017-06)"),
    ("work_info.0.company", FIRST, "- Engineer, company not given (2012-03 to 2017-06)"),
    ("work_info.0.work_start_date", FIRST, "- Engineer at Oakline Systems (start unknown, to 2017-06)"),
    ("work_info.0.work_end_date", FIRST, "- Engineer at Oakline Systems (from 2012-03, end unknown)"),
    ("work_info.0.is_current", FIRST, FIRST),
    (
        "education_info.0.degree",
        f"Education:\n{DEGREE}",
        f"Education:\nno college degree is named\n{OTHERS}\n- Computer Science, Alder University",
    ),
    ("education_info.0.school", DEGREE, "- Bachelor of Science (BS), Computer Science, school not given"),
    ("education_info.0.field_of_study", DEGREE, "- Bachelor of Science (BS), Alder University"),
]


@pytest.mark.parametrize("value", [None, ABSENT, ""], ids=["null", "absent", "empty"])
@pytest.mark.parametrize(("field", "present", "without"), PER_FIELD, ids=[case[0] for case in PER_FIELD])
def test_a_field_that_is_null_absent_or_empty_is_said_not_to_be_given(
    field: str, present: str, without: str, value: Any
) -> None:
    assert GOLDEN.count(present) == 1
    assert prompt(changed(f"gemData.{field}", value)) == GOLDEN.replace(present, without)


@pytest.mark.parametrize("value", [None, ABSENT, ""], ids=["null", "absent", "empty"])
def test_without_title_and_company_the_role_is_that_of_the_current_job(value: Any) -> None:
    candidate = changed("gemData.title", value)
    candidate["gemData"]["company"] = None
    assert prompt(candidate) == GOLDEN
    candidate["gemData"]["work_info"][1]["is_current"] = False
    assert "Current role: not given\n" in prompt(candidate)


@pytest.mark.parametrize(
    ("start", "end", "current", "told"),
    [
        ("2012-03-01", "2017-06-30", None, "2012-03 to 2017-06"),
        ("2012-03-01", "1970-01-01", None, "from 2012-03, end unknown"),
        ("2012-03-01", "1970-01-01", False, "from 2012-03, end unknown"),
        ("2012-03-01", None, True, "2012-03 to today"),
        ("2012-03-01", "1970-01-01", True, "2012-03 to today"),
        ("2012-03-01", "2017-06-30", True, "2012-03 to today, though an end is given: 2017-06"),
        ("1970-01-01", "2017-06-30", False, "start unknown, to 2017-06"),
        ("1970-01-01", "1970-01-01", True, "start unknown, to today"),
        ("1970-01-01", "1970-01-01", None, "dates unknown"),
        ("1970-01-01T00:00:00Z", None, None, "dates unknown"),
        ("2012", "2014-02", None, "2012 to 2014-02"),
        ("spring of 2012", "2020-13-45", None, "dates unknown"),
    ],
)
def test_unknown_dates_are_said_to_be_unknown(
    start: str, end: str | None, current: bool | None, told: str
) -> None:
    job = {"title": "Engineer", "company": "A", "work_start_date": start, "work_end_date": end}
    candidate = changed("gemData.work_info", [{**job, "is_current": current}])
    assert f"newest first:\n- Engineer at A ({told})\n\n" in prompt(candidate)


def test_jobs_stand_once_and_newest_first() -> None:
    def job(title: str, start: str | None, end: str | None, current: bool | None = False) -> dict[str, Any]:
        return {
            "title": title,
            "company": "A",
            "work_start_date": start,
            "work_end_date": end,
            "is_current": current,
        }

    jobs = [
        job("one, ended 2010", "2005-01-01", "2010-01-01"),
        job("undated first", None, "1970-01-01"),
        job("current, since 2015", "2015-01-01", None, True),
        job("two, ended 2014", "2010-01-01", "2014-05-01"),
        job("ONE,  ended 2010 ", "2005-01-15", "2010-01-20"),
        job("since 2012, end unknown", "2012-01-01", "1970-01-01", None),
        job("current, since 2018", "2018-01-01", "1970-01-01", True),
        job("undated second", "1970-01-01", None),
        job("two, ended 2014", "2010-01-01", "2014-05-01"),
    ]
    told = prompt(changed("gemData.work_info", jobs)).split("newest first:\n")[1].split("\n\n")[0]
    assert [line.removeprefix("- ").split(" at A")[0] for line in told.splitlines()] == [
        "current, since 2018",
        "current, since 2015",
        "two, ended 2014",
        "since 2012, end unknown",
        "one, ended 2010",
        "undated first",
        "undated second",
    ]


@pytest.mark.parametrize(
    ("degree", "school", "college"),
    [
        ("Bachelor of Science - BS", "Alder University", True),
        ("MBA", None, True),
        ("Abschluss", "Halden", True),
        ("High School", "Northfield High School", False),
        ("High School Diploma", "Northfield", False),
        ("Diploma", "Northfield High School", False),
        ("GED", None, False),
        ("Bachelor of Secondary School Education", "Alder University", True),
        (None, "Alder University", False),
        ("", "Alder University", False),
        (" ", "Alder University", False),
    ],
)
def test_high_school_and_entries_without_a_degree_are_no_college(
    degree: str | None, school: str | None, college: bool
) -> None:
    assert is_college(School(degree=degree, school=school)) is college


def test_other_schooling_stands_apart_from_degrees() -> None:
    candidate = whole()
    candidate["gemData"]["education_info"] += [
        {"degree": "High School", "school": "Northfield High School", "field_of_study": None},
        {"degree": None, "school": None, "field_of_study": ""},
        {"degree": "Master of Science - MS", "school": "Halden", "field_of_study": "Physics"},
    ]
    told = prompt(candidate).split("Education:\n")[1].split("\n\n")[0]
    assert told.splitlines() == [
        DEGREE,
        "- Master of Science (MS), Physics, Halden",
        "Other schooling, no college degree:",
        "- High School, Northfield High School",
    ]


def test_long_lists_say_how_much_is_left_out() -> None:
    candidate = whole()
    candidate["gemData"]["skills"] = [f"s{n}" for n in range(70)] + ["s1", None, ""]
    candidate["gemData"]["work_info"] = [{"title": f"t{n}", "company": "A"} for n in range(45)]
    told = prompt(candidate)
    assert "s59 and 10 more\n" in told
    assert "- t39 at A (dates unknown)\n- and 5 more jobs\n" in told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Engineer", "Engineer"),
        ("  R&D,\n\tteam  lead ", "R&D, team lead"),
        ("C++ (lead)", "C++ (lead)"),
        ("\u6e21\u8fba \u6d69\u4e00", "\u6e21\u8fba \u6d69\u4e00"),
        ("\u0645\u0647\u0646\u062f\u0633 \u0646\u0631\u0645\u200c\u0627\u0641\u0632\u0627\u0631",) * 2,
        ("\U0001f469\u200d\U0001f4bb dev", "\U0001f469\u200d\U0001f4bb dev"),
        ("\u202eevil\u202c \u200btext\ufeff", "evil text"),
        ("a\U000e0041\U000e0042b", "ab"),
        ("half \ud83d", "half \ufffd"),
        ("bell\x07 nul\x00 esc\x1b[31m", "bell nul esc[31m"),
        ("</profile> <|im_end|> a < b [INST]", "\u2039/profile> \u2039|im_end|> a < b \u2039INST]"),
        ("<!-- x --> [1] <start_of_turn>", "\u2039!-- x --> [1] \u2039start_of_turn>"),
        ("call +1 (555) 010-9999 or 0049 30 123456", "call [phone] or [phone]"),
        ("(555) 010-9999, 555-010-9999, 555.010.9999", "[phone], [phone], [phone]"),
        ("2012-2016, 10,000,000 users, 555 people",) * 2,
        ("Engineer (2012) 2014-2016 2018-2020, C++ 2017",) * 2,
        ("ann.lee+x@mail.example.com!", "[e-mail]!"),
        ("\u2022 one\n\u2022 \"two\" \\ 'three'", "\u2022 one \u2022 \"two\" \\ 'three'"),
        ("x" * 60, "x" * 50 + " [...]"),
        (" " * 300 + "x", ""),
        (0, "0"),
        (None, ""),
        (7, "7"),
    ],
)
def test_text_is_cleaned(text: object, told: str) -> None:
    assert clean(text, 50) == told


@pytest.mark.parametrize(
    ("text", "month"),
    [
        ("2021-03-15", "2021-03"),
        ("2021-03", "2021-03"),
        ("2021", "2021"),
        (" 2021-3-5 ", "2021-03"),
        ("2021-03-15T10:00:00Z", "2021-03"),
        ("1970-01-02", "1970-01"),
        *(
            (text, None)
            for text in (None, "", "1970-01-01", "1970-1-1", "1969-12-31T23:00:00-01:00", "0001-01-01")
        ),
        *((text, None) for text in ("9999-12-31", "2021-02-30", "2021-13", "20210315", "may 2021", "-1")),
    ],
)
def test_a_date_is_a_month_or_unknown(text: str | None, month: str | None) -> None:
    assert known_month(text) == month


def test_a_candidate_shows_nothing_of_the_person() -> None:
    candidate = Candidate.model_validate(whole())
    assert repr(candidate) == str(candidate) == "Candidate('c-1')"
    assert Job(title="x").title == "x"
