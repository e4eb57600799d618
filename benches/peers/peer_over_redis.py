"""webdis, and nginx with Lua: an HTTP server in front of Redis, an id a request, one `PFADD` of the counter's key each.

Both are set up as in benches/load: two threads or workers, because there are two cores, and connections to Redis that stay
open. What they keep is what Redis keeps, so memory, error and questions are those of Redis.
"""

import pathlib
import shutil

from one_a_request import Load
from peer_redis import ERROR
from servers import Redis, Servers, free_port

MODULES = pathlib.Path("/usr/lib/nginx/modules")
LUA_REDIS = pathlib.Path("/usr/share/lua/5.1/nginx/redis.lua")

# Their configurations.
LOAD = pathlib.Path(__file__).resolve().parents[1] / "load"


def configured(name, servers, port, redis):
    """The file of a configuration, in the servers' directory."""
    config, file = (LOAD / name).read_text(), servers.place / name
    for place, value in {"@modules@": MODULES, "@port@": port, "@redis@": redis}.items():
        config = config.replace(place, str(value))
    file.write_text(config)
    return file


class OverRedis:
    def prepare(self, work):
        self.work = work

    def measure(self, result):
        with Servers() as servers:
            redis = servers.redis()
            load = Load(servers, *self.start(servers, redis))
            speed = load.send(self.work)
            with Redis(redis) as connection:
                counts = {name: connection.ask("PFCOUNT", name) for name in self.work.pairs.exact}
                load.check_counts(connection.ask("PFCOUNT", *counts), counts, ERROR, self.row)
            result.speed(f"{self.row}, an id a request", speed)

    def sizes(self, result):
        """Those of Redis."""


class Webdis(OverRedis):
    key, row = "webdis", "webdis"

    def left_out(self):
        return None if shutil.which("webdis") else "webdis is not installed"

    def start(self, servers, redis):
        port = free_port()
        servers.start(port, "webdis", configured("webdis.json", servers, port, redis))
        return port, "/PFADD/COUNTER/ID", b'{"PFADD":1}'


class Nginx(OverRedis):
    key, row = "nginx", "nginx with Lua"

    def left_out(self):
        there = shutil.which("nginx") and (MODULES / "ngx_http_lua_module.so").exists() and LUA_REDIS.exists()
        return None if there else "nginx, its Lua module or lua-nginx-redis is not installed"

    def start(self, servers, redis):
        port = free_port()
        config = configured("nginx.conf", servers, port, redis)
        servers.start(port, "nginx", "-p", servers.place, "-c", config.name, "-e", "error.log")
        return port, "/api/verve/accept?id=ID&counter=COUNTER", b"ok"
