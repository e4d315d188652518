"""Probes on frozen encoders."""
