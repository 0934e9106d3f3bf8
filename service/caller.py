"""The caller of a request, as the routes and the limits see it."""

from dataclasses import dataclass

from jobs import ApiKey, Settings


@dataclass(frozen=True)
class Caller:
    """Who sent a request. id: of the API key, empty for an anonymous caller; owns the jobs.

    requests_per_minute, megapixels_per_day: what it may send; 0 is no limit.
    """

    id: str
    requests_per_minute: int
    megapixels_per_day: int

    @classmethod
    def of(cls, key: ApiKey | None, settings: Settings) -> "Caller":
        """The caller with this key, or without one."""
        requests, megapixels = settings.requests_per_minute, settings.megapixels_per_day
        if key is None:
            return cls("", requests, megapixels)
        return cls(
            key.id,
            requests if key.requests_per_minute is None else key.requests_per_minute,
            megapixels if key.megapixels_per_day is None else key.megapixels_per_day,
        )
