"""Shell: what a gateway learned, over a restart: output lengths, and engines that were learned anew.

Lengths are written when the gateway stops. A file that cannot be read is set aside, not overwritten, and the
gateway starts from its prior: history is relearned within a few hundred requests. An engine's model is
written when it was learned, under a name made of the instance and its profile: another profile finds none.
"""

import hashlib
import logging
from collections.abc import Iterable
from pathlib import Path

from joulegate.errors import UserError
from joulegate.settings import gateway as settings_of
from predictor.latency_artifact import load as load_models
from predictor.length import HistoryPredictor
from predictor.length_store import factory, save_learned
from predictor.length_text import TextPredictor
from router.pools import Member

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


def restore_models(settings: settings_of.Gateway, members: Iterable[Member]) -> None:
    """Serve with the models that were learned anew before, if the settings name their folder."""
    folder = settings.predictor.models_dir
    if folder is None:
        return
    sections = {section.name: section for _, section in settings.instances()}
    for member in members:
        profile = sections[member.law.name].profile
        if profile is None:
            continue
        refits = member.speed.refits
        made_of = member.law.name.encode() + b"\0" + profile.read_bytes()
        refits.kept = folder / f"{hashlib.sha256(made_of).hexdigest()[:16]}.npz"
        if refits.kept.exists():
            _restore(member, refits.kept)


def _restore(member: Member, path: Path) -> None:
    try:
        (model,) = load_models(path)
    except (UserError, ValueError) as error:
        log.warning("a learned model is passed over", extra={"file": str(path), "problem": str(error)})
        return
    member.speed.adopt(member.law, model)
    member.speed.refits.restored = True
