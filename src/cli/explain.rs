//! `shardgate explain`: the instance that gets a message, or the place of a group, by a gateway
//! that runs, else by the configuration.

mod group;

use std::fmt::Write as _;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use super::client::{self, NoAnswer};
use super::routes::hash_word;
use super::{EXIT_START, EXIT_USAGE, Form, Output};
use crate::config::settings::Tenants;
use crate::config::{Config, Problems};
use crate::routing::{Described, HashOn, Snapshot};

/// A message or a group to explain.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct ExplainArgs {
    /// Id of the message
    #[arg(long, value_name = "N", required_unless_present = "group")]
    pub msg_id: Option<u32>,
    /// Name of a group: its rule, home shard, members and position
    #[arg(long, value_name = "NAME", conflicts_with_all = ["msg_id", "key", "user", "session"])]
    pub group: Option<String>,
    /// Key of the message, for routes with hash_on = "key"
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
    /// User who sends the message
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
    /// The sender's tenant, or the group's
    #[arg(long, value_name = "N")]
    pub tenant: Option<String>,
    /// The sender's session, as welcome says it
    #[arg(long, value_name = "ID")]
    pub session: Option<String>,
}

impl ExplainArgs {
    /// The message as the rule of affinity takes it. Where the gateway has one tenant, no token
    /// names another.
    fn described(&self, has_tenants: bool) -> Described<'_> {
        Described {
            key: self.key.as_deref().unwrap_or_default(),
            user: self.user.as_deref().unwrap_or_default(),
            tenant: self.tenant.as_deref().filter(|_| has_tenants).unwrap_or_default(),
            session: self.session.as_deref().unwrap_or_default(),
        }
    }

    fn path(&self) -> String {
        let mut path = "/routing/explain?".to_owned();
        match self.msg_id {
            Some(id) => write!(path, "msg_id={id}").expect("a string takes it"),
            None => path += "group=",
        }
        let group = self.group.as_deref().unwrap_or_default();
        path.extend(utf8_percent_encode(group, NON_ALPHANUMERIC));
        let texts = [
            ("key", &self.key),
            ("user", &self.user),
            ("tenant", &self.tenant),
            ("session", &self.session),
        ];
        for (name, value) in texts {
            if let Some(value) = value {
                let value = utf8_percent_encode(value, NON_ALPHANUMERIC);
                write!(path, "&{name}={value}").expect("a string takes it");
            }
        }
        path
    }
}

/// Explains which instance gets a message, or where a group lives: by the gateway that runs, and by
/// the configuration if none does. The exit code is 1 if nobody gets it, or if no rule has the
/// group's name, whoever explained that.
pub fn explain(loaded: Result<Config, Problems>, args: &ExplainArgs, form: Form) -> Output {
    let config = match loaded {
        Ok(config) => config,
        Err(problems) => return Output::wrong(problems.to_string(), EXIT_USAGE),
    };
    let admin = &config.gateway.admin;
    let alone = |why: &str| {
        let head = format!("from the configuration alone, because {why}:");
        shown(&head, args, &of_files(&config, args), form)
    };
    match client::get(admin, &args.path()) {
        Ok(answer) if answer.is_ok() => {
            shown(&format!("from the gateway at {}:", admin.listen), args, &answer.body, form)
        }
        // The gateway knows more than the files, so its refusal is the answer.
        Ok(answer) if answer.status != 404 => Output::wrong(
            format!("from the gateway at {}: {}", admin.listen, answer.why()),
            EXIT_START,
        ),
        Ok(_) => alone(&format!("the program at {} does not explain routes", admin.listen)),
        Err(NoAnswer::Nobody(_)) => alone("no gateway answers"),
        Err(NoAnswer::Failed(why)) => alone(&why),
    }
}

/// An explanation in the form of the admin endpoint's answer, for people or for programs.
fn shown(head: &str, args: &ExplainArgs, body: &Value, form: Form) -> Output {
    let text = match form {
        Form::Text if args.group.is_some() => format!("{head}\n{}", group::lines(body)),
        Form::Text => format!("{head}\n{}", lines(args, body)),
        Form::Json => serde_json::to_string_pretty(body).expect("JSON of JSON"),
    };
    let is_found = match body["outcome"].as_str() {
        Some(outcome) => ["instance", "gateway", "source", "group"].contains(&outcome),
        // A gateway of an earlier version says the instance alone.
        None => body["instance"].is_string(),
    };
    if is_found { Output::fine(text) } else { Output::wrong(text, EXIT_START) }
}

