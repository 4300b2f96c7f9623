"""The coordinator's pages put together: which address is answered by whom, and which role it takes."""

from collections.abc import Callable
from pathlib import Path

from server.page.federation import Members
from server.page.house import House
from server.page.progress import Runs
from server.report import report
from shared.page.ask import Route, see
from shared.page.look import Look
from shared.page.serve import Where, serve

WAYS = (("/runs", "Runs"), ("/compare", "Compare"), ("/federation", "Federation"), ("/decisions", "Decisions"))


def look_of(house: House, *, readonly: bool = False) -> Look:
    return Look(
        folder=Path(__file__).parent,
        beside=(Path(report.__file__).parent,),
        title=house.runs.absolute().name,
        ways=WAYS,
        readonly=readonly,
    )


def routes(house: House, look: Look, first: str | None = None) -> list[Route]:
    runs, members = Runs(house, look), Members(house, look)
    start = "/runs" if first is None else f"/runs/{first}"
    return [
        Route(method="GET", path="/", handler=lambda ask: see(start)),
        Route(method="GET", path="/runs", handler=runs.listing),
        Route(method="GET", path="/runs/{name}", handler=runs.one),
        Route(method="GET", path="/runs/{name}/who", handler=runs.who),
        Route(method="GET", path="/runs/{name}/mosaic/{file}", handler=runs.mosaic),
        Route(method="POST", path="/runs/{name}/stop", handler=runs.stop, role="decide"),
        Route(method="GET", path="/compare", handler=members.compare),
        Route(method="GET", path="/federation", handler=members.federation),
        Route(method="GET", path="/decisions", handler=members.decisions),
    ]


def open_runs(house: House, first: str | None, where: Where, *, browse: bool, say: Callable[[str], None]) -> None:
    """Serve the coordinator's pages until Ctrl-C; `first`: the run that they begin with."""
    if first is not None:
        house.find(first)
    look = look_of(house, readonly=where.readonly)
    serve(routes(house, look, first), look, where, browse=browse, say=say)
