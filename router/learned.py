"""Shell: the length predictor of a gateway, and what it learned, over a restart.

What was learned is written when the gateway stops. A file that cannot be read is set aside, not overwritten,
and the gateway starts from its prior: history is relearned within a few hundred requests.
"""

import logging
from pathlib import Path

from joulegate.errors import UserError
from joulegate.settings import gateway as settings_of
from predictor.length import HistoryPredictor
from predictor.length_store import factory, save_learned
from predictor.length_text import TextPredictor

log = logging.getLogger(__name__)


def build_predictor(settings: settings_of.Gateway) -> HistoryPredictor:
    """One for all models: it keeps them apart by name. Raises UserError for a prior that cannot be read."""
    cuts, prior, state = settings.types.cuts, settings.predictor.prior, settings.predictor.state_file
    if state is not None and state.exists():
        try:
            return factory(cuts, state, use_prior=True)()
        except (UserError, KeyError, ValueError) as error:
            aside = state.with_name(state.name + ".unreadable")
            state.replace(aside)
            log.warning("learned lengths set aside", extra={"file": str(aside), "problem": str(error)})
    try:
        return factory(cuts, prior if isinstance(prior, Path) else None, use_prior=prior != "none")()
    except (KeyError, ValueError) as error:
        raise UserError(f"length prior {prior}: {error!r}", "`joulegate train length` makes one") from error


def save_predictor(settings: settings_of.Gateway, predictor: object) -> None:
    """Keep what was learned, if the settings name a place. Never raises: the gateway is on its way out."""
    state = settings.predictor.state_file
    if state is None or not isinstance(predictor, TextPredictor):
        return
    try:
        save_learned(state, predictor)
    except UserError as error:
        log.error("learned lengths are lost", extra={"file": str(state), "problem": error.message})
