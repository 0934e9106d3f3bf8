"""The settings of the environment, for every verb alike."""

from typing import TYPE_CHECKING

from m3esr.errors import UserError

if TYPE_CHECKING:
    from jobs import Settings


def read_settings() -> "Settings":
    """The settings. Raises UserError naming the variable that makes no sense."""
    from pydantic import ValidationError

    from jobs import Settings

    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = f"M3ESR_{'_'.join(str(part) for part in first['loc'])}".upper()
        raise UserError(f"{name}: {first['msg']}") from error
