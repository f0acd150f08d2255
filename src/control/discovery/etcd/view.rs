//! Instances, routes and tenants out of the keys of etcd. Pure: puts and deletes in; contents and
//! complaints out.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::proto::mvccpb::KeyValue;
use crate::config::is_name;
use crate::control::discovery::{
    AwaitedTenants, FoundInstance, FoundTable, SourceContents, SourceEvent,
};
use crate::limits::{TENANT_BYTES_MAX, TENANTS_MAX};

/// Keys of a folder that are used, bad ones included, in key order. 4,096 routes of
/// [`VALUE_BYTES_MAX`] are 16 MiB.
pub const KEYS_MAX: usize = 4_096;
/// Largest value. A route with every key set has under 400 bytes.
pub const VALUE_BYTES_MAX: usize = 4 << 10;
/// Longest key that is remembered: a prefix of 200, two names of 64 and the characters between
/// them.
const KEY_BYTES_MAX: usize = 512;
/// Characters of a key or of a parser's message in a complaint.
const TEXT_MAX: usize = 300;

/// Number of [`Folder`]s.
pub const FOLDERS: usize = Folder::ALL.len();

/// The folders under the prefix.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Folder {
    /// Keys `<prefix>/services/<service>/<instance>`, one an instance.
    Services,
    /// Keys `<prefix>/routes/<name>`, one a route.
    Routes,
    /// Keys `<prefix>/tenants/<name>`, one a tenant.
    Tenants,
}

impl Folder {
    pub const ALL: [Folder; 3] = [Folder::Services, Folder::Routes, Folder::Tenants];

    /// Keys that are used.
    fn keys_max(self) -> usize {
        match self {
            Folder::Services | Folder::Routes => KEYS_MAX,
            // As many as the configuration takes.
            Folder::Tenants => TENANTS_MAX,
        }
    }

    /// Start of the folder's keys.
    pub fn start(self, prefix: &str) -> String {
        match self {
            Folder::Services => format!("{prefix}/services/"),
            Folder::Routes => format!("{prefix}/routes/"),
            Folder::Tenants => format!("{prefix}/tenants/"),
        }
    }

    /// The first key after those of the folder: '0' is the character after '/'.
    pub fn end(self, prefix: &str) -> String {
        match self {
            Folder::Services => format!("{prefix}/services0"),
            Folder::Routes => format!("{prefix}/routes0"),
            Folder::Tenants => format!("{prefix}/tenants0"),
        }
    }
}

/// Value of a key that passed all checks.
#[derive(Clone, PartialEq, Debug)]
enum ParsedValue {
    Instance(FoundInstance),
    Route(FoundTable),
    Tenant(FoundTable),
}

/// State of one key.
#[derive(Clone, PartialEq, Debug)]
struct KeyState {
    /// Revision of the key's creation.
    created: i64,
    /// Revision of the present value.
    modified: i64,
    /// Last good value since the key's creation.
    good: Option<ParsedValue>,
    /// Rule that the present value breaks.
    bad: Option<String>,
}

type Keys = BTreeMap<Box<[u8]>, KeyState>;

/// Keys of one folder.
#[derive(Clone, Debug, Default)]
struct FolderKeys {
    keys: Keys,
    /// Whether etcd has keys after the last of these.
    over: bool,
    /// Whether one of the first keys is gone, and the key that takes its place is not known.
    lacking: bool,
}

impl FolderKeys {
    /// Inserts a key of `folder`. At most [`Folder::keys_max`] stay: the first ones.
    fn insert(&mut self, folder: Folder, key: &[u8], held: KeyState) {
        self.keys.insert(key.into(), held);
        if self.keys.len() > folder.keys_max() {
            self.keys.pop_last();
            self.over = true;
        }
    }
}

/// A listing, while it is read.
#[derive(Debug)]
pub struct Listing {
    prefix: Arc<str>,
    folders: [FolderKeys; FOLDERS],
    bad: Vec<SourceEvent>,
}

impl Listing {
    /// Takes in a key. Whether more keys of this folder can be of use.
    pub fn push(&mut self, folder: Folder, kv: &KeyValue) -> bool {
        if kv.key.len() > KEY_BYTES_MAX {
            self.bad.push(too_long(&kv.key));
            return true;
        }
        let folder_keys = &mut self.folders[folder as usize];
        folder_keys.insert(folder, &kv.key, read(folder, &self.prefix, kv));
        !folder_keys.over
    }
}

