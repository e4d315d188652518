"""Configurations. Each docstring gives command, hardware, time and what to expect."""
