"""Model files: recognised by their headers, loaded straight to their device.

    models = Bundle.open(paths, Registry.builtin())
    dit = models.load("dit", device="cuda", dtype=torch.bfloat16)

`registry/*.toml` are the tables of known checkpoints; tables.py defines their fields, formulas.py and names.py the two
small languages inside them. Importing this package does not import torch.
"""

from omniavatar.checkpoints.bundle import Bundle, LoraFile
from omniavatar.checkpoints.files import Source
from omniavatar.checkpoints.hashing import fingerprint
from omniavatar.checkpoints.headers import Header, TensorInfo, read_header
from omniavatar.checkpoints.registry import Component, Detection, Registry, UnknownCheckpoint, Verdict
from omniavatar.checkpoints.tables import ComponentSpec, Row

__all__ = [
    "Bundle",
    "Component",
    "ComponentSpec",
    "Detection",
    "Header",
    "LoraFile",
    "Registry",
    "Row",
    "Source",
    "TensorInfo",
    "UnknownCheckpoint",
    "Verdict",
    "fingerprint",
    "read_header",
]
