//! The settings of pushes and groups, by whole configurations.

use crate::config::load::{Files, from_files};
use crate::config::settings::*;
use crate::config::{Config, Overrides, Problems};
use crate::message::Priority;

const SERVICE: &str = "[[service]]\nname = \"chat\"\n\
                       instances = [{ id = \"chat-1\", address = \"127.0.0.1:1\" }]\n";
const TOKEN: &str = "0123456789abcdef";

fn load(gateway: &str, default: &str) -> Result<Config, Problems> {
    let mut files = Files::embedded();
    files.gateway.text = gateway.into();
    files.default.text = default.into();
    from_files(files, &[], &Overrides::default())
}

fn of(gateway: &str) -> PushSettings {
    load(gateway, "").unwrap_or_else(|problems| panic!("{problems}")).gateway.push
}

fn problem(gateway: &str, default: &str, part: &str) {
    let problems = load(gateway, default).expect_err(part).to_string();
    assert!(problems.contains(part), "{gateway}\n{problems}");
    assert!(!problems.contains(TOKEN), "{problems}");
}

fn caller(more: &str) -> String {
    format!("[[push_caller]]\nname = \"a\"\ntoken = \"{TOKEN}\"\n{more}\n")
}

#[test]
fn nobody_pushes_unless_it_is_configured() {
    let push = of("");
    assert_eq!(push, PushSettings::default());
    assert!(push.listen.is_none() && push.callers.is_empty() && push.services.is_empty());
}

#[test]
fn a_caller_has_the_rights_that_are_listed_and_no_more() {
    let listed = "tenants = [\"acme\"]\nto = [\"user\", \"group\"]\ngroups = [\"room:*\"]\n\
                  may = [\"push\", \"join\"]\npriority_max = \"low\"\npushes_per_s = 5";
    let push = of(&format!("push.listen = \"127.0.0.1:9100\"\n{}", caller(listed)));
    let [caller] = &push.callers[..] else { panic!("one caller") };
    let rights = &caller.rights;
    assert!(rights.has_tenant("acme") && !rights.has_tenant("initech"));
    assert!(rights.has_group("room:7") && rights.has_join("room:7") && !rights.has_group("lobby"));
    assert_eq!(rights.to, [PushTo::User, PushTo::Group]);
    assert_eq!(rights.may, [PushVerb::Push, PushVerb::Join]);
    assert_eq!((caller.priority_max, caller.pushes_per_s), (Priority::Low, 5));
    assert!(!format!("{push:?}").contains(TOKEN));
}

#[test]
fn callers_that_nobody_should_have_are_refused() {
    let user = caller("to = [\"user\"]");
    problem("push.listen = \"127.0.0.1:9100\"", "", "needs at least one [[push_caller]]");
    let open = format!("push.listen = \"0.0.0.0:9100\"\n{user}");
    problem(&open, "", "tokens would travel in the clear");
    problem(&format!("push.tls_cert = \"a\"\n{user}"), "", "go together");
    problem(&caller(""), "", "must name at least one kind of addressee");
    problem(&caller("to = [\"group\"]"), "", "must name the groups");
    problem(&caller("to = [\"users\"]"), "", "session, user, group, tenant or everyone");
    problem(&caller("to = [\"user\"]\ntoken_file = \"t\""), "", "set one of token and token_file");
    problem(&user.replace(TOKEN, "short"), "", "16 to 256 visible characters");
    problem(&format!("{user}{user}"), "", "is the name of another caller");
    let twin = user.replace("\"a\"", "\"b\"");
    problem(&format!("{user}{twin}"), "", "is the token of another caller");
    for bad in ["", "a b", "*x", "a**"] {
        problem(
            &caller(&format!("to = [\"user\"]\ntenants = [\"{bad}\"]")),
            "",
            "names and a star",
        );
    }
}

