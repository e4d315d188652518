"""What each stage does: `run(context, folder)` reads earlier stages, writes its own folder and returns its figures."""
