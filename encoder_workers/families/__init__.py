"""One folder per model family, and the table that finds it from a checkpoint's config.json."""
