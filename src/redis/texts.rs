//! Texts and hashes of texts from Redis, without values that another program wrote.

use std::collections::BTreeMap;

use ::redis::{FromRedisValue, ParsingError, Value};

/// A hash of texts. Fields and values that are no UTF-8 are not headcount's, and left out.
#[derive(Debug, Default)]
pub struct Texts(pub BTreeMap<String, String>);

impl FromRedisValue for Texts {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        let bytes = BTreeMap::<Vec<u8>, Vec<u8>>::from_redis_value(value)?;
        let texts = bytes.into_iter().filter_map(|(field, value)| {
            Some((String::from_utf8(field).ok()?, String::from_utf8(value).ok()?))
        });
        Ok(Self(texts.collect()))
    }
}

/// A text; none if the value is missing, or is no UTF-8 and so not headcount's.
#[derive(Debug, Default)]
pub struct Text(pub Option<String>);

impl FromRedisValue for Text {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        let bytes = Option::<Vec<u8>>::from_redis_value(value)?;
        Ok(Self(bytes.and_then(|bytes| String::from_utf8(bytes).ok())))
    }
}
