//! The one table of the admin endpoint's answers: the router is made of it, `GET /` lists it, and a
//! test holds `openapi.json` against it.

use std::fmt::Write as _;

use axum::http::{HeaderMap, HeaderName, header};
use axum::response::Response;
use axum::routing::{MethodFilter, MethodRouter, get, on, post};

use super::answer::{PLAIN, text};
use super::guard::Access;
use super::{Admin, change, guide, page, read};
use crate::guide::{PICTURE, STYLE};

/// A row of the table: a path with a method.
pub struct Route {
    /// Path, with its parameters in braces.
    pub path: &'static str,
    /// Purpose in one line.
    pub about: &'static str,
    pub answer: Answer,
}

/// The answer of a route, which decides who may have it: see [`Access`].
pub enum Answer {
    /// A text of the program itself. As it is no function, it can hold no data of the gateway.
    Static(Page),
    /// The client library, a text of the program itself that pages of any origin may read.
    Library,
    /// A handler that shows texts of the program itself. As it has no state, it can reach no data
    /// of the gateway.
    Stateless(fn() -> MethodRouter),
    /// A handler that answers programs with a word: GET, and OPTIONS, by which HAProxy asks.
    Probe(fn() -> MethodRouter<Admin>),
    /// A handler that only shows something: GET.
    Read(fn() -> MethodRouter<Admin>),
    /// A handler that changes something: POST.
    Change(fn() -> MethodRouter<Admin>),
}

/// A page that is compiled in.
#[derive(Clone, Copy)]
pub struct Page {
    /// Media type of the text.
    pub media: &'static str,
    pub text: &'static str,
}

impl Route {
    const fn page(path: &'static str, about: &'static str, text: &'static str) -> Self {
        Self::file(path, about, PLAIN, text)
    }

    const fn file(
        path: &'static str,
        about: &'static str,
        media: &'static str,
        text: &'static str,
    ) -> Self {
        Self { path, about, answer: Answer::Static(Page { media, text }) }
    }

    const fn library(path: &'static str, about: &'static str) -> Self {
        Self { path, about, answer: Answer::Library }
    }

    const fn stateless(
        path: &'static str,
        about: &'static str,
        handler: fn() -> MethodRouter,
    ) -> Self {
        Self { path, about, answer: Answer::Stateless(handler) }
    }

    const fn probe(
        path: &'static str,
        about: &'static str,
        handler: fn() -> MethodRouter<Admin>,
    ) -> Self {
        Self { path, about, answer: Answer::Probe(handler) }
    }

    const fn read(
        path: &'static str,
        about: &'static str,
        handler: fn() -> MethodRouter<Admin>,
    ) -> Self {
        Self { path, about, answer: Answer::Read(handler) }
    }

    const fn change(
        path: &'static str,
        about: &'static str,
        handler: fn() -> MethodRouter<Admin>,
    ) -> Self {
        Self { path, about, answer: Answer::Change(handler) }
    }

    /// Requirements of the route.
    pub fn access(&self) -> Access {
        match self.answer {
            Answer::Static(_) | Answer::Stateless(_) => Access::Static,
            Answer::Library => Access::Library,
            Answer::Probe(_) => Access::Probe,
            Answer::Read(_) => Access::Read,
            Answer::Change(_) => Access::Change,
        }
    }

    /// Method of the route: `GET` or `POST`.
    pub fn method(&self) -> &'static str {
        match self.access() {
            Access::Static | Access::Library | Access::Probe | Access::Read => "GET",
            Access::Change => "POST",
        }
    }

    /// Router of the route's method.
    pub fn handler(&self) -> MethodRouter<Admin> {
        match self.answer {
            Answer::Static(Page { media, text }) => {
                get(async move || ([(header::CONTENT_TYPE, media)], text))
            }
            Answer::Library => get(async || {
                ([(header::CONTENT_TYPE, JAVASCRIPT)], FOR_ANY_PAGE, page::LIBRARY.as_str())
            }),
            Answer::Stateless(handler) => handler().with_state(()),
            Answer::Probe(handler) | Answer::Read(handler) | Answer::Change(handler) => handler(),
        }
    }
}

/// Methods of probes. HAProxy's `option httpchk` with a path alone sends OPTIONS; GET is HEAD, too.
const PROBED_BY: MethodFilter = MethodFilter::GET.or(MethodFilter::OPTIONS);

