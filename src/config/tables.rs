//! Tables of a list: those of the files, and those that discovery sources announced after them.

use std::fmt;
use std::sync::Arc;

use super::problem::{Problem, Source};
use super::raw::{self, Node};
use super::reader::{Reader, Report};

/// A table of a list that a discovery source announced; the files do not have it. `Debug` does not
/// show its text, which may hold keys of tokens.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct FoundTable {
    /// Place of the table, e.g. the key in etcd, as problems name it.
    pub at: Arc<str>,
    /// A JSON object with the keys of the table.
    pub json: Arc<str>,
}

impl fmt::Debug for FoundTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FoundTable({})", self.at)
    }
}

impl FoundTable {
    /// The value of its key `name`, if it has one.
    pub(crate) fn name(&self) -> Option<Arc<str>> {
        let table: serde_json::Value = serde_json::from_str(&self.json).ok()?;
        Some(table.get("name")?.as_str()?.into())
    }
}

/// Tenants that there may be besides those of the configuration: a token for one of them can be
/// neither accepted nor refused, because their own keys, routes and quotas are not known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AwaitedTenants {
    /// Any: a source has not told yet which ones it has.
    Any,
    /// The tenants with these names, sorted: a source has them, and they are not in force.
    Named(Vec<Arc<str>>),
}

impl AwaitedTenants {
    /// None at all.
    pub const NONE: Self = Self::Named(Vec::new());

    /// The tenants with the names in `list`, in any order.
    pub fn named(mut list: Vec<Arc<str>>) -> Self {
        list.sort_unstable();
        list.dedup();
        Self::Named(list)
    }

    /// Whether the tenant `name` may be one of them; `None` = a tenant that a token does not name.
    pub fn has(&self, name: Option<&str>) -> bool {
        match (self, name) {
            (Self::Any, _) => true,
            (Self::Named(list), Some(name)) => {
                list.binary_search_by(|known| (**known).cmp(name)).is_ok()
            }
            (Self::Named(_), None) => false,
        }
    }
}

/// None.
impl Default for AwaitedTenants {
    fn default() -> Self {
        Self::NONE
    }
}

/// Tables that discovery sources announced, by their lists.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FoundTables {
    /// Tables of `[[route]]`.
    pub routes: Vec<FoundTable>,
    /// Tables of `[[tenant]]`.
    pub tenants: Vec<FoundTable>,
    /// Tenants that are not in `tenants`.
    pub awaited: AwaitedTenants,
}

/// No source has told anything yet.
impl Default for FoundTables {
    fn default() -> Self {
        Self { routes: Vec::new(), tenants: Vec::new(), awaited: AwaitedTenants::Any }
    }
}

/// A list of tables and its source.
pub(super) struct Tables<'a> {
    /// Name of the list, e.g. `route` or `tenant[2].route`.
    pub list: &'a str,
    pub nodes: Vec<Node>,
    pub source: &'a Source,
    pub found: &'a [FoundTable],
}

impl Tables<'_> {
    /// Number of all tables.
    pub fn len(&self) -> usize {
        self.nodes.len() + self.found.len()
    }

    /// Hands each table to `read`, with its place: `route[3]`.
    pub fn read(self, report: &mut Report, mut read: impl FnMut(&mut Report, String, Reader)) {
        let Self { list, nodes, source, found } = self;
        let mut at = (0usize..).map(|index| format!("{list}[{index}]"));
        for (node, place) in nodes.into_iter().zip(&mut at) {
            if let Some(reader) = Reader::of_table(place.clone(), node, source, report) {
                read(report, place, reader);
            }
        }
        for (table, place) in found.iter().zip(at) {
            let source = Source::Found(table.at.clone());
            let value = match serde_json::from_str(&table.json) {
                Ok(json) => raw::from_json(json),
                Err(e) => {
                    report.problems.push(Problem::whole(source, format!("not JSON: {e}")));
                    continue;
                }
            };
            let node = Node { value, line: 0 };
            if let Some(reader) = Reader::of_table(place.clone(), node, &source, report) {
                read(report, place, reader);
            }
        }
    }
}

/// Whether `count` tables are more than `max`, which is a problem then.
pub(super) fn too_many(
    report: &mut Report,
    what: &str,
    count: usize,
    max: usize,
    source: &Source,
) -> bool {
    if count > max {
        let rule = format!("{count} of {what} are too many; at most {max}");
        report.problems.push(Problem::whole(source.clone(), rule));
    }
    count > max
}
