"""The one way in which the schema refuses a value."""

from octo_megatron.config.errors import UserError


def require(condition: bool, message: str) -> None:
    """Raises UserError with `message`, which names the key and the fix, unless `condition` holds."""
    if not condition:
        raise UserError(message)


def check_order(packing: str, when_exhausted: str) -> None:
    """The two words that a train node and a mixture file share."""
    require(packing in ("concat", "whole"), f"packing is '{packing}'; use concat or whole")
    require(when_exhausted in ("error", "stop"), f"when_exhausted is '{when_exhausted}'; use error or stop")
