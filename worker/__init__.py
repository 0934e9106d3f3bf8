"""The process that runs jobs: preloaded networks behind one RQ queue."""
