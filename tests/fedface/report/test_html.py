import json
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from fedface.report import html
from fedface.report.html import plain, render_report, write_report
from fedface.report.recorded import Recording, read_recording
from fedface.report.run_folder import RunFolderError
from tests.fedface.report.recordings import (
    ENVIRONMENT,
    HOSTILE,
    record_comparison,
    record_run,
)

CHROMIUM = Path("/usr/bin/chromium")


class _Page(HTMLParser):
    """The scripts, the specifications, the tags and the visible text of a report."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.specs: list[dict[str, Any]] = []
        self.scripts: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._inside: str | None = None
        self._buffer = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self._inside, self._buffer = dict(attrs).get("type") or "code", ""

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            if self._inside == "application/json":
                self.specs.append(json.loads(self._buffer))
            else:
                self.scripts.append(self._buffer)
            self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside is None:
            self.text += data
        else:
            self._buffer += data


@pytest.fixture
def short_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the five megabytes of plotly.js, where nothing is drawn."""
    monkeypatch.setattr(html, "get_plotlyjs", lambda: "/** plotly */")


@pytest.fixture
def comparison(tmp_path: Path) -> Recording:
    return read_recording(record_comparison(tmp_path / "both").path)


@pytest.mark.usefixtures("short_plotly")
def test_the_numbers_are_the_recorded_ones(tmp_path: Path) -> None:
    recording = read_recording(record_run(tmp_path / "tiny").path)
    page = _Page(render_report(recording))
    run = recording.runs[0]
    lines = [spec["data"][-1] for spec in page.specs if spec["data"][-1]["type"] == "scatter"]
    tar = [event["verification"]["points"][1]["tar"] for event in run.evaluations]
    asr = [event["backdoor"]["recalibrated"][0]["asr"] for event in run.evaluations]
    eer = [event["verification"]["eer"] for event in run.evaluations]
    for series in (tar, asr, eer):
        assert series in [line["y"] for line in lines if "y" in line]
    for text in ("0.500", "(0.438..0.562)", "0.562", "0.333", "0.667"):
        assert text in page.text
    assert "1 of 4 sites attack" in page.text
    assert "0123456789abcdef" in page.text
    assert "torch 2.13.0" in page.text
    assert "margin: 0.2" in page.text
    heat = next(s["data"][0] for s in page.specs if s["data"][0]["type"] == "heatmap")
    assert heat["z"][1] == [11.1, 11.2, 11.3]


@pytest.mark.usefixtures("short_plotly")
def test_a_comparison_has_one_line_per_variant_and_details_of_every_run(
    comparison: Recording,
) -> None:
    page = _Page(render_report(comparison))
    names = [t["name"] for t in page.specs[0]["data"] if "name" in t]
    assert names == ["clean", "attacked"]
    for title in ("clean, seed 0", "clean, seed 1", "attacked, seed 0", "attacked, seed 1"):
        assert title in page.text
    assert "2 seeds for each variant" in page.text
    opened = [attrs for tag, attrs in page.tags if tag == "details" and "open" in attrs]
    assert len(opened) == 3


@pytest.mark.usefixtures("short_plotly")
def test_what_a_hostile_client_sent_is_only_text(tmp_path: Path) -> None:
    folder = record_run(tmp_path / "tiny", rejected={2: f"client failed: {HOSTILE}"})
    text = render_report(read_recording(folder.path))
    page = _Page(text)
    assert "<script>alert" not in text
    assert "<img" not in text.replace(page.scripts[0], "")
    assert "client failed: <script>alert(1)</script><img src=x onerror=alert(2)>" in page.text
    assert "{{ 7 * 7 }}" in page.text
    assert "\u202e" not in text.replace(page.scripts[0], "")
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert len(page.scripts) == 2
    assert "client 2" in page.text
    assert "1-3" in page.text


