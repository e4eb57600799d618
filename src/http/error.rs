//! The reasons to refuse a request, and the answer to each.
//!
//! Every refusal of the API is a [`Failure`]. The one `match` in [`Failure::parts`] maps each to its status, its reason
//! and the meaning of that reason. The body is always `failed`: the reason is in a header, for people, and in metrics.
//! The code that handles an internal error logs its cause. Clients never see it.

use axum::http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};

use thiserror::Error;

use crate::callback::guard::Refused;
use crate::hll::InvalidSketch;
use crate::model::counter::InvalidCounter;
use crate::model::id_list::InvalidIdList;
use crate::model::parts::NotKept;
use crate::model::range::InvalidRange;
use crate::store::WrongShards;

const FAILURE_REASON: HeaderName = HeaderName::from_static("failure-reason");
const FAILURE_DETAIL: HeaderName = HeaderName::from_static("failure-detail");
const FAILURE_LINE: HeaderName = HeaderName::from_static("failure-line");

/// The content type of answers of one word.
pub(super) const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
/// For all answers: a cached count would be wrong.
pub(super) const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");

const CHALLENGE: HeaderValue = HeaderValue::from_static(r#"Bearer realm="headcount""#);

/// Why a request is refused: [`Failure::parts`] says what each means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "`parts` holds each meaning, for the description of the API too")]
pub enum Failure {
    MissingId,
    /// `line` is the line of a text body, or the element of a JSON array, counted from 1.
    InvalidId {
        line: Option<usize>,
    },
    RepeatedId,
    InvalidCounter {
        why: InvalidCounter,
        line: Option<usize>,
    },
    /// `detail` says which parameter, and what it may be.
    InvalidParameter {
        detail: &'static str,
    },
    /// `why` says which parameter, and what would do.
    InvalidRange {
        why: InvalidRange,
    },
    /// `at` is the first moment of which nothing is kept that fits.
    RangeNotKept {
        at: NotKept,
    },
    /// `why` says what is missing.
    NotAvailable {
        why: &'static str,
    },
    InvalidEndpoint,
    ForbiddenEndpoint,
    InvalidSketch {
        why: RefusedSketch,
    },
    /// `line` as that of `InvalidId`, if it is an element.
    InvalidBody {
        line: Option<usize>,
    },
    BodyTooLarge,
    UnsupportedMediaType,
    InvalidHost,
    UnsupportedTransferEncoding,
    Unauthorized,
    MethodNotAllowed {
        allow: &'static str,
    },
    Overloaded,
    StoreUnavailable,
}

/// Why a sketch is not merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RefusedSketch {
    /// Redis could not have written it.
    #[error(transparent)]
    Sketch(#[from] InvalidSketch),
    /// It has no sketch for each shard.
    #[error(transparent)]
    Shards(#[from] WrongShards),
    /// The document has no list of sketches in Base64.
    #[error("expected JSON as GET /api/verve/sketch answers it: {{\"sketches\":[...]}} in Base64")]
    Body,
    /// The document says that its sketches are of another kind.
    #[error("the sketches have another precision, hash or seed than those of Redis")]
    Kind,
    /// The ids were hashed with another key, or with none.
    #[error("the header headcount-key is not the fingerprint of this service's --id-key")]
    Key,
    /// The ids were hashed with a key, and this service has none.
    #[error("the header headcount-key names a key, but this service has no --id-key")]
    NoKey,
}

impl Failure {
    /// One of each kind.
    pub const ALL: [Self; 20] = [
        Self::MissingId,
        Self::InvalidId { line: None },
        Self::RepeatedId,
        Self::InvalidCounter { why: InvalidCounter::Name, line: None },
        Self::InvalidParameter { detail: "" },
        Self::InvalidRange { why: InvalidRange::Empty },
        Self::RangeNotKept { at: NotKept { at: 0, level: None, oldest: 0 } },
        Self::NotAvailable { why: "" },
        Self::InvalidEndpoint,
        Self::ForbiddenEndpoint,
        Self::InvalidSketch { why: RefusedSketch::Body },
        Self::InvalidBody { line: None },
        Self::BodyTooLarge,
        Self::UnsupportedMediaType,
        Self::InvalidHost,
        Self::UnsupportedTransferEncoding,
        Self::Unauthorized,
        Self::MethodNotAllowed { allow: "" },
        Self::Overloaded,
        Self::StoreUnavailable,
    ];

    /// The word in the header `failure-reason` and in metrics.
    pub fn reason(self) -> &'static str {
        self.parts().1
    }

    /// The status, the reason, and the meaning of that reason.
    pub(super) fn parts(self) -> (StatusCode, &'static str, &'static str) {
        use StatusCode as S;
        match self {
            Self::MissingId => (S::BAD_REQUEST, "missing_id", "the request has no id."),
            Self::InvalidId { .. } => (
                S::BAD_REQUEST,
                "invalid_id",
                "an id is not what `--ids` says: an integer that fits 64 bits, or a text of 1 to 256 bytes of UTF-8 without control characters.",
            ),
            Self::RepeatedId => (S::BAD_REQUEST, "repeated_id", "the request has more than one `id`."),
            Self::InvalidCounter { .. } => {
                let meaning =
                    "a counter's name is not sound, there are more than eight, or there are no counters.";
                (S::BAD_REQUEST, "invalid_counter", meaning)
            }
            Self::InvalidParameter { .. } => {
                (S::BAD_REQUEST, "invalid_parameter", "a parameter of the query is not what it may be.")
            }
            Self::InvalidRange { .. } => {
                let meaning = "a range of time is not from the start of a window until a later one, begins in the future, \
                    or has too many steps.";
                (S::BAD_REQUEST, "invalid_range", meaning)
            }
            Self::RangeNotKept { .. } => {
                let meaning = "an edge of the range falls where only hours or days are left, or nothing: see `--retention`, \
                    `--keep-hours` and `--keep-days`.";
                (S::BAD_REQUEST, "range_not_kept", meaning)
            }
            Self::NotAvailable { .. } => {
                let meaning = "the service does not count this, or is not started for it.";
                (S::BAD_REQUEST, "not_available", meaning)
            }
            Self::InvalidEndpoint => {
                let meaning = "the endpoint is not an http or https URL, is too long, or is given twice.";
                (S::BAD_REQUEST, "invalid_endpoint", meaning)
            }
            Self::ForbiddenEndpoint => {
                (S::BAD_REQUEST, "forbidden_endpoint", "callbacks must not go to this endpoint.")
            }
            Self::InvalidSketch { .. } => {
                let meaning = "the body is no sketch of Redis, not one for each shard, or one of ids under another `--id-key`.";
                (S::BAD_REQUEST, "invalid_sketch", meaning)
            }
            Self::InvalidBody { .. } => {
                let meaning =
                    "the body breaks off, comes too late, is chunked twice, or is not a JSON array.";
                (S::BAD_REQUEST, "invalid_body", meaning)
            }
            Self::BodyTooLarge => {
                (S::PAYLOAD_TOO_LARGE, "body_too_large", "the body is larger than `--body-limit`.")
            }
            Self::UnsupportedMediaType => {
                let meaning = "the body has another media type, or is compressed.";
                (S::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", meaning)
            }
            Self::InvalidHost => (
                S::BAD_REQUEST,
                "invalid_host",
                "the header `host` is missing, is given twice, or is not a host.",
            ),
            Self::UnsupportedTransferEncoding => {
                let meaning = "the `transfer-encoding` is not `chunked`.";
                (S::NOT_IMPLEMENTED, "unsupported_transfer_encoding", meaning)
            }
            Self::Unauthorized => {
                let meaning = "`--api-token` is set, and the request does not have it exactly once.";
                (S::UNAUTHORIZED, "unauthorized", meaning)
            }
            Self::MethodNotAllowed { .. } => {
                (S::METHOD_NOT_ALLOWED, "method_not_allowed", "this path does not have this method.")
            }
            Self::Overloaded => {
                (S::SERVICE_UNAVAILABLE, "overloaded", "the service has reached one of its limits.")
            }
            Self::StoreUnavailable => {
                let meaning = "Redis is away, and the instance can neither keep the id nor read the count; or the \
                    service is still starting.";
                (S::SERVICE_UNAVAILABLE, "store_unavailable", meaning)
            }
        }
    }
}

impl From<InvalidIdList> for Failure {
    fn from(invalid: InvalidIdList) -> Self {
        match invalid {
            InvalidIdList::Empty => Self::MissingId,
            InvalidIdList::InvalidId { place } => Self::InvalidId { line: Some(place) },
            InvalidIdList::InvalidObject { place } => Self::InvalidBody { line: Some(place) },
            InvalidIdList::InvalidCounter { place, why } => Self::InvalidCounter { why, line: Some(place) },
            InvalidIdList::NoArray => Self::InvalidBody { line: None },
        }
    }
}

impl From<InvalidCounter> for Failure {
    fn from(invalid: InvalidCounter) -> Self {
        Self::InvalidCounter { why: invalid, line: None }
    }
}

impl From<RefusedSketch> for Failure {
    fn from(why: RefusedSketch) -> Self {
        Self::InvalidSketch { why }
    }
}

impl From<InvalidRange> for Failure {
    fn from(why: InvalidRange) -> Self {
        Self::InvalidRange { why }
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
        let (status, reason, _) = self.parts();
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
        if let Self::InvalidId { line: Some(line) }
        | Self::InvalidCounter { line: Some(line), .. }
        | Self::InvalidBody { line: Some(line) } = self
        {
            headers.insert(FAILURE_LINE, line.into());
        }
        let detail = match self {
            Self::InvalidCounter { why, .. } => HeaderValue::from_str(&why.to_string()).ok(),
            Self::InvalidParameter { detail } => Some(HeaderValue::from_static(detail)),
            Self::InvalidRange { why } => HeaderValue::from_str(&why.to_string()).ok(),
            Self::RangeNotKept { at } => HeaderValue::from_str(&at.to_string()).ok(),
            Self::InvalidSketch { why } => HeaderValue::from_str(&why.to_string()).ok(),
            Self::NotAvailable { why } => Some(HeaderValue::from_static(why)),
            _ => None,
        };
        headers.extend(detail.map(|detail| (FAILURE_DETAIL, detail)));
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