#[test]
fn a_services_rights_keep_pushing_and_joining_apart() {
    let rights = "push = [\"user\", \"group:room:*\", \"join:lobby\"]\npush_tenants = [\"acme\"]\n";
    let push = of(&SERVICE.replace("instances", &format!("{rights}instances")));
    let rights = &push.services["chat"];
    assert!(rights.has_group("room:7") && !rights.has_group("lobby"));
    assert!(rights.has_join("lobby") && !rights.has_join("room:7"));
    assert_eq!(rights.to, [PushTo::User, PushTo::Group]);
    assert!(rights.has_tenant("acme") && !rights.has_tenant(""));
    assert!(of(SERVICE).services.is_empty(), "a service pushes to nobody by itself");
    for bad in ["group", "group:", "rooms:*", "join:a b"] {
        let text = SERVICE.replace("instances", &format!("push = [\"{bad}\"]\ninstances"));
        problem(&text, "", "item 0");
    }
}

#[test]
fn a_rule_of_groups_is_what_it_says_and_the_first_one_counts() {
    let push = of("[[group]]\nname = \"room:vip\"\njoin = \"none\"\n\
                   [[group]]\nname = \"room:*\"\njoin = \"anybody\"\n\
                   keep = \"history\"\nhistory_items = 50\n");
    assert_eq!(push.rule("room:vip").expect("a rule").join, JoinBy::None);
    let rule = push.rule("room:7").expect("a rule");
    assert_eq!((rule.join, rule.keep, rule.history_items), (JoinBy::Anybody, Keep::History, 50));
    let plain = of("[[group]]\nname = \"room:*\"");
    assert_eq!(**plain.rule("room:7").expect("a rule"), GroupRule::new("room:*"));
    assert!(plain.rule("lobby").is_none());
}

#[test]
fn rules_that_mean_nothing_are_refused() {
    let rule = |name: &str, more: &str| format!("[[group]]\nname = \"{name}\"\n{more}\n");
    problem(&rule("a b", ""), "", "names and a star");
    problem(&format!("{}{}", rule("a", ""), rule("a", "")), "", "is also the name of group[0]");
    problem(&format!("{}{}", rule("a*", ""), rule("ab*", "")), "", "is never used");
    problem(&rule("a", "history_bytes = 0"), "", "history_bytes");
    let config = load(&rule("a", "join = \"user\"\nhistory_ms = 5000"), "").expect("warned of");
    let warned: Vec<String> = config.warnings.iter().map(ToString::to_string).collect();
    for part in ["nobody can join while auth.mode", "only keep = \"history\" has a history"] {
        assert!(warned.iter().any(|line| line.contains(part)), "{warned:?}");
    }
}

#[test]
fn a_push_fits_four_times_into_what_a_slow_client_may_have() {
    let small = "conn.outbox_bytes_max = 8192\nconn.message_bytes_max = 4096\n\
                 conn.send_buffer_bytes = 0\nsession.kept_bytes_max = 4096";
    let config = load("", small).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(config.gateway.push.bytes_max, 2048, "lowered, as nobody set it");
    load("push.bytes_max = 2048", small).expect("a quarter");
    problem("push.bytes_max = 2049", small, "must be at most 2048");
    problem("", "groups.lag_bytes_max = 8192\ngroups.log_total_bytes_max = 65535", "65536");
    problem(
        "",
        "groups.lag_bytes_max = 131072\ngroups.log_total_bytes_max = 65536",
        "of all groups of a shard",
    );
}

#[test]
fn a_callers_new_token_is_told_without_its_value() {
    let user = caller("to = [\"user\"]");
    let new = user.replace(TOKEN, "fedcba9876543210");
    let [old, new] = [user, new].map(|text| load(&text, "").expect("right"));
    let changes = crate::config::change::changes(&old, &new);
    let told: Vec<_> = changes.iter().map(|c| (c.key.as_str(), c.is_boot())).collect();
    assert_eq!(told, [("push_caller.token", false)]);
    assert!(!format!("{changes:?}").contains(TOKEN) && !format!("{old:?}").contains(TOKEN));
}

#[test]
fn the_configuration_that_is_shipped_has_rooms() {
    let config = from_files(Files::embedded(), &[], &Overrides::default()).expect("right");
    let push = config.gateway.push;
    let room = push.rule("room:lobby").expect("a rule");
    assert_eq!((room.join, room.publish, room.list), (JoinBy::Anybody, Who::Members, Who::Members));
    assert_eq!((room.presence, room.keep), (PresenceKind::Names, Keep::History));
    assert!(push.listen.is_none() && push.services["chat"].has_join("room:lobby"));
}
