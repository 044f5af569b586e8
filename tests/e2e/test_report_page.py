"""The report in a real browser: Debian's chromium, driven by playwright."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cli_calls import AT_ONCE, NULL, make_job_folder
from report_run import HOSTILE, make_large_run
from run_folder import make_run_folder

from batchgen.durable import write_json
from batchgen.paths import RunPaths
from batchgen.report import write_report
from batchgen.runfile import read_run

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

OPENS_S = 2.0  # CPU seconds of a page with 100k rows behind it
HIDDEN = "all => all.map(each => each.scrollWidth - each.clientWidth)"  # pixels to the right
DRAWN = """async () => {
    await new Promise(requestAnimationFrame);
    const markers = [...document.querySelectorAll(".u-marker")].map(mark => mark.style.cssText);
    return [...PLOTS.map(made => made.ctx.canvas.toDataURL()), ...markers];
}"""
CLIP = """video => new Promise(done => {
    const plays = () => !video.paused && video.currentTime > 0;
    video.addEventListener("timeupdate", () => plays() && done(true));
    video.addEventListener("error", () => done(false));
})"""


@dataclass
class Opened:
    """A report in a browser, and what went wrong in it."""

    page: Page
    complaints: list[str] = field(default_factory=list)

    def shown(self) -> list[str]:
        """Row ids on the contact sheet."""
        return self.page.locator(".tiles .rid").all_inner_texts()

    def found(self) -> int:
        """How many rows the sheet says that it has."""
        return int(self.page.locator(".found").inner_text().split()[0].replace(",", ""))

    def renewed(self, rows: int) -> None:
        """Wait until the sheet has so many rows."""
        self.page.locator(".found", has_text=f"{rows:,} of").wait_for()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("there is no chromium: apt-get install chromium")
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def opened(browser: Browser, run: RunPaths, **options: Any) -> Opened:
    page = browser.new_page(**options)
    found = Opened(page)
    page.on("console", lambda said: found.complaints.append(f"{said.type}: {said.text}"))
    page.on("pageerror", lambda error: found.complaints.append(str(error)))
    page.on("requestfailed", lambda request: found.complaints.append(request.url))
    page.goto(run.report.as_uri())
    page.locator("body[data-ready]").wait_for(timeout=10_000)
    return found


def cpu_seconds(page: Page) -> float:
    """Of the page's process so far; the clock on the wall also sees what else is at work."""
    asked = page.context.new_cdp_session(page)
    asked.send("Performance.enable")
    told = asked.send("Performance.getMetrics")["metrics"]
    return next(float(each["value"]) for each in told if each["name"] == "ProcessTime")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    """Three clips, by the command line, which writes the report at its end."""
    rows = [
        {"row_id": f"row-{n}", "prompt": f"a {colour} circle", "seed": n, "tags": tag}
        for n, (colour, tag) in enumerate([("red", "warm"), ("blue", "cold"), ("green", "cold")])
    ]
    job = make_job_folder(tmp_path_factory.mktemp("demo"), rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(*next(iter(AT_ONCE.items())))
        done = job.run_here(NULL)
    assert done.code == 0 and Path(done.json["report"]).is_file(), done.err
    return done.run


def test_clips_play_and_rows_are_found(browser: Browser, demo: RunPaths) -> None:
    """A person looks for rows, opens one and goes on to the next by key."""
    report = opened(browser, demo)
    page = report.page
    assert report.shown() == ["row-0", "row-1", "row-2"]
    page.get_by_label("Search").fill("BLUE circle")
    report.renewed(1)
    assert report.shown() == ["row-1"]
    page.get_by_label("Search").fill("")
    report.renewed(3)
    page.get_by_label("Tag").select_option("cold")
    assert report.shown() == ["row-1", "row-2"]
    page.get_by_role("button", name="row-1, ok: a blue circle").press("Enter")
    dialog = page.get_by_role("dialog", name="row-1")
    assert dialog.locator("video").evaluate(CLIP)
    page.keyboard.press("ArrowRight")
    page.get_by_role("dialog", name="row-2").wait_for()
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("row-1")
    tile = page.locator(".tile video").first
    tile.hover()
    assert tile.evaluate(CLIP)
    assert report.complaints == []
    page.close()


def test_a_large_run_opens_soon_and_its_filters_work(
    browser: Browser, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = make_large_run(tmp_path_factory.mktemp("large") / "run", 3000).run
    write_report(run)
    report = opened(browser, run, color_scheme="dark")
    page = report.page
    rows, failed = report.found(), len(range(5, 3000, 331))
    shown = len(report.shown())
    page.get_by_role("button", name="Show").click()
    assert shown < len(report.shown()) < 200 < rows
    page.get_by_label("Status").select_option("failed")
    assert report.found() == failed == page.locator(".tile.failed").count()
    page.get_by_label("Status").select_option("")
    page.get_by_label("score from").fill("0.95")
    report.page.get_by_label("Sort by").select_option("score, lowest first")
    assert 0 < report.found() < rows
    page.get_by_label("score from").fill("")
    page.get_by_label("Bucket").select_option("480x320x16")
    page.get_by_label("Sort by").select_option("cost, highest first")
    costs = page.locator(".tile .meta .num").all_inner_texts()[:20]
    seconds = [float(cost.split()[0]) for cost in costs]
    assert seconds == sorted(seconds, reverse=True)
    assert page.locator("canvas").count() == 5
    assert page.locator(".state").inner_text() == "finished"
    assert page.locator("#failures details pre").count() == 2
    memory = page.locator("#memory tbody tr")
    assert [line.split("\t")[1] for line in memory.all_inner_texts()] == ["smaller", "model"]
    memory.locator("button").first.click()
    assert "short of memory\nsmaller" in page.get_by_role("dialog").inner_text()
    page.keyboard.press("Escape")
    assert report.complaints == []
    page.close()


def test_axes_of_seconds_have_marks_wherever_they_begin(browser: Browser, demo: RunPaths) -> None:
    """An axis from 9.97 ms has none of uPlot's own: it looks for the next one for ever."""
    report = opened(browser, demo)
    page = report.page
    asked = "([low, high]) => { const at = marks(low, high); return [at, labels(at)]; }"
    for low in [at * 10.0**power for power in (-5, -3, 0, 3) for at in (1, 1.01, 2.6, 5.1, 9.97)]:
        for reach in (1.96, 3.9, 30, 40_000):
            at, said = page.evaluate(asked, [low, low * reach])
            assert at == sorted(set(at)) and low <= at[0] and at[-1] <= low * reach
            assert len([words for words in said if words]) >= 2
    assert page.evaluate("labels([0.05, 0.1, 0.3, 1])") == ["50 ms", "0.1 s", None, "1 s"]
    assert page.evaluate("labels([3, 4])") == ["3 s", "4 s"]
    wide = [0.1, 0.5, 1, 200, 1000]
    assert page.evaluate("labels", wide) == ["0.1 s", None, "1 s", None, "1,000 s"]
    rates = page.evaluate("[3310.2, 3311.4, 3314.9, 12.34, 0, 987654].map(pace)")
    assert rates == ["3,310", "3,310", "3,310", "12.3", "0", "988,000"]
    drawn = {"seconds": 1.4 * 0.00997, "predicted": 0.03}
    page.evaluate("row => void document.body.append(againstPlan([row]))", drawn)
    page.evaluate("new Promise(requestAnimationFrame)")
    assert report.complaints == []
    page.close()


def test_every_axis_has_marks_that_fit_beside_it(browser: Browser, demo: RunPaths) -> None:
    """Also over years, and where a bar holds a million rows."""
    report = opened(browser, demo)
    page = report.page
    for work_s in (2e-3, 0.15, 40.0, 9e6, 3e9):
        line = {"bin_s": work_s / 2, "work_s": work_s, "pauses": 0, "ranks": [3e5, 1e4]}
        line |= {"ok": [1, 10**9], "failed": [0, 0]}
        for name in ("throughput", "ranksAtWork"):
            page.evaluate(f"line => document.body.append({name}(line))", line)
            page.evaluate("new Promise(requestAnimationFrame)")
            across, up = page.evaluate("PLOTS.at(-1).axes.map(axis => axis._values)")
            assert len({*across}) == len(across) > 1, (name, work_s, across)
            assert len({*up}) == len(up) > 1 and max(map(len, up)) <= 7, (name, work_s, up)
    for reach in (10, 1e3, 1e6, 1e12, 1e25):
        told = page.evaluate("reach => labels(marks(1e-3, 1e-3 * reach), 5)", reach)
        assert 2 <= len([words for words in told if words]) <= 6, told
    assert report.complaints == []
    page.close()


def test_plots_follow_the_theme(browser: Browser, demo: RunPaths) -> None:
    """They are pixels: what was drawn in the light looks like what was drawn in the dark, and a
    printer has the light again."""
    pages = [opened(browser, demo, color_scheme=scheme).page for scheme in ("light", "dark")]
    light, dark = (page.evaluate(DRAWN) for page in pages)
    assert light != dark
    for _ in ("light", "dark"):
        pages[0].get_by_role("button", name="Theme").click()
    assert pages[0].evaluate(DRAWN) == dark
    pages[1].emulate_media(media="print", color_scheme="dark")
    assert pages[1].evaluate(DRAWN) == light
    for page in pages:
        page.close()


def test_figures_are_said_in_words_that_fit_them(browser: Browser, demo: RunPaths) -> None:
    report = opened(browser, demo)
    page = report.page
    said = {
        "figure(1e300)": "1.00e+300",
        "figure(999.7)": "1,000",
        "rankTime(1.0004)": "1 CPU-hour",
        "duration(1e-6)": "1 µs",
        "duration(-300)": "-5 min",
        "brief(1234567)": "1.23M",
        "brief(0.00002)": "0.00002",
        "busiest(3, 3)": "Each attempt worked 3 s.",
        "busiest(0, 0)": "No attempt has worked yet.",
        "busiest(6, 3)": "The busiest attempt worked 2 times as long as the mean of 3 s.",
    }
    assert {asked: page.evaluate(asked) for asked in said} == said
    assert page.locator(".found").inner_text() == "3 of 3 rows on this sheet"
    rows = {"edges": [2.95, 3.02, 3.09], "counts": [4, 1], "p50": 3.0, "p95": 3.0}
    page.evaluate("rows => void histogram(rows)", rows)
    assert page.evaluate("PLOTS.at(-1).series[0].value(null, 0)") == "2.95 s to 3.02 s"
    page.close()


def test_media_that_are_gone_are_said_so(browser: Browser, tmp_path: Path) -> None:
    folder = make_run_folder(tmp_path / "run", 1)
    with folder.journal(folder.submit()) as journal:
        folder.render(journal, 0)
    write_report(folder.run)
    shutil.rmtree(folder.run.media)
    page = opened(browser, folder.run).page
    gone = "file is not there or cannot be shown"
    page.locator(".tile", has_text=gone).click()
    page.get_by_role("dialog").get_by_text(gone).wait_for(timeout=5000)
    page.close()


def test_paper_has_the_images_that_no_window_has_shown(browser: Browser, tmp_path: Path) -> None:
    folder = make_run_folder(tmp_path / "run", 60)
    with folder.journal(folder.submit()) as journal:
        for row in range(60):
            folder.render(journal, row)
    write_report(folder.run)
    page = opened(browser, folder.run, viewport={"width": 320, "height": 600}).page
    loaded = "all => all.filter(image => image.naturalWidth).length"
    page.wait_for_function("document.querySelector('.tile img').naturalWidth")
    assert page.locator(".tile img").evaluate_all(loaded) < 60
    page.pdf()
    assert page.locator(".tile img").evaluate_all(loaded) == 60
    page.close()


def test_each_tag_of_a_row_is_offered_once(browser: Browser, tmp_path: Path) -> None:
    many = ",".join(f"tag-{number}" for number in range(60))
    folder = make_run_folder(tmp_path / "run", 2, extra={"tags": ["hero, hero ,night", many]})
    write_report(folder.run)
    page = opened(browser, folder.run).page
    told = page.get_by_label("Tag").locator("option").all_inner_texts()
    assert len(told) == 1 + 2 + 60 and "hero (1)" in told and "tag-59 (1)" in told
    page.close()


def test_a_run_without_any_work_has_no_empty_tables(browser: Browser, tmp_path: Path) -> None:
    folder = make_run_folder(tmp_path / "run", 1)
    write_report(folder.run)
    report = opened(browser, folder.run)
    page = report.page
    assert page.locator("nav a").all_inner_texts() == ["Contact sheet", "Configuration"]
    assert page.locator(".found").inner_text() == "1 of 1 row on this sheet"
    assert "no row is finished" in page.locator(".cards").inner_text()
    assert page.locator(".card", has_text="Throughput").locator(".big").inner_text()[0] == "–"
    assert page.locator(".card dt", has_text="A row").count() == 0
    assert report.complaints == []
    page.close()


def test_long_texts_stay_inside_the_page(browser: Browser, tmp_path: Path) -> None:
    """Without a blank in them, in a window of a telephone and in a large one."""
    long = "x" * 128
    names = ("row_id", "prompt", "tags", "bucket")
    folder = make_run_folder(tmp_path / "run", 2, extra={name: [long] * 2 for name in names})
    with folder.journal(folder.submit(), host=long) as journal:
        folder.render(journal, 0)
        folder.fail(journal, 1, 30 * long)
    header = replace(read_run(folder.run), manifest=5 * long, overrides=[f"seed={5 * long}"])
    write_json(folder.run.run_json, header.to_json())
    write_report(folder.run)
    report = opened(browser, folder.run)
    page = report.page
    for width in (320, 1400):
        page.set_viewport_size({"width": width, "height": 800})
        page.evaluate("new Promise(requestAnimationFrame)")
        assert page.evaluate("document.documentElement.scrollWidth") == width
        for tile in page.locator(".tile").all():
            tile.click()
            assert page.locator("dialog, .about").evaluate_all(HIDDEN) == [0, 0]
            page.keyboard.press("Escape")
    assert report.complaints == []
    page.close()


@pytest.mark.slow
def test_a_hundred_thousand_rows_are_one_small_page(browser: Browser, tmp_path: Path) -> None:
    run = make_large_run(tmp_path / "run", 100_000).run
    write_report(run)
    assert run.report.stat().st_size < 2_000_000
    report = opened(browser, run)
    assert cpu_seconds(report.page) < OPENS_S
    assert report.complaints == []
    report.page.close()


def test_nothing_that_a_row_says_is_run(browser: Browser, tmp_path: Path) -> None:
    """Also a row id, which manifests do not take like this, and the tooltip of every bar."""
    hostile = [HOSTILE] * 3
    names = ("row_id", "prompt", "tags", "bucket")
    folder = make_run_folder(tmp_path / "run", 3, extra={name: hostile for name in names})
    with folder.journal(folder.submit()) as journal:
        folder.render(journal, 0)
        folder.fail(journal, 1, HOSTILE)
    write_report(folder.run)
    report = opened(browser, folder.run)
    page = report.page
    assert page.locator(".tile .says").first.inner_text().startswith("</script><script>")
    page.locator(".tile").first.click()
    assert page.locator("dialog .prompt").inner_text().startswith("</script><script>")
    page.keyboard.press("Escape")
    page.locator("#failures summary").click()
    assert page.evaluate("window.hit") is None
    assert page.locator("img[src=x]").count() == 0
    assert report.complaints == []
    page.close()
