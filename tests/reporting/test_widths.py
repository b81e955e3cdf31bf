"""On a screen of 1280 pixels no table of the report scrolls sideways, by a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from stages import report
from stages.reporting import build
from tests.fakes import CHECKPOINTS
from tests.several_images import give_parts
from tests.stages.test_report import release

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
MEASURE = """
<script>
const widths = {page: [document.documentElement.scrollWidth, document.documentElement.clientWidth]};
for (const each of document.querySelectorAll(".scroll"))
  widths[each.getAttribute("aria-labelledby")] = [each.scrollWidth, each.clientWidth];
document.body.innerHTML = "";
document.body.append("widths" + JSON.stringify(widths) + "end");
</script></body>
"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium here: apt-get install chromium")
def test_tables_fit_a_screen_of_1280_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release(tmp_path)
    give_parts(tmp_path, ["base", *CHECKPOINTS])
    monkeypatch.chdir(tmp_path)
    report.make()
    html = (tmp_path / build.PAGE).read_text(encoding="utf-8")
    # the page allows no script, and hides most tables at first
    html = re.sub(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", "", html)
    html = html.replace("<details>", "<details open>").replace("</body>", MEASURE)
    (tmp_path / "measured.html").write_text(html, encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1280,900"]
    profile = f"--user-data-dir={tmp_path / 'browser'}"
    command = [str(BROWSER), *options, profile, "--dump-dom", f"file://{tmp_path}/measured.html"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    found = re.search(r"widths(\{.*\})end", done.stdout)
    assert found, done.stderr
    widths: dict[str, list[int]] = json.loads(found[1])
    assert {"published-headlines", "published-others", "parts-caption"} <= widths.keys()
    too_wide = {name: each for name, each in widths.items() if each[0] > each[1]}
    assert not too_wide
