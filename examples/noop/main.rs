//! The floor: what HTTP itself costs. It has the service's server, its route, and the parsing of the id, but counts
//! nothing. `benches/load` measures everything against it.
//!
//! A POST reads its body and does nothing with it: the floor of bulk requests.
//!
//! With `--plain`, `axum::serve` serves the same routes. The difference is the cost of the service's own server.

mod router;

use std::sync::Arc;

use clap::Parser;
use headcount::cli::flags::HttpFlags;
use headcount::http::server::{self, Stop};
use headcount::platform::workers::Workers;
use headcount::telemetry::metrics::Metrics;
use tokio::net::TcpListener;

/// An HTTP server that accepts ids and counts nothing
#[derive(Parser)]
struct Args {
    /// The flags of `headcount serve`: `--listen`, limits.
    #[command(flatten)]
    http: HttpFlags,

    /// Serve with `axum::serve` instead of the service's own server
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
