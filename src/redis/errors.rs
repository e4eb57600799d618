//! What errors of Redis mean.

use ::redis::{ErrorKind, RedisError, ServerErrorKind};

use crate::platform::unavailable::Unavailable;

/// Whether it is the password, or that there is none.
pub(super) fn is_refused_password(error: &RedisError) -> bool {
    error.kind() == ErrorKind::AuthenticationFailed || matches!(error.code(), Some("WRONGPASS" | "NOAUTH"))
}

/// Whether another connection could do better. A server that has become a replica, or is still loading, is
/// left in the hope that its name leads to another one.
pub fn is_fatal(error: &RedisError) -> bool {
    match error.kind() {
        // Redis 6.2 wraps what a script was told.
        ErrorKind::Server(kind) => {
            is_passing(kind) || error.detail().is_some_and(|detail| detail.contains("-READONLY"))
        }
        ErrorKind::UnexpectedReturnType | ErrorKind::Extension => false,
        _ => true,
    }
}

/// Whether the server will do it later, or another one will.
pub(super) fn is_passing(kind: ServerErrorKind) -> bool {
    matches!(
        kind,
        ServerErrorKind::ReadOnly
            | ServerErrorKind::BusyLoading
            | ServerErrorKind::MasterDown
            | ServerErrorKind::ClusterDown
            | ServerErrorKind::TryAgain
    )
}

/// In the words of the log.
pub(super) fn unavailable(error: &RedisError) -> Unavailable {
    Unavailable::because(format_args!("Redis: {error}"))
}
