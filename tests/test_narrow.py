"""The dashboard in the hand: what counts of each column is on the screen of a telephone, and no light is green before it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import CHROMIUM, chromium
from test_metrics import ask, bundle, data, running, until  # noqa: F401 - a fixture among them

from notebook_to_prod.package.bundle import Bundle

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
LIGHT = "getComputedStyle(document.getElementById('state'), '::before').color"
GREEN = "(made => (made.style.color = 'var(--good)', document.body.append(made), getComputedStyle(made).color))(document.createElement('i'))"
OUTSIDE = """[...document.querySelectorAll('.drift td')]
    .filter(each => (box => box.width && (box.left < 0 || box.right > innerWidth))(each.getBoundingClientRect()))
    .map(each => each.innerText)"""


@pytest.fixture(scope="module")
def service(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:  # noqa: F811
    log = tmp_path_factory.mktemp("service") / "log"
    with running(bundle, 1, log, metrics={"rows": 100, "window": 600}) as (_, url):
        ask(url, bundle.golden["rows"], 12)
        until(lambda: any(part["index"] is not None for each in data(url)["drift"] for part in each["features"]))
        yield url


def test_a_telephone_shows_index_and_verdict_of_each_column(service: str, bundle: Bundle, tmp_path: Path) -> None:  # noqa: F811
    with chromium(390, 844) as tab:
        page = tab()
        page.open(f"{service}/dashboard")
        page.wait("document.getElementById('state').innerText === 'live'")
        assert page.ask(LIGHT) == page.ask(GREEN)
        for name in (*bundle.schema.names, "prediction"):
            row = f"[...document.querySelectorAll('.drift tr')].find(each => each.querySelector('td.name')?.innerText === {name!r})"
            assert page.ask(f"/\\d[.]\\d{{3}}/.test({row}.querySelector('td.index').innerText)"), name
            assert page.ask(f"/stable|moving|shifted/.test({row}.querySelector('td.verdict').innerText)"), name
        assert page.ask(OUTSIDE) == []
        assert page.ask("document.documentElement.scrollWidth <= innerWidth")
        page.ask("document.getElementById('features').scrollIntoView()")
        page.picture(tmp_path / "narrow.png")
        page.resize(1280, 800)
        assert page.ask("getComputedStyle(document.querySelector('.drift tbody tr')).display") == "table-row"
        assert page.errors == []


def test_the_light_is_not_green_before_the_service_has_answered(service: str) -> None:
    with chromium(390, 844) as tab:
        page = tab()
        page.send("Page.addScriptToEvaluateOnNewDocument", source="window.fetch = () => new Promise(() => {})")
        page.open(f"{service}/dashboard")
        assert page.ask("document.getElementById('state').innerText") == "connecting"
        assert page.ask(LIGHT) != page.ask(GREEN)
