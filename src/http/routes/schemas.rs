//! Schemas of values written as a number or as text, and of bodies that are no JSON objects.

use std::borrow::Cow;

use serde_json::{Value, json};
use utoipa::openapi::schema::Schema;
use utoipa::openapi::{KnownFormat, Object, ObjectBuilder, RefOr, SchemaFormat, Type};
use utoipa::{PartialSchema, ToSchema};

use crate::model::counter::{CounterNames, OTHER};
use crate::model::id::IntegerId;
use crate::model::window::Window;

/// The name of a counter.
const NAME: &str = "[A-Za-z0-9.:/@-][A-Za-z0-9_.:/@-]{0,127}";

impl PartialSchema for IntegerId {
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

impl ToSchema for IntegerId {
    fn name() -> Cow<'static, str> {
        "Id".into()
    }
}

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

/// A sketch as a string of Redis.
pub(super) struct Octets;

impl PartialSchema for Octets {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::Binary)))
            .description(Some("A string of Redis: dense, of 12304 bytes, or sparse, of up to 16400."))
            .into()
    }
}

impl ToSchema for Octets {}

/// Says what ids are where they are texts. The derived schemas say what they are where they are integers.
pub(super) fn describe_texts(description: &mut Value) {
    /// A JSON value that is an id, for certain: longer ones may be too.
    const VALUE: &str = r#"("[^"\\\u0000-\u001f\u007f-\u009f]{1,64}"|0|-?[1-9][0-9]{0,17})"#;
    description["components"]["schemas"]["Id"] = json!({
        "type": ["string", "integer"],
        "description": "Up to 256 bytes of UTF-8 without control characters (U+0000 to 1F, 7F to 9F), compared byte for \
            byte: `007` is not `7`. An integer that fits 64 bits is its canonical decimal.",
        "minLength": 1, "maxLength": 256, "pattern": r"^[^\u0000-\u001f\u007f-\u009f]+$",
        "minimum": i64::MIN, "maximum": u64::MAX,
    });
    description["components"]["schemas"]["Lines"]["pattern"] =
        json!(r"^[^\u0000-\u001f\u007f-\u009f]+(\r?\n[^\u0000-\u001f\u007f-\u009f]+)*(\r?\n)?$");
    let accept = &mut description["paths"]["/api/verve/accept"];
    accept["get"]["parameters"][0]["description"] =
        json!("The id, only once. Of it only `%XX` is decoded: a `+` is a plus.");
    accept["post"]["requestBody"]["content"]["application/x-ndjson"] = json!({
        "schema": {
            "type": "string",
            "description": "A JSON value a line: a string, or an integer that fits 64 bits.",
            "pattern": format!(r"^{VALUE}(\r?\n{VALUE})*(\r?\n)?$"),
        },
        "examples": { "three": { "value": "\"a\"\n\"b\"\n3\n" } },
    });
}

/// Says which names of counters a parameter may have.
pub(super) fn describe_counter(schema: &mut Value) {
    if schema["type"] == "array" {
        schema["items"]["pattern"] = json!(format!("^{NAME}$"));
        schema["maxItems"] = json!(CounterNames::MOST);
    } else {
        schema["pattern"] = json!(format!("^({NAME}|{OTHER})$"));
    }
}

/// Metrics in the text format of Prometheus.
#[derive(ToSchema)]
#[schema(pattern = "^# HELP ")]
pub(super) struct Exposition(#[expect(dead_code, reason = "for its schema")] String);

/// The ids, each an integer as JSON writes it, without a fraction or an exponent.
#[derive(ToSchema)]
#[schema(min_items = 1)]
pub(super) struct Ids(#[expect(dead_code, reason = "for its schema")] Vec<IntegerId>);

/// Says that an element of the body may be an object instead of an id.
pub(super) fn describe_elements(ids: &mut Value) {
    let id = ids["items"].take();
    ids["items"] = json!({ "anyOf": [id, {
        "type": "object",
        "description": "An id, and the counters in which it counts beside the total. With those of the query, there are \
            up to eight.",
        "properties": {
            "id": id,
            "counters": {
                "type": "array", "maxItems": CounterNames::MOST,
                "items": { "type": "string", "pattern": format!("^{NAME}$") },
            },
        },
        "required": ["id", "counters"],
        "additionalProperties": false,
    }] });
}

impl PartialSchema for Window {
    fn schema() -> RefOr<Schema> {
        text("^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$")
            .description(Some("A window's start, in UTC."))
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)))
            .into()
    }
}

impl ToSchema for Window {
    fn name() -> Cow<'static, str> {
        "Timestamp".into()
    }
}

fn text(pattern: &str) -> ObjectBuilder {
    Object::builder().schema_type(Type::String).pattern(Some(pattern))
}
