"""Reports of real runs, opened in a browser: nothing is loaded, nothing fails, nothing is wider than the screen.

Needs Chromium and its driver on the PATH, and selenium.
"""

import base64
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ("mixture", "quickstart")
WIDTHS, SCHEMES = (1280, 390), ("light", "dark")
SCREEN = 800  # height
PICTURE = ROOT / "fe_posttrain" / "view" / "report.png"
_BUILD = (
    "import sys, time; from pathlib import Path; from fe_posttrain.view.page.report import write_report; "
    "loaded = time.process_time(); path = write_report(Path(sys.argv[1])); "
    "print(loaded, time.process_time() - loaded, path.stat().st_size)"
)


def report_page() -> dict:
    """Train two recipes with probes every 25 steps; build each report in a fresh process, open it at two widths in
    light and dark; keep the first screen of the first as a picture."""
    _require()
    folder = Path(tempfile.mkdtemp())
    runs = [_trained(name, folder / name) for name in RECIPES]
    built = {run.name: _built(run) for run in runs}
    seen = []
    browser = _browser(folder)
    try:
        for run in runs:
            for width in WIDTHS:
                for scheme in SCHEMES:
                    seen.append({"run": run.name} | _opened(browser, run / "report.html", width, scheme))
                    print(seen[-1], flush=True)
        picture = _picture(browser, runs[0] / "report.html")
    finally:
        browser.quit()
    PICTURE.write_bytes(picture)
    return {
        "what": "report.html of finished runs of recipes/ (--support_steps 25), opened from disk in headless Chromium",
        "bars": {"console_errors": 0, "requests": 0, "scrolls_sideways": 0, "bytes": 2_000_000, "cpu_seconds": 5},
        "browser": browser.capabilities["browserVersion"],
        "console_errors": sum(len(one["console"]) for one in seen),
        "requests": sum(len(one["requests"]) for one in seen),
        "scrolls_sideways": sum(one["content_width"] > one["screen_width"] for one in seen),
        "largest_bytes": max(one["bytes"] for one in built.values()),
        "most_cpu_seconds": max(one["cpu_seconds"] for one in built.values()),
        "picture_bytes": len(picture),
        "built": built,
        "opened": seen,
    }


def _require() -> None:
    missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    if importlib.util.find_spec("selenium") is None:
        missing.append("selenium")
    if missing:
        raise SystemExit(f"report_page: {', '.join(missing)} missing; a browser opens the pages; install them")


def _trained(name: str, run: Path) -> Path:
    """A finished run of a recipe."""
    door, recipe = str(ROOT / "scripts" / "train.py"), str(ROOT / "recipes" / f"{name}.yaml")
    words = ["--config", recipe, "--output_dir", str(run), "--support_steps", "25", "--report_to", "none"]
    subprocess.run([sys.executable, door, *words], check=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    return run


def _built(run: Path) -> dict:
    """CPU seconds of building the report, beside those of importing, and the size of the page."""
    done = subprocess.run([sys.executable, "-c", _BUILD, str(run)], check=True, capture_output=True, text=True)
    loaded, used, size = done.stdout.split()
    return {"import_cpu_seconds": round(float(loaded), 2), "cpu_seconds": round(float(used), 2), "bytes": int(size)}


def _browser(folder: Path):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for word in ("--headless=new", "--no-sandbox", "--hide-scrollbars", f"--user-data-dir={folder / 'browser'}"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))


def _show(browser, page: Path, width: int, scheme: str) -> None:
    screen = {"width": width, "height": SCREEN, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get(page.as_uri())


def _opened(browser, page: Path, width: int, scheme: str) -> dict:
    """What the console said, what was asked for beside the page itself, how wide its content is with all folds open."""
    for kind in ("browser", "performance"):
        browser.get_log(kind)  # what was said before is another page's
    _show(browser, page, width, scheme)
    browser.execute_script("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    content, screen = browser.execute_script(
        "const root = document.documentElement; return [root.scrollWidth, root.clientWidth]"
    )
    told = [json.loads(row["message"])["message"] for row in browser.get_log("performance")]
    sent = [m["params"] for m in told if m["method"] == "Network.requestWillBeSent"]
    asked = [s["request"]["url"] for s in sent if s["documentURL"] == page.as_uri()]  # others: the browser's own tab
    return {
        "width": width,
        "scheme": scheme,
        "background": browser.execute_script("return getComputedStyle(document.body).backgroundColor"),
        "console": [row["message"] for row in browser.get_log("browser")],
        "requests": [url for url in asked if url != page.as_uri() and not url.startswith("data:")],
        "page_requested": page.as_uri() in asked,
        "content_width": content,
        "screen_width": screen,
    }


def _picture(browser, page: Path) -> bytes:
    """The first screen, light."""
    _show(browser, page, WIDTHS[0], "light")
    return base64.b64decode(browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})["data"])
