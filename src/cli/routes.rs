//! `shardgate routes`: which ids go to which service, by the configuration or by a gateway that
//! runs, with the instances.

use serde_json::{Value, json};

use super::client;
use super::table::aligned;
use super::{EXIT_START, EXIT_USAGE, Form, Output};
use crate::config::{Config, Family, Lookup, Problems};
use crate::routing::{HashOn, Instance, Order, Route, Snapshot};

/// Shows the routes of the configuration, or those of the gateway that runs and how its instances
/// stand.
pub fn show(loaded: Result<Config, Problems>, in_force: bool, form: Form) -> Output {
    let config = match loaded {
        Ok(config) => config,
        Err(problems) => return Output::wrong(problems.to_string(), EXIT_USAGE),
    };
    let pretty = |body: &Value| serde_json::to_string_pretty(body).expect("JSON of JSON");
    if !in_force {
        return Output::fine(match form {
            Form::Text => table(&config),
            Form::Json => pretty(&of_files(&config.snapshot)),
        });
    }
    match client::get(&config.gateway.admin, "/services") {
        Ok(answer) if answer.is_ok() => Output::fine(match form {
            Form::Text => format!("{}\n{}", routes_of(&answer.body), instances_of(&answer.body)),
            Form::Json => pretty(&answer.body),
        }),
        Ok(answer) => Output::wrong(answer.why(), EXIT_START),
        Err(why) => Output::wrong(why.text().to_owned(), EXIT_START),
    }
}

/// Instances of a route's service, as far as the files name them, and the name that is looked up.
pub fn named_instances(config: &Config, route: &Route) -> String {
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
    let row = |(tenant, route): (Option<&str>, &Route)| {
        let service = snapshot.services.get(usize::from(route.service.0));
        [
            whose(tenant, snapshot.only_for(route)),
            format!("{}-{}", route.first, route.last),
            service.map_or(String::new(), |s| s.name.to_string()),
            route.priority.name().to_owned(),
            format!("{} ms", route.timeout_ms),
            hash_word(route.hash_on).to_owned(),
            order_word(route.order).to_owned(),
            named_instances(config, route),
        ]
    };
    let rows: Vec<_> = snapshot.all_routes().into_iter().map(row).collect();
    let head = ["TENANT", "IDS", "SERVICE", "PRIORITY", "TIMEOUT", "HASH ON", "ORDER", "INSTANCES"];
    if is_of_tenants(&rows) {
        return aligned(head, &rows);
    }
    let ([_, head @ ..], rows) = (head, rows.into_iter().map(|[_, cells @ ..]| cells));
    aligned(head, &rows.collect::<Vec<_>>())
}

/// Cell that says who has a route: its tenant, or those that alone may use it.
fn whose(tenant: Option<&str>, only_for: Option<Vec<&str>>) -> String {
    match (tenant, only_for) {
        (Some(tenant), _) => tenant.to_owned(),
        (None, Some(names)) => format!("default, for {}", names.join(", ")),
        (None, None) => String::new(),
    }
}

/// Whether the first cell of a row, that of [`whose`], says something.
fn is_of_tenants<const N: usize>(rows: &[[String; N]]) -> bool {
    rows.iter().any(|row| row.first().is_some_and(|cell| !cell.is_empty()))
}

/// Routes of the configuration, in the form of the admin endpoint's `/services` as far as the files
/// know it.
fn of_files(snapshot: &Snapshot) -> Value {
    let (mut services, all_routes) = (json!({}), snapshot.all_routes());
    for (index, service) in snapshot.services.iter().enumerate() {
        let own = all_routes.iter().filter(|(_, r)| usize::from(r.service.0) == index);
        let route = |(tenant, r): &(Option<&str>, &Route)| {
            json!({
                "range": [r.first, r.last],
                "service": &*service.name,
                "priority": r.priority.name(),
                "timeout_ms": r.timeout_ms,
                "order": order_word(r.order),
                "hash_on": hash_word(r.hash_on),
                "tenant": tenant,
                "only_for": snapshot.only_for(r),
            })
        };
        let instances = snapshot.instances.iter().filter(|i| usize::from(i.service.0) == index);
        let instance = |i: &Instance| {
            let addresses = i.addresses.to_string();
            json!({ "id": &*i.name, "address": addresses, "weight": i.weight })
        };
        services[&*service.name] = json!({
            "routes": own.map(route).collect::<Vec<_>>(),
            "instances": instances.map(instance).collect::<Vec<_>>(),
        });
    }
    json!({ "services": services })
}

/// A field of an answer as the text of a cell.
fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    }
}

/// The elements of `list` of every service of the answer, each with its service's name.
fn all<'a>(body: &'a Value, list: &'a str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    let services = body["services"].as_object().into_iter().flatten();
    services.flat_map(move |(name, service)| {
        service[list].as_array().into_iter().flatten().map(move |item| (name, item))
    })
}

