"""Whoever watches a server: metrics, logs and traces, from the records that `RequestMiddleware` keeps and the routes fill in."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from forerun.server.logs import RequestLog
from forerun.server.metrics import Metrics
from forerun.server.served_request import Watchers
from forerun.server.settings import ServerSettings
from forerun.server.tracing import Tracing, open_tracing


@dataclass(frozen=True, slots=True)
class Watch:
    """All watchers of one server."""

    watchers: Watchers
    tracing: Tracing | None = None

    @classmethod
    def of(cls, metrics: Metrics, settings: ServerSettings) -> Watch:
        """Those that the settings ask for."""
        log = RequestLog(settings.log_requests)
        if settings.otlp_endpoint is None:
            return cls(Watchers([metrics, log]))
        tracing = open_tracing(settings.otlp_endpoint, settings.served_model_name)
        return cls(Watchers([metrics, log, tracing]), tracing)

    async def close(self) -> None:
        """Sends what is not sent yet."""
        if self.tracing is not None:
            await asyncio.to_thread(self.tracing.close)
