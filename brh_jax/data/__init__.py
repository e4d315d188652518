"""Images in: sources, transforms, pipelines."""
