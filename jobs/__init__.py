"""The contract between the service and the worker: job records, options, queue, blob store, settings."""
