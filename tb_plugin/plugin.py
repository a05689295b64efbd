"""The routes of the DSE tab; what they say is in data.py, how they say it in http_api.md.

TensorBoard has no authentication and checks no host name, so nothing here changes anything, and nothing
outside the runs' media folders can be read.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tensorboard import plugin_util
from tensorboard.backend import http_util
from tensorboard.plugins import base_plugin
from werkzeug import wrappers

from dse_monitor.runs.record import PLUGIN, PLUGIN_STATE, POINT_COLUMNS, SCHEMA
from dse_monitor.tb_plugin.data import Reader
from dse_monitor.tb_plugin.pictures import IMAGES_FILE, Folders
from dse_monitor.tb_plugin.points import pack

STATIC = Path(__file__).parent / "static"
MEDIA_TYPES = {
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
    ".LICENSE": "text/plain",
}
SEQS_AT_ONCE = 200  # sequence numbers asked for in one request at most
DAY = 86_400  # seconds; a feature map never changes under its name

_SEQ = re.compile(r"[0-9]{1,16}")
_SEQS = re.compile(r"[0-9]{1,16}(,[0-9]{1,16})*")


class BadRequest(Exception):
    """A parameter is missing or malformed."""


class NotFound(Exception):
    """No such run, evaluation or file."""


def read_only(route: Callable[[Any, wrappers.Request], wrappers.Response]) -> Callable[..., Any]:
    """Answer GET and HEAD only, and turn the exceptions of this module into replies."""

    @functools.wraps(route)
    def guarded(self: Any, request: wrappers.Request) -> wrappers.Response:
        if request.method not in ("GET", "HEAD"):
            return http_util.Respond(
                request, "read only: GET or HEAD", "text/plain", code=405, headers=[("Allow", "GET, HEAD")]
            )
        try:
            return route(self, request)
        except BadRequest as error:
            return http_util.Respond(request, str(error), "text/plain", code=400)
        except NotFound as error:
            return http_util.Respond(request, str(error), "text/plain", code=404)

    return wrappers.Request.application(guarded)  # type: ignore[arg-type]


class DSEPlugin(base_plugin.TBPlugin):
    """The DSE tab.

    Args:
        context: TensorBoard's; its data provider and flags are used.
    """

    plugin_name = PLUGIN

    def __init__(self, context: base_plugin.TBContext) -> None:
        self._reader = Reader(context.data_provider)  # type: ignore[arg-type]
        self._folders = Folders.from_flags(context.flags)
        self._static = {
            path.relative_to(STATIC).as_posix(): path
            for path in STATIC.rglob("*")
            if path.suffix in MEDIA_TYPES
        }

    def get_plugin_apps(self) -> dict[str, Any]:
        """All routes, below ``data/plugin/dse``."""
        return {
            "/index.js": self._serve_index,
            "/static/*": self._serve_static,
            "/runs": self._serve_runs,
            "/points": self._serve_points,
            "/line": self._serve_line,
            "/meta": self._serve_metadata,
            "/companions": self._serve_companions,
            "/alerts": self._serve_alerts,
            "/scalars": self._serve_scalars,
            "/scalar": self._serve_scalar,
            "/media": self._serve_media,
        }

    def is_active(self) -> bool:
        """False without looking: `data_plugin_names` decides, and a slow answer blanks TensorBoard's page."""
        return False

    def data_plugin_names(self) -> Any:
        """Names under which the event data is stored."""
        return (PLUGIN, PLUGIN_STATE)

    def frontend_metadata(self) -> base_plugin.FrontendMetadata:
        """An ES module in a frame of its own."""
        return base_plugin.FrontendMetadata(es_module_path="/index.js", tab_name="DSE")

    @read_only
    def _serve_index(self, request: wrappers.Request) -> wrappers.Response:
        return self._file(request, "index.js")

    @read_only
    def _serve_static(self, request: wrappers.Request) -> wrappers.Response:
        return self._file(request, request.path.split("/static/", 1)[-1])

    @read_only
    def _serve_runs(self, request: wrappers.Request) -> wrappers.Response:
        runs = self._reader.runs(*_context(request))
        return _json(request, {"schema": SCHEMA, "logdir": self._logdir(), "runs": runs})

    @read_only
    def _serve_points(self, request: wrappers.Request) -> wrappers.Response:
        since = _whole(request, "since", 0)
        points = self._reader.points(*_context(request), _required(request, "run"))
        table = points.table[points.table[:, 1] > since]
        header = {
            "columns": POINT_COLUMNS,
            "since": since,
            "total": len(points.table),
            "skipped": points.skipped,
            "version": points.version,
        }
        return _conditional(
            request,
            f"{points.version}-{since}",
            lambda: pack(header, table),
            "application/octet-stream",
        )

    @read_only
    def _serve_line(self, request: wrappers.Request) -> wrappers.Response:
        run = _required(request, "run")
        points = self._reader.points(*_context(request), run)

        def content() -> bytes:
            line = self._reader.line(*_context(request), run, points)
            return pack({**line.header(), "version": points.version}, line.table)

        return _conditional(request, points.version, content, "application/octet-stream")

    @read_only
    def _serve_metadata(self, request: wrappers.Request) -> wrappers.Response:
        seqs = _required(request, "seq")
        if not _SEQS.fullmatch(seqs) or seqs.count(",") >= SEQS_AT_ONCE:
            raise BadRequest(f"seq: expected up to {SEQS_AT_ONCE} whole numbers separated by commas")
        run = _required(request, "run")
        found = self._reader.metadata(*_context(request), run, [int(seq) for seq in seqs.split(",")])
        published = self._reader.pictures(*_context(request), run)
        maps = sorted(int(name) for name in published if _SEQ.fullmatch(name))
        originals = "images" in published or self._folders.image_path(run, IMAGES_FILE) is not None
        for item in found:
            item["map"] = self._nearest_map(run, item, maps)
            item["originals"] = originals
        return _json(request, found)

    def _nearest_map(self, run: str, item: dict[str, Any], published: list[int]) -> int | None:
        """The evaluation whose map shows this one: itself, else the nearest of those in the event data."""
        if item.get("status") != "scored":
            return None
        if self._folders.image_path(run, str(item.get("map_file", ""))) is not None:
            return item["seq"]
        return min(published, key=lambda seq: abs(seq - item["seq"]), default=None)

    @read_only
    def _serve_companions(self, request: wrappers.Request) -> wrappers.Response:
        names, table = self._reader.companions(*_context(request), _required(request, "run"))
        content = pack({"columns": ["seq", *names]}, table)
        return _conditional(request, _digest(content), lambda: content, "application/octet-stream")

    @read_only
    def _serve_alerts(self, request: wrappers.Request) -> wrappers.Response:
        return _json(request, self._reader.alerts(*_context(request), _required(request, "run")))

    @read_only
    def _serve_scalars(self, request: wrappers.Request) -> wrappers.Response:
        return _json(request, self._reader.scalars(*_context(request), _required(request, "run")))

    @read_only
    def _serve_scalar(self, request: wrappers.Request) -> wrappers.Response:
        run, tag = _required(request, "run"), _required(request, "tag")
        content = pack(
            {"columns": ["step", "wall_time", "value"]}, self._reader.scalar(*_context(request), run, tag)
        )
        return _conditional(request, _digest(content), lambda: content, "application/octet-stream")

    @read_only
    def _serve_media(self, request: wrappers.Request) -> wrappers.Response:
        run, seq = _required(request, "run"), _required(request, "seq")
        if seq == "images":
            known = [item["run"] for item in self._reader.runs(*_context(request))]
            map_file = IMAGES_FILE if run in known else ""
        else:
            found = self._reader.metadata(*_context(request), run, [_whole(request, "seq", 0)])
            map_file = str(found[0].get("map_file", "")) if found else ""
        image = self._folders.image(run, map_file) or self._reader.picture(*_context(request), run, seq)
        if image is None:
            raise NotFound("no such feature map")
        content, media_type = image
        return http_util.Respond(request, content, media_type, expires=DAY if seq != "images" else 0)

    def _file(self, request: wrappers.Request, name: str) -> wrappers.Response:
        path = self._static.get(name)  # looked up, never joined
        if path is None:
            raise NotFound("no such file")
        content = path.read_bytes()
        return _conditional(request, _digest(content), lambda: content, MEDIA_TYPES[path.suffix])

    def _logdir(self) -> str:
        return ", ".join(str(root) for _, root in self._folders.roots)


