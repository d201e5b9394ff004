"""The page as a real browser shows it: light and dark, wide and narrow, with and without its script."""

import pytest

from hwpq_tvm.inspection.inspection import Inspection
from hwpq_tvm.inspection.page import html_page
from hwpq_tvm.inspection.pictures import DARK, LIGHT
from hwpq_tvm.inspection.speeds import Speeds

from . import artifacts
from .test_page import HOSTILE

WIDE, PHONE = 1280, 390

# Contrast of every text with what lies behind it (WCAG 2), the least one first.
CONTRASTS = """() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const luminance = (colour) => channels(colour).slice(0, 3)
    .map((value) => value / 255)
    .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
    .reduce((sum, value, place) => sum + value * [0.2126, 0.7152, 0.0722][place], 0);
  const behind = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const colour = getComputedStyle(each).backgroundColor;
      if (channels(colour)[3] !== 0) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  return [...document.querySelectorAll("h1, h2, h3, p, li, th, td, button, footer, summary, strong")]
    .filter((element) => element.textContent.trim())
    .map((element) => [luminance(getComputedStyle(element).color), luminance(behind(element))].sort((a, b) => b - a))
    .map(([light, dark]) => (light + 0.05) / (dark + 0.05))
    .sort((a, b) => a - b);
}"""


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    """Two artefacts, one of which is hostile, with speeds."""
    folder = tmp_path_factory.mktemp("page")
    content = artifacts.report("dense int8", 8.5, 0.01, warnings=[HOSTILE], choice=artifacts.CHOICE)
    content["layers"][3]["name"] += HOSTILE
    content["layers"][5]["relative_error"] = None
    both = (artifacts.artifact(folder / "a"), artifacts.artifact(folder / "b", content))
    speeds = Speeds({"a": artifacts.figures(), "b": artifacts.figures(900.0, 120.0)}, "measured in this run")
    path = folder / "page.html"
    path.write_text(html_page(Inspection(both, speeds)), encoding="utf-8")
    return path


@pytest.fixture
def opened(browser, page_file):
    """Function (options of the context) -> the page and what it asked for; it fails on anything on the console."""
    contexts, complaints = [], []

    def open_page(**options):
        context = browser.new_context(**{"viewport": {"width": WIDE, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(page_file.as_uri())
        return page, asked

    yield open_page
    for context in contexts:
        context.close()
    assert not complaints


@pytest.mark.parametrize(("scheme", "theme"), [("light", LIGHT), ("dark", DARK)])
@pytest.mark.parametrize("width", [WIDE, PHONE])
def test_it_is_readable_and_fits(opened, scheme, theme, width):
    page, asked = opened(color_scheme=scheme, viewport={"width": width, "height": 900})
    red, green, blue = (int(theme.background[at : at + 2], 16) for at in (1, 3, 5))
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == f"rgb({red}, {green}, {blue})"
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 100
    assert contrasts[0] >= 4.5
    assert page.evaluate("document.documentElement.scrollWidth") == width
    pictures = page.evaluate("[...document.images].map((image) => [image.naturalWidth, image.clientWidth])")
    assert pictures
    for natural, shown in pictures:
        assert natural > 0
        assert 0.8 * min(width, 500) <= shown <= width
    assert len(asked) - sum(url.startswith("data:") for url in asked) == 1  # the file itself


def test_pictures_follow_the_colour_scheme(opened):
    sources = {}
    for scheme in ("light", "dark"):
        page, _ = opened(color_scheme=scheme)
        sources[scheme] = page.evaluate("[...document.images].map((image) => image.currentSrc)")
    assert all(light != dark for light, dark in zip(sources["light"], sources["dark"], strict=True))


def test_tables_are_sorted_by_the_keyboard(opened):
    page, _ = opened()
    table = page.get_by_role("region", name="layers of b", exact=True)
    button = table.get_by_role("button", name="rel. error")
    heading = table.get_by_role("columnheader", name="rel. error")

    def errors():
        cells = table.locator("tbody tr").evaluate_all(
            "(rows, column) => rows.map((row) => row.cells[column].textContent)",
            heading.evaluate("(cell) => cell.cellIndex"),
        )
        return [float(cell) if cell else None for cell in cells]

    before = errors()
    assert before[5] is None
    known = sorted(error for error in before if error is not None)
    button.focus()
    page.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "ascending"
    assert errors() == [*known, None]
    page.keyboard.press("Space")
    assert heading.get_attribute("aria-sort") == "descending"
    assert errors() == [*reversed(known), None]
    assert button.evaluate("(button) => document.activeElement === button")

    table.get_by_role("button", name="layer", exact=True).press("Enter")
    assert heading.get_attribute("aria-sort") is None
    names = table.locator("tbody th").all_text_contents()
    assert names[0] == "lm_head"


def test_tables_that_are_too_wide_scroll_by_the_keyboard(opened):
    page, _ = opened(viewport={"width": PHONE, "height": 900})
    table = page.get_by_role("region", name="layers of a", exact=True)
    table.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("(element) => element.scrollLeft > 0", arg=table.element_handle())


def test_without_script_everything_is_there_in_the_order_of_the_model(opened):
    page, _ = opened(java_script_enabled=False)
    table = page.get_by_role("region", name="layers of a", exact=True)
    assert table.locator("tbody tr").count() == 13
    assert table.locator("tbody th").first.text_content() == "model.layers.0.self_attn.q_proj"
    assert page.get_by_role("button").count() == 0


def test_hostile_names_are_only_text(opened):
    page, _ = opened()
    assert page.title() == "hwpq inspect: a, b"
    assert page.locator("script").count() == 1
    assert page.get_by_text(HOSTILE).count() >= 2


def test_the_browser_runs_no_other_script(browser, page_file):
    page = browser.new_page()
    page.goto(page_file.as_uri())
    ran = page.evaluate(
        "() => { const script = document.createElement('script'); script.textContent = 'window.ran = true';"
        " return new Promise((done) => {"
        " document.addEventListener('securitypolicyviolation', () => done(window.ran === true));"
        " document.body.append(script); }); }"
    )
    page.close()
    assert ran is False
