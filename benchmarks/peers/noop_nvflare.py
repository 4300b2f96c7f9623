"""NVIDIA FLARE's simulator in benchmarks/simulation.py: its NumPy FedAvg recipe, a client that sends back what it got.

Its NumPy recipe carries one array, so the same megabytes travel as one tensor. Run both as the job (with its JSON)
and, by FLARE, as the client script (without).
"""

import json
import sys
from pathlib import Path


def client() -> None:
    import nvflare.client as flare

    flare.init()
    while flare.is_running():
        model = flare.receive()
        flare.send(
            flare.FLModel(params=model.params, params_type=model.params_type, meta={"NUM_STEPS_CURRENT_ROUND": 1})
        )


def main(tensors: int, rounds: int, sites: int) -> None:
    import numpy as np
    from nvflare.app_common.np.recipes import NumpyFedAvgRecipe
    from nvflare.recipe import SimEnv

    start = Path("start.npy").resolve()
    np.save(start, np.zeros((tensors, 512, 512), np.float32))
    recipe = NumpyFedAvgRecipe(
        name="noop", initial_ckpt=str(start), min_clients=sites, num_rounds=rounds, train_script=__file__
    )
    run = recipe.execute(SimEnv(num_clients=sites, num_threads=sites, workspace_root=str(Path("flare").resolve())))
    print(run.get_result())


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1].startswith("{"):
        main(**json.loads(sys.argv[1]))
    else:
        client()
