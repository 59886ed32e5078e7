"""The page, as people use it: in Chromium, against the real server."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator
from importlib import resources

import pytest

from forerun.server.auth import ApiKey

CHROMIUM = shutil.which("chromium")
ARGUMENTS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
KEY = "a-key-for-the-page"
DONE = "#result[aria-busy=false] .pane .token"
PROMPT = "the rest is in the rest of the story"  # with seed 4 the tiny model writes on for 24 tokens, of all kinds but plain ones
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no chromium here")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, server) -> Iterator[Callable[..., object]]:
    """`open_page(url=..., **context)`: a connected page of a fresh profile. In the end: nothing went elsewhere, and the console has no errors."""
    contexts, elsewhere, errors = [], [], []

    def use(url: str = server.url, expects: str = "[data-state=connected]", **context: object) -> object:
        contexts.append(browser.new_context(**{"viewport": {"width": 1280, "height": 800}} | context))
        page = contexts[-1].new_page()
        page.set_default_timeout(15_000)
        page.on("request", lambda request: None if request.url.startswith(url) else elsewhere.append(request.url))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url)
        page.wait_for_selector(expects)
        page.fill("#prompt", PROMPT)
        for name, value in {"max_tokens": 24, "seed": 4, "num_draft_tokens": 4}.items():
            page.fill(f"#{name}", str(value))
        page.errors = errors
        return page

    yield use
    for context in contexts:
        context.close()
    assert elsewhere == []
    assert errors == []


def kinds(page) -> list[str]:
    return [element.get_attribute("class").split()[1] for element in page.query_selector_all(".pane:last-child .output > .token")]


def count_of(page, kind: str) -> int:
    return int(page.inner_text(f".legend-item:has(.{kind}) .count").split()[0])


def until_idle(server) -> None:
    deadline = time.monotonic() + 20
    while (snapshot := server.async_llm.llm.engine.snapshot()).num_running or snapshot.num_waiting:
        assert time.monotonic() < deadline, "the engine still runs what nobody reads"
        time.sleep(0.01)


def test_a_completion_comes_in_colours_that_the_legend_counts(open_page, server):
    page = open_page()
    page.click("#run")
    page.wait_for_selector(DONE)
    found = kinds(page)
    assert len(found) == 24 and "accepted" in found and len(set(found)) > 1
    assert {kind: count_of(page, kind) for kind in set(found)} == {kind: found.count(kind) for kind in set(found)}
    accepted, other = page.locator(".pane .accepted").first, page.locator(".pane .token:not(.accepted)").first
    for style in ("backgroundColor", "textDecorationStyle"):
        read = f"element => getComputedStyle(element).{style}"
        assert accepted.evaluate(read) != other.evaluate(read)
    assert page.inner_text("#announcer").startswith("Done: 24 tokens in ")

    body = {"prompt": PROMPT, "max_tokens": 24, "temperature": 0.7, "top_p": 1, "seed": 4}
    page.click("#legend .legend-item:has(.accepted)")
    assert accepted.evaluate("element => getComputedStyle(element).backgroundColor") == "rgba(0, 0, 0, 0)"
    assert page.get_attribute("#legend .legend-item:has(.accepted)", "aria-pressed") == "false"
    text = page.evaluate("[...document.querySelectorAll('.pane .token')].map(token => token.textContent).join('')")
    assert text == as_shown(server.post("/v1/completions", **body).json()["choices"][0]["text"])


def as_shown(text: str) -> str:
    """What the page makes of control characters; the tiny model writes all bytes."""
    text = re.sub("[\x00-\x08\x0b-\x1f]", lambda found: chr(0x2400 + ord(found[0])), text).replace("\x7f", "␡")
    hidden = "[\x80-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]"
    return re.sub(hidden, lambda found: f"⟨U+{ord(found[0]):04X}⟩", text)


def test_a_token_says_its_probability_and_its_drafter(open_page, server):
    page = open_page()
    page.click("#run")
    page.wait_for_selector(DONE)
    page.locator(".pane .accepted").first.hover()
    card = page.inner_text("#token-card")
    assert "Accepted" in card and re.search(r"Probability\s+[<>]? ?\d+(\.\d+)? %", card)
    assert re.search(r"Drafted by\s+(" + "|".join(map(re.escape, server.async_llm.llm.drafter_names)) + ")", card) and re.search(r"Token id\s+\d+", card)
    page.locator(".pane .token:not(.accepted)").first.hover()
    assert re.search(r"Drafted by\s+nobody", page.inner_text("#token-card"))


def test_run_both_races_and_finds_the_same_tokens(open_page, server):
    page = open_page()
    page.fill("#max_tokens", "20")
    page.click("#both")
    page.wait_for_selector("#verdict .same, #verdict .other")
    assert page.inner_text("#verdict .same") == "Identical: 20 of 20 tokens"
    assert re.search(r"was first by \d+\.\d\d s|A tie", page.inner_text("#verdict .who"))
    plain, speculative = (pane.inner_text() for pane in page.query_selector_all(".pane .output"))
    assert plain == speculative and set(kinds(page)) != {"plain"}
    assert page.locator(".pane:first-child .token:not(.plain)").count() == 0
    page.click("#verdict button")
    page.wait_for_selector("#verdict .same")
    page.check("input[name=race][value=together]")
    page.click("#both")
    page.wait_for_selector("#verdict .same")
    assert "shared the engine" in page.inner_text("#timing-note")


def test_a_difference_is_shown_at_its_place(open_page):
    """No server of ours makes one, so the answers of the speculative run are changed on their way."""
    page = open_page()

    def change(route) -> None:
        response = route.fetch()
        body = response.text()
        if '"enabled":true' in route.request.post_data:
            body = re.sub(r'"token_id": ?\d+', '"token_id":9', body)
        route.fulfill(response=response, body=body)

    page.route("**/v1/completions", change)
    page.click("#both")
    page.wait_for_selector("#verdict .other")
    assert re.fullmatch(r"Different from token \d+ of 24 on", page.inner_text("#verdict .other"))
    assert page.locator(".pane .differs").count() == 2


@pytest.mark.parametrize("how", ["button", "key"])
def test_stop_frees_the_request(open_page, server, how):
    page = open_page()
    for name, value in {"max_tokens": 460, "seed": 7, "temperature": 1.5}.items():  # with these it writes on to the end
        page.fill(f"#{name}", str(value))
    page.click("#run")
    page.wait_for_selector(".pane .token")
    if how == "button":
        page.click("#stop-run")
    else:
        page.keyboard.press("Escape")
    page.wait_for_selector(".pane[data-state=stopped]")
    until_idle(server)
    assert 0 < len(kinds(page)) < 460
    assert page.is_enabled("#run") and page.is_disabled("#stop-run")


def test_the_keyboard_is_enough(open_page):
    page = open_page()
    page.focus("#prompt")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(DONE)
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.className") == "output":
            break
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#token-card:not([hidden])")
    assert page.get_attribute(".token.current", "data-index") == "1"
    assert "kind" in page.inner_text("#announcer")
    page.keyboard.press("Escape")
    assert page.is_hidden("#token-card")


def test_a_chat_keeps_its_messages(open_page):
    page = open_page()
    bodies = []
    page.on("request", lambda request: bodies.append(request.post_data_json) if "chat" in request.url else None)
    page.check("input[name=mode][value=chat]")
    page.fill("#system", "be brief")
    for message in ("hello", "and again"):
        page.fill("#prompt", message)
        page.keyboard.press("Control+Enter")
        page.wait_for_selector(f"#transcript .user:last-child:has-text('{message}')")
        page.wait_for_selector(DONE)
    assert [each["role"] for each in bodies[1]["messages"]] == ["system", "user", "assistant", "user"]
    assert page.locator("#transcript .message").count() == 3
    assert page.locator("#transcript .assistant .token").count() > 0
    page.click("#clear")
    assert page.locator("#transcript .message").count() == 0


def test_a_model_without_a_template_has_no_chat_and_the_page_says_why(open_page):
    page = open_page()
    page.route("**/v1/engine", lambda route: fulfil_changed(route, has_chat_template=False))
    page.reload()
    page.wait_for_selector("#chat-note:not([hidden])")
    assert "no chat template" in page.inner_text("#chat-note")
    assert page.is_disabled("input[name=mode][value=chat]")


def fulfil_changed(route, **changed: object) -> None:
    response = route.fetch()
    route.fulfill(response=response, json=response.json() | changed)


def test_what_a_model_writes_cannot_act(open_page):
    page = open_page()
    page.fill("#prompt", HOSTILE)
    events = "".join(
        f'data: {{"choices":[{{"index":0,"text":"","finish_reason":{finish},"tokens":[{{"token_id":5,"text":{text},"kind":{kind},"drafter":{text},"logprob":-1}}]}}]}}\n\n'
        for text, kind, finish in [
            ('"<img src=x onerror=\\"document.title=1\\">"', '"accepted"', "null"),
            ('"<script>document.title=1</script>"', '"<b>odd</b>"', "null"),
            ('"a\\u0000b\\u202ec\\r\\n\\t\\ud83d\\ude00"', '"plain"', '"stop"'),
        ]
    )
    page.route("**/v1/completions", lambda route: route.fulfill(body=events + "data: [DONE]\n\n", content_type="text/event-stream"))
    page.click("#run")
    page.wait_for_selector(DONE)
    page.locator(".pane .token").first.hover()
    assert "<img src=x" in page.inner_text("#token-card")
    assert page.locator("#result img, #result script, #token-card img").count() == 0
    assert page.title() == "forerun"
    assert page.locator(".pane .token").nth(2).evaluate("element => element.textContent") == "a␀b⟨U+202E⟩c␍\n\t😀"


def test_the_policy_stops_scripts_that_the_page_did_not_bring(open_page):
    page = open_page()
    refused = page.evaluate("() => { try { document.body.innerHTML = '<b>x</b>'; return false } catch { return true } }")
    assert refused
    assert any("TrustedHTML" in error for error in page.errors)
    page.errors.clear()


def test_an_error_names_its_field(open_page):
    page = open_page()
    page.fill("#top_p", "3")
    page.click("#run")
    page.wait_for_selector("#problem:not([hidden])")
    assert "top_p" in page.inner_text("#problem")
    assert page.get_attribute("#top_p", "aria-invalid") == "true"
    assert page.evaluate("document.activeElement.id") == "top_p"
    page.errors.clear()  # the browser's own line about a reply of 400
    page.fill("#top_p", "1")
    page.click("#run")
    page.wait_for_selector(DONE)
    assert page.is_hidden("#problem") and page.get_attribute("#top_p", "aria-invalid") is None


def test_settings_are_remembered_and_prompts_are_not(open_page):
    page = open_page()
    page.fill("#temperature", "0.3")
    page.click("#dice")
    seed = page.input_value("#seed")
    page.uncheck("input[name=speculation]", force=True)
    page.check("input[name=theme][value=dark]", force=True)
    page.reload()
    assert page.input_value("#temperature") == "0.3" and page.input_value("#seed") == seed
    assert not page.is_checked("input[name=speculation]")
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "dark"
    assert page.input_value("#prompt") != PROMPT
    assert PROMPT not in page.evaluate("JSON.stringify(localStorage)")
    for name, value in {"prompt": PROMPT, "seed": "4", "temperature": "0.7", "max_tokens": "8"}.items():
        page.fill(f"#{name}", value)
    page.click("#run")
    page.wait_for_selector(DONE)
    assert kinds(page) == ["plain"] * 8


def luminance(colour: str) -> float:
    channels = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


CONTRASTS = """() => [...document.querySelectorAll('body *')].filter(element => element.checkVisibility({ opacityProperty: true })
    && !element.closest(':disabled') && [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim())).map(element => {
  let behind = element;
  while (behind && getComputedStyle(behind).backgroundColor === 'rgba(0, 0, 0, 0)') behind = behind.parentElement;
  return [element.className + ' ' + element.textContent.slice(0, 20), getComputedStyle(element).color, getComputedStyle(behind ?? document.body).backgroundColor];
})"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_schemes_can_be_read(open_page, scheme):
    page = open_page(color_scheme=scheme)
    page.click("#run")
    page.wait_for_selector(DONE)
    assert (luminance(page.evaluate("getComputedStyle(document.body).backgroundColor")) > 0.5) == (scheme == "light")
    found = page.evaluate(CONTRASTS)
    assert len(found) > 50
    for what, ink, back in found:
        light, dark = sorted((luminance(ink), luminance(back)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (what, ink, back)


def test_a_phone_needs_no_sideways_scrolling(open_page):
    page = open_page(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    page.click("#both")
    page.wait_for_selector("#verdict .same")
    assert page.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [360, 360]
    page.locator(".pane .accepted").first.tap()
    box = page.locator("#token-card").bounding_box()
    assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= 360
    assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_where_motion_is_unwelcome_a_race_is_not_replayed(open_page):
    page = open_page(reduced_motion="reduce")
    page.click("#both")
    page.wait_for_selector("#verdict .same")
    assert page.inner_text(".pane:last-child .figures div:first-child dd") == "24"


def test_the_gauges_move_and_say_when_the_server_is_away(open_page):
    page = open_page()
    states = iter([(10, 0), (20, 30)])
    last = (20, 30)

    def counted(route) -> None:
        steps, tokens = next(states, last)
        snapshot = {
            "num_running": 2, "num_waiting": 1, "kv_cache_usage": 0.25, "num_steps": steps, "num_rows": 5 * steps, "num_output_tokens": tokens,
            "num_accepted_tokens": tokens // 2, "step_seconds": steps / 100, "draft_seconds": steps / 1000, "plain_seconds": steps / 50,
            "decisions": {"drafted": steps},
        }  # fmt: skip
        fulfil_changed(route, snapshot=snapshot)

    page.route("**/v1/engine", counted)
    page.reload()
    figures = {name: f"[data-gauge={name}] output:text-is('{text}')" for name, text in [
        ("acceptance", "2.00"), ("rows", "5.0"), ("requests", "2 + 1"), ("cache", "25 %"), ("drafting", "10 %"),
    ]}  # fmt: skip
    for selector in figures.values():
        page.wait_for_selector(selector)
    page.wait_for_selector("[data-gauge=decisions] dt:text-is('drafted')")
    assert page.get_attribute("[data-gauge=acceptance] path", "d").startswith("M")
    page.route("**/v1/engine", lambda route: route.abort())
    page.wait_for_selector("#connection[data-state=away]")
    assert "trying again in" in page.inner_text("#connection") and "away" in page.get_attribute("#gauges", "class")
    page.unroute("**/v1/engine")
    page.wait_for_selector("#connection[data-state=connected]")
    page.errors.clear()  # the browser's own line about a request that failed


def test_with_keys_the_browser_asks_for_one_and_sends_it_by_itself(open_page, live_server):
    with live_server(keys=(ApiKey.of("one", KEY),)) as guarded:
        assert guarded.client.get("/").status_code == 401
        assert guarded.client.get("/page/main.js").headers["www-authenticate"].startswith("Basic ")
        page = open_page(guarded.url, http_credentials={"username": "anyone", "password": KEY})
        page.click("#run")
        page.wait_for_selector(DONE)
        assert KEY not in page.evaluate("JSON.stringify(localStorage)")
        page.context.close()


def test_files_come_with_headers_that_hold_and_nothing_else_comes(server):
    reply = server.client.get("/")
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'self'" in reply.headers["content-security-policy"] and "unsafe" not in reply.headers["content-security-policy"]
    assert reply.headers["x-content-type-options"] == "nosniff"
    again = server.client.get("/", headers={"If-None-Match": reply.headers["etag"]})
    assert again.status_code == 304 and again.content == b""
    assert server.client.head("/").headers["content-length"] == str(len(reply.content))
    for path in ("/page/../app.py", "/page/%2e%2e/app.py", "/page/..%2fapp.py", "/page/..%5capp.py", "/page/", "/page/none.js", "/page/%00"):
        assert server.client.get(path).status_code == 404, path


def test_no_file_names_another_host_and_none_writes_markup():
    files = [entry for entry in resources.files("forerun.server").joinpath("page").iterdir() if entry.is_file()]
    assert {entry.name for entry in files} >= {"index.html", "style.css", "main.js", "icon.svg"}
    for entry in files:
        text = entry.read_text(encoding="utf-8")
        assert re.findall(r"https?://(?!www\.w3\.org/)", text) == [], entry.name
        assert re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|\bon\w+=|style=\"", text) == [], entry.name
