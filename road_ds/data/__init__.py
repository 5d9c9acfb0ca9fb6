"""From what users bring to the micro-batches of a step: files and hubs, rows, features, passes, batches."""
