//! `shardgate routes` and `shardgate explain`: routes, and the instance that gets a message, by the
//! configuration or by a gateway that runs.

use std::fmt::Write as _;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::client::{self, NoAnswer};
use super::table::aligned;
use super::{EXIT_START, EXIT_USAGE, Output};
use crate::config::settings::Tenants;
use crate::config::{Config, Family, Lookup, Problems};
use crate::routing::{Described, HashOn, HashedBy, Order, Route};

/// Shows the routes of the configuration, or the services of the gateway that runs.
pub fn show(loaded: Result<Config, Problems>, in_force: bool) -> Output {
    let config = match loaded {
        Ok(config) => config,
        Err(problems) => return Output::wrong(problems.to_string(), EXIT_USAGE),
    };
    if !in_force {
        return Output::fine(table(&config));
    }
    match client::get(&config.gateway.admin, "/services") {
        Ok(answer) if answer.is_ok() => Output::fine(answer.text()),
        Ok(answer) => Output::wrong(answer.why(), EXIT_START),
        Err(why) => Output::wrong(why.text().to_owned(), EXIT_START),
    }
}

/// Instances of a route's service, as far as the files name them, and the name that is looked up.
pub fn instances_of(config: &Config, route: &Route) -> String {
    let snapshot = &config.snapshot;
    let listed = snapshot.instances.iter().filter(|i| i.service == route.service);
    let mut all: Vec<String> = listed.map(|i| format!("{} {}", i.name, i.addresses)).collect();
    let service = snapshot.services.get(usize::from(route.service.0));
    for Lookup { service: of, name, family } in &config.lookups {
        if service.is_some_and(|service| service.name == *of) {
            all.push(match family {
                Family::Any => format!("dns {name}"),
                Family::V4 | Family::V6 => format!("dns {name} ({})", family.word()),
            });
        }
    }
    if all.is_empty() { "from a source".into() } else { all.join(", ") }
}

/// Table of routes with their services and instances.
pub fn table(config: &Config) -> String {
    let snapshot = &config.snapshot;
    let row = |route: &Route| {
        let service = snapshot.services.get(usize::from(route.service.0));
        [
            format!("{}-{}", route.first, route.last),
            service.map_or(String::new(), |s| s.name.to_string()),
            route.priority.name().to_owned(),
            format!("{} ms", route.timeout_ms),
            hash_word(route.hash_on).to_owned(),
            order_word(route.order).to_owned(),
            instances_of(config, route),
        ]
    };
    let rows: Vec<_> = snapshot.routes.iter().map(row).collect();
    aligned(["IDS", "SERVICE", "PRIORITY", "TIMEOUT", "HASH ON", "ORDER", "INSTANCES"], &rows)
}

fn hash_word(hash_on: HashOn) -> &'static str {
    match hash_on {
        HashOn::User => "user",
        HashOn::Session => "session",
        HashOn::Key => "key",
    }
}

fn order_word(order: Order) -> &'static str {
    match order {
        Order::Session => "session",
        Order::None => "none",
    }
}

/// A message to explain.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct ExplainArgs {
    /// Id of the message
    #[arg(long, value_name = "N")]
    pub msg_id: u32,
    /// Key of the message, for routes with hash_on = "key"
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
    /// User who sends the message
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
    /// The sender's tenant
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
        let mut path = format!("/routing/explain?msg_id={}", self.msg_id);
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

/// Explains which instance gets a message: by the gateway that runs, and by the configuration if
/// none does.
pub fn explain(loaded: Result<Config, Problems>, args: &ExplainArgs) -> Output {
    let config = match loaded {
        Ok(config) => config,
        Err(problems) => return Output::wrong(problems.to_string(), EXIT_USAGE),
    };
    let admin = &config.gateway.admin;
    match client::get(admin, &args.path()) {
        Ok(answer) if answer.is_ok() => {
            Output::fine(format!("from the gateway at {}:\n{}", admin.listen, answer.text()))
        }
        // The gateway knows more than the files, so its refusal is the answer.
        Ok(answer) if answer.status != 404 => Output::wrong(
            format!("from the gateway at {}: {}", admin.listen, answer.why()),
            EXIT_START,
        ),
        Ok(_) => {
            let why = format!("the program at {} does not explain routes", admin.listen);
            of_files(&config, args, &why)
        }
        Err(NoAnswer::Nobody(_)) => of_files(&config, args, "no gateway answers"),
        Err(NoAnswer::Failed(why)) => of_files(&config, args, &why),
    }
}

