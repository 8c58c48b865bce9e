"""Takes pictures of the page: `python -m tests.support.screenshots DIRECTORY`.

The jobs are those of the gallery, the report's pictures those of a recorded report.
"""

import sys
import tempfile
from functools import partial
from pathlib import Path

from playwright.sync_api import Browser, ConsoleMessage

from app.db import make_engine, make_sessions, upgrade
from app.embedded import embedded_servers
from app.settings import Settings
from tests.support.chromium import running_browser
from tests.support.gallery import Gallery
from tests.support.reports import distillation_report, factored_report
from tests.support.server import serving
from tests.support.service import service_settings, tiny_recipe
from tests.support.text_models import write_tiny_model
from workers.report.plots import draw

SIZES = {"wide": (1180, 820), "phone": (390, 844)}
SCHEMES = ("light", "dark")


def main(directory: Path) -> None:
    """Write a picture of each page, wide and on a phone, light and dark, into a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        with embedded_servers(Settings(data_dir=scratch / "servers", database_url=None, redis_url=None)) as servers:
            engine = make_engine(servers.database_url)
            upgrade(engine)
            settings = service_settings(servers, scratch)
            tiny_recipe(write_tiny_model(scratch / "made"), scratch / "models", scratch / "texts")
            (scratch / "drawn").mkdir()
            draw(factored_report(distillation=distillation_report()), scratch / "drawn")
            pictures = {f"plots/{each.name}": each.read_bytes() for each in sorted((scratch / "drawn").rglob("*.png"))}
            jobs = Gallery(settings, make_sessions(engine), scratch / "packages", pictures).hang()
            with serving(settings) as address, running_browser() as browser:
                faults = take(browser, address, jobs, directory)
            engine.dispose()
    sys.exit("\n".join(faults) or 0)


def take(browser: Browser, address: str, jobs: dict[str, str], directory: Path) -> list[str]:
    """Take every picture, and return what the browser complains of and which pages are too wide."""
    pages = {
        "list": "",
        "job": f"/jobs/{jobs['trained']}",
        "running": f"/jobs/{jobs['running']}",
        "queued": f"/jobs/{jobs['queued']}",
        "failed": f"/jobs/{jobs['failed']}",
        "sweep": f"/jobs/{jobs['sweep']}",
        "compare": "/compare?" + "&".join(f"job={jobs[name]}" for name in ("trained", "plain", "structure")),
        "form": "/new?model=local:tiny",
        "missing": "/jobs/job_0",
    }
    faults: list[str] = []
    for scheme in SCHEMES:
        for size, (width, height) in SIZES.items():
            context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
            page = context.new_page()
            page.on("console", partial(complain, faults))
            for name, path in pages.items():
                page.goto(f"{address}/page{path}")
                if name == "form":
                    page.fill("#target_ratio", "1.3")
                    page.select_option("#method", "low_rank")
                page.wait_for_timeout(900)
                beyond = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
                faults += [f"{name}, {size}: {beyond} pixels wider than the window"] if beyond else []
                page.screenshot(path=directory / f"{name}-{size}-{scheme}.png", full_page=True)
            context.close()
    return faults


def complain(faults: list[str], message: ConsoleMessage) -> None:
    """Note what the browser says."""
    faults.append(message.text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
