//! What the keys of etcd mean: pure, from puts and deletes to instances, routes and complaints.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::proto::mvccpb::KeyValue;
use crate::config::is_name;
use crate::control::discovery::{Found, FoundRoute, Known, Word};

/// Keys of each folder that are used, bad ones included, in key order. 4,096 routes of
/// [`VALUE_BYTES_MAX`] are 16 MiB.
pub const KEYS_MAX: usize = 4_096;
/// Bytes of a value. A route with every key set has under 400.
pub const VALUE_BYTES_MAX: usize = 4 << 10;
/// Bytes of a key that is remembered: a prefix of 200, two names of 64 and what is between them.
const KEY_BYTES_MAX: usize = 512;
/// Characters of a key or a parser's word in a complaint.
const TEXT_MAX: usize = 300;

/// The two folders under the prefix.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Folder {
    /// `<prefix>/services/<service>/<instance>`
    Services,
    /// `<prefix>/routes/<name>`
    Routes,
}

impl Folder {
    /// Both.
    pub const ALL: [Folder; 2] = [Folder::Services, Folder::Routes];

    /// Its keys begin with this.
    pub fn start(self, prefix: &str) -> String {
        match self {
            Folder::Services => format!("{prefix}/services/"),
            Folder::Routes => format!("{prefix}/routes/"),
        }
    }

    /// The first key after those of the folder: '0' is the character after '/'.
    pub fn end(self, prefix: &str) -> String {
        match self {
            Folder::Services => format!("{prefix}/services0"),
            Folder::Routes => format!("{prefix}/routes0"),
        }
    }
}

/// What a good value says.
#[derive(Clone, PartialEq, Debug)]
enum Good {
    Instance(Found),
    Route(FoundRoute),
}

/// One key.
#[derive(Clone, PartialEq, Debug)]
struct Held {
    /// Revision at which the key came to be.
    created: i64,
    /// Revision of its value.
    modified: i64,
    /// The last good value since the key came to be.
    good: Option<Good>,
    /// What is wrong with the value it has now.
    bad: Option<String>,
}

type Keys = BTreeMap<Box<[u8]>, Held>;

/// One folder.
#[derive(Clone, Debug, Default)]
struct Shelf {
    keys: Keys,
    /// etcd has keys after the last of these.
    over: bool,
    /// One of the first keys is gone, and the key that takes its place is not known.
    lacking: bool,
}

impl Shelf {
    /// Takes `held` in. At most [`KEYS_MAX`] stay: the first ones.
    fn insert(&mut self, key: &[u8], held: Held) {
        self.keys.insert(key.into(), held);
        if self.keys.len() > KEYS_MAX {
            self.keys.pop_last();
            self.over = true;
        }
    }
}

/// What a listing found, while it is read.
#[derive(Debug)]
pub struct Listing {
    prefix: Arc<str>,
    shelves: [Shelf; 2],
    bad: Vec<Word>,
}

impl Listing {
    /// Takes a key in. Whether more keys of this folder can be of use.
    pub fn push(&mut self, folder: Folder, kv: &KeyValue) -> bool {
        if kv.key.len() > KEY_BYTES_MAX {
            self.bad.push(too_long(&kv.key));
            return true;
        }
        let shelf = &mut self.shelves[folder as usize];
        shelf.insert(&kv.key, read(folder, &self.prefix, kv));
        !shelf.over
    }
}

/// All keys, as of the last change.
#[derive(Debug)]
pub struct View {
    prefix: Arc<str>,
    shelves: [Shelf; 2],
    /// Not told yet.
    bad: Vec<Word>,
}

impl View {
    /// An empty one.
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.into(), shelves: Default::default(), bad: Vec::new() }
    }

    /// Where the keys of a listing go.
    pub fn listing(&self) -> Listing {
        Listing { prefix: self.prefix.clone(), shelves: Default::default(), bad: Vec::new() }
    }

    /// A whole listing: what it lacks is gone. A key whose value is bad keeps its last good one.
    pub fn replace(&mut self, listing: Listing) {
        self.bad.extend(listing.bad);
        for (folder, mut shelf) in Folder::ALL.into_iter().zip(listing.shelves) {
            let old = &mut self.shelves[folder as usize];
            for (key, held) in &mut shelf.keys {
                let before = old.keys.remove(key).filter(|before| before.created == held.created);
                let told = before.as_ref().is_some_and(|before| before.modified == held.modified);
                settle(held, before);
                if let (Some(why), false) = (&held.bad, told) {
                    self.bad.push(complaint(key, why));
                }
            }
            if shelf.over && !old.over {
                self.bad.push(too_many(folder, &self.prefix));
            }
            *old = shelf;
        }
    }

    /// A put. One that is not newer than what is known is a repetition.
    pub fn put(&mut self, folder: Folder, kv: &KeyValue) {
        if kv.key.len() > KEY_BYTES_MAX {
            self.bad.push(too_long(&kv.key));
            return;
        }
        let shelf = &mut self.shelves[folder as usize];
        let before = shelf.keys.get(&kv.key[..]);
        if before.is_some_and(|before| before.modified >= kv.mod_revision) {
            return;
        }
        let mut held = read(folder, &self.prefix, kv);
        let before = before.filter(|before| before.created == kv.create_revision).cloned();
        settle(&mut held, before);
        let why = held.bad.clone();
        let was_over = shelf.over;
        shelf.insert(&kv.key, held);
        if shelf.over && !was_over {
            self.bad.push(too_many(folder, &self.prefix));
        }
        // One that was cut off again is beyond the cap, and that was said.
        if let Some(why) = why
            && shelf.keys.contains_key(&kv.key[..])
        {
            self.bad.push(complaint(&kv.key, &why));
        }
    }

    /// A delete, or the end of a lease, at revision `modified`.
    pub fn delete(&mut self, folder: Folder, key: &[u8], modified: i64) {
        let shelf = &mut self.shelves[folder as usize];
        if shelf.keys.get(key).is_some_and(|held| held.modified < modified) {
            shelf.keys.remove(key);
            shelf.lacking |= shelf.over;
        }
    }

    /// Whether only a listing can tell what is true now: there are more keys than are held, and one
    /// of those held is gone.
    pub fn lacks(&self) -> bool {
        self.shelves.iter().any(|shelf| shelf.lacking)
    }

    /// All that is known.
    pub fn known(&self) -> Known {
        let mut known = Known::default();
        for held in self.shelves.iter().flat_map(|shelf| shelf.keys.values()) {
            match &held.good {
                Some(Good::Instance(found)) => known.instances.push(found.clone()),
                Some(Good::Route(route)) => known.routes.push(route.clone()),
                None => {}
            }
        }
        known
    }

    /// The complaints since the last time.
    pub fn take_bad(&mut self) -> Vec<Word> {
        std::mem::take(&mut self.bad)
    }
}

