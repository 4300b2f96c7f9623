"""Flower's own simulation in benchmarks/simulation.py: stock FedAvg over Ray, a client that sends back what it got."""

import json
import os
import sys
from typing import Any

os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "RAY_USAGE_STATS_ENABLED": "0"}

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

client = ClientApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    arrays = message.content["arrays"]
    assert isinstance(arrays, ArrayRecord)
    return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})}), reply_to=message)


def main(tensors: int, rounds: int, sites: int) -> None:
    server = ServerApp()

    @server.main()
    def serve(grid: Grid, context: Context) -> None:
        arrays = ArrayRecord({f"t{i:04d}": Array(np.zeros((512, 512), np.float32)) for i in range(tensors)})
        strategy = FedAvg(min_train_nodes=sites, min_available_nodes=sites, fraction_evaluate=0.0)
        result = strategy.start(grid=grid, initial_arrays=arrays, num_rounds=rounds)
        assert len(result.arrays) == tensors

    resources: Any = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"num_cpus": 2}}
    run_simulation(server_app=server, client_app=client, num_supernodes=sites, backend_config=resources)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
