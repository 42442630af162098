"""The reports in Debian's chromium, with the window of a phone: what a reader sees, sorts and points at."""

import pathlib
import re
import shutil

import pytest

import fake_results
from fake_outcomes import only, work_through
from lab import frames, page, spaces

FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync"  # it asks nobody for updates
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
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
        fake_results.write(folder, ("mnist", "vgg16", "gravity"), seed, [(2.0, 0.3, 1.0, 0.9), (0.5, 0.8, 0.4, 0.98)])
    return page.write_benchmark(frames.load(folder))


def comparison(folder):
    flags = {"optimizers": ("gravity", "adam", "gravity:alpha=0"), "search_seeds": 1, "seeds": 2}
    score = lambda trial: 1 / (1 + trial.learning_rate + spaces.settings_of(trial.point).get("weight_decay", 0))
    rates, points = (work_through(only(**flags, **more), score)[1] for more in ({}, {"sampler": "qmc", "trials": 4}))
    return page.write_comparison(folder, rates | points)


@pytest.mark.browser
@pytest.mark.parametrize("write", [benchmark, comparison])
def test_a_report_is_read_sorted_and_pointed_at(driver, tmp_path, write):
    driver.get(pathlib.Path(write(tmp_path)).as_uri())
    run = driver.execute_script
    width = run("for (const all of document.querySelectorAll('details')) all.open = true; return innerWidth")
    assert width == 390 and run("return document.documentElement.scrollWidth") == width
    assert run("return [...document.images].every(image => image.alt.length > 20 && image.naturalWidth)")

    column = "return [...document.querySelector('tbody').rows].map(row => row.cells[arguments[0]].textContent)"
    heads = driver.find_elements("css selector", "table:first-of-type th")
    for i, head in enumerate(heads[: run("return document.querySelector('thead').rows[0].cells.length")]):
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
    image, tip = driver.find_element("css selector", "figure img"), driver.find_element("id", "values")
    run("arguments[0].scrollIntoView()", image)
    box = run("return arguments[0].getBoundingClientRect().toJSON()", image)
    told = {}
    for curve in curves:
        for left, top, *values in curve["points"]:
            number = [f"{value:g}".replace("e-0", "e-") for value in values]
            shown = ", ".join(f"{name} {text}" for name, text in zip(curve["names"], number, strict=True) if name)
            told.setdefault((left, top), []).append(f"{curve['label']}: {shown}")
    for curve in curves:
        left, top, *_ = curve["points"][-1]
        at = {"x": box["left"] + left * box["width"], "y": box["top"] + top * box["height"]}
        driver.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": "mouseMoved", **at})
        assert tip.is_displayed() and tip.rect["x"] >= 0 and tip.rect["x"] + tip.rect["width"] <= width
        assert tip.text in told[left, top]
    driver.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": 5, "y": 5})
    assert not tip.is_displayed() and run("return document.documentElement.scrollWidth") == width
    assert driver.get_log("browser") == []
