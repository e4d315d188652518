"""Sections of the page, a file for each topic: `sections(context, results, folder)` yields figures and tables."""
