//! What `INFO` answers.

/// The name that a server gives itself anew at every start, out of its `INFO server`.
pub(super) fn run_id(info: &str) -> Option<String> {
    value(info, "run_id").map(str::to_owned)
}

/// The value of a field.
pub(super) fn value<'a>(info: &'a str, field: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).map(str::trim)
}