/// All keys, as of the last change.
#[derive(Debug)]
pub struct KeyView {
    prefix: Arc<str>,
    folders: [FolderKeys; FOLDERS],
    /// Complaints that were not sent yet.
    bad: Vec<SourceEvent>,
}

impl KeyView {
    /// A view without keys.
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.into(), folders: Default::default(), bad: Vec::new() }
    }

    /// A listing without keys, of the same prefix.
    pub fn listing(&self) -> Listing {
        Listing { prefix: self.prefix.clone(), folders: Default::default(), bad: Vec::new() }
    }

    /// Replaces all keys by those of a listing. A key whose value is bad keeps its last good one.
    pub fn replace(&mut self, listing: Listing) {
        self.bad.extend(listing.bad);
        for (folder, mut folder_keys) in Folder::ALL.into_iter().zip(listing.folders) {
            let old = &mut self.folders[folder as usize];
            for (key, held) in &mut folder_keys.keys {
                let before = old.keys.remove(key).filter(|before| before.created == held.created);
                let known = before.as_ref().is_some_and(|before| before.modified == held.modified);
                settle(held, before);
                if let (Some(why), false) = (&held.bad, known) {
                    self.bad.push(complaint(key, why));
                }
            }
            if folder_keys.over && !old.over {
                self.bad.push(too_many(folder, &self.prefix));
            }
            *old = folder_keys;
        }
    }

    /// Applies a put. One that is not newer than the known value is a repetition.
    pub fn put(&mut self, folder: Folder, kv: &KeyValue) {
        if kv.key.len() > KEY_BYTES_MAX {
            self.bad.push(too_long(&kv.key));
            return;
        }
        let folder_keys = &mut self.folders[folder as usize];
        let before = folder_keys.keys.get(&kv.key[..]);
        if before.is_some_and(|before| before.modified >= kv.mod_revision) {
            return;
        }
        let mut held = read(folder, &self.prefix, kv);
        let before = before.filter(|before| before.created == kv.create_revision).cloned();
        settle(&mut held, before);
        let why = held.bad.clone();
        let was_over = folder_keys.over;
        folder_keys.insert(folder, &kv.key, held);
        if folder_keys.over && !was_over {
            self.bad.push(too_many(folder, &self.prefix));
        }
        // A key that was cut off again is beyond the cap, which was complained about.
        if let Some(why) = why
            && folder_keys.keys.contains_key(&kv.key[..])
        {
            self.bad.push(complaint(&kv.key, &why));
        }
    }

    /// Applies a delete, or the end of a lease, at revision `modified`.
    pub fn delete(&mut self, folder: Folder, key: &[u8], modified: i64) {
        let folder_keys = &mut self.folders[folder as usize];
        if folder_keys.keys.get(key).is_some_and(|held| held.modified < modified) {
            folder_keys.keys.remove(key);
            folder_keys.lacking |= folder_keys.over;
        }
    }

    /// Whether a listing is needed: etcd has more keys than are held, and one of those held is
    /// gone.
    pub fn lacks(&self) -> bool {
        self.folders.iter().any(|folder_keys| folder_keys.lacking)
    }

    /// Instances, routes and tenants of the good values.
    pub fn contents(&self) -> SourceContents {
        let mut contents = SourceContents { awaited: self.awaited(), ..SourceContents::default() };
        for held in self.folders.iter().flat_map(|folder_keys| folder_keys.keys.values()) {
            match &held.good {
                Some(ParsedValue::Instance(found)) => contents.instances.push(found.clone()),
                Some(ParsedValue::Route(route)) => contents.routes.push(route.clone()),
                Some(ParsedValue::Tenant(tenant)) => contents.tenants.push(tenant.clone()),
                None => {}
            }
        }
        contents
    }

    /// Tenants without a good value. Any, where there are more keys than are used: nobody knows
    /// whose the others are.
    fn awaited(&self) -> AwaitedTenants {
        let FolderKeys { keys, over, .. } = &self.folders[Folder::Tenants as usize];
        if *over {
            return AwaitedTenants::Any;
        }
        let bad = keys.iter().filter(|(_, held)| held.good.is_none());
        let names = bad.filter_map(|(key, _)| names_of(Folder::Tenants, &self.prefix, key).ok());
        AwaitedTenants::named(names.map(Arc::from).collect())
    }

    /// Takes the complaints since the last call.
    pub fn take_bad(&mut self) -> Vec<SourceEvent> {
        std::mem::take(&mut self.bad)
    }
}

