//! From a directory, the environment and the flags to a [`Config`], and which of them wins.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::auth;
use super::check;
use super::environment;
use super::hint;
use super::limits;
use super::nearest::nearest;
use super::problem::{Problem, Problems, Source};
use super::push;
use super::raw::{self, Value};
use super::reader::{self, Entry, Reader, Report};
use super::routes::{self, FileTables, RouteContext};
use super::settings::{AuthMode, GatewaySettings, ServiceTlsSettings, ShardSettings};
use super::words::{program, shell_word};
use super::{AwaitedTenants, Config, FoundTables, ShardFiles};
use crate::limits::SHARDS_MAX;
use crate::routing::{Instance, Snapshot};

/// The text of `shards/gateway.toml`, used when there is no directory.
pub const GATEWAY_TOML: &str = include_str!("../../shards/gateway.toml");
/// The text of `shards/default.toml`, used when there is no such file.
pub const DEFAULT_TOML: &str = include_str!("../../shards/default.toml");

/// Values that the command line sets, as texts: they are checked like everything else.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Overrides {
    /// Value of `--listen`: where clients connect.
    pub(crate) listen: Option<String>,
    /// Value of `--admin`: where the admin endpoint listens.
    pub(crate) admin: Option<String>,
    /// Value of `--shards`: how many there are.
    pub(crate) shards: Option<String>,
    /// Value of `--core`: the cores of shard 0, 1, …; without `--shards` their number is the number
    /// of shards.
    pub(crate) cores: Option<String>,
    /// Whether `--no-demo` was given.
    pub(crate) no_demo: bool,
    /// Value of `--log`: the log filter.
    pub(crate) log: Option<String>,
}

impl Overrides {
    /// The flags that were given, each with its value.
    pub(crate) fn shown(&self) -> impl Iterator<Item = (&'static str, Option<&str>)> {
        let with_value = [
            ("--listen", &self.listen),
            ("--admin", &self.admin),
            ("--shards", &self.shards),
            ("--core", &self.cores),
            ("--log", &self.log),
        ];
        let with_value = with_value
            .into_iter()
            .filter_map(|(flag, value)| Some((flag, Some(value.as_deref()?))));
        with_value.chain(self.no_demo.then_some(("--no-demo", None)))
    }
}

/// The text of a file.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Text {
    /// Name of the file in problems.
    pub(crate) name: Arc<str>,
    pub text: String,
}

impl Text {
    fn new(name: impl Into<Arc<str>>, text: &str) -> Self {
        Self { name: name.into(), text: text.to_owned() }
    }
}

/// All files of a configuration directory.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Files {
    pub gateway: Text,
    pub default: Text,
    /// Files `N.toml`, by N.
    pub(crate) shards: BTreeMap<usize, Text>,
    /// Warnings about files with a .toml name that nothing reads.
    pub(crate) strays: Vec<Problem>,
}

impl Files {
    /// The files that are built into the program.
    pub fn embedded() -> Self {
        Self {
            gateway: Text::new("built-in gateway.toml", GATEWAY_TOML),
            default: Text::new("built-in default.toml", DEFAULT_TOML),
            shards: BTreeMap::new(),
            strays: Vec::new(),
        }
    }
}

/// Loads and checks everything.
///
/// Files are taken from `dir` (`--config`), else from `SHARDGATE_CONFIG`, else from `./shards` if
/// it has a `gateway.toml`, else the built-in ones. Environment and then flags go over them.
pub fn load(
    dir: Option<&Path>,
    env: &[(String, String)],
    flags: &Overrides,
) -> Result<Config, Problems> {
    Loader::open(dir, env, flags)?.check(&FoundTables::default())
}

/// A configuration's sources and the texts that were last read from them. A reload reads the files
/// again; a check with other announced routes does not.
#[derive(Clone, Debug)]
pub struct Loader {
    /// Directory of the files; `None` = the built-in ones.
    dir: Option<PathBuf>,
    env: Vec<(String, String)>,
    flags: Overrides,
    files: Files,
}

