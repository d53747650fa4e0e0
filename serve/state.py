"""What the parts of one server share."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from serve.chat import Reader
from serve.metrics import Metrics
from serve.supervisor import Supervisor


@dataclass
class State:
    supervisor: Supervisor
    reader: Reader
    metrics: Metrics
    names: list[str]
    """Under which the model is asked for; the first is the one that is told."""
    admitted: int = 0
    """Answers now being made, or waiting to be."""
    held: int = 0
    """Bytes of their bodies."""
    started: int = field(default_factory=lambda: int(time.time()))
