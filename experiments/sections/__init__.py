"""Parts of the page, a file per topic: from results to figures and tables."""
