"""Runs from a configuration: `python -m experiments.main --config=configs/quickstart.py`."""
