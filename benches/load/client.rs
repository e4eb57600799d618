//! Requests by hand, one at a time.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// How long to wait for the next bytes of an answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Sends the bytes of a request, and reads the answer up to its expected end.
///
/// # Errors
///
/// When the answer ends otherwise, or is not a 200.
pub fn ask(stream: &mut TcpStream, request: &[&[u8]], end: &str) -> Result<Vec<u8>, String> {
    let mut answer = Vec::new();
    let mut exchange = || -> std::io::Result<()> {
        stream.set_read_timeout(Some(PATIENCE))?;
        for part in request {
            stream.write_all(part)?;
        }
        let mut piece = [0; 4096];
        while !answer.ends_with(end.as_bytes()) {
            match stream.read(&mut piece)? {
                0 => break,
                read => answer.extend_from_slice(&piece[..read]),
            }
        }
        Ok(())
    };
    let exchanged = exchange();
    if exchanged.is_ok() && answer.starts_with(b"HTTP/1.1 200") && answer.ends_with(end.as_bytes()) {
        Ok(answer)
    } else {
        Err(format!("an answer is {:?}, {exchanged:?}", String::from_utf8_lossy(&answer)))
    }
}