impl Loader {
    /// Finds and reads the files, see [`load`].
    pub(crate) fn open(
        dir: Option<&Path>,
        env: &[(String, String)],
        flags: &Overrides,
    ) -> Result<Self, Problems> {
        let from_env = env.iter().find(|(name, _)| name == environment::DIRECTORY);
        let dir = match (dir, from_env) {
            (Some(dir), _) => Some(dir.to_owned()),
            (None, Some((_, dir))) => Some(dir.into()),
            (None, None) if Path::new("shards/gateway.toml").exists() => Some("shards".into()),
            (None, None) => None,
        };
        let files = dir.as_deref().map_or_else(|| Ok(Files::embedded()), read)?;
        Ok(Self { dir, env: env.to_vec(), flags: flags.clone(), files })
    }

    /// Directory of the files; `None` = the built-in ones.
    pub(crate) fn dir(&self) -> Option<&Path> {
        self.dir.as_deref()
    }

    /// Values that the command line sets.
    pub(crate) fn overrides(&self) -> &Overrides {
        &self.flags
    }

    /// The same loader with the files as they are now.
    pub(crate) fn read_again(&self) -> Result<Self, Problems> {
        let files = self.dir.as_deref().map_or_else(|| Ok(Files::embedded()), read)?;
        Ok(Self { files, ..self.clone() })
    }

    /// Checks everything. The tables in `found` are checked together with those of the files.
    pub(crate) fn check(&self, found: &FoundTables) -> Result<Config, Problems> {
        check_all(self.files.clone(), &self.env, &self.flags, found)
    }
}

/// Reads the files of `dir`.
fn read(dir: &Path) -> Result<Files, Problems> {
    let mut problems = Vec::new();
    let mut files = Files::embedded();
    let list = match fs::read_dir(dir) {
        Ok(list) => list,
        Err(e) => {
            let (program, word) = (program(), shell_word(dir));
            let way_out = match e.kind() {
                io::ErrorKind::NotFound => {
                    format!("write a configuration there: {program} gen config {word}")
                }
                io::ErrorKind::NotADirectory => {
                    "name the directory that the file gateway.toml is in".into()
                }
                _ => format!("its owner and mode: ls -ld {word}"),
            };
            let rule = format!("cannot read the configuration directory: {e}; {way_out}");
            return Err(Problems(vec![Problem::whole(file(dir), rule)]));
        }
    };
    let mut paths: Vec<PathBuf> = list.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    files.strays = paths.iter().filter(|path| is_unread(path)).map(|path| unread(path)).collect();
    let mut has_gateway = false;
    for path in paths.iter().filter(|p| p.extension().is_some_and(|e| e == "toml")) {
        let stem = path.file_stem().map_or(String::new(), |s| s.to_string_lossy().into_owned());
        let number = stem.parse::<usize>().ok().filter(|n| n.to_string() == stem);
        let known =
            number.is_some_and(|n| n < SHARDS_MAX) || stem == "gateway" || stem == "default";
        if !known {
            files.strays.push(Problem::whole(file(path), stray(&stem)));
            continue;
        }
        has_gateway |= stem == "gateway";
        let text = match fs::read_to_string(path) {
            Ok(text) => Text::new(path.to_string_lossy(), &text),
            Err(e) => {
                let word = shell_word(path);
                let way_out = match e.kind() {
                    io::ErrorKind::InvalidData => {
                        format!("save it as UTF-8; now it is: file {word}")
                    }
                    _ => format!("its owner and mode: ls -l {word}"),
                };
                let rule = format!("cannot read it: {e}; {way_out}");
                problems.push(Problem::whole(file(path), rule));
                continue;
            }
        };
        match number {
            Some(n) => drop(files.shards.insert(n, text)),
            None if stem == "gateway" => files.gateway = text,
            None => files.default = text,
        }
    }
    if !has_gateway {
        let path = dir.join("gateway.toml");
        let rule = match paths.iter().find(|other| is_meant(other)) {
            Some(other) => {
                let (other, path) = (shell_word(other), shell_word(&path));
                format!("there is no such file, but one like it; rename it: mv {other} {path}")
            }
            None => no_gateway_toml(dir, &path),
        };
        problems.push(Problem::whole(file(&path), rule));
    }
    if problems.is_empty() { Ok(files) } else { Err(Problems(problems)) }
}

