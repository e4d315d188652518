import os
import subprocess
import sys

import pytest

from brh_jax.command import NOBODY_READS, Parser, run_command
from brh_jax.errors import UserError


def parser():
    made = Parser("p", "What p does.")
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


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("--nmber=3", "unknown argument --nmber=3: did you mean --number? python -m p --help tells what there is"),
        ("--qqq=3", "unknown argument --qqq=3: python -m p --help tells what there is"),
        ("three", "unknown argument three: quote what has blanks: python -m p --help tells what there is"),
        ("--number=three", "argument --number: invalid int value: 'three'; python -m p --help tells what there is"),
    ],
)
def test_flags_that_are_wrong_are_one_line_with_the_nearest(given, says, capsys):
    assert run_command(parser(), lambda arguments: 0, [given]) == 2
    assert capsys.readouterr().err == f"error: {says}\n"


@pytest.mark.parametrize(
    "code",
    [
        "import sys; from brh_jax.command import Parser, run_command; "
        "run = lambda body: sys.exit(run_command(Parser('p', ''), body, [])); ",
        "from experiments import main; main._parse = list; main.app.run = lambda body, **given: body(0); "
        "run = lambda body: (setattr(main, 'main', body), main.cli()); ",
    ],
    ids=["a command", "a run"],
)
def test_a_reader_that_is_gone_is_said(code):
    """`python -m ... | head`: no stack trace, and no word of the interpreter's at its end."""
    code += "run(lambda given: [print('line', flush=True) for _ in range(100_000)])"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.getcwd()}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, **pipes)
    assert process.stdout.readline() == "line\n"
    process.stdout.close()
    assert process.stderr.read() == f"error: {NOBODY_READS}\n"
    assert process.wait()


def test_names_that_are_no_utf8_are_printed(tmp_path):
    """To a terminal or a pipe of UTF-8, which would refuse them."""
    code = "import sys; from brh_jax.command import print_any_name; print_any_name(); print(sys.argv[1], 'naïve')"
    environment = os.environ | {"PYTHONIOENCODING": "utf-8:strict", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code, b"caf\xe9"], env=environment, capture_output=True, check=True)
    assert done.stdout.decode() == "caf\\udce9 naïve\n"
