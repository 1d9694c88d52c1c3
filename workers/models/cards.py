"""Writes every architecture's card to dbserve/cards (`make cards`): python -m workers.models.cards"""

from importlib.resources import files
from pathlib import Path

from workers.models import ARCHITECTURES, Architecture


def card_text(network: Architecture) -> str:
    """The card as its file holds it."""
    return network.card().model_dump_json(indent=2) + "\n"


def main() -> None:
    directory = Path(str(files("dbserve.cards")))
    for kind, network in ARCHITECTURES.items():
        (directory / f"{kind}.json").write_text(card_text(network), encoding="utf-8")


if __name__ == "__main__":
    main()
