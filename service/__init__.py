"""The REST front end: accepts uploads, queues jobs, answers for them. Imports jobs only, never torch."""
