"""The page, served on this machine alone: it needs no other host."""

import base64
import contextlib
import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from importlib.resources import files
from typing import TYPE_CHECKING, Any, NoReturn

from odelt_eqx.errors import InputError, SolveError, reason
from odelt_eqx.evaluation.measure import COST
from odelt_eqx.evaluation.report import page_part
from odelt_eqx.files import parse_json
from odelt_eqx.play.dials import describe
from odelt_eqx.play.player import Dials, Played, Player
from odelt_eqx.serialize import from_dict

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request

LOOPBACK = "127.0.0.1"
PATIENCE = 1  # seconds in which what is being answered may end with the server


def check_installed() -> None:
    """Raise an InputError unless what serves the page is installed."""
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"the page needs {error.name}, which is not installed: pip install 'odelt-eqx[play]'"
        ) from None


def application(player: Player) -> "Starlette":
    """Return the page and what it asks for: samples at what its dials say."""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
    from starlette.routing import Route

    page = files("odelt_eqx.play").joinpath("page.html").read_text("utf-8")
    for name, part in (("$style", "page.css"), ("$plot", "plot.js")):
        page = page.replace(name, page_part(part))

    def show(_: "Request") -> Response:
        return HTMLResponse(page)

    def dials(_: "Request") -> Response:
        return JSONResponse(describe(player))  # a grid may have been measured meanwhile

    def samples(request: "Request") -> Response:
        lines = (json.dumps(line) + "\n" for line in _answers(player, request))
        return StreamingResponse(lines, media_type="application/x-ndjson")

    def download(request: "Request") -> Response:
        try:
            sheet = player.play(_dials(request)).sheet()
        except (InputError, SolveError) as error:
            return Response(str(error), 422)
        return Response(sheet, media_type="image/png")

    routes = {"/": show, "/dials": dials, "/samples": samples, "/samples.png": download}
    return Starlette(
        routes=[Route(path, function) for path, function in routes.items()],
        # A page of another host, whatever name leads it here, is not answered.
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[LOOPBACK, "localhost"])],
    )


def listen(port: int) -> socket.socket:
    """Return a socket on the loopback interface; an InputError if the port cannot be used.

    Args:
        port: its port; 0 for any that is free.
    """
    try:
        return socket.create_server((LOOPBACK, port))
    except OSError as error:
        raise InputError(
            f"port {port} cannot be used ({reason(error)}): give another by --port, 0 for any"
        ) from None


def serve(player: Player, listener: socket.socket) -> NoReturn:
    """Serve the page until SIGINT or SIGTERM; print its address when it can be opened.

    The process ends here, even while samples are computed: there is nothing to save.
    """
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(application(player), log_level="warning", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background jobs ignore the first
        signal.signal(number, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        thread.start()
        print(f"http://{LOOPBACK}:{listener.getsockname()[1]}", flush=True)
        while thread.is_alive():
            thread.join(timeout=1)  # without it, Windows would not notice Ctrl-C
    with contextlib.suppress(KeyboardInterrupt):
        server.should_exit = True
        thread.join(PATIENCE)
    os._exit(0)  # Python's own end would break off a thread in XLA, which aborts the process


def _answers(player: Player, request: "Request") -> Iterator[dict[str, Any]]:
    """Yield that a program is compiled, if it is, and then samples and their cost, or an error."""
    try:
        dials = _dials(request)
        if not player.is_compiled(dials):
            yield {"compiling": True}
        yield _answer(player, player.play(dials))
    except (InputError, SolveError) as error:
        yield {"error": str(error)}


def _answer(player: Player, played: Played) -> dict[str, Any]:
    names, is_image = player.class_names, played.samples.ndim == 4
    cost = {name: float(getattr(played.stats, name).mean()) for name in COST}
    return {
        "images": [base64.b64encode(image).decode() for image in played.images()],
        "labels": [names[label] for label in played.labels] if names and is_image else [],
        "milliseconds": played.milliseconds,
        "compiled": played.compiled,
        **cost,
    }


def _dials(request: "Request") -> Dials:
    text = request.query_params.get("dials", "")
    try:
        data = parse_json(text)
    except ValueError as error:
        raise InputError(f"dials must be JSON ({reason(error)}); got {text!r}") from None
    return from_dict(data, Dials, "what the dials say")
