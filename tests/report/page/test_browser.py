"""The page in a headless Chromium: opens alone, sorts, copies, fits a phone, the dark, the keyboard and paper."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

MAIN, DETAIL = "main-tta-digits-c-convnet-continual", "detail-tta-digits-c-convnet-continual"
Open = Callable[..., Any]
Reports = dict[str, Path]


@pytest.fixture(scope="module")
def reports(golden: tuple[Path, Path], hostile: tuple[Path, Path]) -> Reports:
    return {"golden": golden[1] / "index.html", "hostile": hostile[1] / "index.html"}


@pytest.fixture
def open_page(browser: Any) -> Iterator[Open]:
    """Opens a report with the options of a browser context; what went wrong is in ``page.wrong``."""
    contexts = []

    def opened(path: Path, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.wrong = []
        page.on("console", lambda message: page.wrong.append(message.text))
        page.on("pageerror", lambda error: page.wrong.append(str(error)))
        page.on("dialog", lambda dialog: page.wrong.append(dialog.message))
        page.on("request", lambda request: request.url.startswith("data:") or page.wrong.append(request.url))
        page.goto(path.as_uri())
        page.wrong.remove(path.as_uri())  # the one request that is meant
        return page

    yield opened
    for context in contexts:
        context.close()


def unfold(page: Any) -> None:
    """Opens everything, what is within what is opened too."""
    for _ in range(2):
        page.evaluate("for (const box of document.querySelectorAll('details')) box.open = true")
        page.wait_for_function("!document.querySelector('details.fill > script')")


@pytest.mark.parametrize("name", ["golden", "hostile"])
def test_opens_without_an_error_or_a_request(reports: Reports, open_page: Open, name: str):
    page = open_page(reports[name])
    unfold(page)
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    assert page.wrong == []
    assert page.evaluate("window.pwned") is None
    assert page.locator("script").count() == 1  # its own; the packed parts have become parts of the page
    for image in page.locator("img").all():
        image.scroll_into_view_if_needed()  # they are drawn when they come into sight
        image.evaluate("(image) => image.decode()")
    assert page.locator("img").count() == (0 if name == "golden" else 8)
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((element) => element.id)")
    assert len(ids) == len(set(ids))


def column(page: Any, table: str, at: int) -> list[str]:
    return page.evaluate(
        "([id, at]) => [...document.getElementById(id).querySelectorAll('tbody tr')].map((r) => r.cells[at].innerText)",
        [f"t-{table}", at],
    )


def test_sorts_as_numbers_by_click_and_by_key(reports: Reports, open_page: Open):
    page = open_page(reports["golden"])
    unfold(page)
    before = column(page, DETAIL, 5)
    assert sorted(before) != sorted(before, key=float)  # 9.0 goes before 11.0 as a number only
    heads = page.locator(f"#t-{DETAIL} thead th")
    heads.nth(5).get_by_role("button").click()
    assert heads.nth(5).get_attribute("aria-sort") == "ascending"
    assert column(page, DETAIL, 5) == sorted(before, key=float)
    heads.nth(5).get_by_role("button").press("Enter")
    assert heads.nth(5).get_attribute("aria-sort") == "descending"
    assert column(page, DETAIL, 5) == sorted(before, key=float, reverse=True)
    heads.nth(0).get_by_role("button").press("Space")
    assert heads.nth(5).get_attribute("aria-sort") is None
    assert column(page, DETAIL, 0) == sorted(column(page, DETAIL, 0))
    rate = page.locator(f"#t-{MAIN} thead th").nth(1).get_by_role("button")
    for expected in (["1e-3", "1e-2", "–", "–"], ["1e-2", "1e-3", "–", "–"]):  # what has no value stays last
        rate.click()
        assert column(page, MAIN, 1) == expected


@pytest.mark.parametrize("clipboard", [True, False])
def test_copies_what_the_files_hold(reports: Reports, open_page: Open, clipboard: bool):
    page = open_page(reports["golden"], permissions=["clipboard-read", "clipboard-write"])
    unfold(page)
    if not clipboard:  # as in a browser that refuses it: the selection is copied instead
        page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('refused')) }")
    tools = page.locator(f"#t-{MAIN} .tools")
    for name, suffix in (("LaTeX", "tex"), ("Markdown", "md"), ("CSV", "csv")):
        tools.get_by_role("button", name=name).click()
        page.wait_for_function("(box) => box.querySelector('.said').textContent", arg=tools.element_handle())
        assert tools.locator(".said").inner_text() == f"{name} copied"
        held = page.evaluate("navigator.clipboard.readText()")
        assert held == (reports["golden"].parent / "tables" / f"{MAIN}.{suffix}").read_text()
        assert tools.locator("textarea:visible").count() == 0
        page.evaluate("(box) => { box.querySelector('.said').textContent = '' }", tools.element_handle())
    assert page.wrong == []


OUTSIDE = """() => {
  const found = [];
  for (const element of document.body.querySelectorAll("*")) {
    if (element.closest(".skip") || element.parentElement.closest(".scroll, pre")) continue;
    const box = element.getBoundingClientRect();
    if (box.width && (box.right > innerWidth + 0.5 || box.left < -0.5)) {
      found.push(`${element.tagName} ${element.className} ${box.right} ${element.textContent.slice(0, 40)}`);
    }
  }
  return [document.documentElement.scrollWidth, found];
}"""


@pytest.mark.parametrize("name", ["golden", "hostile"])
@pytest.mark.parametrize("width", [390, 1280])
def test_no_element_overflows(reports: Reports, open_page: Open, name: str, width: int):
    page = open_page(reports[name], viewport={"width": width, "height": 844})
    unfold(page)
    wide, outside = page.evaluate(OUTSIDE)
    assert outside == []
    assert wide == width


CONTRAST = """() => {
  const linear = (v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => [r, g, b].map((v) => linear(v / 255))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const colour = parse(getComputedStyle(element).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const low = new Set();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let seen = 0;
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !element.checkVisibility() || element.closest(".skip")) continue;
    const style = getComputedStyle(element);
    const [a, b] = [light(parse(element.closest("svg") ? style.fill : style.color)), light(behind(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    seen += 1;
    if (ratio < 4.5) low.add(`${ratio.toFixed(2)} ${element.tagName}.${element.className.baseVal ?? element.className} `
      + walker.currentNode.textContent.trim().slice(0, 40));
  }
  return [seen, [...low]];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_the_light_and_in_the_dark(reports: Reports, open_page: Open, scheme: str):
    page = open_page(reports["golden"], color_scheme=scheme)
    unfold(page)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 22, 26)"}[scheme]
    seen, low = page.evaluate(CONTRAST)
    assert seen > 300
    assert low == []  # WCAG 2.2, success criterion 1.4.3: 4.5 to 1
    lines = page.evaluate(
        "[...document.querySelectorAll('.plot path, .plot line, .plot text')].map((e) => getComputedStyle(e))"
        ".flatMap((s) => [s.stroke, s.fill])"
    )
    assert ("rgb(1, 2, 3)" in lines) is False  # the ink of the drawing became the page's own


def test_every_control_is_reached_and_seen_by_keyboard(reports: Reports, open_page: Open):
    page = open_page(reports["golden"])
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#main"
    page.reload()
    page.locator("#tests > summary").press("Enter")
    page.locator(".block > summary").first.press("Space")
    page.wait_for_function("document.querySelector('.commands') && document.querySelector('#tests table')")
    page.evaluate("document.activeElement.blur(); document.querySelector('.skip').focus()")
    wanted = page.evaluate(
        """() => {
          const all = [...document.querySelectorAll("a[href], button, summary")].filter((e) => e.checkVisibility());
          all.forEach((element, number) => { element.dataset.stop = number; });
          window.reached = [];
          document.addEventListener("focusin", ({ target }) => {
            const style = getComputedStyle(target);
            const seen = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
            window.reached.push([target.dataset.stop ?? null, seen, target.outerHTML.slice(0, 80)]);
          });
          return all.length;
        }"""
    )
    for _ in range(wanted + 20):
        page.keyboard.press("Tab")
    reached = page.evaluate("window.reached")
    assert len({stop for stop, _, _ in reached} - {None}) == wanted
    assert [what for _, seen, what in reached if not seen] == []
    summary = page.locator(".commands summary").first
    summary.press("Enter")
    assert page.locator(".commands pre").first.is_visible()


def test_a_part_is_filled_when_it_is_opened_and_a_link_opens_it(reports: Reports, open_page: Open):
    page = open_page(reports["golden"])
    assert page.evaluate("document.querySelectorAll('*').length") < 400
    assert page.locator(".plot svg").count() == 2  # of the gains, one for broad windows and one for narrow ones
    assert page.locator(".commands, #runs table").count() == 0
    page.evaluate(f"location.hash = 's-{MAIN}'")
    page.wait_for_function("document.querySelector('.commands')")
    assert page.locator(".plot svg").count() > 2
    page.locator(".commands summary").click()
    assert page.locator(".commands pre").first.is_visible()
    assert page.wrong == []


@pytest.mark.parametrize("name", ["golden", "hostile"])
def test_runs_are_filtered_and_one_is_shown(reports: Reports, open_page: Open, name: str):
    page = open_page(reports[name])
    page.evaluate("location.hash = 'runs'")
    page.wait_for_selector("#runs tbody tr")
    rows = page.locator("#runs tbody tr")
    every = rows.count()
    assert f"{every} of {every} runs" in page.locator("#runs [role=status]").first.inner_text()
    page.get_by_label("loss").select_option(index=1)
    assert 0 < rows.count() < every
    page.get_by_label("loss").select_option(index=0)
    page.get_by_label("contains").fill("seed=0")
    assert 0 < rows.count() < every or name == "hostile"  # whose commands are attacks
    page.get_by_label("contains").fill("")
    link = rows.last.locator("a")
    link.click()
    run = link.inner_text()
    page.wait_for_function("document.querySelector('.run:not(:empty)')")
    pane = page.locator("section.run")
    assert page.evaluate("location.hash") == f"#run-{run}"
    assert pane.locator("pre").inner_text().strip()
    assert pane.locator(".curve polyline").count() == 1
    for title in ("Configuration", "Environment"):
        pane.get_by_text(title, exact=True).click()
    text = pane.inner_text()
    if name == "golden":
        assert "method.optimizer" in text
        assert "0123abcd" in text
        assert "dembench run method=" in text
    assert page.evaluate("window.pwned") is None
    assert page.wrong == []
    page.reload()  # a link to a run leads to it
    page.wait_for_function("document.querySelector('.run:not(:empty)')")


def test_gains_are_read_on_a_telephone_without_scrolling_sideways(reports: Reports, open_page: Open):
    for width, kind, other in ((390, "narrow", "broad"), (1280, "broad", "narrow")):
        page = open_page(reports["golden"], viewport={"width": width, "height": 844})
        assert page.locator(f".plot.{kind}").is_visible()
        assert not page.locator(f".plot.{other}").is_visible()
        wide = page.evaluate(
            "[...document.querySelectorAll('#verdict .scroll')].map((b) => [b.scrollWidth, b.clientWidth])"
        )
        assert all(inside <= outside for inside, outside in wide)
        assert page.locator("#t-across-tasks tbody tr").first.locator("td").last.is_visible()


@pytest.mark.parametrize("name", ["golden", "hostile"])
def test_prints_what_is_open_and_no_controls(reports: Reports, open_page: Open, name: str):
    page = open_page(reports[name], color_scheme="dark", viewport={"width": 1032, "height": 700})  # A4, less margins
    if name == "golden":
        unfold(page)
        page.evaluate("for (const box of document.querySelectorAll('details.paper')) box.open = false")
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details.paper:not([open])").count() == 0
    assert page.locator(".tools:visible, .filters:visible, .files:visible, .skip:visible").count() == 0
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    if name == "golden":
        widths = page.evaluate("[...document.querySelectorAll('table')].map((t) => t.getBoundingClientRect().right)")
        assert max(widths) <= 1032
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details.paper:not([open])").count() > 0
    printed = page.pdf(prefer_css_page_size=True)
    assert printed.startswith(b"%PDF-")
    pages = len(re.findall(rb"/Type\s*/Page\b", printed))
    assert 1 < pages < (30 if name == "golden" else 8)
