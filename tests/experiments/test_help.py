"""--help of every command is one screen that says what it is for, and `python -m experiments` lists them."""

import importlib

import pytest

from experiments.__main__ import COMMANDS, main

SCREEN = 40  # lines of 80


def test_the_commands_are_listed_and_there(capsys):
    main()
    said = capsys.readouterr().out
    for name in COMMANDS:
        module = importlib.import_module(name if name not in ("weights_convert", "benchmarks") else f"{name}.__main__")
        assert f"python -m {name} " in said and callable(module.main)


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "experiments.main"])  # test_command_line.py has that one
def test_help_is_one_screen(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    module = importlib.import_module(name if name not in ("weights_convert", "benchmarks") else f"{name}.__main__")
    try:
        assert module.main(["--help"]) == 0
    except SystemExit as left:
        assert left.code == 0
    said = capsys.readouterr().out
    assert said.splitlines() and len(said.splitlines()) <= SCREEN
    assert f"python -m {name}" in said and "absl" not in said
