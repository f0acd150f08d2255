//! JSON objects, read strictly: a name that occurs twice is an error, at any depth, and depth is
//! bounded. Otherwise a reader of the first of two and a reader of the second would see two
//! different tokens.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Most nesting of objects and lists in a header or in claims. Providers nest a list of roles in an
/// object in an object.
pub const DEPTH_MAX: usize = 16;

/// A fault of a text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The text is not JSON, not an object, or too deep.
    Malformed,
    /// A name occurs twice in one object.
    Duplicate,
}

/// Text that marks this error on its way through serde.
const DUPLICATE: &str = "shardgate: a name stands twice";

/// Reads `text` as an object.
pub fn object(text: &[u8]) -> Result<Map<String, Value>, Fault> {
    let mut reader = serde_json::Deserializer::from_slice(text);
    let value = Strict { depth: 0 }.deserialize(&mut reader);
    let value = value.and_then(|value| reader.end().map(|()| value));
    match value {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(Fault::Malformed),
        Err(e) if e.to_string().starts_with(DUPLICATE) => Err(Fault::Duplicate),
        Err(_) => Err(Fault::Malformed),
    }
}

/// Reader of a value at a depth.
struct Strict {
    depth: usize,
}

impl Strict {
    fn inner<E: serde::de::Error>(&self) -> Result<Self, E> {
        if self.depth >= DEPTH_MAX {
            return Err(E::custom("too deep"));
        }
        Ok(Self { depth: self.depth + 1 })
    }
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, b: bool) -> Result<Value, E> {
        Ok(Value::Bool(b))
    }

    fn visit_i64<E>(self, n: i64) -> Result<Value, E> {
        Ok(Value::Number(n.into()))
    }

    fn visit_u64<E>(self, n: u64) -> Result<Value, E> {
        Ok(Value::Number(n.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, x: f64) -> Result<Value, E> {
        Number::from_f64(x).map(Value::Number).ok_or_else(|| E::custom("not finite"))
    }

    fn visit_str<E>(self, s: &str) -> Result<Value, E> {
        Ok(Value::String(s.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element_seed(self.inner()?)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(name) = entries.next_key::<String>()? {
            let value = entries.next_value_seed(self.inner()?)?;
            if map.insert(name, value).is_some() {
                return Err(A::Error::custom(DUPLICATE));
            }
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_what_serde_json_makes_of_it() {
        let text = r#"{"a":[1,-2,3.5,1e3,null,true,"\u0041"],"b":{"c":{}}}"#;
        let plain: Value = serde_json::from_str(text).unwrap();
        assert_eq!(Value::Object(object(text.as_bytes()).unwrap()), plain);
    }

    #[test]
    fn a_name_that_stands_twice_is_told_at_any_depth() {
        for text in [
            r#"{"a":1,"a":1}"#,
            r#"{"a":1,"\u0061":2}"#,
            r#"{"x":{"a":1,"a":2}}"#,
            r#"{"x":[{"a":1,"a":2}]}"#,
        ] {
            assert_eq!(object(text.as_bytes()), Err(Fault::Duplicate), "{text}");
        }
        assert!(object(br#"{"a":{"a":1},"b":{"a":1}}"#).is_ok());
    }

    #[test]
    fn what_is_no_object_is_malformed() {
        let texts: [&[u8]; 14] = [
            b"",
            b"[]",
            b"1",
            b"null",
            b"\"{}\"",
            b"{",
            b"{}}",
            b"{} {}",
            b"{\"a\":01}",
            b"{\"a\":NaN}",
            b"{\"a\":1e999}",
            b"{\"a\":\"\xff\"}",
            b"\xef\xbb\xbf{}",
            b"{'a':1}",
        ];
        for text in texts {
            assert_eq!(object(text), Err(Fault::Malformed), "{text:?}");
        }
        assert!(object(b" {} \n").is_ok());
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |n: usize| format!("{{\"a\":{}1{}}}", "[".repeat(n), "]".repeat(n));
        assert!(object(nested(DEPTH_MAX - 1).as_bytes()).is_ok());
        for n in [DEPTH_MAX, 100, 100_000] {
            assert_eq!(object(nested(n).as_bytes()), Err(Fault::Malformed));
        }
    }
}
