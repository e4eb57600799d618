//! An axum handler that does nothing, on the same runtime: what `scripts/bench` measures the service
//! against. Takes the address to listen on.

use axum::Router;
use axum::routing::get;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8081".to_owned());
    let listener = tokio::net::TcpListener::bind(address).await?;
    let router = Router::new().route("/api/verve/accept", get(async || "ok"));
    axum::serve(listener, router).await?;
    Ok(())
}
