//! JSON objects, read strictly: a name that occurs twice is an error, and depth is bounded.
//! Otherwise a reader of the first of two and a reader of the second would see two different
//! tokens. Where only some members of an object are used, only their names are read, and no value
//! that nobody uses can be an error: see [`members`].

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{
    DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde_json::value::RawValue;
use serde_json::{Map, Number, Value};

/// Most nesting of objects and lists in a header or a key, which have two levels.
pub const DEPTH_MAX: usize = 16;

/// An object whose values are texts of JSON that are not read yet.
pub type Members = BTreeMap<String, Box<RawValue>>;

/// A member of an object, as far as it is a text.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub enum Said {
    /// The object has no such member.
    #[default]
    Nothing,
    /// This text.
    Text(String),
    /// A value of another kind.
    Other,
}

impl Said {
    /// The text, if it is one.
    pub fn text(self) -> Option<String> {
        match self {
            Self::Text(text) => Some(text),
            Self::Nothing | Self::Other => None,
        }
    }
}

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

/// Reads `text` as an object, whole: no name occurs twice at any depth.
pub fn object(text: &[u8]) -> Result<Map<String, Value>, Fault> {
    match read(text, Strict { depth: 0 })? {
        Value::Object(map) => Ok(map),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            Err(Fault::Malformed)
        }
    }
}

/// Reads `text` as an object, of whose own names none occurs twice. The values are JSON, of any
/// depth and content.
pub fn members(text: &[u8]) -> Result<Members, Fault> {
    read(text, Names)
}

/// Reads two members of an object, and skips all the others without keeping anything of them: the
/// object may be anybody's. `None`: it is no object. Of members of one name the last one is read.
pub fn texts(text: &[u8], names: [&str; 2]) -> Option<[Said; 2]> {
    read(text, Texts { names }).ok()
}

fn read<'a, S: DeserializeSeed<'a>>(text: &'a [u8], seed: S) -> Result<S::Value, Fault> {
    let mut reader = serde_json::Deserializer::from_slice(text);
    let value = seed.deserialize(&mut reader);
    let value = value.and_then(|value| reader.end().map(|()| value));
    value.map_err(|error| match error.to_string().starts_with(DUPLICATE) {
        true => Fault::Duplicate,
        false => Fault::Malformed,
    })
}

/// Reader of the names of an object.
struct Names;

impl<'de> DeserializeSeed<'de> for Names {
    type Value = Members;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Members, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Names {
    type Value = Members;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Members, A::Error> {
        let mut members = Members::new();
        while let Some(name) = entries.next_key::<String>()? {
            if members.insert(name, entries.next_value()?).is_some() {
                return Err(A::Error::custom(DUPLICATE));
            }
        }
        Ok(members)
    }
}

/// Reader of two members of an object.
#[derive(Clone, Copy)]
struct Texts<'n> {
    names: [&'n str; 2],
}

impl<'de> DeserializeSeed<'de> for Texts<'_> {
    type Value = [Said; 2];

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<[Said; 2], D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Texts<'_> {
    type Value = [Said; 2];

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<[Said; 2], A::Error> {
        let mut said = [Said::Nothing, Said::Nothing];
        while let Some(place) = entries.next_key_seed(Place { names: self.names })? {
            match place {
                None => drop(entries.next_value::<IgnoredAny>()?),
                Some(place) => {
                    let value = entries.next_value::<&RawValue>()?;
                    let text = serde_json::from_str(value.get());
                    said[place] = text.map_or(Said::Other, Said::Text);
                }
            }
        }
        Ok(said)
    }
}

/// Reader of a name: its place among those that are looked for.
struct Place<'n> {
    names: [&'n str; 2],
}

impl<'de> DeserializeSeed<'de> for Place<'_> {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Place<'_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.names.iter().position(|known| *known == name))
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
    fn of_members_only_the_names_are_read() {
        let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
        for value in ["1e999", r#"{"a":1,"a":2}"#, r#""\ud800""#, "null", &deep] {
            let text = format!("{{\"a\": {value} ,\"b\":1}}");
            let found = members(text.as_bytes()).expect(value);
            assert_eq!((found["a"].get(), found["b"].get()), (value, "1"));
        }
        assert_eq!(members(br#"{"a":1,"\u0061":2}"#).unwrap_err(), Fault::Duplicate);
        for text in
            ["", "[]", "1", "{\"a\":}", "{\"a\":[}]}", "{\"a\":01}", "{}}", "{\"a\":\"\n\"}"]
        {
            assert_eq!(members(text.as_bytes()).unwrap_err(), Fault::Malformed, "{text}");
        }
    }

    #[test]
    fn two_members_are_read_and_nothing_of_the_others() {
        let of = |text: &str| texts(text.as_bytes(), ["a", "b"]);
        let text = |text: &str| Said::Text(text.into());
        assert_eq!(of(r#"{"x":[{"a":"y"}],"b":"z"}"#), Some([Said::Nothing, text("z")]));
        assert_eq!(of(r#"{"\u0061":"\u0062","b":5}"#), Some([text("b"), Said::Other]));
        assert_eq!(of(r#"{"a":null,"b":"\ud800"}"#), Some([Said::Other, Said::Other]));
        assert_eq!(of(r#"{"a":"1","a":"2"}"#), Some([text("2"), Said::Nothing]));
        let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(of(&format!(r#"{{"x":{deep},"a":"y"}}"#)), Some([text("y"), Said::Nothing]));
        assert_eq!(of(&format!(r#"{{"a":{deep}}}"#)), Some([Said::Other, Said::Nothing]));
        for bad in ["", "[]", "1", "{\"a\":}", "{}}", "{\"a\":[}]}", "\u{feff}{}"] {
            assert_eq!(of(bad), None, "{bad}");
        }
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
