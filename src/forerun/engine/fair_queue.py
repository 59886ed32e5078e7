"""Who is next: by priority, then the tenant that was served least, then first come."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator

from forerun.engine.request import Request

MAX_TENANTS = 4096  # whose service is remembered


class FairQueue:
    """Requests that wait. A tenant's service is counted in tokens (Sheng et al. 2024, Virtual Token Counter): who comes back after a pause begins
    with the least that any waiting tenant has, so that nobody saves up.
    """

    def __init__(self) -> None:
        self._requests: list[Request] = []
        self._served: OrderedDict[str | None, float] = OrderedDict()

    def add(self, request: Request) -> None:
        tenant = request.tenant
        waiting = {each.tenant for each in self._requests}
        if tenant not in waiting:
            least = min((self._served.get(each, 0.0) for each in waiting), default=0.0)
            self._served[tenant] = max(self._served.get(tenant, 0.0), least)
        self._requests.append(request)

    def charge(self, request: Request, num_tokens: int) -> None:
        """The request's tenant got so much."""
        self._served[request.tenant] = self._served.get(request.tenant, 0.0) + num_tokens
        self._served.move_to_end(request.tenant)
        if len(self._served) > MAX_TENANTS:
            self._served.popitem(last=False)

    def first(self, may_run: Callable[[Request], bool]) -> Request | None:
        """The next of those that may run now; it stays in the queue."""
        return min(filter(may_run, self._requests), key=self._place, default=None)

    def _place(self, request: Request) -> tuple[int, bool, float, float, int]:
        times = request.times
        return request.priority, times.num_preemptions == 0, self._served.get(request.tenant, 0.0), times.arrived, request.request_id

    def remove(self, request: Request) -> None:
        self._requests.remove(request)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests)

    def __len__(self) -> int:
        return len(self._requests)