/// The rule of a directory without the file `gateway.toml`, with the command that makes one.
fn no_gateway_toml(dir: &Path, path: &Path) -> String {
    let program = program();
    if dir.join("default.toml").exists() {
        // `gen config` overwrites no file, and an empty gateway.toml would route nothing.
        let (new, path) = (shell_word(&dir.join("new")), shell_word(path));
        return format!(
            "there is no such file; write the built-in one: {program} gen config {new} && mv \
             {new}/gateway.toml {path}"
        );
    }
    let word = shell_word(dir);
    format!("there is no such file; write it with its comments: {program} gen config {word}")
}

fn file(path: &Path) -> Source {
    Source::File(path.to_string_lossy().into(), 0)
}

/// Whether a file looks like one of the configuration, and is none: a copy, another ending.
fn is_unread(path: &Path) -> bool {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return false };
    let (stem, rest) = name.split_once('.').unwrap_or((name, ""));
    let is_number = !stem.is_empty() && stem.bytes().all(|b| b.is_ascii_digit());
    let is_ours = is_number || ["gateway", "default", "shardgate"].contains(&stem);
    let other = ["tml", "yaml", "yml", "conf", "ini", "cfg", "json"].contains(&rest);
    let copy = rest != "toml" && rest.starts_with("toml");
    // Editors hide what they work on behind a dot.
    !name.starts_with('.') && (copy || is_ours && other)
}

fn unread(path: &Path) -> Problem {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let rule = match name.contains(".toml") {
        true => "nothing reads this copy: move it elsewhere",
        false => {
            "nothing reads this file: rename it to gateway.toml, default.toml or N.toml (for shard \
             N), or move it elsewhere"
        }
    };
    Problem::whole(file(path), rule)
}

/// Whether a file is gateway.toml in other letters, or with another ending.
fn is_meant(path: &Path) -> bool {
    let name = path.file_name().map(|name| name.to_string_lossy().to_lowercase());
    name.is_some_and(|name| {
        name == "gateway.toml" || name.starts_with("gateway.") && is_unread(path)
    })
}

fn stray(stem: &str) -> String {
    let hint = match nearest(stem, ["gateway", "default"].into_iter()) {
        Some(near) => format!("did you mean {near}.toml?"),
        None => format!(
            "known are gateway.toml, default.toml and 0.toml to {}.toml: rename or remove it",
            SHARDS_MAX - 1
        ),
    };
    format!("nothing reads this file; {hint}")
}

/// Checks the texts of `files` under `env` and `flags`.
pub fn from_files(
    files: Files,
    env: &[(String, String)],
    flags: &Overrides,
) -> Result<Config, Problems> {
    check_all(files, env, flags, &FoundTables::default())
}

fn check_all(
    files: Files,
    env: &[(String, String)],
    flags: &Overrides,
    found: &FoundTables,
) -> Result<Config, Problems> {
    let mut report = Report { warnings: files.strays, ..Report::default() };
    let (gateway_env, shard_env) = environment::entries(env);
    let cores = cores(flags, &mut report);
    let gateway_file = parse(&files.gateway, &mut report);
    let default_layer = parse(&files.default, &mut report).unwrap_or_default();
    let syntax = gateway_file.is_none();

    let mut shard = Reader::new(vec![default_layer.clone(), Vec::new(), shard_env.clone()]);
    let default = check::shard(&mut shard);
    let gateway_flags = flag_entries(flags, cores.len());
    let gateway_layer = gateway_file.unwrap_or_default();
    let mut gateway = Reader::new(vec![gateway_layer, gateway_env, gateway_flags]);
    let mut settings = check::gateway(&mut gateway);
    let ring_points = check::ring_points(&mut gateway);

    let mut overrides = BTreeMap::new();
    let mut readers = Vec::new();
    for (&n, text) in &files.shards {
        let Some(own) = parse(text, &mut report) else { continue };
        let mut reader = Reader::new(vec![default_layer.clone(), own, shard_env.clone()]);
        overrides.insert(n, check::shard(&mut reader));
        readers.push((n, text, reader));
    }
    let window_ms = longest_window(&overrides, &default);
    let context = RouteContext { ring_points, window_ms, settings: &settings, found };
    let tables = routes::read(&mut gateway, &context);
    pushes(&mut gateway, &mut settings, &tables, overrides.values().chain([&default]));
    for (n, text, mut reader) in readers {
        reader.unknown(gateway.known(), "gateway.toml");
        report.absorb(own_report(n, text, reader.report));
    }
    gateway.unknown(shard.known(), "default.toml");
    shard.unknown(gateway.known(), "gateway.toml");
    report.warnings.extend(environment::unread(env, &[gateway.known(), shard.known()].concat()));
    across(&mut gateway, &settings, &tables);
    limits::without_users(&mut shard, &default.limits, settings.auth.mode == AuthMode::Jwt);
    let shards = ShardFiles { default, overrides, cores };
    counted(&mut gateway, &mut report, &files.shards, settings.shards, &shards);
    report.absorb(gateway.report);
    report.absorb(shard.report);
    put_in_order(&mut report, syntax);
    if !report.problems.is_empty() {
        return Err(Problems(report.problems));
    }
    let FileTables { snapshot, lookups, service_tls, tenants, push_rights: _, event_rights: _ } =
        tables;
    let awaited = match settings.has_tenant_source() {
        true => found.awaited.clone(),
        false => AwaitedTenants::NONE,
    };
    Ok(Config {
        gateway: settings,
        awaited,
        shards,
        snapshot,
        lookups,
        service_tls,
        tenants,
        ring_points,
        warnings: report.warnings,
        provenance: report.provenance,
        keys: report.keys,
    })
}

