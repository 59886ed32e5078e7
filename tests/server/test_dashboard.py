"""The dashboard and the scrape example: whole, importable, and about metrics that a live server has."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse_text

from forerun.energy_counters import EnergyCounter

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
DASHBOARD = DEPLOY / "grafana" / "forerun.json"
FROM_PROMETHEUS = {"job", "instance"}  # labels that scraping adds
WANTED = (
    "vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:generation_tokens_total", "vllm:time_to_first_token_seconds_bucket",
    "vllm:request_time_per_output_token_seconds_bucket", "vllm:e2e_request_latency_seconds_bucket", "vllm:kv_cache_usage_perc",
    "vllm:prefix_cache_hits_total", "forerun:acceptance_length", "vllm:spec_decode_num_accepted_tokens_total",
    "vllm:spec_decode_num_accepted_tokens_per_pos_total", "forerun:decisions_total", "forerun:speedup", "forerun:draft_seconds_total",
    "forerun:energy_joules_total",
)  # fmt: skip


@pytest.fixture(scope="module")
def dashboard():
    return json.loads(DASHBOARD.read_text())


@pytest.fixture(scope="module")
def live(with_app):
    """Names of a live server's series, with the labels of each; its machine has an energy counter."""
    patch = pytest.MonkeyPatch()
    patch.setattr("forerun.server.state.find_counters", lambda device: ([EnergyCounter("Socket0", lambda: 1000, 1.0)], []))

    async def scrape():
        async with with_app() as (client, _):
            reply = await client.post("/v1/completions", json={"model": "tiny", "prompt": "once", "max_tokens": 4})
            reply.raise_for_status()
            return (await client.get("/metrics")).text

    text = asyncio.run(scrape())
    patch.undo()
    return {sample.name: set(sample.labels) for family in parse_text(text) for sample in family.samples}


def expressions(dashboard):
    targets = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    return targets + [variable["definition"] for variable in dashboard["templating"]["list"] if "definition" in variable]


def test_every_metric_of_the_dashboard_is_live(dashboard, live):
    used = {name for expression in expressions(dashboard) for name in re.findall(r"(?:vllm|forerun):\w+", expression)}
    assert used - set(live) == set() and set(WANTED) <= used


def test_every_label_of_the_dashboard_is_live(dashboard, live):
    for expression in expressions(dashboard):
        names = re.findall(r"(?:vllm|forerun):\w+", expression)
        asked = {label.strip() for group in re.findall(r"by \(([\w, ]+)\)", expression) for label in group.split(",")}
        asked |= {label for selector in re.findall(r"\{([^}]*)\}", expression) for label in re.findall(r"(\w+)\s*=~?", selector)}
        if not asked <= FROM_PROMETHEUS:
            known = set.union(*(live[name] for name in names)) | FROM_PROMETHEUS
            assert asked <= known, expression


def test_the_dashboard_can_be_imported(dashboard):
    assert dashboard["id"] is None and dashboard["uid"] == "forerun" and dashboard["schemaVersion"] >= 39
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource" and variables["datasource"]["query"] == "prometheus" and "model" in variables
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    taken = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken and max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"} and panel["targets"] and panel["title"]


def test_expressions_are_balanced_and_know_their_variables(dashboard):
    names = {variable["name"] for variable in dashboard["templating"]["list"]} | {"__rate_interval"}
    for expression in expressions(dashboard):
        assert all(expression.count(opening) == expression.count(closing) for opening, closing in ("()", "{}", "[]")) and expression.count('"') % 2 == 0
        assert set(re.findall(r"\$(\w+)", expression)) <= names, expression


def test_the_scrape_example_sends_a_key_from_a_file():
    text = (DEPLOY / "prometheus.yml").read_text()
    assert "metrics_path: /metrics" in text and re.search(r"authorization:\n +type: Bearer\n +credentials_file: /\S+", text)


def test_the_documentation_names_what_is_live(live):
    text = (DEPLOY.parent / "docs" / "metrics.md").read_text()
    histograms = {name.removesuffix("_bucket") for name in live if name.endswith("_bucket")}
    documented = set(re.findall(r"(?:vllm|forerun):\w+", text))
    assert documented - set(live) - histograms == set()
    families = {re.sub(r"_(bucket|count|sum|created)$", "", name) if re.sub(r"_(bucket|count|sum)$", "", name) in histograms else name for name in live}
    assert {name for name in families if not name.endswith("_created")} <= documented
