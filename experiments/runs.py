"""Finished runs, as their results.json has them: python -m experiments.runs prints the JSON schema of that file."""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter

from brh_jax.command import Parser, run_command
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


def schema() -> dict:
    """The JSON schema of results.json."""
    fields = [("schema", int), *((stage.name, stage.Result | None) for stage in stages.STAGES)]
    return TypeAdapter(dataclasses.make_dataclass("Results", fields)).json_schema()


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return run_command(Parser("experiments.runs", __doc__), lambda arguments: print(json.dumps(schema(), indent=1)), argv)


if __name__ == "__main__":
    sys.exit(main())