/// Headers by which browsers let pages of any origin read an answer: as a script, and by `fetch`
/// (<https://fetch.spec.whatwg.org/#http-responses>).
const FOR_ANY_PAGE: [(HeaderName, &str); 2] = [
    (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*"),
    (HeaderName::from_static("cross-origin-resource-policy"), "cross-origin"),
];

const CSS: &str = "text/css; charset=utf-8";
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// Whether a path is that of a probe.
pub fn is_probe(path: &str) -> bool {
    ROUTES.iter().any(|route| route.access() == Access::Probe && route.path == path)
}

/// Whether a path is that of the client library.
pub fn is_library(path: &str) -> bool {
    ROUTES.iter().any(|route| route.access() == Access::Library && route.path == path)
}

pub const ROUTES: &[Route] = &[
    Route::stateless(
        "/",
        "this list; for a browser a page that connects and sends messages",
        || get(index),
    ),
    Route::stateless("/ui", "the dashboard, for a browser", || get(page::dashboard)),
    Route::file("/ui.css", "style of the dashboard", CSS, page::DASHBOARD_STYLE),
    Route::file("/ui.js", "script of the dashboard", JAVASCRIPT, page::DASHBOARD_SCRIPT),
    Route::file("/ui-charts.js", "charts of the dashboard", JAVASCRIPT, page::CHARTS),
    Route::file("/ui-actions.js", "changes by the dashboard", JAVASCRIPT, page::ACTIONS),
    Route::file("/page.css", "style of the page", CSS, page::STYLE),
    Route::file("/page.js", "script of the page", JAVASCRIPT, page::SCRIPT),
    Route::file("/icon.svg", "icon of the page", SVG, page::ICON),
    Route::library("/client.js", "the client library, a module for any web page"),
    Route::page("/client.d.ts", "types of the client library, for TypeScript", page::TYPES),
    Route::read(
        "/connect",
        "URLs where clients connect, whether they sign in, and which ids are answered",
        || get(read::connect),
    ),
    Route::read(
        "/health",
        "state of shards, sources and services; 503 unless all shards serve",
        || get(read::health),
    ),
    Route::probe("/healthz", "200 while the control thread runs: for liveness probes", || {
        on(PROBED_BY, read::healthz)
    }),
    Route::probe("/readyz", "200 once ready, while all shards serve: for readiness probes", || {
        on(PROBED_BY, read::readyz)
    }),
    Route::read(
        "/stats",
        "all counters, levels and times, in sum and by shard; ?tenant=NAME those of a tenant",
        || get(read::stats),
    ),
    Route::read(
        "/live",
        "the last five minutes second by second, and what is wrong now; ?since=MARK what is new",
        || get(read::live),
    ),
    Route::read(
        "/tenants",
        "use and quota of each tenant, the busiest first; ?top=N the first ones",
        || get(read::tenants),
    ),
    Route::read(
        "/routing/stats",
        "routing, cache, queue and dispatch, in sum and by shard",
        || get(read::routing_stats),
    ),
    Route::read(
        "/routing/explain",
        "which instance gets a message, and why: ?msg_id=&key=&user=&tenant=&session=; where a \
         group lives: ?group=&tenant=",
        || get(read::explain),
    ),
    Route::read("/push/callers", "who may push, to whom, and how much each did", || {
        get(read::push_callers)
    }),
    Route::read("/metrics", "all metrics for Prometheus", || get(read::metrics)),
    Route::read("/shards", "state, version, core and load of each shard", || get(read::shards)),
    Route::read("/services", "services with their routes and instances", || get(read::services)),
    Route::read(
        "/connections",
        "counts of connections; ?top=N the busiest; ?session=ID one",
        || get(read::connections),
    ),
    Route::read(
        "/groups",
        "counts of groups and members; ?top=N the largest; ?name=NAME&tenant=NAME one",
        || get(read::groups),
    ),
    Route::read(
        "/histograms",
        "times of all stages, as an HdrHistogram V2 interval log; ?since=start, then its marks",
        || get(read::histograms),
    ),
    Route::read("/config", "every setting with its origin, services and routes", || {
        get(read::config)
    }),
    Route::read("/log", "the log filter in force", || get(read::log_filter)),
    Route::change(
        "/log",
        "change the log filter: {\"filter\": \"warn,shardgate::backend=info\"}",
        || post(change::log),
    ),
    Route::change("/reload", "read the files again, and apply all of them or nothing", || {
        post(change::reload)
    }),
    Route::change("/instances/{id}/drain", "give an instance no new messages", || {
        post(change::drain_instance)
    }),
    Route::change("/instances/{id}/undrain", "give an instance new messages again", || {
        post(change::undrain_instance)
    }),
    Route::change("/drain", "stop the gateway in order, as SIGTERM does", || post(change::drain)),
    Route::change("/dump", "write histograms and state to files, as SIGUSR1 does", || {
        post(change::dump)
    }),
    Route::change("/trace", "record the turns of a shard, for Perfetto: ?shard=0&ms=1000", || {
        post(change::trace)
    }),
    Route::read("/openapi.json", "description of these paths, OpenAPI 3.1", || get(read::openapi)),
    Route::stateless(
        "/guide",
        "the guide of this version, for a browser; ?q=words searches it",
        || get(guide::index),
    ),
    Route::stateless("/guide/{page}", "one page of the guide", || get(guide::named)),
    Route::file("/guide/guide.css", "style of the guide", CSS, STYLE),
    Route::file("/guide/way-of-a-message.svg", "picture of the guide", SVG, PICTURE),
    Route::page("/robots.txt", "keep crawlers away", "User-agent: *\nDisallow: /\n"),
];

async fn index(headers: HeaderMap) -> Response {
    page::or_list(&headers, text(PLAIN, list()))
}

/// One line for each route: method, path and purpose.
fn list() -> String {
    let mut list = format!("shardgate {}\n\n", env!("CARGO_PKG_VERSION"));
    let width = ROUTES.iter().map(|route| route.path.len() + 2).max().unwrap_or(0);
    for route in ROUTES {
        writeln!(list, "{:<5}{:<width$}{}", route.method(), route.path, route.about)
            .expect("a string takes it");
    }
    list.push_str(
        "\nA POST needs Content-Type: application/json and Authorization: Bearer <token>.\n",
    );
    list
}
