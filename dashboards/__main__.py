"""Writes every dashboard's JSON beside its module: python -m dashboards."""

import json
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards import control_plane, hardware, job, learning, memory, overview, reliability, throughput

HERE = Path(__file__).parent
BOARDS = (overview, job, memory, throughput, learning, reliability, hardware, control_plane)


def built() -> dict[Path, str]:
    """The text of each file, by its path."""
    return {HERE / f"{board.uid}.json": encoded(board) for board in (module.build() for module in BOARDS)}


def encoded(board: Dashboard) -> str:
    return json.dumps(board, cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    for path, text in built().items():
        path.write_text(text)
