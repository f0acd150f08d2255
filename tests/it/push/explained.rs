//! `/routing/explain?group=` and `shardgate explain --group` of a gateway that runs.

use serde_json::json;

use super::callers::Http;
use super::{SHOP, config, join, people, tell, user};
use crate::support::{Gateway, run, several};

#[test]
fn explain_says_where_a_group_lives_who_is_told_and_how_far() {
    let gateway = Gateway::start(&config());
    let mut shop = Http::connect(&gateway, SHOP);
    let names = people();
    let mut members: Vec<_> = names.iter().map(|name| user(&gateway, name)).collect();
    members.iter_mut().for_each(|member| drop(join(member, "room:7")));
    let pushed = tell(&mut shop, &json!({"groups": ["room:7"]}), 0..3).remove(2);
    let said = gateway.admin_get("/routing/explain?group=room:7");
    assert_eq!((&said["outcome"], &said["keep"]), (&json!("group"), &json!("recent")), "{said}");
    assert_eq!(said["rule"]["join"], "anybody");
    assert_eq!(said["position"], pushed["positions"][0]["position"]);
    assert_eq!(said["members"], names.len());
    assert!(said["log_bytes"].as_u64() > Some(0) && said["kept_bytes"].as_u64() > Some(0));
    let shards = said["shards"].as_array().expect("a list");
    assert_eq!(shards.len(), several(), "each has members: {said}");
    let members: u64 = shards.iter().filter_map(|shard| shard["members"].as_u64()).sum();
    assert_eq!(members, names.len() as u64);
    assert!(shards.iter().all(|shard| shard["told"] == 3), "{said}");
    let home = &gateway.admin_get("/groups?name=room:7")["top"][0]["home"];
    assert_eq!(&said["home"], home, "it is where the group says that it is");
    let none = gateway.admin_get("/routing/explain?group=lobby");
    assert_eq!((&none["outcome"], &none["shards"]), (&json!("no_rule"), &json!([])));

    let (at, admin) = (gateway.dir().to_str().expect("UTF-8"), gateway.admin.to_string());
    let ask = |group: &str| {
        let args = ["explain", "--group", group, "--config", at, "--admin", &admin];
        run(&args, |command| {
            command.env("XDG_RUNTIME_DIR", gateway.dir()).env_remove("RUNTIME_DIRECTORY");
        })
    };
    let told = ask("room:7");
    assert_eq!(told.code, Some(0), "{told:?}");
    for line in ["is its home, by a hash", "offset 3\n", "members, told up to offset 3\n"] {
        assert!(told.stdout.contains(line), "{line}: {told:?}");
    }
    let told = ask("lobby");
    assert!(told.code == Some(1) && told.stdout.contains("NO_ROUTE"), "{told:?}");
}
