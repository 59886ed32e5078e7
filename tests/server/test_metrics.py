"""What /metrics says: names, values, formats, and that nothing ever runs backwards."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from served import Engine, completion, served

from forerun.energy_counters import EnergyCounter
from forerun.server.engine_metrics import WINDOW_SECONDS, EngineCollector
from forerun.server.metrics import FINISHED_REASONS, REFUSALS, Metrics
from forerun.speculator.explanation import MEANINGS

COUNTERS = {
    "vllm:spec_decode_num_drafts_total", "vllm:spec_decode_num_draft_tokens_total", "vllm:spec_decode_num_accepted_tokens_total",
    "vllm:spec_decode_num_accepted_tokens_per_pos_total", "vllm:prompt_tokens_total", "vllm:generation_tokens_total", "vllm:request_success_total",
    "vllm:num_preemptions_total", "vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total", "forerun:decisions_total",
    "forerun:drafted_tokens_total", "forerun:accepted_tokens_total", "forerun:engine_step_seconds_total", "forerun:engine_steps_total",
    "forerun:rows_total", "forerun:draft_seconds_total", "forerun:plain_seconds_total", "forerun:requests_refused_total",
    "forerun:failed_requests_total", "forerun:energy_joules_total",
}  # fmt: skip
GAUGES = {
    "vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc", "forerun:speedup", "forerun:acceptance_length",
    "forerun:draft_time_share", "forerun:rows_per_pass", "forerun:energy_joules_per_token",
}  # fmt: skip
HISTOGRAMS = {
    "vllm:time_to_first_token_seconds", "vllm:inter_token_latency_seconds", "vllm:request_time_per_output_token_seconds", "vllm:e2e_request_latency_seconds",
    "vllm:request_queue_time_seconds", "vllm:request_prefill_time_seconds", "vllm:request_decode_time_seconds",
}  # fmt: skip
PROMETHEUS = "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"


def meter(name="Socket0"):
    """An energy counter that a test turns, in joules."""
    reading = SimpleNamespace(value=1000)
    return reading, EnergyCounter(name, lambda: reading.value, 1.0, wraps_at=5000)


def samples(metrics, accept=None):
    parse = parse_openmetrics if accept else parse_text
    text, _ = metrics.exposition(accept)
    return {(sample.name, *sorted(sample.labels.items())): sample.value for family in parse(text.decode()) for sample in family.samples}


def value(metrics, name, **labels):
    labels |= {"model_name": "tiny", "engine": "0"}
    return samples(metrics)[(name, *sorted(labels.items()))]


@pytest.fixture
def engine():
    return Engine()


@pytest.fixture
def metrics(engine):
    return Metrics(engine, "tiny", drafter_names=["suffix"], energy_counters=[meter()[1]])


@pytest.mark.parametrize("accept", [None, PROMETHEUS])
def test_names_are_exactly_these_in_both_formats(metrics, accept):
    found = {name for name, *_ in samples(metrics, accept)}
    assert COUNTERS | GAUGES <= found and {f"{name}{end}" for name in HISTOGRAMS for end in ("_bucket", "_sum", "_count")} <= found
    metrics.finished(served())
    plain = {name for name in found if not name.endswith("_created")}
    known = COUNTERS | GAUGES | {f"{name}{end}" for name in HISTOGRAMS for end in ("_bucket", "_sum", "_count")}
    assert plain <= known and all(dict(labels).keys() >= {"model_name", "engine"} for _, *labels in samples(metrics, accept))


def test_declared_types(metrics):
    types = {family.name: family.type for family in parse_openmetrics(metrics.exposition(PROMETHEUS)[0].decode())}
    assert {types[name.removesuffix("_total")] for name in COUNTERS} == {"counter"}
    assert {types[name] for name in GAUGES} == {"gauge"} and {types[name] for name in HISTOGRAMS} == {"histogram"}


@pytest.mark.parametrize(
    ("accept", "openmetrics"),
    [
        (None, False), ("", False), ("*/*", False), ("text/plain", False), ("text/html", False), (PROMETHEUS, True),
        ("application/openmetrics-text", True), ("application/openmetrics-text;q=0.2, text/plain;q=0.6", False), ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;version=junk;escaping=\n", True), ("application/openmetrics-text;q=nan,*/*;q=0.1", False), (";;,,;q=,=", False),
    ],
)  # fmt: skip
def test_the_accept_header_chooses_the_format(metrics, accept, openmetrics):
    text, content_type = metrics.exposition(accept)
    assert content_type.startswith("application/openmetrics-text; version=1.0.0" if openmetrics else "text/plain; version=0.0.4")
    assert text.endswith(b"# EOF\n") == openmetrics


def test_the_engines_figures_are_the_snapshots(metrics, engine):
    engine.set(
        num_running=2, num_waiting=3, kv_cache_usage=0.25, num_preemptions=4, prefix_cache_queries=50, prefix_cache_hits=20, num_output_tokens=90,
        num_drafts=10, num_draft_tokens=30, num_accepted_tokens=17, accepted_per_position=(9, 6, 2), decisions={"drafted": 10, "cost": 1},
        drafted_by={"suffix": 20, "grammar": 10}, accepted_by={"suffix": 17},
    )  # fmt: skip
    names = {
        "vllm:num_requests_running": 2, "vllm:num_requests_waiting": 3, "vllm:kv_cache_usage_perc": 0.25, "vllm:num_preemptions_total": 4,
        "vllm:prefix_cache_queries_total": 50, "vllm:prefix_cache_hits_total": 20, "vllm:generation_tokens_total": 90,
        "vllm:spec_decode_num_drafts_total": 10, "vllm:spec_decode_num_draft_tokens_total": 30, "vllm:spec_decode_num_accepted_tokens_total": 17,
    }  # fmt: skip
    assert {name: value(metrics, name) for name in names} == names
    assert [value(metrics, "vllm:spec_decode_num_accepted_tokens_per_pos_total", position=str(position)) for position in range(3)] == [9, 6, 2]
    assert {reason: value(metrics, "forerun:decisions_total", reason=reason) for reason in MEANINGS} == dict.fromkeys(MEANINGS, 0) | {"drafted": 10, "cost": 1}
    assert value(metrics, "forerun:drafted_tokens_total", drafter="suffix") == 20 and value(metrics, "forerun:drafted_tokens_total", drafter="grammar") == 10
    assert value(metrics, "forerun:accepted_tokens_total", drafter="suffix") == 17


def test_a_request_is_measured_by_its_own_times(metrics):
    metrics.finished(served(completions=[completion(num_tokens=5), completion(num_tokens=1, finish_reason="length")]))
    sums = {
        "time_to_first_token_seconds": 0.5, "e2e_request_latency_seconds": 2.5, "request_queue_time_seconds": 0.2, "request_prefill_time_seconds": 0.3,
        "request_decode_time_seconds": 2.0,
    }  # fmt: skip
    for name, seconds in sums.items():
        assert value(metrics, f"vllm:{name}_count") == 2 and value(metrics, f"vllm:{name}_sum") == pytest.approx(2 * seconds)
    # one token has nothing behind its first
    assert value(metrics, "vllm:request_time_per_output_token_seconds_count") == 1
    assert value(metrics, "vllm:request_time_per_output_token_seconds_sum") == pytest.approx(0.5)
    assert [value(metrics, "vllm:request_success_total", finished_reason=reason) for reason in FINISHED_REASONS] == [1, 1, 0]
    assert value(metrics, "vllm:prompt_tokens_total") == 11 and value(metrics, "forerun:failed_requests_total") == 0


def test_moments_that_never_came_are_not_measured(metrics):
    half = completion()
    half.times.first_token = half.times.finished = None
    metrics.finished(served(completions=[half]))
    assert value(metrics, "vllm:request_queue_time_seconds_count") == 1
    assert value(metrics, "vllm:time_to_first_token_seconds_count") == value(metrics, "vllm:request_decode_time_seconds_count") == 0


def test_tokens_that_come_together_are_one_latency(metrics, monkeypatch):
    clock = iter([1.0, 1.5, 2.0, 4.0, 9.0])
    monkeypatch.setattr("forerun.server.metrics.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    request = served()
    for index, num_tokens in ((0, 1), (1, 2), (0, 3), (0, 1)):
        metrics.progressed(request, index, num_tokens)
    assert value(metrics, "vllm:inter_token_latency_seconds_count") == 2
    assert value(metrics, "vllm:inter_token_latency_seconds_sum") == pytest.approx(1.0 + 2.0)
    metrics.finished(request)
    metrics.progressed(served(), 0, 1)
    assert value(metrics, "vllm:inter_token_latency_seconds_count") == 2


@pytest.mark.parametrize(("status", "reason"), [*REFUSALS.items(), (418, "other")])
def test_refused_requests_are_counted_by_why(metrics, status, reason):
    metrics.finished(served(status=status, completions=[], error_type="invalid_request_error"))
    counts = {each: value(metrics, "forerun:requests_refused_total", reason=each) for each in {*REFUSALS.values(), "other"}}
    assert counts == dict.fromkeys(counts, 0) | {reason: 1}
    assert value(metrics, "forerun:failed_requests_total") == 0 and value(metrics, "vllm:prompt_tokens_total") == 0


def test_a_probe_that_says_no_refused_nobody(metrics):
    metrics.finished(served(route="/ready", method="GET", status=503, params=None, completions=[], error_type="server_error"))
    assert value(metrics, "forerun:requests_refused_total", reason="unavailable") == value(metrics, "forerun:failed_requests_total") == 0
    assert value(metrics, "forerun:http_responses_total", route="/ready", method="GET", status="503") == 1


@pytest.mark.parametrize("ended", [{"status": 500}, {"status": 200, "error_type": "server_error"}])
def test_a_request_that_broke_is_a_failure_before_and_behind_the_first_byte(metrics, ended):
    metrics.finished(served(completions=[], **ended))
    assert value(metrics, "forerun:failed_requests_total") == 1
    assert sum(value(metrics, "vllm:request_success_total", finished_reason=reason) for reason in FINISHED_REASONS) == 0


@pytest.mark.parametrize("status", [None, 200])
def test_a_client_that_left_aborts_what_had_not_ended(metrics, status):
    metrics.finished(served(status=status, is_aborted=True, num_choices=3))
    assert value(metrics, "vllm:request_success_total", finished_reason="abort") == 2
    assert value(metrics, "vllm:request_success_total", finished_reason="stop") == 1 and value(metrics, "forerun:failed_requests_total") == 0
    assert value(metrics, "forerun:http_responses_total", route="/v1/chat/completions", method="POST", status=str(status or 499)) == 1


def test_nothing_that_a_client_wrote_becomes_a_label(metrics):
    hostile = 'x"} 1\nvllm:fake_total 1\n'
    for number in range(50):
        metrics.finished(served(route=None, method=f"{hostile}{number}", status=404, tenant=hostile, request_id=hostile, error_param=hostile, operation=hostile))
    text = metrics.exposition(None)[0].decode()
    assert "fake" not in text and value(metrics, "forerun:http_responses_total", route="none", method="other", status="404") == 50
    assert len([key for key in samples(metrics) if key[0] == "forerun:http_responses_total"]) == 1


def test_two_servers_in_one_process_do_not_meet(engine):
    one, other = Metrics(engine, "tiny"), Metrics(engine, "tiny")
    one.finished(served())
    assert value(one, "vllm:prompt_tokens_total") == 11 and value(other, "vllm:prompt_tokens_total") == 0


def test_a_model_name_may_be_anything(engine):
    name = 'a "b"\\c\nd'
    for accept in (None, PROMETHEUS):
        assert ("vllm:num_requests_running", ("engine", "0"), ("model_name", name)) in samples(Metrics(engine, name), accept)


def gauges(collector):
    families = list(collector.collect())
    return {family.name.removeprefix("forerun:"): family.samples[0].value for family in families if family.type == "gauge" and family.name.startswith("forerun:")}


def test_ratios_are_of_the_last_minute():
    engine, now = Engine(plain_seconds=100.0, step_seconds=10.0, num_output_tokens=10_000), SimpleNamespace(value=0.0)
    reading, counter = meter()
    collector = EngineCollector(engine, "tiny", energy_counters=[counter], clock=lambda: now.value)
    assert all(math.isnan(value) for value in gauges(collector).values())  # what was before does not count, and nothing has happened since
    reading.value += 12
    engine.set(
        plain_seconds=103.0, step_seconds=12.0, draft_seconds=0.5, num_rows=40, num_steps=8, num_output_tokens=10_024, decisions={"drafted": 10, "cost": 6}
    )
    now.value = 10.0
    expected = {"speedup": 1.5, "acceptance_length": 1.5, "draft_time_share": 0.25, "rows_per_pass": 5.0, "energy_joules_per_token": 0.5}
    assert gauges(collector) == pytest.approx(expected)
    now.value = WINDOW_SECONDS + 9.0
    assert gauges(collector) == pytest.approx(expected)  # still within a minute of the last change
    now.value = 2 * WINDOW_SECONDS + 30.0
    assert all(math.isnan(value) for value in gauges(collector).values())


def test_a_scraper_in_a_hurry_costs_no_memory():
    now = SimpleNamespace(value=0.0)
    collector = EngineCollector(Engine(), "tiny", clock=lambda: now.value)
    for _ in range(2000):
        now.value += 0.1
        list(collector.collect())
    assert len(collector._samples) <= WINDOW_SECONDS + 2


def test_energy_goes_on_over_a_wrap_and_a_counter_that_fails_costs_itself_alone(engine, caplog):
    (one, first), (other, second) = meter("Socket0"), meter("Socket1")
    broken = EnergyCounter("none", lambda: int("x"), 1.0)
    metrics = Metrics(engine, "tiny", energy_counters=[first, broken, second])
    one.value, other.value = 500, 1010  # wrapped at 5000
    assert value(metrics, "forerun:energy_joules_total") == 4510
    one.value, other.value = "gone", 1020
    second_reading = second.read

    def failing():
        raise OSError(2, "No such file or directory")

    object.__setattr__(first, "read", failing)
    assert value(metrics, "forerun:energy_joules_total") == 4520
    object.__setattr__(first, "read", second_reading)
    assert value(metrics, "forerun:energy_joules_total") == 4520
    assert [record.message for record in caplog.records if "Socket0" in record.message] == ["energy: Socket0 can no longer be read: No such file or directory"]


def test_a_counter_without_a_wrap_that_starts_anew_never_takes_joules_back(engine):
    reading, counter = meter()
    object.__setattr__(counter, "wraps_at", None)
    metrics = Metrics(engine, "tiny", energy_counters=[counter])
    reading.value = 1500
    assert value(metrics, "forerun:energy_joules_total") == 500
    reading.value = 3
    assert value(metrics, "forerun:energy_joules_total") == 500
    reading.value = 10
    assert value(metrics, "forerun:energy_joules_total") == 507


def test_without_counters_nothing_is_said_of_energy(engine):
    assert not [name for name, *_ in samples(Metrics(engine, "tiny")) if "joules" in name]
