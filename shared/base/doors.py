"""Modules that are loaded by their names, in one place: imports that no linter sees.

Flower loads both apps by name, and the node and the SuperLink run as programs of their own. `server` and `client`
never import each other, so what one needs of the other to run on one machine is asked for here.
"""

import importlib
from typing import Any

SERVER_APP, CLIENT_APP = "server.app:app", "client.app:app"
SUPERNODE = "client.node.supernode"  # python -P -m ...
SUPERLINK = "server.superlink.process"
TRIAL = "shared.data.trial"
ENROL = "client.round.enrolment:enrol"
ENGINE_AUDIT = "client.privacy.proof.audit:audit_privacy"


def load(door: str) -> Any:
    """`package.module:name`"""
    module, name = door.split(":")
    return getattr(importlib.import_module(module), name)
