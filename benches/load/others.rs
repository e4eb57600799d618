//! Other programs: webdis, and nginx with Lua. benches/peers starts them with the same files.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::subject::{KEY, Request, Subject, spawn};
use crate::support::free_port;
use crate::support::redis::Redis;

const NGINX_MODULES: &str = "/usr/lib/nginx/modules";
const LUA_REDIS: &str = "/usr/share/lua/5.1/nginx/redis.lua";
/// It counts in [`KEY`] what names no counter. It has two workers, because there are two cores, and keeps its connections to Redis.
const NGINX: &str = include_str!("nginx.conf");
/// It has two threads.
const WEBDIS: &str = include_str!("webdis.json");

pub fn has_webdis() -> bool {
    there_is("webdis")
}

pub fn has_nginx_lua() -> bool {
    let module = Path::new(NGINX_MODULES).join("ngx_http_lua_module.so");
    there_is("nginx") && module.exists() && Path::new(LUA_REDIS).exists()
}

fn there_is(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).exists())
}

pub fn webdis() -> Subject {
    // `{"PFADD":1}`, or 0 if the sketch does not change. The count shows whether all were added.
    let request = Request { prefix: format!("/PFADD/{KEY}/"), answer: "}", ..Request::one() };
    start(WEBDIS, request, |place| {
        let mut command = Command::new("webdis");
        command.arg(place.join("config"));
        command
    })
}

pub fn nginx_lua() -> Subject {
    start(NGINX, Request::one(), |place| {
        let mut command = Command::new("nginx");
        command.arg("-p").arg(place).args(["-c", "config", "-e", "error.log"]);
        command
    })
}

/// Starts a program in a directory of its own, with a Redis of its own.
fn start(config: &str, request: Request, program: impl Fn(&Path) -> Command) -> Subject {
    let redis = Redis::start();
    let dir: TempDir = tempfile::tempdir().expect("a temporary directory");
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let fill = [
        ("@modules@", NGINX_MODULES.to_owned()),
        ("@port@", address.port().to_string()),
        ("@redis@", redis.address().port().to_string()),
    ];
    let config = fill.iter().fold(config.to_owned(), |config, (place, value)| config.replace(place, value));
    std::fs::write(dir.path().join("config"), config).expect("a configuration");
    let mut command = program(dir.path());
    command.current_dir(dir.path());
    Subject::peer(address, request, spawn(command, address), redis, dir)
}