/// A bad write does not take an instance out: the last good value of the same key stays.
fn settle(held: &mut Held, before: Option<Held>) {
    if held.good.is_none() {
        held.good = before.and_then(|before| before.good);
    }
}

/// One key with its value.
fn read(folder: Folder, prefix: &str, kv: &KeyValue) -> Held {
    let good = match folder {
        Folder::Services => instance(prefix, kv).map(Good::Instance),
        Folder::Routes => route(prefix, kv).map(Good::Route),
    };
    let (good, bad) = match good {
        Ok(good) => (Some(good), None),
        Err(why) => (None, Some(why)),
    };
    Held { created: kv.create_revision, modified: kv.mod_revision, good, bad }
}

/// The value of an instance's key. What it does not name is for other readers.
#[derive(Deserialize)]
struct InstanceValue {
    address: String,
    #[serde(default = "weight_default")]
    weight: u32,
    #[serde(default)]
    draining: bool,
}

fn weight_default() -> u32 {
    1
}

fn instance(prefix: &str, kv: &KeyValue) -> Result<Found, String> {
    const LAYOUT: &str = "the key must be <prefix>/services/<service>/<instance>";
    let names = names_of(Folder::Services, prefix, &kv.key)?;
    let (service, name) = names.split_once('/').ok_or(LAYOUT)?;
    if name.contains('/') {
        return Err(LAYOUT.into());
    }
    checked_name("service", service)?;
    checked_name("instance", name)?;
    let text = text_of(&kv.value)?;
    // An array of the three would be read as well.
    if !text.trim_start().starts_with('{') {
        return Err("the value is no JSON object".into());
    }
    let value: InstanceValue = serde_json::from_str(text).map_err(|error| not_the_json(&error))?;
    let address: SocketAddr = value.address.parse().map_err(|_| ADDRESS_RULE)?;
    if address.port() == 0 {
        return Err(ADDRESS_RULE.into());
    }
    if !(1..=1000).contains(&value.weight) {
        return Err("weight must be 1 to 1000".into());
    }
    let (weight, draining) = (value.weight, value.draining);
    Ok(Found { service: service.into(), name: name.into(), address, weight, draining })
}

const ADDRESS_RULE: &str = "address must be an IP address and a port, e.g. \"10.0.0.1:50001\"";

fn route(prefix: &str, kv: &KeyValue) -> Result<FoundRoute, String> {
    let name = names_of(Folder::Routes, prefix, &kv.key)?;
    if name.contains('/') {
        return Err("the key must be <prefix>/routes/<name>".into());
    }
    checked_name("route", name)?;
    let json = text_of(&kv.value)?;
    serde_json::from_str::<Map<String, Value>>(json).map_err(|error| not_the_json(&error))?;
    Ok(FoundRoute { at: printable(&kv.key).into(), json: json.into() })
}

/// The part of `key` after its folder.
fn names_of<'a>(folder: Folder, prefix: &str, key: &'a [u8]) -> Result<&'a str, String> {
    let key = std::str::from_utf8(key).map_err(|_| "the key is not UTF-8")?;
    Ok(key.strip_prefix(&folder.start(prefix)).ok_or("the key is not in its folder")?)
}

fn checked_name(what: &str, name: &str) -> Result<(), String> {
    let rule = "must have 1 to 64 characters of letters, digits, '-', '_' and '.'";
    if is_name(name) { Ok(()) } else { Err(format!("the {what}'s name in the key {rule}")) }
}

fn text_of(value: &[u8]) -> Result<&str, String> {
    if value.len() > VALUE_BYTES_MAX {
        return Err(format!("{} bytes: at most {VALUE_BYTES_MAX} are taken", value.len()));
    }
    Ok(std::str::from_utf8(value).map_err(|_| "the value is not UTF-8")?)
}

fn not_the_json(error: &serde_json::Error) -> String {
    format!("not the JSON object wanted: {}", cut(&error.to_string()))
}

fn complaint(key: &[u8], why: &str) -> Word {
    Word::Bad { at: printable(key), why: why.to_owned() }
}

fn too_long(key: &[u8]) -> Word {
    complaint(key, &format!("a key of {} bytes: at most {KEY_BYTES_MAX} are taken", key.len()))
}

fn too_many(folder: Folder, prefix: &str) -> Word {
    let why = format!("over {KEYS_MAX} keys: only the first, in key order, are used");
    Word::Bad { at: folder.start(prefix), why }
}

fn printable(key: &[u8]) -> String {
    cut(&String::from_utf8_lossy(key))
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(TEXT_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests;
