import argparse
import os
import subprocess
import sys

import pytest

from brh_jax.command import run_command
from brh_jax.errors import UserError


def parser():
    made = argparse.ArgumentParser(prog="p")
    made.add_argument("--number", type=int, default=1)
    return made


def test_the_body_gives_the_status():
    assert run_command(parser(), lambda arguments: arguments.number, ["--number=3"]) == 3
    assert run_command(parser(), lambda arguments: None, []) == 0
    assert run_command(parser(), lambda arguments: len(arguments.more), ["--other=3", "--number=2"], more=True) == 1


@pytest.mark.parametrize("error", [UserError("number is 1: expected 2"), OSError("no space")])
def test_what_the_user_can_put_right_is_one_line(error, capsys):
    def body(arguments):
        raise error

    assert run_command(parser(), body, []) == 2
    assert capsys.readouterr().err == f"error: {error}\n"


def test_bugs_keep_their_stack_trace():
    with pytest.raises(ValueError):
        run_command(parser(), lambda arguments: int("no number"), [])


def test_unknown_flags_are_refused(capsys):
    with pytest.raises(SystemExit) as left:
        run_command(parser(), lambda arguments: 0, ["--other=3"])
    assert left.value.code == 2
    assert "unrecognized arguments: --other=3" in capsys.readouterr().err


def test_names_that_are_no_utf8_are_printed(tmp_path):
    """To a terminal or a pipe of UTF-8, which would refuse them."""
    code = "import sys; from brh_jax.command import print_any_name; print_any_name(); print(sys.argv[1], 'naïve')"
    environment = os.environ | {"PYTHONIOENCODING": "utf-8:strict", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code, b"caf\xe9"], env=environment, capture_output=True, check=True)
    assert done.stdout.decode() == "caf\\udce9 naïve\n"
