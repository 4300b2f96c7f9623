"""Flower's SuperLink, patient on a busy machine: `python -P -m server.superlink.process <flags of flower-superlink>`.

Flower waits five seconds for SQLite's lock and then answers 500, at which a site throws its update away and the
executor ends. Here it waits for a minute, in which whoever asked asks again. And a ServerApp has 90 seconds to start,
not 30.
"""

from server import flower


def main() -> None:
    flower.run_superlink(database=60_000, start=90)


if __name__ == "__main__":
    main()
