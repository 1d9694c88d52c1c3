"""The networks that can be asked for."""

from fastapi import APIRouter

from dbserve.api.problems import problems
from dbserve.api.views import architecture_view
from dbserve.contracts.views import ArchitectureSummary, ArchitectureView, Page
from dbserve.errors import ArchitectureNotFound, ConfigInvalid
from dbserve.planner import list_cards, load_card

router = APIRouter(prefix="/v1/architectures", tags=["architectures"])


@router.get("", responses=problems())
def list_architectures() -> Page[ArchitectureSummary]:
    """Every kind of network that a job may name."""
    return Page(data=tuple(ArchitectureSummary(kind=card.kind, summary=card.summary) for card in list_cards()))


@router.get("/{kind}", responses=problems(404))
def show_architecture(kind: str) -> ArchitectureView:
    """The JSON schema of a network's options, and their defaults."""
    try:
        return architecture_view(load_card(kind))
    except ConfigInvalid as unknown:
        raise ArchitectureNotFound(str(unknown)) from None
