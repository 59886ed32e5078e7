"""Two servers under examination, end to end over HTTP on this machine."""

from __future__ import annotations

import socket

import pytest
from serving import SECRET, served

from forerun.certify import CertifyConfig, certify
from forerun.certify.certificate import NEAR_TIE, WRONG
from forerun.certify.doubles import Double
from forerun.certify.endpoints import Endpoint, EndpointError, EndpointSubject, read_key
from forerun.certify.subject import END, Setting
from forerun.types import InvalidInputError

PROMPTS = ["one", "two", "three"]
QUICK = CertifyConfig(temperatures=(0.0, 1.0), draft_lengths=("auto",), max_tokens=12, batch_size=4, seed=2, distance=0.35)


def examined(double, config=QUICK, **how):
    with served(Double(rule="match"), 0) as plain, served(double, 4, **how) as speculative:
        with EndpointSubject(Endpoint(plain, "m", SECRET), Endpoint(speculative + "/v1/", "m", SECRET), 0.15) as subject:
            return certify(subject, PROMPTS, config)


def statuses(certificate):
    return {check.name: check.status for check in certificate.checks}


@pytest.mark.parametrize("how", [{}, {"shape": "objects"}, {"refuses_logprobs": True}], ids=str)
def test_a_correct_server_is_certified(how):
    found = examined(Double(), **how)
    first = "skipped" if "refuses_logprobs" in how else "passed"
    assert found.verdict == "certified"
    assert statuses(found) == {
        "greedy parity": "passed", "seeded parity": "reported", "joint law of 3 tokens against plain's": "passed", "first token against plain logprobs": first,
    }  # fmt: skip
    assert SECRET not in str(found.as_dict())


def test_a_law_that_is_bent_is_caught():
    found = examined(Double(fault="argmax_draft"))
    assert found.verdict == "not certified" and statuses(found)["joint law of 3 tokens against plain's"] == "failed"


@pytest.mark.parametrize("how", [{}, {"refuses_logprobs": True}], ids=str)
def test_a_greedy_fault_is_caught_with_its_margin(how):
    found = examined(
        Double(fault="loose_greedy"),
        CertifyConfig(temperatures=(0.0,), draft_lengths=("auto",), max_tokens=12, batch_size=1, seed=2),
        **how,
    )
    assert found.verdict == "not certified" and found.divergences
    for each in found.divergences:
        assert each.verdict == WRONG and each.tolerance == 0.15 < each.margin <= 0.6932  # the fault lets half as likely letters pass


def test_a_threshold_makes_near_ties(monkeypatch):
    with served(Double(), 0) as plain, served(Double(fault="loose_greedy"), 4) as fast:
        with EndpointSubject(Endpoint(plain, "m", SECRET), Endpoint(fast, "m", SECRET), 0.7) as subject:
            setting = Setting(0.0, 12, "auto")
            one, other = (subject.complete(PROMPTS, [1] * 3, each)[0] for each in (Setting(0.0, 12), setting))
            assert subject.judge(PROMPTS[0], 1, setting, one, other).verdict == NEAR_TIE
            ended = subject.judge(PROMPTS[0], 1, setting, one, (*one[:2], END))
            assert ended.verdict == WRONG and ended.margin is None and "not among" in ended.how


def test_a_seed_that_is_kept_shows():
    found = examined(Double(rule="match"))
    assert all("3/3 the same" in check.summary for check in found.checks if check.name == "seeded parity")
    assert statuses(found)["seeded parity"] == "reported"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_errors_name_the_url_and_hide_the_key():
    with served(Double(), 0) as plain, served(Double(), 4, moved="http://127.0.0.1:9/v1/completions") as moved:
        cases = {
            f"http://127.0.0.1:{free_port()}": "ConnectError",
            moved: "307 .redirects are not followed",
            plain: "401.*give a key",
        }
        for url, words in cases.items():
            endpoint = Endpoint(url, "m", "sk-another")
            with pytest.raises(EndpointError, match=f"{url}.*{words}") as caught:
                endpoint.complete("a", 0, Setting(0.0, 1), None)
            endpoint.close()
            assert "sk-another" not in str(caught.value)


@pytest.mark.parametrize(
    "body", [{}, {"choices": []}, {"choices": [{}]}, {"choices": [{"text": "a", "logprobs": {"content": [3]}}]}], ids=str
)
def test_an_answer_that_is_no_completion_is_refused(monkeypatch, body):
    monkeypatch.setattr("serving.answer", lambda *_: (200, body))
    with served(Double(), 0) as url:
        endpoint = Endpoint(url, "m", SECRET)
        with pytest.raises(EndpointError, match="no completion"):
            endpoint.complete("a", 0, Setting(0.0, 1), None)
        endpoint.close()


def test_keys_are_read_from_files(tmp_path):
    key = tmp_path / "key"
    key.write_text(f"{SECRET}\n")
    assert read_key(key) == SECRET and read_key(None) is None
    for wrong in ("", "two\nlines", "schlüssel"):
        key.write_text(wrong, encoding="utf-8")
        with pytest.raises(InvalidInputError, match="api_key_file"):
            read_key(key)
    with pytest.raises(InvalidInputError, match="api_key_file"):
        read_key(tmp_path / "missing")


def test_bad_addresses_and_thresholds_are_refused():
    with pytest.raises(InvalidInputError, match="url"):
        Endpoint("localhost:8000", "m", None)
    with pytest.raises(InvalidInputError, match="tie_margin"):
        EndpointSubject(None, None, -1.0)
