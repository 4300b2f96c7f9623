"""Flower ServerApp: wiring only. The run is a folder that holds config.json; `lacuna` makes it and submits its path."""

import os
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from server.runs.serve import FOLDER_VARIABLE, serve

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    folder = context.run_config.get("folder") or os.environ[FOLDER_VARIABLE]
    serve(grid, Path(str(folder)), flower_run=context.run_id)
