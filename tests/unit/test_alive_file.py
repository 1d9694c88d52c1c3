"""What probes of the reconciler look at: a file that is as old as its last turn."""

import asyncio
from pathlib import Path
from typing import Any

from dbserve.artefacts import open_artefacts
from dbserve.errors import StoreUnavailable
from dbserve.reconciler import Reconciler


class StandingBy:
    """A store whose lease another holds, or that does not answer; `turns` times, and then it hangs."""

    def __init__(self, *, turns: int, away: bool = False) -> None:
        self.turns, self.away = turns, away
        self.hung = asyncio.Event()
        self.lease = self.counters = self.wishes = self

    async def hold(self, *_: Any, **__: Any) -> bool:
        if self.turns == 0:
            self.hung.set()
            await asyncio.Event().wait()
        self.turns -= 1
        if self.away:
            raise StoreUnavailable("Redis does not answer")
        return False

    async def drop(self, _holder: str) -> None: ...
    async def tell_refusals(self) -> None: ...

    async def deleted(self) -> tuple[str, ...]:
        return ()


async def turn(store: StandingBy, directory: Path) -> Path:
    """Until the store hangs; the file, made old just before."""
    alive = directory / "alive"
    reconciler: Any = Reconciler(
        store,  # type: ignore[arg-type]
        None,  # type: ignore[arg-type]
        open_artefacts(str(directory)),
        alive_file=alive,
    )
    running = asyncio.create_task(reconciler.run(asyncio.Event()))
    await store.hung.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    return alive


async def test_a_reconciler_that_stands_by_is_alive(tmp_path: Path) -> None:
    assert (await turn(StandingBy(turns=1), tmp_path)).exists()


async def test_a_reconciler_whose_store_is_away_is_alive_for_a_new_one_would_not_help(tmp_path: Path) -> None:
    assert (await turn(StandingBy(turns=1, away=True), tmp_path)).exists()


async def test_a_reconciler_that_hangs_at_its_first_turn_is_not(tmp_path: Path) -> None:
    assert not (await turn(StandingBy(turns=0), tmp_path)).exists()
