"""The worker: preloaded networks, the one RQ task, progress and cancellation, metrics and health."""
