//! The floor: what HTTP itself costs. The service's server, its route, and the parsing of the id, but nothing is
//! counted. `benches/load` measures everything against it.
//!
//! A POST reads its body and does nothing with it: the floor of bulk requests.
//!
//! With `--plain` the same routes are served by `axum::serve`, as it comes: what the service's own server
//! costs beside that one.

mod router;

use std::sync::Arc;

use clap::Parser;
use headcount::cli::flags::HttpFlags;
use headcount::http::server::{self, Stop};
use headcount::platform::workers::Workers;
use headcount::telemetry::metrics::Metrics;
use tokio::net::TcpListener;

/// An HTTP server that takes ids and counts nothing
#[derive(Parser)]
struct Args {
    /// Those of `headcount serve`: `--listen`, limits.
    #[command(flatten)]
    http: HttpFlags,

    /// Serve by `axum::serve` instead of the service's own server
    #[arg(long)]
    plain: bool,
}

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let Args { http, plain } = Args::parse();
    let http = http.settings().map_err(std::io::Error::other)?;
    let router = router::router(http.body_limit as usize);
    let listener = TcpListener::bind(http.listen).await?;
    if plain {
        return axum::serve(listener, router).await;
    }
    let workers = Arc::new(Workers::start(http.threads)?);
    server::serve(listener, router, &http, Arc::new(Metrics::new()), workers, Stop::default()).await;
    Ok(())
}