@pytest.mark.usefixtures("short_plotly")
def test_hostile_failures_and_kept_rounds_are_escaped_too(tmp_path: Path) -> None:
    recording = read_recording(record_run(tmp_path / "tiny", failed=HOSTILE).path)
    recording.runs[0].rounds[1]["kept_global"] = f"aggregator refused: {HOSTILE}"
    text = render_report(recording)
    assert "<script>alert" not in text
    page = _Page(text)
    assert "What could not be measured" in page.text
    assert "aggregator refused: <script>" in page.text


@pytest.mark.usefixtures("short_plotly")
def test_a_name_cannot_end_the_data_of_a_plot(comparison: Recording) -> None:
    name = "</script><script>alert(1)</script>"
    hostile = Recording(comparison.name, {}, {name: comparison.variants["clean"]})
    page = _Page(render_report(hostile))
    assert page.specs[0]["data"][-1]["name"] == name
    assert len(page.scripts) == 2


def test_the_file_stands_alone(comparison: Recording) -> None:
    page = _Page(render_report(comparison))
    assert [script[:4] for script in page.scripts].count("/**\n") == 1
    assert not [attrs for _, attrs in page.tags if "src" in attrs or "href" in attrs]
    policy = next(a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a)
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in policy.split("script-src")[1]


def test_the_report_is_reproducible(comparison: Recording, tmp_path: Path) -> None:
    path = tmp_path / "both"
    first = write_report(path).read_bytes()
    assert write_report(path).read_bytes() == first
    assert render_report(comparison).encode() == first
    assert len(first) < 6_000_000


@pytest.mark.usefixtures("short_plotly")
def test_other_environments_are_pointed_at(tmp_path: Path) -> None:
    record_comparison(tmp_path / "both", seeds=(0,))
    shutil.rmtree(tmp_path / "both" / "clean")
    packages = {**ENVIRONMENT["packages"], "torch": "2.6.0"}
    other = {**ENVIRONMENT, "date": "later", "packages": packages}
    record_run(tmp_path / "both/clean/seed-0", name="seed-0", malicious=(), environment=other)
    text = render_report(read_recording(tmp_path / "both"))
    assert "2 different environments.</b> They differ in: torch." in text


@pytest.mark.usefixtures("short_plotly")
def test_columns_without_a_figure_are_left_out(tmp_path: Path) -> None:
    recording = read_recording(record_run(tmp_path / "tiny", malicious=()).path)
    text = render_report(recording)
    assert "<th>TPR</th>" not in text
    assert "<th>FPR</th>" in text


@pytest.mark.usefixtures("short_plotly")
def test_many_dropped_replies_are_counted_not_listed(tmp_path: Path) -> None:
    recording = read_recording(record_run(tmp_path / "tiny").path)
    for event in recording.runs[0].rounds:
        event["rejected"] = {str(c): f"reason {event['round']}.{c}" for c in range(100)}
    text = render_report(recording)
    assert "and 100 more" in text
    assert "reason 2.66" in text
    assert "reason 3.66" not in text


def test_plain_text_is_one_short_visible_line() -> None:
    assert plain("a\n b\t c") == "a\N{REPLACEMENT CHARACTER} b\N{REPLACEMENT CHARACTER} c"
    assert plain("\u202eevil\x00") == "\N{REPLACEMENT CHARACTER}evil\N{REPLACEMENT CHARACTER}"
    assert plain("Zürich") == "Zürich"
    assert len(plain("x" * 10_000)) == 300


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"found no config\.yaml"):
        write_report(tmp_path)


@pytest.mark.slow
def test_a_browser_draws_every_open_plot_without_an_error(tmp_path: Path) -> None:
    if not CHROMIUM.is_file():
        pytest.skip(f"needs a browser: {CHROMIUM} is absent (apt-get install chromium)")
    record_comparison(tmp_path / "both")
    report = write_report(tmp_path / "both")
    done = subprocess.run(
        [
            str(CHROMIUM),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--enable-logging=stderr",
            "--virtual-time-budget=10000",
            "--dump-dom",
            report.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    errors = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert errors == []
    unopened = done.stdout.count('class="plot"')
    drawn = done.stdout.count('class="plot js-plotly-plot"')
    assert (drawn, unopened) == (10, 5)
    assert done.stdout.count("main-svg") >= drawn