/// Checks the settings of the process against the tables.
fn across(r: &mut Reader, settings: &GatewaySettings, tables: &FileTables) {
    let FileTables { snapshot, service_tls, tenants, .. } = tables;
    demo_warning(r, settings, snapshot, service_tls);
    own_instances(r, settings, snapshot);
    auth::check_keys(r, settings, tenants);
}

/// Reads the rules of groups, and checks pushes against services and shards.
fn pushes<'a>(
    r: &mut Reader,
    settings: &mut GatewaySettings,
    tables: &FileTables,
    shards: impl Iterator<Item = &'a ShardSettings>,
) {
    let has_users = settings.auth.mode == AuthMode::Jwt;
    settings.push.groups = push::groups(r, has_users);
    settings.push.services = tables.push_rights.clone();
    settings.events = tables.event_rights.clone();
    push::relations(r, &mut settings.push, shards);
}

/// Sorts problems and warnings by their places, each once. `syntax`: the main file is no TOML.
fn put_in_order(report: &mut Report, syntax: bool) {
    if syntax {
        // Without the file's keys nothing can be called missing.
        report.problems.retain(|p| p.source != Source::Default);
    }
    for list in [&mut report.problems, &mut report.warnings] {
        list.sort();
        list.dedup();
    }
}

/// Longest time that a message waits for company in any shard.
fn longest_window(overrides: &BTreeMap<usize, ShardSettings>, default: &ShardSettings) -> u64 {
    let windows = overrides.values().chain([default]).map(|s| s.batch.window_ms);
    windows.max().unwrap_or_default()
}

/// The part of a report that shard `n`'s own file adds: its problems, and the sources of its keys.
fn own_report(n: usize, text: &Text, mut report: Report) -> Report {
    let own = |source: &Source| matches!(source, Source::File(name, _) if *name == text.name);
    report.provenance.retain(|(_, _, source)| own(source));
    for (key, _, _) in &mut report.provenance {
        *key = format!("{n}/{key}");
    }
    report
}

fn parse(text: &Text, report: &mut Report) -> Option<Vec<Entry>> {
    let at = |line| Source::File(text.name.clone(), line);
    match raw::document(&text.text) {
        Ok(fields) => Some(reader::entries(fields, &at(0))),
        Err(e) => {
            let rule = hint::syntax(&e, &text.text);
            report.problems.push(Problem::whole(at(e.line), rule));
            None
        }
    }
}

