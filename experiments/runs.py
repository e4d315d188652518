"""Finished runs, as their results.json has them: python -m experiments.runs prints the JSON schema of that file."""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter

from brh_jax.command import Parser, run_command
from brh_jax.errors import UserError
from brh_jax.files import nearest_path
from experiments import stages
from experiments.results import Results, check_schema, from_json, read_json


def read_results(path: pathlib.Path) -> Results:
    """The results.json of a run.

    Raises:
        UserError: it is damaged, or of another schema.
    """
    whole = read_json(path)
    check_schema(whole, path)
    kinds = {stage.name: stage.Result for stage in stages.STAGES}
    about = {name: value for name, value in whole.items() if name not in kinds and name != "schema"}
    from_json(dict[str, dict[str, Any]], about, path)
    made = {name: from_json(kinds[name], value, path) for name, value in whole.items() if name in kinds}
    return Results(made, about)


def read_run(workdir: pathlib.Path) -> Results:
    """The results of the finished run in that folder.

    Raises:
        UserError: there is no run, or one that is not finished; and as `read_results`.
    """
    path = workdir / "results.json"
    if not path.is_file() and any((workdir / stage.name).is_dir() for stage in stages.STAGES):
        raise UserError(
            f"the run in {workdir} is not finished, no results.json: give its command again, it goes on where it stopped"
        )
    if not path.is_file():
        hint = nearest_path(workdir) or "expected the work directory of a finished run"
        raise UserError(f"no results.json in {workdir}: {hint.strip(' ;')}")
    return read_results(path)


def schema() -> dict:
    """The JSON schema of results.json."""
    fields = [("schema", int), *((stage.name, stage.Result | None) for stage in stages.STAGES)]
    return TypeAdapter(dataclasses.make_dataclass("Results", fields)).json_schema()


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return run_command(Parser("experiments.runs", __doc__), lambda arguments: print(json.dumps(schema(), indent=1)), argv)


if __name__ == "__main__":
    sys.exit(main())
