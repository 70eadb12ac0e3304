"""A sandbox for code that a model wrote: no network, a read-only system, limits; no Docker, no root needed."""

from blockexpand.sandbox.limits import Limits, Outcome
from blockexpand.sandbox.programs import describe, passes, run_program
from blockexpand.sandbox.session import Session
