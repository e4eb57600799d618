//! Schemas of values written as a number or as text, and of bodies that are no JSON objects.

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
                "A signed or unsigned integer of 64 bits. Some tools read JSON numbers as floating point and lose \
                 digits.",
            ))
            .minimum(Some(i64::MIN))
            .maximum(Some(u64::MAX))
            .into()
    }
}

impl ToSchema for Id {}

/// A bulk body with an id a line.
pub(super) struct Lines;

impl PartialSchema for Lines {
    fn schema() -> RefOr<Schema> {
        text(r"^-?[0-9]+(\r?\n-?[0-9]+)*(\r?\n)?$")
            .description(Some(
                "An id a line, each in the range of `Id`. Lines end in LF or CR LF. The end of the last line may be \
                 missing. No line is empty.",
            ))
            .into()
    }
}

impl ToSchema for Lines {}

/// Metrics in the text format of Prometheus.
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
            .description(Some("A window's start, in UTC."))
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
