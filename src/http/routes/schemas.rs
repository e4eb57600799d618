//! Schemas of what is no struct: values that are written as a number or as text, and bodies.

use utoipa::openapi::schema::Schema;
use utoipa::openapi::{KnownFormat, Object, ObjectBuilder, RefOr, SchemaFormat, Type};
use utoipa::{PartialSchema, ToSchema};

use crate::model::id::Id;
use crate::model::window::Window;

impl PartialSchema for Id {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::Integer)
            .description(Some(
                "An integer that fits 64 bits, with or without a sign. Beware of tools that read JSON numbers as \
                 floating point.",
            ))
            .minimum(Some(i64::MIN))
            .maximum(Some(u64::MAX))
            .into()
    }
}

impl ToSchema for Id {}

/// The body of a bulk request, as lines.
pub(super) struct Lines;

impl PartialSchema for Lines {
    fn schema() -> RefOr<Schema> {
        text(r"^-?[0-9]+(\r?\n-?[0-9]+)*(\r?\n)?$")
            .description(Some(
                "An id a line, each in the range of `Id`. Lines end in LF or CR LF; the last one need not. No line is \
                 empty.",
            ))
            .into()
    }
}

impl ToSchema for Lines {}

/// The metrics.
#[derive(ToSchema)]
#[schema(pattern = "^# HELP ")]
pub(super) struct Exposition(#[expect(dead_code, reason = "for its schema")] String);

/// The ids, each an integer as JSON writes it, without a fraction or an exponent.
#[derive(ToSchema)]
#[schema(min_items = 1)]
pub(super) struct Ids(#[expect(dead_code, reason = "for its schema")] Vec<Id>);

impl PartialSchema for Window {
    fn schema() -> RefOr<Schema> {
        text("^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$")
            .description(Some("A window's start, UTC."))
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)))
            .into()
    }
}

impl ToSchema for Window {
    fn name() -> std::borrow::Cow<'static, str> {
        "Timestamp".into()
    }
}

fn text(pattern: &str) -> ObjectBuilder {
    Object::builder().schema_type(Type::String).pattern(Some(pattern))
}
