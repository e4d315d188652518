"""Images that could not be decoded are in results.json, each once, whichever process, or attempt, found them."""

import dataclasses
import json

import pytest
from ml_collections import ConfigDict
from PIL import Image

from brh_jax.data.sources import Skip
from brh_jax.errors import UserError
from experiments import pipeline, skips, stages
from experiments.records import read_record
from experiments.settings import Seeded
from experiments.skips import Skips
from experiments.stage import Stage


class Killed(BaseException):
    pass


@dataclasses.dataclass(frozen=True)
class Section:
    """Attributes: images: a folder."""

    images: str = ""


@dataclasses.dataclass(frozen=True)
class Settings(Seeded):
    """Attributes: made: a section."""

    made: Section = Section()


@dataclasses.dataclass(frozen=True)
class Found:
    """Attributes: count: of images that it read."""

    count: int


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(4):
        Image.new("L", (8, 8), i).save(folder / f"{i}.png")
    for i in (1, 3):
        (folder / f"{i}.png").write_bytes(b"no image")
    return folder


@pytest.fixture
def run(tmp_path, monkeypatch, images):
    """A run of one stage that reads records of a folder, and is killed after them, or ends."""

    def go(rows, killed=None, mode="train", **settings):
        def read(context, settings):
            source = context.source(settings.made.images)
            records = [source.read_or_skip(row) for row in rows]
            if killed:
                raise killed
            return Found(sum(record is not None for record in records))

        stage = Stage("made", Settings, Found, read, measures=True)
        monkeypatch.setattr(stages, "STAGES", (*stages.STAGES[: len(STAGES)], stage))
        config = ConfigDict({"stages": ("made",), "made": {"images": f"folder:{images}"}, **settings})
        return pipeline.run(config, tmp_path / "run", mode=mode).about["skipped_images"]

    return go


STAGES = stages.STAGES


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_a_run_that_goes_on_names_what_was_skipped_before(run, images, tmp_path):
    first, second = (str(images / f"{i}.png") for i in (1, 3))
    with pytest.raises(Killed):
        run([0, 1], Killed)
    with (tmp_path / "run/made/skipped-0.jsonl").open("a") as file:
        file.write('{"cut')  # killed as it wrote
    (tmp_path / "run/made/skipped-1.jsonl").write_text(json.dumps({"of another process": "torn"}) + "\n")
    found = run([2, 3, 3])
    assert set(found) == {first, second, "of another process"}
    assert found[first] == found[second] == "no image, or of a format that is not read"
    assert json.loads((tmp_path / "run/results.json").read_text())["skipped_images"] == found
    assert names(tmp_path / "run/made") == {"record.json"}


def test_what_is_measured_again_begins_anew(run, images, tmp_path):
    assert set(run([0, 1])) == {str(images / "1.png")}
    with pytest.raises(Killed):
        run([3], Killed, mode="eval")
    assert set(read_record(tmp_path / "run/made").skipped) == {str(images / "1.png")}
    assert run([0, 2], mode="eval") == {}


def test_where_nothing_was_done_nothing_is_left(run, tmp_path):
    with pytest.raises(UserError, match="in vain"):
        run([1], UserError("in vain"))
    assert not (tmp_path / "run/made").exists()


def test_skips_of_all_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(skips, "gathered", lambda items: {**items, "of another process": "torn"})
    found = Skips(tmp_path, goes_on=False)
    found.add(Skip("here", "empty"))
    found.add(Skip("here", "empty"))
    assert found.of_all_processes() == {"here": "empty", "of another process": "torn"}
    found.add(Skip("read ahead", "empty"))
    assert (tmp_path / "skipped-0.jsonl").read_text() == '{"here": "empty"}\n'
