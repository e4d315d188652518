"""The page of a run and that of several runs, from results alone, and in a browser."""

import base64
import json
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from experiments import report

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import made_up

EVIL = '"><script>alert(1)<'  # a folder's name; its path goes on with /script>
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def write_run(folder, r2=0.6, name="a ViT"):
    fits = (
        made_up.fit("identity", {"cls": [0.1, 0.5]}, [0.5, 0.4], kind="baseline"),
        made_up.fit("k2", {"cls": [0.1, r2]}, [0.5, 0.4]),
    )
    results = {
        "teacher": made_up.teacher(name),
        "phases": made_up.phases(2),
        "distill": made_up.distilled("k2", 2),
        "agreement": made_up.agreement(*fits),
        "probes": made_up.probed({"teacher": 0.9, "k2": 0.7}),
    }
    made_up.write_run(folder, results, {"data": {"train": f"folder:{folder}"}, "seed": round(10 * r2)})
    return folder


def test_the_page_of_a_run_tells_its_story(tmp_path, capsys):
    run = write_run(tmp_path / "run")
    assert report.main([str(run)]) == 0 and "report: " in capsys.readouterr().out
    page = (run / "report/index.html").read_text()
    order = ("Raptor k2", "Cost", *(f'<h2 id="{one}">' for one in ("phases", "fidelity", "probes", "configuration")))
    places = [page.index(text) for text in order]
    assert "block parameters, reproduces 0.50 of the variance of the last state." in page
    assert places == sorted(places) and '<h2 id="dynamics">' not in page
    assert {path.suffix for path in (run / "report/figures").iterdir()} == {".png", ".svg", ".csv"}


def test_runs_side_by_side(tmp_path):
    runs = [write_run(tmp_path / name, r2) for name, r2 in (("a", 0.4), ("b", 0.7))]
    assert report.main([*map(str, runs), "--out", str(tmp_path / "both")]) == 0
    page = (tmp_path / "both/index.html").read_text()
    assert page.count('class="run"') == 2 and re.findall(r"--run: (#\w+)", page) == ["#0072b2", "#d55e00"]
    for text in (
        "2 runs side by side",
        '<td class="left">seed</td><td class="left">4</td><td class="left">7</td>',
        "R² of k2",
        "dissimilarity1.csv",
        "Figures of merit",
    ):
        assert text in page
    assert not (runs[0] / "report/index.html").exists()
    same = [write_run(tmp_path / folder / "run") for folder in "cd"]
    assert report.main([*map(str, same)]) == 0
    page = (same[0] / "report/side_by_side/index.html").read_text()
    assert "<h2>c/run</h2>" in page and "<h2>d/run</h2>" in page


def test_what_a_command_gets_wrong(tmp_path, capsys):
    run = write_run(tmp_path / "run")
    assert report.main([str(run), "--out", str(tmp_path)]) == 2
    assert "--out is for the page of several runs" in capsys.readouterr().err
    assert report.main([str(run), str(tmp_path / "rum")]) == 2
    assert "no results.json in" in capsys.readouterr().err
    (run / "results.json").unlink()
    (run / "phases").mkdir(exist_ok=True)
    assert report.main([str(run)]) == 2
    assert f"the run in {run} is not finished" in capsys.readouterr().err


def test_names_are_escaped(tmp_path):
    runs = [write_run(tmp_path / folder / "script>", name="<img src=x onerror=alert(1)>") for folder in (EVIL, "other")]
    assert report.main([str(runs[0])]) == report.main([*map(str, runs)]) == 0
    for page in (runs[0] / "report/index.html", runs[0] / "report/side_by_side/index.html"):
        text = page.read_text()
        assert text.count("<script>") == text.count("</script>") == 1 and "alert(1)" in text
        assert "<img src=x" not in text and "&lt;img src=x onerror=alert(1)&gt;" in text


# What a browser finds amiss, and what clicks on a header and on a figure do. A window is at least 500 pixels wide; a frame is as
# wide as it is told to be.
_FRAME = """<iframe src="watched.html" style="border: 0; width: {}px; height: 900px"></iframe>
<script>addEventListener("message", event => document.body.append(event.data));</script>"""
_WATCH = """<script>
const amiss = [];
addEventListener("error", event => amiss.push(event.message));
addEventListener("securitypolicyviolation", event => amiss.push(event.violatedDirective));
for (const level of ["error", "warn"]) console[level] = (...texts) => amiss.push(texts.join(" "));
addEventListener("load", () => {
  const header = document.querySelector("main > section th button");
  header.click();
  document.querySelector(".enlarge").click();
  const seen = {
    amiss,
    inner: innerWidth,
    width: document.documentElement.scrollWidth,
    fetched: performance.getEntriesByType("resource").map(one => one.name).filter(name => !name.startsWith("data:")),
    sorted: header.parentElement.getAttribute("aria-sort"),
    enlarged: document.querySelector("dialog").open,
    folded: !document.querySelector(".contents details").open,
  };
  parent.postMessage("SEEN" + btoa(JSON.stringify(seen)), "*");
});
</script>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here to open the page in")
@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("several", [False, True], ids=["one run", "two runs"])
def test_the_page_in_a_browser(tmp_path, width, several):
    """From a file, without the network and without an error, no wider than its window."""
    runs = [write_run(tmp_path / f"a_rather_long_name_of_a_work_directory_without_a_space_{i}", 0.5 + i / 10) for i in (0, 1)]
    assert report.main([*map(str, runs if several else runs[:1])]) == 0
    page = runs[0] / "report" / ("side_by_side/index.html" if several else "index.html")
    watched = page.with_name("watched.html")
    watched.write_text(page.read_text().replace("<head>", f"<head>{_WATCH}", 1))
    frame = page.with_name("frame.html")
    frame.write_text(_FRAME.format(width))
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    flags = ("--headless", "--no-sandbox", "--disable-gpu", profile, "--virtual-time-budget=5000", "--dump-dom")
    command = [CHROMIUM, *flags, frame.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    seen = re.search(r"SEEN([\w+/=]+)", done.stdout)
    assert seen, done.stderr[-2000:]
    found = json.loads(base64.b64decode(seen[1]))
    assert found["amiss"] == found["fetched"] == []
    assert found["inner"] == width >= found["width"]
    assert (found["sorted"], found["enlarged"], found["folded"]) == ("ascending", True, width == 400)
