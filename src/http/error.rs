//! What can be wrong with a request, and what the client is told.
//!
//! Every refusal of the API is a [`Failure`]; the one `match` in [`Failure::parts`] maps each to a
//! status and a reason. The body is always `failed`: the reason is for people and for metrics. The
//! cause of a failure of ours is logged where it is handled, and never sent.

use axum::http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};

use crate::callback::guard::Refused;
use crate::model::id_list::InvalidIdList;

const FAILURE_REASON: HeaderName = HeaderName::from_static("failure-reason");
const FAILURE_LINE: HeaderName = HeaderName::from_static("failure-line");

/// Plain text, as every answer of the accept API.
pub(super) const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
/// Counts are never to be cached.
pub(super) const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");

/// What a request without the token lacks.
const CHALLENGE: HeaderValue = HeaderValue::from_static(r#"Bearer realm="headcount""#);

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// There is no id in the request.
    MissingId,
    /// An id is no integer in range; in a bulk body the one at `line`, counted from 1.
    InvalidId {
        /// Line of a text body, element of a JSON array.
        line: Option<usize>,
    },
    /// More than one `id` parameter.
    RepeatedId,
    /// The endpoint is no http or https URL, is too long, or is given twice.
    InvalidEndpoint,
    /// The endpoint is where callbacks must not go.
    ForbiddenEndpoint,
    /// A bulk body that could not be read, or that is no JSON array; any body that is in chunks twice.
    InvalidBody,
    /// A bulk body over the limit.
    BodyTooLarge,
    /// A bulk body of another type, or compressed.
    UnsupportedMediaType,
    /// The header `host` is missing, is there twice, or is none.
    InvalidHost,
    /// A `transfer-encoding` of something else than `chunked`.
    UnsupportedTransferEncoding,
    /// There is a token, and the request does not bear it.
    Unauthorized,
    /// The route does not know this method.
    MethodNotAllowed {
        /// Those it knows.
        allow: &'static str,
    },
    /// More connections than the service takes.
    Overloaded,
    /// The counter could not answer.
    StoreUnavailable,
}

impl Failure {
    /// One of each kind.
    pub const ALL: [Self; 14] = [
        Self::MissingId,
        Self::InvalidId { line: None },
        Self::RepeatedId,
        Self::InvalidEndpoint,
        Self::ForbiddenEndpoint,
        Self::InvalidBody,
        Self::BodyTooLarge,
        Self::UnsupportedMediaType,
        Self::InvalidHost,
        Self::UnsupportedTransferEncoding,
        Self::Unauthorized,
        Self::MethodNotAllowed { allow: "" },
        Self::Overloaded,
        Self::StoreUnavailable,
    ];

    /// The token in the header `failure-reason` and in metrics.
    pub fn reason(self) -> &'static str {
        self.parts().1
    }

    fn parts(self) -> (StatusCode, &'static str) {
        match self {
            Self::MissingId => (StatusCode::BAD_REQUEST, "missing_id"),
            Self::InvalidId { .. } => (StatusCode::BAD_REQUEST, "invalid_id"),
            Self::RepeatedId => (StatusCode::BAD_REQUEST, "repeated_id"),
            Self::InvalidEndpoint => (StatusCode::BAD_REQUEST, "invalid_endpoint"),
            Self::ForbiddenEndpoint => (StatusCode::BAD_REQUEST, "forbidden_endpoint"),
            Self::InvalidBody => (StatusCode::BAD_REQUEST, "invalid_body"),
            Self::BodyTooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large"),
            Self::UnsupportedMediaType => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type"),
            Self::InvalidHost => (StatusCode::BAD_REQUEST, "invalid_host"),
            Self::UnsupportedTransferEncoding => {
                (StatusCode::NOT_IMPLEMENTED, "unsupported_transfer_encoding")
            }
            Self::Unauthorized => (StatusCode::UNAUTHORIZED, "unauthorized"),
            Self::MethodNotAllowed { .. } => (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
            Self::Overloaded => (StatusCode::SERVICE_UNAVAILABLE, "overloaded"),
            Self::StoreUnavailable => (StatusCode::SERVICE_UNAVAILABLE, "store_unavailable"),
        }
    }
}

impl From<InvalidIdList> for Failure {
    fn from(invalid: InvalidIdList) -> Self {
        match invalid {
            InvalidIdList::Empty => Self::MissingId,
            InvalidIdList::InvalidId { place } => Self::InvalidId { line: Some(place) },
            InvalidIdList::NoArray => Self::InvalidBody,
        }
    }
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Invalid => Self::InvalidEndpoint,
            Refused::Forbidden(_) => Self::ForbiddenEndpoint,
        }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let (status, reason) = self.parts();
        let mut response = (
            status,
            [
                (CONTENT_TYPE, TEXT),
                (CACHE_CONTROL, NO_STORE),
                (FAILURE_REASON, HeaderValue::from_static(reason)),
            ],
            "failed",
        )
            .into_response();
        let headers = response.headers_mut();
        if let Self::InvalidId { line: Some(line) } = self {
            headers.insert(FAILURE_LINE, line.into());
        }
        if self == Self::Unauthorized {
            headers.insert(WWW_AUTHENTICATE, CHALLENGE);
        }
        if let Self::MethodNotAllowed { allow } = self {
            headers.insert(ALLOW, HeaderValue::from_static(allow));
        }
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
