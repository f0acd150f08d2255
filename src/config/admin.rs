//! The keys of `[admin]`.

use super::listen;
use super::reader::Reader;
use super::settings::*;
use super::words::{TOKEN_RULE, is_token};

/// Reads the section `[admin]`.
pub fn admin(r: &mut Reader) -> AdminSettings {
    let d = AdminSettings::default();
    let token = r.secret("admin.token", is_token, TOKEN_RULE.or_empty());
    let settings = AdminSettings {
        listen: r.address("admin.listen", d.listen),
        token: token.map(Secret::from),
        token_file: r.file("admin.token_file"),
        tls_cert: r.file("admin.tls_cert"),
        tls_key: r.file("admin.tls_key"),
        probes: listen::listen(r, "admin.probes", d.probes),
        probes_metrics: r.boolean("admin.probes_metrics", d.probes_metrics),
    };
    if settings.probes_metrics && settings.probes.is_none() {
        r.warning("admin.probes_metrics", "nobody is served without admin.probes; set that, too");
    }
    let set = [settings.tls_cert.is_some(), settings.tls_key.is_some()];
    r.both_or_neither(["admin.tls_cert", "admin.tls_key"], set);
    if !settings.listen.ip().is_loopback() {
        let given = settings.token.is_some() || settings.token_file.is_some();
        if !given || !set[0] {
            let rule = "is not a loopback address: that needs admin.tls_cert, admin.tls_key and \
                        admin.token (or admin.token_file); or listen on 127.0.0.1 and use a tunnel";
            r.problem("admin.listen", rule);
        }
    }
    settings
}