/// Steps to the instance, one a line.
fn lines(args: &ExplainArgs, body: &Value) -> String {
    let text = |key: &str| body[key].as_str().unwrap_or_default().to_owned();
    let mut out = String::new();
    let mut line = |line: String| out += &format!("  {line}\n");
    if let Some([first, last]) = body["range"].as_array().map(Vec::as_slice) {
        let (id, service) = (&body["msg_id"], text("service"));
        let whose = if body["table"] == "tenant" { " of the tenant's own" } else { "" };
        line(format!("id {id} is in the route {first}-{last}{whose} -> service {service}"));
    }
    if body["hash"].is_string() {
        let (on, hashed, hash) = (text("hash_on"), text("hashed"), text("hash"));
        let value = match hashed.as_str() {
            "key" => &args.key,
            "user" => &args.user,
            _ => &args.session,
        };
        let value = value.as_deref().unwrap_or_default();
        line(format!("hash_on = {on:?}: the {hashed} {value:?} hashes to 0x{hash}"));
    }
    if let Some(chosen) = body["instance"].as_str() {
        let instances = body["instances"].as_array().into_iter().flatten();
        let address = instances.filter(|i| i["id"] == chosen).find_map(|i| i["address"].as_str());
        let at = address.map(|address| format!(" at {address}")).unwrap_or_default();
        line(format!("{chosen}{at} gets it"));
    }
    for why in body["why"].as_array().into_iter().flatten() {
        line(why.as_str().map_or_else(|| why.to_string(), str::to_owned));
    }
    for shard in body["silent_shards"].as_array().into_iter().flatten() {
        line(format!("shard {shard} did not answer in time"));
    }
    out
}

/// The explanation by the files, in the form of the admin endpoint's answer as far as the files
/// know it.
fn of_files(config: &Config, args: &ExplainArgs) -> Value {
    if let Some(name) = &args.group {
        return group::of_files(config, name, args.tenant.as_deref().unwrap_or_default());
    }
    let (first, last) = config.gateway.gateway_ids;
    let id = args.msg_id.unwrap_or_default();
    let mut body = json!({ "msg_id": id, "from": "configuration" });
    if (first..=last).contains(&id) {
        body["outcome"] = "gateway".into();
        let why =
            format!("id {id} is in gateway.ids {first}-{last}: the gateway answers it itself");
        body["why"] = json!([why]);
        return body;
    }
    let snapshot = &config.snapshot;
    let many = config.gateway.auth.tenants == Tenants::Many;
    let described = args.described(many);
    let Some(route) = snapshot.route(described.tenant(), id) else {
        body["outcome"] = "no_route".into();
        body["why"] = json!([why_no_route(snapshot, id)]);
        return body;
    };
    let service = &snapshot.services[usize::from(route.service.0)];
    let word = hash_word(route.hash_on);
    body["range"] = json!([route.first, route.last]);
    body["table"] = snapshot.table(described.tenant(), route).into();
    body["service"] = (&*service.name).into();
    body["hash_on"] = word.into();
    let mut why = Vec::new();
    if args.tenant.is_some() && !many {
        why.push("auth.tenants is \"one\": no client has a tenant, so --tenant is ignored".into());
    }
    let Some((by, hash)) = described.affinity(route.hash_on) else {
        let flags = match route.hash_on {
            HashOn::Key => "--key or --session",
            HashOn::User => "--user or --session",
            HashOn::Session => "--session",
        };
        why.push(format!("the route has hash_on = {word:?}: name the sender with {flags}"));
        body["outcome"] = "no_sender".into();
        body["why"] = json!(why);
        return body;
    };
    body["hashed"] = by.name().into();
    body["hash"] = format!("{hash:016x}").into();
    match service.ring.pick(hash).and_then(|id| snapshot.instance(id)) {
        Some(owner) => {
            let name = &owner.name;
            why.push(format!(
                "the ring gives that to {name} at {}, while it is healthy",
                owner.addresses
            ));
            body["owner"] = (&**name).into();
            body["outcome"] = "instance".into();
        }
        None => {
            why.push(
                "the files name no instance of it: the instances that a source names decide".into(),
            );
            body["outcome"] = "source".into();
        }
    }
    body["why"] = json!(why);
    body
}

