"""`pip install .` gives brh_jax, experiments and weights_convert; pyproject.toml says the rest."""

from setuptools import setup

setup()
