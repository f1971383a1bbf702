"""The one way in which the schema refuses a value."""

from octo_megatron.config.errors import UserError


def require(condition: bool, message: str) -> None:
    """Raises UserError with `message`, which names the key and the fix, unless `condition` holds."""
    if not condition:
        raise UserError(message)