/// Table of the routes in force: the default ones by their ids, then those of each tenant.
fn routes_of(body: &Value) -> String {
    let mut routes: Vec<_> = all(body, "routes").collect();
    routes.sort_by_key(|(_, route)| (route["tenant"].as_str(), route["range"][0].as_u64()));
    let row = |(service, route): &(&String, &Value)| {
        let only_for = route["only_for"].as_array();
        let only_for = only_for.map(|names| names.iter().filter_map(Value::as_str).collect());
        [
            whose(route["tenant"].as_str(), only_for),
            format!("{}-{}", route["range"][0], route["range"][1]),
            (*service).clone(),
            cell(&route["priority"]),
            format!("{} ms", route["timeout_ms"]),
            cell(&route["hash_on"]),
            cell(&route["order"]),
        ]
    };
    let rows: Vec<_> = routes.iter().map(row).collect();
    let head = ["TENANT", "IDS", "SERVICE", "PRIORITY", "TIMEOUT", "HASH ON", "ORDER"];
    if is_of_tenants(&rows) {
        return aligned(head, &rows);
    }
    let ([_, head @ ..], rows) = (head, rows.into_iter().map(|[_, cells @ ..]| cells));
    aligned(head, &rows.collect::<Vec<_>>())
}

/// Table of the instances in force: how each stands, and its messages on all shards.
fn instances_of(body: &Value) -> String {
    let row = |(service, instance): (&String, &Value)| {
        let sum = |key: &str| -> u64 {
            let shards = instance["shards"].as_array().into_iter().flatten();
            shards.filter_map(|shard| shard[key].as_u64()).sum()
        };
        let is = |key: &str| instance[key] == true;
        let also = [("draining", is("draining")), ("held", is("held"))];
        let also = also.iter().filter(|(_, holds)| *holds).map(|(word, _)| format!(", {word}"));
        let standing = cell(&instance["standing"]) + &also.collect::<String>();
        let why = cell(&instance["why"]);
        [
            cell(&instance["id"]),
            service.clone(),
            cell(&instance["address"]),
            cell(&instance["source"]),
            standing,
            sum("waiting").to_string(),
            sum("in_flight").to_string(),
            if is("reachable") || why.is_empty() { why } else { format!("not reachable: {why}") },
        ]
    };
    let rows: Vec<_> = all(body, "instances").map(row).collect();
    let head =
        ["INSTANCE", "SERVICE", "ADDRESS", "SOURCE", "STANDING", "WAITING", "IN FLIGHT", "WHY"];
    aligned(head, &rows)
}

pub(super) fn hash_word(hash_on: HashOn) -> &'static str {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Overrides;
    use crate::config::load::{Files, from_files};

    fn config() -> Config {
        from_files(Files::embedded(), &[], &Overrides::default()).expect("the built-in one")
    }

    #[test]
    fn the_table_has_a_line_a_route() {
        let text = table(&config());
        assert_eq!(text.lines().count(), 1 + config().snapshot.routes.len());
        assert!(text.contains("1000-1999"), "{text}");
    }

    #[test]
    fn programs_read_the_routes_of_the_files_as_those_of_the_gateway() {
        let Output { text, code, .. } = show(Ok(config()), false, Form::Json);
        let body: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!((code, &body["services"]["chat"]["routes"][0]["range"][0]), (0, &json!(2000)));
        assert!(routes_of(&body).contains("1000-1999  logic    normal    5000 ms  user"), "{body}");
    }

    #[test]
    fn routes_of_tenants_are_told_with_whose_they_are() {
        let mut files = Files::embedded();
        files.gateway.text =
            "auth.mode = \"jwt\"\nauth.tenants = \"many\"\nauth.jwks_file = \"a\"\n\
             [[service]]\nname = \"a\"\ntenants = [\"acme\", \"b\"]\n\
             instances = [{ id = \"a-1\", address = \"127.0.0.1:1\" }]\n\
             [[route]]\nrange = [10, 20]\nservice = \"a\"\n[[tenant]]\nname = \"b\"\n\
             [[tenant]]\nname = \"acme\"\n[[tenant.route]]\nrange = [15, 30]\nservice = \"a\"\n"
                .into();
        let config = from_files(files, &[], &Overrides::default()).expect("right");
        let cells = |line: &str| -> Vec<String> {
            line.split("  ").map(str::trim).filter(|c| !c.is_empty()).map(str::to_owned).collect()
        };
        let body = of_files(&config.snapshot);
        for text in [table(&config), routes_of(&body)] {
            let lines: Vec<Vec<String>> = text.lines().map(cells).collect();
            assert_eq!(lines[0][..3], ["TENANT", "IDS", "SERVICE"], "{text}");
            assert_eq!(lines[1][..3], ["default, for acme, b", "10-20", "a"], "{text}");
            assert_eq!(lines[2][..3], ["acme", "15-30", "a"], "{text}");
            assert_eq!(lines.len(), 3, "{text}");
        }
    }

    #[test]
    fn instances_in_force_are_rows_with_their_standing_and_messages() {
        let body = json!({"services": {"logic": {"routes": [], "instances": [{
            "id": "logic-1", "address": "127.0.0.1:1", "source": "etcd", "standing": "ok",
            "reachable": false, "why": "refused", "draining": true, "held": false,
            "shards": [{"waiting": 2, "in_flight": 1}, {"waiting": 3, "in_flight": 0}],
        }]}}});
        let text = instances_of(&body);
        let row: Vec<&str> = text.lines().nth(1).expect("a row").split("  ").collect();
        let row: Vec<&str> =
            row.into_iter().filter(|cell| !cell.is_empty()).map(str::trim).collect();
        assert_eq!(
            row,
            [
                "logic-1",
                "logic",
                "127.0.0.1:1",
                "etcd",
                "ok, draining",
                "5",
                "1",
                "not reachable: refused"
            ]
        );
    }
}