/// Keeps the last good value of the same key where the new one is bad: a bad write does not remove
/// an instance.
fn settle(held: &mut KeyState, before: Option<KeyState>) {
    if held.good.is_none() {
        held.good = before.and_then(|before| before.good);
    }
}

/// Reads a key with its value.
fn read(folder: Folder, prefix: &str, kv: &KeyValue) -> KeyState {
    let good = match folder {
        Folder::Services => instance(prefix, kv).map(ParsedValue::Instance),
        Folder::Routes => route(prefix, kv).map(ParsedValue::Route),
        Folder::Tenants => tenant(prefix, kv).map(ParsedValue::Tenant),
    };
    let (good, bad) = match good {
        Ok(good) => (Some(good), None),
        Err(why) => (None, Some(why)),
    };
    KeyState { created: kv.create_revision, modified: kv.mod_revision, good, bad }
}

/// Value of an instance's key. Fields that are not named here are for other readers.
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

fn instance(prefix: &str, kv: &KeyValue) -> Result<FoundInstance, String> {
    const LAYOUT: &str = "the key must be <prefix>/services/<service>/<instance>";
    let names = names_of(Folder::Services, prefix, &kv.key)?;
    let (service, name) = names.split_once('/').ok_or(LAYOUT)?;
    if name.contains('/') {
        return Err(LAYOUT.into());
    }
    checked_name("service", service)?;
    checked_name("instance", name)?;
    let text = text_of(&kv.value, VALUE_BYTES_MAX)?;
    // Serde would take an array of the three fields, too.
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
    let addresses = address.into();
    Ok(FoundInstance { service: service.into(), name: name.into(), addresses, weight, draining })
}

const ADDRESS_RULE: &str = "address must be an IP address and a port, e.g. \"10.0.0.1:50001\"";

fn route(prefix: &str, kv: &KeyValue) -> Result<FoundTable, String> {
    let name = names_of(Folder::Routes, prefix, &kv.key)?;
    if name.contains('/') {
        return Err("the key must be <prefix>/routes/<name>".into());
    }
    checked_name("route", name)?;
    let json = text_of(&kv.value, VALUE_BYTES_MAX)?;
    serde_json::from_str::<Map<String, Value>>(json).map_err(|error| not_the_json(&error))?;
    Ok(FoundTable { at: printable(&kv.key).into(), json: json.into() })
}

/// Reads a tenant: its key has the name, and the value need not repeat it.
fn tenant(prefix: &str, kv: &KeyValue) -> Result<FoundTable, String> {
    let name = names_of(Folder::Tenants, prefix, &kv.key)?;
    if name.contains('/') {
        return Err("the key must be <prefix>/tenants/<name>".into());
    }
    checked_name("tenant", name)?;
    let json = text_of(&kv.value, TENANT_BYTES_MAX)?;
    // Of another kind of value the parser would tell what it is, and it may be a secret.
    if !json.trim_start().starts_with('{') {
        return Err("the value is no JSON object".into());
    }
    let mut table: Map<String, Value> =
        serde_json::from_str(json).map_err(|error| not_the_json(&error))?;
    let own = Value::from(name);
    if *table.entry("name").or_insert(own.clone()) != own {
        return Err(format!("name in the value is not that of the key, {name:?}; remove it there"));
    }
    let json = Value::Object(table).to_string();
    Ok(FoundTable { at: printable(&kv.key).into(), json: json.into() })
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

fn text_of(value: &[u8], bytes_max: usize) -> Result<&str, String> {
    if value.len() > bytes_max {
        return Err(format!("{} bytes: at most {bytes_max} are taken", value.len()));
    }
    Ok(std::str::from_utf8(value).map_err(|_| "the value is not UTF-8")?)
}

fn not_the_json(error: &serde_json::Error) -> String {
    format!("not the JSON object wanted: {}", cut(&error.to_string()))
}

fn complaint(key: &[u8], why: &str) -> SourceEvent {
    SourceEvent::Bad { at: printable(key), why: why.to_owned() }
}

fn too_long(key: &[u8]) -> SourceEvent {
    complaint(key, &format!("a key of {} bytes: at most {KEY_BYTES_MAX} are taken", key.len()))
}

fn too_many(folder: Folder, prefix: &str) -> SourceEvent {
    let max = folder.keys_max();
    let why = format!("over {max} keys: only the first, in key order, are used");
    SourceEvent::Bad { at: folder.start(prefix), why }
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