/// Why a tenant has no route for this id.
fn why_no_route(snapshot: &Snapshot, id: u32) -> String {
    match snapshot.default_route(id) {
        Some(route) => format!(
            "NO_ROUTE: the default route {}-{} has the id {id}, and it is not for this tenant: \
             inherit and services of the [[tenant]], or tenants of the [[service]], keep it out",
            route.first, route.last
        ),
        None => format!("NO_ROUTE: no route has the id {id}; `shardgate routes` lists them"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Overrides;
    use crate::config::load::{Files, from_files};

    fn of(args: ExplainArgs, form: Form) -> Output {
        let config = from_files(Files::embedded(), &[], &Overrides::default());
        let config = config.expect("the built-in one");
        shown("head:", &args, &of_files(&config, &args), form)
    }

    #[test]
    fn the_way_names_range_service_hash_and_instance() {
        let args = ExplainArgs {
            msg_id: Some(3_500),
            user: Some("alice".into()),
            ..ExplainArgs::default()
        };
        let Output { text, code, .. } = of(args.clone(), Form::Text);
        assert_eq!(code, 0);
        assert!(text.contains("  id 3500 is in the route 3000-3999 -> service fight\n"), "{text}");
        assert!(text.contains("hash_on = \"user\": the user \"alice\" hashes to 0x"), "{text}");
        assert!(text.contains("fight-1 at 127.0.0.1:50003"), "{text}");
        let body: Value = serde_json::from_str(&of(args, Form::Json).text).expect("JSON");
        assert_eq!((&body["service"], &body["owner"]), (&"fight".into(), &"fight-1".into()));
        let own = of(ExplainArgs { msg_id: Some(9_000), ..ExplainArgs::default() }, Form::Text);
        assert!(own.code == 0 && own.text.contains("answers it itself"), "{}", own.text);
    }

    #[test]
    fn a_tenants_own_route_is_told_apart_from_the_default_one_and_a_closed_one_says_why() {
        let mut files = Files::embedded();
        files.gateway.text =
            "auth.mode = \"jwt\"\nauth.tenants = \"many\"\nauth.jwks_file = \"a\"\n\
             [[service]]\nname = \"a\"\n\
             instances = [{ id = \"a-1\", address = \"127.0.0.1:1\" }]\n\
             [[route]]\nrange = [10, 20]\nservice = \"a\"\n\
             [[tenant]]\nname = \"acme\"\ninherit = false\n\
             [[tenant.route]]\nrange = [15, 15]\nservice = \"a\"\n"
                .into();
        let config = from_files(files, &[], &Overrides::default()).expect("right");
        let of = |tenant: &str, msg_id| {
            let (user, tenant) = (Some("u".to_owned()), Some(tenant.to_owned()));
            let args = ExplainArgs { msg_id: Some(msg_id), user, tenant, ..ExplainArgs::default() };
            let body = of_files(&config, &args);
            (body["table"].clone(), shown("head:", &args, &body, Form::Text).text)
        };
        let (table, text) = of("acme", 15);
        assert_eq!(table, "tenant");
        assert!(text.contains("is in the route 15-15 of the tenant's own -> service a"), "{text}");
        let (table, text) = of("b", 15);
        assert_eq!(table, "default");
        assert!(text.contains("  id 15 is in the route 10-20 -> service a"), "{text}");
        let (table, text) = of("acme", 16);
        assert_eq!(table, Value::Null);
        assert!(
            text.contains("NO_ROUTE: the default route 10-20 has the id 16, and it is not for")
        );
        assert!(of("acme", 21).1.contains("NO_ROUTE: no route has the id 21"));
    }

    #[test]
    fn what_cannot_be_explained_says_what_lacks() {
        for (msg_id, part) in [(5_000, "NO_ROUTE"), (1_000, "--session")] {
            for form in [Form::Text, Form::Json] {
                let said = of(ExplainArgs { msg_id: Some(msg_id), ..ExplainArgs::default() }, form);
                assert!(said.code == EXIT_START && said.text.contains(part), "{}", said.text);
            }
        }
    }

    #[test]
    fn an_answer_of_the_gateway_is_told_in_lines() {
        let mut body = json!({
            "msg_id": 1001, "range": [1000, 1999], "service": "logic", "hash_on": "user",
            "hashed": "user", "hash": "00ff", "instance": "logic-2", "outcome": "instance",
            "why": ["logic-1 is draining: it is not on the ring"],
            "instances": [{"id": "logic-2", "address": "127.0.0.1:2"}], "silent_shards": [3],
        });
        let wanted = [
            "head:",
            "  id 1001 is in the route 1000-1999 -> service logic",
            "  hash_on = \"user\": the user \"ann\" hashes to 0x00ff",
            "  logic-2 at 127.0.0.1:2 gets it",
            "  logic-1 is draining: it is not on the ring",
            "  shard 3 did not answer in time",
        ];
        let args = ExplainArgs { user: Some("ann".into()), ..ExplainArgs::default() };
        let said = shown("head:", &args, &body, Form::Text);
        assert_eq!((said.text, said.code), (wanted.join("\n"), 0));
        body["outcome"] = "unavailable".into();
        assert_eq!(shown("head:", &args, &body, Form::Json).code, EXIT_START);
    }

    #[test]
    fn values_are_escaped_in_the_query() {
        let args = ExplainArgs {
            msg_id: Some(1),
            key: Some("a&b=ü".into()),
            tenant: Some("7".into()),
            ..ExplainArgs::default()
        };
        assert_eq!(args.path(), "/routing/explain?msg_id=1&key=a%26b%3D%C3%BC&tenant=7");
        let args = ExplainArgs { group: Some("room:7".into()), ..ExplainArgs::default() };
        assert_eq!(args.path(), "/routing/explain?group=room%3A7");
    }
}
