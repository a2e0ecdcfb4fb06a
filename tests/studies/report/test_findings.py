"""The words about what was found: their form, their placeholders, and what comes of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from halflife.errors import UserError
from halflife.studies.catalog import get_study
from halflife.studies.evidence.verdicts import StudyResults
from halflife.studies.report.facts import Facts, findings_html, findings_markdown
from halflife.studies.report.findings import check_findings, read_findings
from halflife.studies.report.pages.tables import effect_text, rule_rows
from tests.studies.synthetic import make_store

TEXT = """# Found

Some words, and
more of them.

## Does it {0} help?
Answer: Yes {{stabilization.helps.mark}}, ||w||.
Studies: stabilization, lm-schedules

It changes the error by {{stabilization.helps}}; **bold** <b>, `lr * lam`, [paper](https://arxiv.org/abs/1),
{{lm-schedules.scale}}.

- One: {{stabilization.helps.estimate}} {{stabilization.helps.interval}}, {{stabilization.helps.n}}.
- Two: {{stabilization@night.small-rate.given1.effect}} of
  {{stabilization.small-rate.given1.quantity}} {{stabilization.small-rate.given1.outcome}}.

## And what else?
Answer: Nothing.
Studies: timescale

Words that are not shown where nothing of it was run {{timescale.batch.effect}}.

{{undecided}}

## What is open?
Answer: These.
Studies: stabilization

{{undecided}}

{{not tested}}
"""
WORDS = TEXT.format("really")


def link(study: str, preset: str, claim: str) -> str:
    return f"{study}/{preset}.html" + (f"#{claim}" if claim else "")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, StudyResults]:
    folder = tmp_path_factory.mktemp("findings") / "store"
    make_store(folder)
    store = make_store(folder, preset="night", sizes=(4, 8))
    return {m["preset"]: StudyResults(store, get_study(m["study"]), m) for m in store.manifests()}


@pytest.fixture(scope="module")
def facts(found: dict[str, StudyResults]) -> Facts:
    return Facts([(results, results.verdicts()) for results in found.values()], link)


def test_the_words_of_the_package_name_what_there_is() -> None:
    check_findings(read_findings())


def test_numbers_and_marks_are_those_of_the_verdicts(found: dict[str, StudyResults], facts: Facts) -> None:
    text = findings_markdown(read_findings(WORDS), facts)
    verdicts = {v.claim.key: v for v in found["night"].verdicts()}
    helps = verdicts["helps"].finding
    assert helps.effect is not None
    words = effect_text(helps.effect, "points")
    mark = f"{helps.outcome}](stabilization/night.html#helps)"
    assert f"It changes the error by {words}, [" in text
    assert text.count(mark) >= 2
    assert f"- One: {words.replace(' points [', ' points [')}, 2 seeds, 120 examples." in text
    given = rule_rows([row for row in verdicts["small-rate"].finding.rows if row.role == "given"])[0]
    assert f"- Two: {given['effect']} of {given['quantity']} {given['outcome']}." in text
    assert "`lr * lam`, [paper](https://arxiv.org/abs/1), not run here." in text
    assert "| [1. Does it really help?](#question-1) | Yes [" in text
    assert "| [stabilization](stabilization/night.html), lm-schedules |" in text
    assert '<a id="question-1"></a>\n\n## 1. Does it really help?\n' in text
    assert "Some words, and more of them." in text
    assert r", \|\|w\|\|. | [stabilization]" in text, "a cell has no bare bar"
    assert "{" not in text


def test_a_preset_can_be_named_and_the_largest_whole_one_speaks_otherwise(
    found: dict[str, StudyResults], facts: Facts
) -> None:
    laptop, night = (facts.filled(f"{{stabilization@{preset}.helps}}") for preset in ("laptop", "night"))
    assert facts.filled("{stabilization.helps}") == night != laptop
    assert "laptop.html#helps" in laptop
    assert facts.filled("{stabilization@paper.helps}") == "not run here"
    assert "decided at width 8 with 2 seeds" in facts.filled("{stabilization.scale}")
    assert facts.filled("{stabilization.link}") == (
        "[Loss stabilization in a ResNet with BatchNorm](stabilization/night.html)"
    )
    assert facts.filled("{timescale.link}") == "The time scale of the decay"


def test_open_claims_are_listed_with_their_reasons(found: dict[str, StudyResults], facts: Facts) -> None:
    text = findings_markdown(read_findings(WORDS), facts).partition("What is open?\n")[2]
    for verdict in found["night"].verdicts():
        there = f"- [stabilization, {verdict.claim.key}](stabilization/night.html#{verdict.claim.key}): " in text
        assert there == (verdict.finding.outcome in {"undecided", "not tested"})
        if there:
            assert verdict.finding.reason in text


def test_a_question_of_which_nothing_was_run_says_how_to_run_it(facts: Facts) -> None:
    text = findings_markdown(read_findings(WORDS), facts)
    assert "| [2. And what else?](#question-2) | not run here | timescale |" in text
    assert "Not run here: `halflife study run timescale`." in text
    assert "Words that are not shown" not in text


def test_pages_escape_what_is_no_markup(facts: Facts) -> None:
    found = findings_html(read_findings(TEXT.format("<i>")), facts)
    assert found["introduction"] == "<p>Some words, and more of them.</p>"
    first = found["questions"][0]
    assert first["text"] == "Does it <i> help?", "the template escapes it"
    assert "<strong>bold</strong> &lt;b&gt;, <code>lr * lam</code>, " in first["body"]
    assert '<a href="https://arxiv.org/abs/1">paper</a>' in first["body"]
    assert re.search(r'<a class="mark-of [a-z-]+" href="stabilization/night.html#helps">', first["answer"])
    assert first["body"].count("<li>") == 2
    assert "\N{MINUS SIGN}" in first["body"]


def test_a_link_leads_to_a_page_and_to_no_script() -> None:
    text = "# T\n\n[a](javascript:alert) [b](page.html#x) [c](http://d.e/)"
    words = findings_html(read_findings(text), Facts([], link))["introduction"]
    assert words == '<p>[a](javascript:alert) <a href="page.html#x">b</a> <a href="http://d.e/">c</a></p>'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Words.", "line 1: there is no title"),
        ("# A\n\n# B", "line 3: a second title"),
        ("# A\n\n### B", "line 3: '### B' is no title, question, paragraph or list"),
        ("# A\n\n| a | b |", "line 3: .* is no title"),
        ("# A\n\n<div>", "line 3: .* is no title"),
        ("# A\n\n1. one", "line 3: .* is no title"),
        ("# A\n\n## Q?\nAnswer: a\n\nWords", "line 3: the question 'Q\\?' has no line 'Studies: ...'"),
        ("# A\n\n## Q?\nStudies: sphere\n\nWords", "line 3: the question 'Q\\?' has no line 'Answer: ...'"),
    ],
)
def test_another_form_is_an_error_that_names_the_line(text: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"findings.md, {message}"):
        read_findings(text)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("{stabilisation.helps}", "names a study 'stabilisation'"),
        ("{stabilization@weekend.helps}", "names a preset 'weekend'"),
        (
            "{stabilization.helpz}",
            r"has \{stabilization.helpz\}, and stabilization has no such claim, expected one of average",
        ),
        ("{stabilization}", "has no such claim"),
        ("{stabilization.helps.size}", r"expected \{stabilization.helps.FIELD\} with one of estimate"),
        ("{stabilization.helps.part0.effect}", "expected"),
        ("{stabilization.helps.part1}", "expected"),
        ("{stabilization.helps.stake1.effect}", "the rule of stabilization helps has no row stake1"),
        ("see {undecided}", "let it stand alone"),
        ("{stabilization.helps", "has a brace without its partner"),
        ("}", "has a brace without its partner"),
    ],
)
def test_a_placeholder_that_names_nothing_is_an_error(words: str, message: str) -> None:
    text = (
        f"# A\n\n## Q?\nAnswer: a\nStudies: sphere\n\n- item {words}" if "undecided" not in words else f"# A\n\n{words}"
    )
    with pytest.raises(UserError, match=rf"findings.md .*{message}"):
        check_findings(read_findings(text))


def test_the_studies_of_a_question_must_be_known() -> None:
    with pytest.raises(UserError, match="names a study 'spheres' in 'spheres'"):
        check_findings(read_findings("# A\n\n## Q?\nAnswer: a\nStudies: sphere, spheres\n\nWords"))


def test_a_store_without_verdicts_fills_everything_in(tmp_path: Path) -> None:
    """Too few seeds: what is not measured says so, wherever it stands."""
    store = make_store(tmp_path, num_seeds=1)
    results = StudyResults(store, get_study("stabilization"), store.manifests()[0])
    facts = Facts([(results, results.verdicts())], link)
    text = findings_markdown(read_findings(WORDS), facts)
    assert "not measured, [" in text
    assert "1 of 1 seeds are finished in every arm" in text
    assert findings_markdown(read_findings(), facts).count("not run here") > 20
