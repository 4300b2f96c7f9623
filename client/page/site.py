"""The site's pages put together: which address is answered by whom, and which role it takes."""

import threading
from collections.abc import Callable
from pathlib import Path

from client.page.asked import Asked
from client.page.fill import Filling
from client.page.health import Health
from client.page.images import Images
from client.page.index import Index
from client.page.jobs import Jobs
from client.page.left import MOST_RECEIPTS, Left
from client.page.place import Place
from client.page.subjects import Subjects
from client.site.enrol import name_of
from shared.page.ask import Route, see
from shared.page.look import Look
from shared.page.serve import Where, serve

HERE = Path(__file__).parent
WAYS = (
    ("/subjects", "Subjects"),
    ("/work", "Work"),
    ("/left", "What left"),
    ("/plans", "Plans"),
    ("/budget", "Budget"),
    ("/doctor", "Doctor"),
    ("/decisions", "Decisions"),
)


def look_of(place: Place, *, readonly: bool = False) -> Look:
    title = name_of(place.state) or place.state.name
    return Look(folder=HERE, title=title, ways=WAYS, readonly=readonly, more={"viewer.js": HERE / "viewer.js"})


def routes(place: Place, look: Look, index: Index) -> list[Route]:
    subjects, images = Subjects(place, index, look), Images(place, index)
    filling, left = Filling(place, index, Jobs(), look), Left(place, look)
    asked, health = Asked(place, look), Health(place, look)
    one = "/subjects/{handle}"
    return [
        Route(method="GET", path="/", handler=lambda ask: see("/subjects")),
        Route(method="GET", path="/subjects", handler=subjects.listing),
        Route(method="POST", path="/subjects", handler=subjects.listing),
        Route(method="GET", path=one, handler=subjects.one),
        Route(method="POST", path=one, handler=subjects.decide, role="decide"),
        Route(method="GET", path="/image/{handle}/{what}", handler=images.show),
        Route(method="GET", path=f"{one}/fill", handler=filling.form, role="decide"),
        Route(method="POST", path=f"{one}/fill", handler=filling.start, role="decide"),
        Route(method="GET", path=f"{one}/send", handler=filling.look_again, role="send"),
        Route(method="POST", path=f"{one}/send", handler=filling.send, role="send"),
        Route(method="GET", path="/work", handler=filling.listing),
        Route(method="GET", path="/work/{id}", handler=filling.watch),
        Route(method="POST", path="/work/{id}", handler=filling.stop, role="decide"),
        Route(method="GET", path="/left", handler=left.ledger),
        Route(method="GET", path="/left/{number}", handler=left.message),
        Route(method="POST", path="/left/receipts", handler=left.compare, most=MOST_RECEIPTS, raw=True),
        Route(method="GET", path="/plans", handler=asked.plans),
        Route(method="GET", path="/plans/{id}", handler=asked.plan),
        Route(method="POST", path="/plans/{id}", handler=asked.decide, role="decide"),
        Route(method="GET", path="/budget", handler=health.budget),
        Route(method="GET", path="/doctor", handler=health.doctor),
        Route(method="GET", path="/decisions", handler=asked.decisions),
    ]


def open_site(place: Place, where: Where, *, browse: bool, say: Callable[[str], None]) -> None:
    """Serve the site's pages until Ctrl-C."""
    index, look = Index(place.cohorts, place.key), look_of(place, readonly=where.readonly)
    threading.Thread(target=index.entries, daemon=True).start()  # the first list is ready when somebody asks
    serve(routes(place, look, index), look, where, browse=browse, say=say)
