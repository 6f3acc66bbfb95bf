"""Ray behind the standard executor."""

import importlib
from collections.abc import Callable, Generator
from concurrent.futures import Executor, Future, InvalidStateError
from contextlib import suppress
from functools import partial
from typing import Any

from isobatch.errors import EngineError, InputError, WorkerLost, warn
from isobatch.executors.resources import Resources
from isobatch.installed import need


class RayExecutor(Executor):
    """Calls as Ray tasks; one whose worker is lost raises WorkerLost.

    Args:
        ray: the module, connected to a cluster.
        resources: of one call.
    """

    def __init__(self, ray: Any, resources: Resources):
        self._ray = ray
        memory = {} if resources.memory_gb is None else {"memory": int(resources.memory_gb * 1e9)}
        self._options = {"num_cpus": resources.cpus, "num_gpus": resources.gpus, "max_retries": 0, **memory}
        total = ray.cluster_resources()
        if resources.gpus > total.get("GPU", 0.0) or resources.cpus > total.get("CPU", 0.0):
            warn(
                f"a run takes {resources.cpus:g} CPUs and {resources.gpus:g} GPUs; this Ray cluster has "
                f"{total.get('CPU', 0.0):g} and {total.get('GPU', 0.0):g}: runs wait until it has grown"
            )
        shares = [(total.get("CPU", 0.0), resources.cpus), (total.get("GPU", 0.0), resources.gpus)]
        self.workers = max(1, int(min((there / each for there, each in shares if each), default=1)))
        self._open: dict[Future[Any], Any] = {}
        self._remote: dict[Callable[..., Any], Any] = {}

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Start a task.

        Args:
            fn: the function.
            *args: its arguments.
            **kwargs: its named arguments.

        Returns:
            Its future; cancelling it ends the task.
        """
        if fn not in self._remote:  # each one is sent to the cluster once
            self._remote[fn] = self._ray.remote(**self._options)(fn)
        reference = self._remote[fn].remote(*args, **kwargs)
        future: Future[Any] = Future()
        self._open[future] = reference
        future.add_done_callback(self._closed)
        reference.future().add_done_callback(partial(_pass_on, self._ray.exceptions, future))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End what is left.

        Args:
            wait: nothing is waited for.
            cancel_futures: end open tasks.
        """
        for future in list(self._open) if cancel_futures else ():
            future.cancel()

    def _closed(self, future: Future[Any]) -> None:
        reference = self._open.pop(future, None)
        if future.cancelled() and reference is not None:
            self._ray.cancel(reference, force=True)


def _pass_on(errors: Any, future: Future[Any], inner: Future[Any]) -> None:
    error = inner.exception()
    # a result is lost with the machine that holds it, also where the call had ended
    lost = (errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError, errors.ObjectLostError)
    if isinstance(error, errors.RayTaskError):
        error = error.cause if isinstance(error.cause, Exception) else error
    elif isinstance(error, lost):
        error = WorkerLost(str(error).strip().partition("\n")[0] or type(error).__name__)
    elif error is not None:
        error = EngineError(f"{type(error).__name__}: {error}")
    with suppress(InvalidStateError):  # cancelled, maybe at this moment
        future.set_result(inner.result()) if error is None else future.set_exception(error)


def ray_executor(address: str | None, resources: Resources) -> Generator[Executor]:
    """Open an executor on a Ray cluster.

    Args:
        address: such as ray://host:10001; None for one that is running here, or a new one of this machine.
        resources: of one run.

    Yields:
        The executor.

    Raises:
        InputError: no cluster there.
    """
    need("ray")
    ray: Any = importlib.import_module("ray")
    ours = not ray.is_initialized()
    if ours:
        try:
            ray.init(address, log_to_driver=False, logging_level="error", include_dashboard=False)
        except (ConnectionError, OSError, ValueError) as error:
            raise InputError(
                f"--on {address!r}: no Ray cluster answers there ({error}); start one: ray start --head"
            ) from None
    executor = RayExecutor(ray, resources)
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)
        if ours:
            ray.shutdown()
