//! What errors of Redis mean.

use ::redis::{ErrorKind, RedisError, ServerErrorKind};

use crate::platform::unavailable::Unavailable;

/// Whether the server refuses the password, or needs one.
pub(super) fn is_refused_password(error: &RedisError) -> bool {
    error.kind() == ErrorKind::AuthenticationFailed || matches!(error.code(), Some("WRONGPASS" | "NOAUTH"))
}

/// Whether a new connection may help. If the server has become a replica, or is still loading, its name may lead to
/// another server by now.
pub(super) fn is_fatal(error: &RedisError) -> bool {
    match error.kind() {
        // The keys of a slot that is being moved are on two servers. Both are well.
        ErrorKind::Server(ServerErrorKind::TryAgain)
        | ErrorKind::UnexpectedReturnType
        | ErrorKind::Extension => false,
        // Redis 6.2 wraps the error of a command that a script ran.
        ErrorKind::Server(kind) => {
            is_passing(kind) || error.detail().is_some_and(|detail| detail.contains("-READONLY"))
        }
        _ => true,
    }
}

/// Whether a later try may succeed, on this server or on another one.
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

pub(super) fn unavailable(error: &RedisError) -> Unavailable {
    match (error.kind(), error.detail()) {
        (ErrorKind::InvalidClientConfig, Some(what)) => Unavailable::because(what),
        (ErrorKind::Server(ServerErrorKind::TryAgain), _) => {
            Unavailable::refused(format_args!("Redis: {error}"))
        }
        (ErrorKind::Server(kind), _) if !is_passing(kind) => {
            Unavailable::refused(format_args!("Redis: {error}"))
        }
        (ErrorKind::Extension, _) => Unavailable::refused(format_args!("Redis: {error}")),
        _ => Unavailable::because(format_args!("Redis: {error}")),
    }
}

/// The error for an address that leads to another kind of server. The text says which address would do.
pub(super) fn wrong_address(what: String) -> RedisError {
    (ErrorKind::InvalidClientConfig, "wrong address", what).into()
}