fn of_files(config: &Config, args: &ExplainArgs, why: &str) -> Output {
    let head = format!("from the configuration alone, because {why}:");
    match way(config, args) {
        Ok(lines) => Output::fine(format!("{head}\n{lines}")),
        Err(line) => Output::wrong(format!("{head}\n  {line}"), EXIT_START),
    }
}

/// Steps to the instance, one a line.
fn way(config: &Config, args: &ExplainArgs) -> Result<String, String> {
    let (first, last) = config.gateway.gateway_ids;
    let id = args.msg_id;
    if (first..=last).contains(&id) {
        return Ok(format!(
            "  id {id} is in gateway.ids {first}-{last}: the gateway answers it itself"
        ));
    }
    let snapshot = &config.snapshot;
    let Some((_, route)) = snapshot.route(id) else {
        return Err(format!("NO_ROUTE: no route has the id {id}; `shardgate routes` lists them"));
    };
    let service = &snapshot.services[usize::from(route.service.0)];
    let mut out = format!(
        "  id {id} is in the route {}-{} -> service {}\n",
        route.first, route.last, service.name
    );
    let many = config.gateway.auth.tenants == Tenants::Many;
    let described = args.described(many);
    let word = hash_word(route.hash_on);
    let (by, hash) = described.affinity(route.hash_on).ok_or_else(|| {
        let flags = match route.hash_on {
            HashOn::Key => "--key or --session",
            HashOn::User => "--user or --session",
            HashOn::Session => "--session",
        };
        format!("the route has hash_on = {word:?}: name the sender with {flags}")
    })?;
    let value = match by {
        HashedBy::Key => described.key,
        HashedBy::User => described.user,
        HashedBy::Session => described.session,
    };
    if args.tenant.is_some() && !many {
        let unused = "no client has a tenant, so --tenant is ignored";
        writeln!(out, "  auth.tenants is \"one\": {unused}").expect("a string takes it");
    }
    writeln!(out, "  hash_on = {word:?}: the {} {value:?} hashes to {hash:#018x}", by.name())
        .expect("a string takes it");
    let owner = service.ring.pick(hash).and_then(|id| snapshot.instance(id));
    match owner {
        Some(owner) => {
            let name = &owner.name;
            write!(
                out,
                "  the ring gives that to {name} at {}, while it is healthy",
                owner.addresses
            )
        }
        None => {
            write!(
                out,
                "  the files name no instance of it: the instances that a source names decide"
            )
        }
    }
    .expect("a string takes it");
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Overrides;
    use crate::config::load::{Files, from_files};

    fn config() -> Config {
        from_files(Files::embedded(), &[], &Overrides::default()).expect("the built-in one")
    }

    #[test]
    fn the_way_names_range_service_hash_and_instance() {
        let args =
            ExplainArgs { msg_id: 3_500, user: Some("alice".into()), ..ExplainArgs::default() };
        let text = way(&config(), &args).expect("a route");
        assert!(text.contains("route 3000-3999 -> service fight"), "{text}");
        assert!(text.contains("hashes to 0x"), "{text}");
        assert!(text.contains("fight-1 at 127.0.0.1:50003"), "{text}");
        let own = way(&config(), &ExplainArgs { msg_id: 9_000, ..ExplainArgs::default() })
            .expect("its own");
        assert!(own.contains("answers it itself"), "{own}");
    }

    #[test]
    fn what_cannot_be_explained_says_what_lacks() {
        let none = way(&config(), &ExplainArgs { msg_id: 5_000, ..ExplainArgs::default() })
            .expect_err("no route");
        assert!(none.contains("NO_ROUTE"), "{none}");
        let whose = way(&config(), &ExplainArgs { msg_id: 1_000, ..ExplainArgs::default() })
            .expect_err("no sender");
        assert!(whose.contains("--session"), "{whose}");
    }

    #[test]
    fn values_are_escaped_in_the_query() {
        let args = ExplainArgs {
            msg_id: 1,
            key: Some("a&b=ü".into()),
            tenant: Some("7".into()),
            ..ExplainArgs::default()
        };
        assert_eq!(args.path(), "/routing/explain?msg_id=1&key=a%26b%3D%C3%BC&tenant=7");
    }

    #[test]
    fn the_table_has_a_line_a_route() {
        let text = table(&config());
        assert_eq!(text.lines().count(), 1 + config().snapshot.routes.len());
        assert!(text.contains("1000-1999"), "{text}");
    }
}
