"""What a bench's report is made into: figures by category, tables, pictures, a page. Nothing here measures."""

from __future__ import annotations

import importlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from bench_reports import METHODS, made_up
from typer.testing import CliRunner

from forerun.bench.jobs import Run
from forerun.bench.page import BLOCKS, page
from forerun.bench.pictures import PICTURES, as_svg, drawn, save_pictures
from forerun.bench.report import summarise
from forerun.bench.tables import category_table, notes, table, target_name
from forerun.cli import app
from forerun.types import SpeculationStats

bench_module = importlib.import_module("forerun.cli.bench")  # the package gives the command of that name
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
VOID = {"meta", "br", "img", "input", "hr", "link"}


@pytest.fixture(scope="module")
def report():
    return made_up()


@pytest.fixture(scope="module")
def whole_page(report):
    return page(report)


class Balance(HTMLParser):
    """Collects the elements' ids and says where a tag closes another one's element."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.tags = [], [], set()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.ids += [value for name, value in attributes if name == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_categories_add_up(report):
    for result in report["results"]:
        assert set(result["by_category"]) == set(report["categories"])
        for name, found in result["methods"].items():
            parts = [cell["methods"][name] for cell in result["by_category"].values()]
            assert sum(part["num_tokens"] for part in parts) == found["num_tokens"]
            assert min(part["tokens_per_second"]["min"] for part in parts) == found["tokens_per_second"]["min"]
            speeds = dict.fromkeys(report["categories"], ())
            for category, speed in zip(result["categories_by_job"], found["tokens_per_second_by_job"], strict=True):
                speeds[category] += (speed,)
            assert [list(each) for each in speeds.values()] == [part["tokens_per_second_by_job"] for part in parts]


def test_one_category_is_all_there_is():
    found = summarise({"plain": [[Run(1.0, [[1, 2]], 2)], [Run(2.0, [[1, 2]], 2)]]}, ["a", "a"])
    assert set(found) == {"methods", "ratios"}
    assert category_table(found | {"temperature": 0.0, "batch_size": 1}) is None


def test_what_the_engine_counted_is_summed_over_rounds():
    def run(accepted):
        stats = SpeculationStats(num_target_passes=4, draft_seconds=1.0, verify_seconds=2.0, accepted_per_position=accepted)
        return Run(4.0, [[1] * 6], 4, stats)

    [found] = summarise({"speculative": [[run([2, 1]), run([1])], [run([1, 1, 1])]]})["methods"].values()
    assert found["accepted_per_position"] == [4, 2, 1]
    assert found["total_target_passes"] == 12 and found["measured_seconds"] == 9.0
    assert "decisions" not in found or found["decisions"]


def test_speed_over_transformers(report):
    methods = report["results"][0]["methods"]
    assert methods["transformers"]["speedup_vs_transformers"]["median"] == 1.0
    assert report["results"][0]["ratios"]["speculative / transformers"] == methods["speculative"]["speedup_vs_transformers"]


def test_tables(report):
    for result in report["results"]:
        assert table(result).row_count == len(result["methods"])
        by_category = category_table(result)
        assert by_category.row_count == 3 and [column.header for column in by_category.columns] == ["category", *METHODS[1:5]]
    assert any(line.startswith("left out: transformers-assisted") for line in notes(report))


def test_every_picture_is_drawn_and_written(report, tmp_path):
    written = save_pictures(report, tmp_path / "pictures")
    assert [file.name for file in written] == [f"{picture.name}.png" for picture in PICTURES]
    for file in written:
        content = file.read_bytes()
        assert content.startswith(PNG_SIGNATURE) and len(content) > 5000


def test_what_a_report_lacks_is_left_out():
    report = made_up(("story",), (1,))
    for key in ("profile", *BLOCKS):
        report[key] = None
    for result in report["results"]:
        for found in result["methods"].values():
            for key in ("decisions", "predicted_seconds", "accepted_per_position"):
                found.pop(key, None)
    assert [picture.name for picture, _ in drawn(report)] == ["speedup_by_category"]
    assert page(report).count("Not in this report.") == len(PICTURES) - 1


def test_a_report_without_plain_decoding_is_shown_too():
    report = made_up(("story",), (1, 2))
    for result in report["results"]:
        result["methods"] = {"speculative-4": result["methods"]["speculative-4"]}
        del result["methods"]["speculative-4"]["speedup_vs_plain"]
    assert "speedup_by_category" not in as_svg(report) and "tokens_by_batch" in as_svg(report)
    assert "No speculative method" in page(report)


def test_the_page_needs_nothing_beside_itself(whole_page):
    assert not re.search(r"https?:|//[a-z]|@import|<script|<link|<img|src=|url\((?!#)", whole_page)
    assert "prefers-color-scheme: dark" in whole_page and "width=device-width" in whole_page
    assert not re.search(r"#(0072b2|d55e00|1d2430)", whole_page.split("</style>")[1]), "a picture's colours are the page's variables"


def test_the_page_is_well_formed_and_has_every_section(whole_page):
    balance = Balance()
    balance.feed(whole_page)
    assert balance.open == [] and "b" not in balance.tags
    assert [name for name in balance.ids if name in {picture.name for picture in PICTURES}] == [picture.name for picture in PICTURES]
    assert len(balance.ids) == len(set(balance.ids)), "pictures share no ids"
    assert whole_page.count("<svg") == len(PICTURES) and "Not in this report." not in whole_page
    for heading in ("Pictures", "Figures", "Notes", "Measured with", "The same again"):
        assert f"<h2>{heading}</h2>" in whole_page
    for title in BLOCKS.values():
        assert f"<h2>{title}</h2>" in whole_page


@pytest.mark.parametrize(("name", "shown"), [("forerun/default", "forerun/default"), ("owner/model", "owner/model"), ("/home/me/models/small", "small"), ("./small", "small")])
def test_a_folder_is_shown_by_its_last_part(name, shown):
    assert target_name({"target": {"name": name}}) == shown


def test_names_from_files_are_escaped(whole_page):
    assert "<b>dialogue" not in whole_page and "&lt;b&gt;dialogue&lt;/b&gt;" in whole_page
    assert "&lt;all&gt;" in whole_page and "<all>" not in whole_page


def test_further_blocks_are_shown_where_there_are_some():
    report = made_up(("story",), (1,))
    found = page(report | {"roofline": None, "widened": {"from": "small/model", "to_parameters": 1_000_000_000, "check": {}}})
    assert "on this &lt;machine&gt;" in found and f"<h2>{BLOCKS['roofline']}</h2>" not in found
    assert "Widened target." in found and "1,000,000,000" in found


def run(*arguments):
    return CliRunner().invoke(app, ["bench", *map(str, arguments)])


def test_an_old_report_is_drawn_again(tmp_path):
    report = made_up(("story", "dialogue"), (1,))
    source = tmp_path / "report.json"
    source.write_text(json.dumps(report))
    result = run("--from", source, "--html", tmp_path / "page.html", "--pictures", tmp_path / "pictures")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "page.html").read_text().count("<svg") == len(PICTURES) - 1
    assert len(list((tmp_path / "pictures").iterdir())) == len(PICTURES) - 1
    assert "drafter:suffix" in result.stdout and "dialogue" in result.stdout
    assert json.loads(run("--from", source, "--json").stdout) == report


def test_the_published_report_can_be_shown(tmp_path):
    file = Path(__file__).parent.parent / "benchmarks" / "default_pair.json"
    result = run("--from", file, "--html", tmp_path / "page.html")
    assert result.exit_code == 0 and "transformers-assisted" in result.stdout
    assert "speedup_by_category" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("content", ["", "[]", '{"results": [{}]}', '{"results": 1}'])
def test_what_is_no_report_is_refused(tmp_path, content):
    source = tmp_path / "report.json"
    source.write_text(content)
    result = run("--from", source)
    assert result.exit_code == 2 and "from=" in result.stderr and len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("option", ["--html", "--pictures"])
def test_places_where_nothing_can_be_drawn_are_refused_before_measuring(tmp_path, monkeypatch, option):
    assert f"{option[2:]}=" in run(option, tmp_path / "missing" / "place").stderr
    monkeypatch.setattr(bench_module, "find_spec", lambda name: None)
    refused = run(option, tmp_path / "place")
    assert refused.exit_code == 2 and "matplotlib" in refused.stderr and "forerun[bench]" in refused.stderr


def test_workloads_and_drafters_from_the_command_line(saved_pair, tmp_path):
    for folder, category in (("stories", "tale"), ("sums", "addition")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "test.jsonl").write_text(json.dumps({"prompt": "to be or not", "category": category, "id": "<i>"}))
    files = [argument for folder in ("stories", "sums") for argument in ("--prompts", tmp_path / folder / "test.jsonl")]
    drafters = ["--drafter", "prompt_lookup", "--drafter", saved_pair[1]]
    methods = [argument for name in ("plain", "speculative", "drafter:prompt_lookup") for argument in ("-m", name)]
    options = ["--max-tokens", 6, "--temperature", 0, "--no-profile", "--html", tmp_path / "page.html", "--output", tmp_path / "report.json"]
    result = run("--target", saved_pair[0], *drafters, *methods, *files, *options)
    assert result.exit_code == 0, result.output
    assert "stories/tale" in result.stdout and "drafter:prompt_lookup" in result.stdout
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["categories"] == {"stories/tale": 1, "sums/addition": 1} and found["prompts"] == ["stories/<i>", "sums/<i>"]
    own = found["results"][0]["methods"]["speculative"]
    assert sum(own["decisions"].values()) == own["total_target_passes"] and own["predicted_seconds"] > 0
    assert (tmp_path / "page.html").read_text().count("<svg") >= 3  # whether a draft is accepted is the models' affair
