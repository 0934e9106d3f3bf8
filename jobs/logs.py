"""Structured logs of both processes: one JSON object a line, with the request's or job's id where there is one."""

import logging
import sys

import structlog


def configure_logs(level: str) -> None:
    """Send all logs of this process, structlog's and the standard library's (RQ's too), to stderr as JSON lines."""
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,  # tests configure more than once in one process
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.JSONRenderer(),
        ],
    )
    for name in ("httpx", "httpcore"):  # they would write the whole URL of each webhook, with what is secret in it
        logging.getLogger(name).setLevel(logging.WARNING)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    # RQ narrates each move at info; our own lines say the same with the job's id and its outcome.
    logging.getLogger("rq.worker").setLevel(logging.WARNING)
