"""Tokens through depth: on axes known beforehand, as a figure, and as a page that moves."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from brh_jax.dynamics import animate_paths, draw_paths, token_paths
from brh_jax.errors import UserError
from brh_jax.partition import Partition
from brh_jax.tokens import TokenLayout

LAYOUT = TokenLayout(1, 1, (2, 3))


def turning(depth=6, images=3, dim=5):
    """Tokens of any length that turn in the plane of dimensions 1 and 3, by an angle of their own in each layer."""
    rng = np.random.default_rng(0)
    angles = rng.uniform(0, 6, (images, 8)) + np.arange(depth + 1)[:, None, None] * rng.uniform(0.1, 0.5, (images, 8))
    states = np.zeros((depth + 1, images, 8, dim), np.float32)
    states[..., 1], states[..., 3] = np.cos(angles), np.sin(angles)
    return states * rng.uniform(0.5, 50, (depth + 1, images, 8, 1)).astype(np.float32), angles


@pytest.fixture(scope="module")
def paths():
    return token_paths(turning()[0], LAYOUT)


def test_what_lies_in_a_plane_is_seen_whole(paths):
    """Distances between directions are those on the circle, and nothing is left out of the plane."""
    _, angles = turning()
    assert paths.explained.sum() == pytest.approx(1, abs=1e-5)
    assert (paths.tokens.cls.shape, paths.tokens.patches.shape) == ((7, 3, 1, 2), (7, 3, 6, 2))
    chord = np.linalg.norm(paths.tokens.cls[0, 0, 0] - paths.tokens.patches[4, 2, 5])
    assert chord == pytest.approx(2 * abs(np.sin((angles[0, 0, 0] - angles[4, 2, 7]) / 2)), abs=1e-5)
    np.testing.assert_allclose(paths.axes.T @ paths.axes, np.eye(2), atol=1e-5)
    assert "tokens.patches" in repr(paths)


def test_types_of_tokens_weigh_the_same():
    """One class token that moves along one axis, many patches that move less along another: the class token's comes first."""
    states = np.zeros((3, 2, 8, 4), np.float32)
    states[..., 0] = 1
    states[:, :, 0, 1] = np.array([-1, 0, 1])[:, None]
    states[:, :, 2:, 2] = 0.5 * np.array([-1, 0, 1])[:, None, None]
    found = token_paths(states, LAYOUT)
    assert np.abs(found.axes[1, 0]) == pytest.approx(1, abs=1e-3)
    assert np.abs(found.axes[2, 1]) == pytest.approx(1, abs=1e-3)


def test_another_system_on_the_same_axes(paths):
    other = token_paths(turning()[0], LAYOUT, onto=paths)
    np.testing.assert_allclose(other.tokens.patches, paths.tokens.patches, atol=1e-6)
    with pytest.raises(UserError, match="width 5, the states of width 4"):
        token_paths(np.ones((2, 1, 8, 4), np.float32), LAYOUT, onto=paths)


def test_the_figure_has_a_row_for_each_system(paths):
    figure = draw_paths({"teacher": paths, "Raptor": paths}, image=1, labels=[0, 1, 0])
    assert len(figure.axes) == 4
    cls = [line for line in figure.axes[0].get_lines() if len(line.get_xdata()) == 7]
    assert cls[0].get_color() == cls[2].get_color() != cls[1].get_color()
    np.testing.assert_allclose(cls[1].get_xydata(), paths.tokens.cls[:, 1, 0])
    patches = [line for line in figure.axes[1].get_lines() if len(line.get_xdata()) == 7]
    np.testing.assert_allclose(patches[5].get_xydata(), paths.tokens.patches[:, 1, 5])


def test_the_page_needs_no_network_and_names_its_phases(paths, tmp_path):
    moving = animate_paths({"</script><b>": paths}, partition=Partition((2, 4)))
    page = moving.save(tmp_path / "paths.html").read_text()
    assert not re.findall(r"(?:src|href)\s*=|https?://|@import", page)
    assert "</script><b>" not in page  # names are escaped
    data = json.loads(re.search(r"const data = (.*);\n", page)[1])
    assert data["states"][:4] == [
        "state 0 of 6",
        "state 1 of 6, phase 1 (layers 1-2)",
        "state 2 of 6, phase 1 (layers 1-2)",
        "state 3 of 6, phase 2 (layers 3-6)",
    ]
    drawn = np.array(data["panels"][0]["patches"], float)
    assert drawn.shape == (7, 6, 2) and drawn.min() >= 0 and drawn.max() <= 999
    ratio = np.linalg.norm(drawn[0, 0] - drawn[6, 5]) / np.linalg.norm(drawn[2, 1] - drawn[3, 4])
    first = paths.tokens.patches[:, 0]
    assert ratio == pytest.approx(np.linalg.norm(first[0, 0] - first[6, 5]) / np.linalg.norm(first[2, 1] - first[3, 4]), rel=0.02)
    assert moving._repr_html_().startswith("<iframe srcdoc=") and "kB" in repr(moving)


@pytest.mark.slow
def test_a_browser_runs_it(paths, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here")
    path = animate_paths({"teacher": paths}).save(tmp_path / "paths.html")
    moved = """<script>time.value = 3; time.oninput();
    const seen = canvases[0].getContext("2d").getImageData(0, 0, 760, 760).data.filter((v, i) => i % 4 === 3 && v > 0).length;
    document.title = seen + " pixels";</script></body>"""
    path.write_text(path.read_text().replace("</body>", moved))
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert '<span id="state">state 3 of 6<' in done.stdout
    assert 500 < int(re.search(r"<title>(\d+) pixels", done.stdout)[1]) < 100_000  # squares, dots and trails


def test_what_cannot_be_shown(paths):
    for options, message in (
        ({"image": 3}, "image is 3: expected one from 0 to 2"),
        ({"labels": [0, 1]}, r"labels of shape \(2,\): expected \(3,\)"),
    ):
        with pytest.raises(UserError, match=message):
            paths.plot(**options)
        with pytest.raises(UserError, match=message):
            paths.animate(**options)
    with pytest.raises(UserError, match="the partition 1-2 | 3 has 3 layers, the paths 6"):
        paths.animate(partition=Partition((2, 1)))
    with pytest.raises(ValueError, match="not finite"):
        token_paths(np.full((2, 1, 8, 4), np.nan, np.float32), LAYOUT)
    with pytest.raises(UserError, match="have another depth, number of images or layout"):
        draw_paths({"a": paths, "b": token_paths(turning(depth=5)[0], LAYOUT)})
