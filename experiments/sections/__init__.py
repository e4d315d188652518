"""Sections of the page, by topic: `sections(context, results, folder)` gives FigureEntry and Table."""
