"""Verdicts, exit codes, and the two ways in which people read them."""

from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from rich.console import Console

from forerun.certify import Certificate, CertifyConfig, Check, certify
from forerun.certify.certificate import NEAR_TIE, decided
from forerun.certify.divergence import judged
from forerun.certify.doubles import double
from forerun.certify.html import page
from forerun.certify.report import chosen, notes, table
from forerun.certify.subject import Setting
from forerun.types import InvalidInputError

PROMPTS = ["one", "<two> & three"]


@pytest.fixture(scope="module")
def certificates():
    return {
        name: certify(double(name), PROMPTS, CertifyConfig(seed=1, command="forerun certify --target x"))
        for name in ("match", "loose_greedy")
    }


def certificate_of(*statuses):
    checks = tuple(Check("parity", "greedy parity", "", status, "") for status in statuses)
    return Certificate({"name": "x"}, {}, 1, 1e-4, checks, ())


@pytest.mark.parametrize(
    ("statuses", "verdict", "exit_code"),
    [
        (("passed", "reported", "skipped"), "certified", 0),
        (("passed", "failed"), "not certified", 1),
        (("reported", "skipped"), "could not run", 2),
        ((), "could not run", 2),
    ],
)
def test_verdict(statuses, verdict, exit_code):
    found = certificate_of(*statuses)
    assert (found.verdict, found.exit_code) == (verdict, exit_code)


def test_statistical_tests_are_judged_together():
    check = Check("law", "a", "", "skipped", "")
    parity = replace(check, status="passed")
    found = decided([parity, *(replace(check, p_value=value) for value in (4e-5, 4e-5, 0.5))], 1e-4)
    assert [each.status for each in found] == ["passed", "passed", "passed", "passed"], "each alone would have failed"
    assert decided([replace(check, p_value=4e-5)], 1e-4)[0].status == "failed"


def test_a_near_tie_is_within_the_tolerance():
    setting = Setting(0.0, 4, 2)
    for margin, tie in ((0.1, True), (0.3, False), (None, False)):
        found = judged("p", 1, setting, 1, (1, 2), (1, 3), margin, 0.2, "so")
        assert (found.verdict == NEAR_TIE) is tie and (found.plain, found.speculative) == ("2", "3")
    assert judged("p", 1, setting, 1, (1, 2), (1,), None, None, "so").speculative == "nothing"


def test_json_round_trip_and_repeat(certificates):
    for found in certificates.values():
        read = json.loads(json.dumps(found.as_dict()))
        assert read["verdict"] == found.verdict and read["seed"] == 1 and read["repeat"] == "forerun certify --target x --seed 1"
        assert {"subject", "settings", "checks", "divergences", "false_alarm", "margins"} <= set(read)


def test_the_table_and_the_notes(certificates):
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    bad = certificates["loose_greedy"]
    with console.file:
        console.print(table(bad))
        for line in notes(bad):
            console.print(line)
    text = console.export_text()
    for words in (
        "loose_greedy: not certified",
        "greedy parity",
        "failed",
        "wrong: 'one'",
        "margin",
        "2 statistical tests",
        "the same again",
    ):
        assert words in text
    assert "wrong" not in " ".join(notes(certificates["match"]))


def test_wrong_divergences_are_shown_first():
    setting = Setting(0.0, 4, 2)
    ties = [judged("p", 1, setting, 0, (1,), (2,), 0.1, 0.2, "") for _ in range(9)]
    wrong = judged("p", 1, setting, 0, (1,), (2,), 0.5, 0.2, "")
    assert chosen([*ties, wrong])[0] is wrong and len(chosen([*ties, wrong])) == 5


class Outside(HTMLParser):
    """What a page would load, and whether its tags close."""

    def __init__(self):
        super().__init__()
        self.loaded, self.open = [], []

    def handle_starttag(self, tag, attributes):
        self.loaded += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "rect", "line"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.open:
            assert self.open.pop() == tag


def test_the_page_is_whole_escaped_and_alone(certificates):
    for found in certificates.values():
        text = page(found)
        parser = Outside()
        parser.feed(text)
        assert parser.loaded == [] and parser.open == [] and "http" not in text.replace("http-equiv", "")
        assert found.verdict in text and "<two>" not in text and "<svg" in text and "<rect" in text
    assert page(certificates["loose_greedy"]).count("<line") > len(certificates["loose_greedy"].divergences)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_tokens": 0}, {"batch_size": 0}, {"temperatures": ()}, {"draft_lengths": (0,)}, {"draft_lengths": ("many",)}, {"distance": 0.0},
        {"distance": 1.5}, {"false_alarm": 0.0}, {"power": 1.0}, {"acceptances": ()}, {"acceptances": ("loose",)}, {"temperatures": (-1.0,)},
        {"seed": -1},
    ],
)  # fmt: skip
def test_bad_settings_are_refused(wrong):
    with pytest.raises(InvalidInputError):
        CertifyConfig(**wrong)


def test_no_prompts_are_refused():
    with pytest.raises(InvalidInputError, match="prompts"):
        certify(double("match"), [], CertifyConfig())
