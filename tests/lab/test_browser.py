"""The reports in Debian's chromium, with the window of a phone: what a reader sees, sorts and points at."""

import pathlib
import re
import shutil

import pytest

import fake_results
from fake_outcomes import only, work_through
from lab import frames, page, spaces

ROWS = [(2.0, 0.3, 1.0, 0.9), (0.5, 0.8, 0.4, 0.98)]
FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync"
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    """A browser that asks nobody for updates."""
    from selenium import webdriver

    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    assert all(programs), "this test needs chromium: apt-get install chromium chromium-driver"
    options = webdriver.ChromeOptions()
    options.binary_location, program = programs
    for flag in [*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(program))
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    yield driver
    driver.quit()


def benchmark(folder):
    for seed in (0, 1):
        fake_results.write(folder, ("mnist", "vgg16", "gravity"), seed, ROWS)
    return page.write_benchmark(frames.load(folder))


def comparison(folder):
    flags = {"optimizers": ("gravity", "adam", "gravity:alpha=0"), "search_seeds": 1, "seeds": 2}
    score = lambda trial: 1 / (1 + trial.learning_rate + spaces.settings_of(trial.point).get("weight_decay", 0))
    outcomes = {}
    for one in (only(**flags), only(**flags, sampler="qmc", trials=4)):
        outcomes |= work_through(one, score)[1]
    return page.write_comparison(folder, outcomes)


def said(names, values):
    return ", ".join(
        f"{name} {value:g}".replace("e-0", "e-") for name, value in zip(names, values, strict=True) if name
    )


@pytest.mark.browser
@pytest.mark.parametrize("write", [benchmark, comparison])
def test_a_report_is_read_sorted_and_pointed_at(driver, tmp_path, write):
    driver.get(pathlib.Path(write(tmp_path)).as_uri())
    run = driver.execute_script
    width = run("for (const all of document.querySelectorAll('details')) all.open = true; return innerWidth")
    assert width == 390 and run("return document.documentElement.scrollWidth") == width
    assert run("return [...document.images].every(image => image.alt.length > 20 && image.naturalWidth)")
    assert run("return document.images.length") >= 1

    column = "return [...document.querySelector('tbody').rows].map(row => row.cells[arguments[0]].textContent)"
    heads = driver.find_elements("css selector", "table:first-of-type th")
    count = run("return document.querySelector('thead').rows[0].cells.length")
    for i, head in enumerate(heads[:count]):
        before = run(column, i)
        run("arguments[0].click()", head)
        up = run(column, i)
        run("arguments[0].click()", head)
        down = run(column, i)
        assert sorted(up) == sorted(down) == sorted(before) and (up != down or len(set(up)) == 1)
        if all(re.fullmatch(r"-?[0-9.e-]+", text) for text in up):
            numbers = [float(text) for text in up]
            assert numbers == sorted(numbers) and [float(text) for text in down] == numbers[::-1]
        assert head.get_attribute("aria-sort") == "descending"

    curves = run("return JSON.parse(document.querySelector('figure script').textContent)")
    assert {curve["label"].split(",")[0].lower() for curve in curves} >= {"gravity", "adam"}
    image = driver.find_element("css selector", "figure img")
    run("arguments[0].scrollIntoView()", image)
    box = run(
        "const {left, top, width, height} = arguments[0].getBoundingClientRect(); return {left, top, width, height}",
        image,
    )
    for curve in curves:
        left, top, *_ = curve["points"][-1]
        at = {"x": box["left"] + left * box["width"], "y": box["top"] + top * box["height"]}
        driver.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": "mouseMoved", **at})
        tip = driver.find_element("id", "values")
        assert tip.is_displayed() and tip.rect["x"] >= 0 and tip.rect["x"] + tip.rect["width"] <= width
        same = [(one, point) for one in curves for point in one["points"] if point[:2] == [left, top]]
        assert tip.text in [f"{one['label']}: {said(one['names'], point[2:])}" for one, point in same]
    driver.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": 5, "y": 5})
    assert not driver.find_element("id", "values").is_displayed()
    assert run("return document.documentElement.scrollWidth") == width
    assert driver.get_log("browser") == []
