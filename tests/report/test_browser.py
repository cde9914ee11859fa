"""The report in a real browser: it draws, fits a phone, follows the theme, and works without a mouse."""

from __future__ import annotations

import base64

import pytest
from selenium.webdriver.support.ui import WebDriverWait

from logitkit.report import write_report
from report.results import results

pytestmark = pytest.mark.chromium

FOCUSED = "return document.activeElement.className || document.activeElement.tagName.toLowerCase()"


@pytest.fixture
def show(browser, tmp_path):
    """Opens a report of made-up results at a width and in a theme."""

    def view(width: int, theme: str) -> None:
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        browser.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": theme}]}
        )

    def opened(made, width: int = 1280, theme: str = "light"):
        browser.get_log("browser")
        view(width, theme)
        browser.get(write_report(made, tmp_path / "report.html").as_uri())
        WebDriverWait(browser, 30).until(lambda driver: not undrawn(driver))
        return browser

    opened.view = view
    yield opened
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def undrawn(driver):
    """The plots, outside folded parts, that show no trace."""
    return driver.execute_script(
        "return [...document.querySelectorAll('.plot')].filter(p => !p.closest('details:not([open])'))"
        ".filter(p => !p.querySelector('.main-svg .trace')).map(p => p.ariaLabel)"
    )


def complaints(driver):
    return [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]


def paper(driver):
    return driver.execute_script(
        "return getComputedStyle(document.querySelector('.plot .main-svg')).backgroundColor"
    )


def sideways(driver):
    """How far the page scrolls sideways."""
    return driver.execute_script(
        "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )


def test_every_plot_draws_and_nothing_is_fetched(show, tmp_path):
    driver = show(results(["better", "worse", "no difference shown"], diverged={3: 1}))
    assert driver.execute_script("return document.querySelectorAll('.js-plotly-plot').length") == 3 + 2 * 4
    assert undrawn(driver) == []
    assert driver.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert complaints(driver) == []
    shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
    (tmp_path / "report.png").write_bytes(base64.b64decode(shot["data"]))


def test_user_text_runs_no_code(show):
    labels = [
        "loss=a",
        "loss=</script><script>window.hacked=1</script>",
        "loss=<img src=x onerror=window.hacked=1>",
    ]
    driver = show(results(["better", "worse"], labels=labels, data="<script>window.hacked=1</script>"))
    assert driver.execute_script("return window.hacked") is None
    assert driver.execute_script("return document.images.length") == 0
    assert undrawn(driver) == []
    assert complaints(driver) == []


@pytest.mark.parametrize("arms", [1, 3, 30])
@pytest.mark.parametrize("width", [375, 1280])
def test_the_page_never_scrolls_sideways(show, arms, width):
    label = "loss=a_loss_with_a_very_long_name(and=1, many=2, arguments=3, of=4, every=5, kind=6)"
    driver = show(
        results(["better"] * (arms - 1), labels=["loss=a", *[f"{label}{k}" for k in range(1, arms)]]), width
    )
    assert sideways(driver) == 0
    driver.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert sideways(driver) == 0
    assert undrawn(driver) == []
    edges = driver.execute_script(
        "return [...document.querySelectorAll('.plot')].map(p => p.getBoundingClientRect().right)"
    )
    assert max(edges) <= width


def test_plots_follow_the_theme_while_the_page_is_open(show):
    driver = show(results())
    light = paper(driver)
    body = "return getComputedStyle(document.body).backgroundColor"
    assert light == driver.execute_script(body)
    show.view(1280, "dark")
    driver.execute_async_script("requestAnimationFrame(() => setTimeout(arguments[0], 200))")
    assert paper(driver) != light
    assert paper(driver) == driver.execute_script(body)
    assert undrawn(driver) == []


def test_the_page_works_by_keyboard(show):
    from selenium.webdriver.common.keys import Keys

    driver = show(results(["better"]))

    def tab():
        driver.switch_to.active_element.send_keys(Keys.TAB)
        return driver.execute_script(FOCUSED)

    assert tab() == "skip"
    driver.switch_to.active_element.send_keys(Keys.ENTER)
    assert driver.execute_script("return document.activeElement.id") == "main"
    reached = [tab() for _ in range(12)]
    assert "scroller" in reached
    assert "chip" in reached
    assert "summary" in reached
    driver.execute_script("document.querySelector('details.recipe > summary').focus()")
    driver.switch_to.active_element.send_keys(Keys.ENTER)
    assert driver.execute_script("return document.querySelector('details.recipe').open")


def test_buttons_hide_arms_and_choose_the_cost(show):
    driver = show(results(["better"]))

    def traces(section):
        return driver.execute_script(f"return document.querySelectorAll('#{section} .plot .trace').length")

    def axis():
        return driver.execute_script("return document.querySelector('#cost .plot').layout.xaxis.title.text")

    before = traces("curves")
    driver.execute_script("document.querySelector('#curves [data-arm]').click()")
    assert traces("curves") == before - 2
    show.view(1280, "dark")
    driver.execute_async_script("requestAnimationFrame(() => setTimeout(arguments[0], 200))")
    assert traces("curves") == before - 2
    assert axis() == "training time (s)"
    driver.execute_script("document.querySelector('#cost [data-choice=peak_memory_mb]').click()")
    assert axis() == "peak memory (MiB)"
    assert (
        driver.execute_script(
            "return document.querySelectorAll('#cost [aria-pressed=true][data-choice]').length"
        )
        == 1
    )