fn flag_entries(flags: &Overrides, cores: usize) -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut set = |key: &str, flag, text: &str, value| {
        let (key, verbatim) = (key.to_owned(), Some(text.to_owned()));
        entries.push(Entry { key, value, source: Source::Flag(flag), verbatim });
    };
    if let Some(s) = &flags.listen {
        set("listen", "--listen", s, Value::Text(s.clone()));
    }
    if let Some(s) = &flags.admin {
        set("admin.listen", "--admin", s, Value::Text(s.clone()));
    }
    if cores > 0 {
        set("shards.count", "--core", "", Value::Integer(cores as i128));
    }
    if let Some(s) = &flags.shards {
        set("shards.count", "--shards", s, raw::value(s));
    }
    if flags.no_demo {
        set("demo.enabled", "--no-demo", "", Value::Bool(false));
    }
    if let Some(s) = &flags.log {
        set("log.filter", "--log", s, Value::Text(s.clone()));
    }
    entries
}

/// The cores that `--core` lists.
fn cores(flags: &Overrides, report: &mut Report) -> Vec<usize> {
    let Some(text) = &flags.cores else { return Vec::new() };
    let parsed = text.split(',').map(|s| s.trim().parse::<usize>().ok());
    if let Some(cores) = parsed.collect::<Option<Vec<_>>>().filter(|c| c.len() <= SHARDS_MAX) {
        return cores;
    }
    let rule = "must be numbers of cores with commas between, one for each shard, e.g. 0,2,4";
    report.problems.push(Problem {
        source: Source::Flag("--core"),
        key: "shard.core".into(),
        value: format!("{text:?}"),
        rule: rule.into(),
    });
    Vec::new()
}

/// Whether a connection to `address` surely comes to the listener at `own`. One on all addresses is
/// reached by the loopback ones; any other address may be another machine's.
fn reaches(address: SocketAddr, own: SocketAddr) -> bool {
    let (ip, own_ip) = (address.ip().to_canonical(), own.ip().to_canonical());
    let is_here = ip.is_loopback() || ip.is_unspecified();
    own.port() != 0
        && address.port() == own.port()
        && (ip == own_ip || own_ip.is_unspecified() && is_here)
}

/// Refuses instances at an address of the gateway itself, which would be its own service.
fn own_instances(r: &mut Reader, settings: &GatewaySettings, snapshot: &Snapshot) {
    for (key, own) in settings.own_addresses() {
        let is_own = |i: &&Instance| i.addresses.iter().any(|address| reaches(address, own));
        for instance in snapshot.instances.iter().filter(is_own) {
            let value = format!("{:?}", instance.addresses.to_string());
            let set = r.report.provenance.iter().find(|(key, text, _)| {
                key.starts_with("service[") && key.ends_with(".address") && *text == value
            });
            let Some((at, value, source)) = set.cloned() else { continue };
            let rule = format!(
                "is {key} of this gateway itself; write the address of the service, or change {key}"
            );
            r.report.problems.push(Problem { source, key: at, value, rule });
        }
    }
}

fn demo_warning(
    r: &mut Reader,
    settings: &GatewaySettings,
    snapshot: &Snapshot,
    service_tls: &BTreeMap<Arc<str>, ServiceTlsSettings>,
) {
    let used = |a: &SocketAddr| snapshot.instances.iter().any(|i| i.addresses.first() == *a);
    if settings.demo.enabled && !settings.demo.addresses.iter().any(used) {
        let rule = "no service leads to the demo services; set demo.enabled = false";
        r.warning("demo.enabled", rule);
    }
    if settings.demo.tls_cert.is_some() && service_tls.is_empty() {
        let rule = "no service has tls, so none can talk to the demo services; give it \
                    tls = { ca_file = \"...\" }, or set neither demo.tls_cert nor demo.tls_key";
        r.warning("demo.tls_cert", rule);
    }
}

/// Checks the number of shards against the files and `--core`.
fn counted(
    r: &mut Reader,
    report: &mut Report,
    texts: &BTreeMap<usize, Text>,
    count: Option<usize>,
    shards: &ShardFiles,
) {
    let Some(count) = count else { return };
    let cores = shards.cores.len();
    if cores > 0 && cores != count {
        r.problem("shards.count", format!("--core names {cores} cores; give as many as shards"));
    }
    for n in shards.unused(count) {
        if let Some(text) = texts.get(&n) {
            let rule = format!(
                "there are only {count} shards, 0 to {}: set shards.count, or remove this file",
                count - 1
            );
            report.warnings.push(Problem::whole(Source::File(text.name.clone(), 0), rule));
        }
    }
}
