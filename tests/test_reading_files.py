import gzip
import os
import subprocess

import pytest

from brh_jax.errors import UserError
from brh_jax.files import SUMS, check_sums, inside, plain_file, read_first, read_json, sha256, write_sums


def test_plain_files_alone(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("file")  # the hub's cache is made of links
    assert plain_file(tmp_path / "link").read_text() == "x"
    os.mkfifo(tmp_path / "pipe")
    for name, message in (
        ("pipe", "is a pipe, socket or device"),
        ("", "is a folder"),
        ("nothing", "cannot be read"),
        ("a\0b", "null"),
    ):
        with pytest.raises(UserError, match=message):
            plain_file(tmp_path / name)
        with pytest.raises(UserError, match=message):
            sha256(tmp_path / name)


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/x", "", ".", 3, None, "..\\x", "a\0b", ["x"]])
def test_names_that_lead_out(tmp_path, name):
    with pytest.raises(UserError, match="index.json names .*: expected a file in its own folder; nothing outside is read"):
        inside(tmp_path, name, "index.json")


def test_names_of_files_below(tmp_path):
    assert inside(tmp_path, "a/b.data", "index.json") == tmp_path / "a" / "b.data"


@pytest.mark.parametrize(
    "text, message",
    [
        (b"[" * 10**6, "is nested too deeply"),
        (b"{", "is not valid JSON"),
        (b'{"a": "\xff"}', "is not valid JSON"),
        (b'{"a": ' + b"1" * 5000 + b"}", "is not valid JSON"),
        (b"[1]", "holds a list, expected an object"),
        (b"null", "holds a NoneType, expected an object"),
    ],
)
def test_json_that_cannot_be(tmp_path, text, message):
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(UserError, match=f"config.json {message}"):
        read_json(tmp_path / "config.json")
    assert read_json(tmp_path / "nothing.json") is None


def test_the_beginning_of_what_expands_without_end(tmp_path):
    (tmp_path / "x.gz").write_bytes(gzip.compress(bytes(10**7)))
    (tmp_path / "x").write_bytes(bytes(100))
    assert len(read_first(tmp_path / "x.gz", 1000)) == 1000 and len(read_first(tmp_path / "x", 1000)) == 100
    (tmp_path / "x.gz").write_bytes(b"no gzip")
    with pytest.raises(UserError, match="x.gz is damaged"):
        read_first(tmp_path / "x.gz", 1000)


def test_sums_are_those_of_sha256sum(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    assert not check_sums(tmp_path, ["a"])  # without the file nothing is compared
    write_sums(tmp_path, ["a", "b"])
    subprocess.run(["sha256sum", "--check", "--quiet", SUMS], cwd=tmp_path, check=True)
    assert check_sums(tmp_path, ["a", "b"]) and not check_sums(tmp_path, ["a", "b", "not listed"])
    (tmp_path / "a").write_text("c")
    (tmp_path / "b").unlink()
    check_sums(tmp_path, [])
    with pytest.raises(UserError, match="a is not what was written, by the SHA256SUMS beside it"):
        check_sums(tmp_path, ["a"])
    with pytest.raises(UserError, match="b cannot be read"):
        check_sums(tmp_path, ["b"])
