//! Reading the query of a URL.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

/// The keys of a query, and their values as they are written.
pub(super) fn pairs(query: &str) -> impl Iterator<Item = (Cow<'_, str>, &str)> {
    query.split('&').map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (form_text(key), value)
    })
}

/// Decodes a key or a value of `application/x-www-form-urlencoded`.
pub(super) fn form_text(written: &str) -> Cow<'_, str> {
    if !written.contains(['+', '%']) {
        return Cow::Borrowed(written);
    }
    let with_spaces = written.replace('+', " ");
    Cow::Owned(percent_decode_str(&with_spaces).decode_utf8_lossy().into_owned())
}

/// Decodes only `%XX`: a `+` is a plus, and bytes that are not UTF-8 stay what they are.
pub(super) fn percent_decoded(written: &str) -> Cow<'_, [u8]> {
    percent_decode_str(written).into()
}
