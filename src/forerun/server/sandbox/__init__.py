"""Work whose cost a client decides, in a process that can be killed: rendering chat templates, compiling grammars."""

from forerun.server.sandbox.limits import SandboxLimits
from forerun.server.sandbox.sandbox import Sandbox

__all__ = ["Sandbox", "SandboxLimits"]
