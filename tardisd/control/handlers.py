"""Which function answers which control method; does no work itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from tardisd.control.call import Call
from tardisd.control.handlers_backfill import BackfillMethods
from tardisd.control.handlers_daemon import DaemonMethods
from tardisd.control.handlers_data import DataMethods
from tardisd.control.handlers_series import SeriesMethods
from tardisd.control.handlers_session import SessionMethods
from tardisd.control.services import Services

Handler = Callable[[Any, Call], Awaitable[Any]]


def handlers_for(services: Services) -> Mapping[str, Handler]:
    """Return the function that answers each method of `tardisd.control.methods`."""
    daemon = DaemonMethods(services)
    series = SeriesMethods(services)
    session = SessionMethods(services)
    data = DataMethods(services)
    backfill = BackfillMethods(services)
    handlers: dict[str, Handler] = {
        "daemon.hello": daemon.hello,
        "daemon.status": daemon.status,
        "daemon.reload": daemon.reload,
        "daemon.stop": daemon.stop,
        "daemon.metrics": daemon.metrics,
        "config.show": daemon.config_show,
        "config.check": daemon.config_check,
        "plugin.list": daemon.plugin_list,
        "plugin.show": daemon.plugin_show,
        "instance.list": daemon.instance_list,
        "instance.show": daemon.instance_show,
        "instance.restart": daemon.instance_restart,
        "series.list": series.list,
        "series.show": series.show,
        "series.coverage": series.coverage,
        "series.gaps": series.gaps,
        "series.delete": series.delete,
        "session.list": session.list,
        "session.show": session.show,
        "session.create": session.create,
        "session.start": session.start,
        "session.pause": session.pause,
        "session.resume": session.resume,
        "session.speed": session.speed,
        "session.seek": session.seek,
        "session.step": session.step,
        "session.verify": session.verify,
        "session.stop": session.stop,
        "session.remove": session.remove,
        "session.watch": session.watch,
        "data.import": data.import_files,
        "data.export": data.export,
        "data.verify": data.verify,
        "backfill.run": backfill.run,
        "backfill.list": backfill.list,
        "backfill.show": backfill.show,
        "backfill.cancel": backfill.cancel,
    }
    for name, handler in handlers.items():
        if name.startswith("session."):
            handlers[name] = _with_all_sessions(services, handler)
    return handlers


def _with_all_sessions(services: Services, handler: Handler) -> Handler:
    """Have a method wait for the sessions that this daemon takes up as it starts."""

    async def answer(params: Any, call: Call) -> Any:
        await services.sessions.recovered()
        return await handler(params, call)

    return answer
