"""The table of methods: one file each, to be read as the paper's method section. What a method is: contract.py."""

from collections.abc import Mapping

from shared.methods.aca_diff import AcaDiff
from shared.methods.amm_diff import AmmDiff
from shared.methods.any2all import Any2all
from shared.methods.baselines.bbdm import Bbdm
from shared.methods.baselines.ddpm import Ddpm
from shared.methods.baselines.ldm import Ldm
from shared.methods.baselines.pix2pix import Pix2pix
from shared.methods.contract import Method as Method
from shared.methods.contract import Network as Network
from shared.methods.contract import ReadsChart as ReadsChart
from shared.methods.contract import Restores as Restores
from shared.methods.mmdm import Mmdm

METHODS: Mapping[str, type[Method]] = {
    "amm_diff": AmmDiff,
    "aca_diff": AcaDiff,
    "any2all": Any2all,
    "mmdm": Mmdm,
    "bbdm": Bbdm,
    "ddpm": Ddpm,
    "ldm": Ldm,
    "pix2pix": Pix2pix,
}
TAKE_RAW = ", ".join(name for name, cls in METHODS.items() if issubclass(cls, Restores))  # for messages