class _NotModified(wrappers.Response):
    """A 304 that keeps the headers TensorBoard demands of every reply; werkzeug would drop the first."""

    def get_wsgi_headers(self, environ: Any) -> Any:
        headers = super().get_wsgi_headers(environ)
        headers["Content-Type"] = "text/plain"
        headers["X-Content-Type-Options"] = "nosniff"
        headers["Cache-Control"] = "no-cache, must-revalidate"
        return headers


def _context(request: wrappers.Request) -> tuple[Any, str]:
    return plugin_util.context(request.environ), plugin_util.experiment_id(request.environ)


def _required(request: wrappers.Request, name: str) -> str:
    value = request.args.get(name, "")
    if not value or len(value) > 4096:
        raise BadRequest(f"{name}: expected a text")
    return value


def _whole(request: wrappers.Request, name: str, default: int) -> int:
    text = request.args.get(name, str(default))
    if not _SEQ.fullmatch(text):
        raise BadRequest(f"{name}: expected a whole number")
    return int(text)


def _json(request: wrappers.Request, data: Any) -> wrappers.Response:
    content = json.dumps(data)
    return _conditional(request, _digest(content.encode()), lambda: content, "application/json")


def _conditional(
    request: wrappers.Request, version: str, content: Callable[[], bytes | str], media_type: str
) -> wrappers.Response:
    """The content, or 304 when the browser has this version."""
    tag = f'"{version}"'
    headers = [("ETag", tag)]
    if request.headers.get("If-None-Match") == tag:
        return _NotModified(status=304, headers=headers)
    return http_util.Respond(request, content(), media_type, headers=headers)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:24]
