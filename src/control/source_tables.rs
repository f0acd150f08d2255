//! Routes and tenants of discovery sources: checked together with the files. The routes are taken
//! or refused as a whole, and so are the tenants.

use std::collections::BTreeSet;

use crate::auth::load::LocalKeys;
use crate::config::{AwaitedTenants, Config, FoundTable, FoundTables, Loader, Problem, Problems};
use crate::tls::authorities::KeyAuthorities;

/// Keys and authorities that were read with a configuration, of the files that it names.
#[derive(Clone, Debug)]
pub struct TokenFiles {
    /// Keys of tokens.
    pub keys: LocalKeys,
    /// Authorities that the servers of fetched keys are signed by.
    pub authorities: KeyAuthorities,
}

/// A configuration that passed the checks.
pub struct CheckedConfig {
    /// The configuration, with the tables in `taken`.
    pub config: Config,
    /// Keys of its tokens.
    pub files: TokenFiles,
    /// Tables of sources that are part of it.
    pub taken: FoundTables,
    /// Problems of the tables that were left out.
    pub refused: RefusedTables,
}

/// Tables of the sources that are not in force.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RefusedTables {
    /// Tables of `[[route]]`.
    pub routes: RefusedList,
    /// Tables of `[[tenant]]`.
    pub tenants: RefusedList,
}

/// The tables of a list, as far as they are not in force.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RefusedList {
    /// Problems for which they are not; empty = they are.
    pub problems: Vec<Problem>,
    /// Tables in their place: those that were in force before.
    pub kept: usize,
}

impl RefusedList {
    /// The part of the sources' list that is in force instead, in words.
    pub fn instead(&self) -> String {
        match self.kept {
            0 => "none of its tables is in force".into(),
            kept => format!("those in force stay ({kept})"),
        }
    }
}

/// Tables of a list that can be part of the configuration.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Choice {
    /// The tables that the sources name now.
    Found,
    /// The tables in force.
    Taken,
    /// None at all.
    Nothing,
}

/// The routes and the tenants that are tried, best first. A wrong list must neither keep out the
/// other one, nor put out what is in force of either as long as that fits the files.
const ORDER: [(Choice, Choice); 9] = {
    use Choice::{Found, Nothing, Taken};
    [
        (Found, Found),
        (Found, Taken),
        (Taken, Found),
        (Taken, Taken),
        (Found, Nothing),
        (Taken, Nothing),
        (Nothing, Found),
        (Nothing, Taken),
        (Nothing, Nothing),
    ]
};

/// Routes and tenants that the sources name, and those in force.
#[derive(Default)]
pub struct SourceTables {
    found: FoundTables,
    taken: FoundTables,
    refused: RefusedTables,
}

impl SourceTables {
    /// Notes the tables that the sources name now. Whether they differ from those before.
    pub fn set_found(&mut self, found: FoundTables) -> bool {
        let differ = found != self.found;
        self.found = found;
        differ
    }

    /// Checks the files of `loader` with the tables that the sources name; what fails of these is
    /// left out, with what is in force in its place, or else with nothing. The files of keys that a
    /// configuration names are read by `read`, and belong to it. An error lists problems of the
    /// files, or tells why tenants in force do not fit them.
    pub fn check(
        &self,
        loader: &Loader,
        read: impl Fn(&Config) -> Result<TokenFiles, Problems>,
    ) -> Result<CheckedConfig, Vec<Problem>> {
        let mut failed: Vec<((Choice, Choice), Vec<Problem>)> = Vec::new();
        for (routes, tenants) in ORDER {
            let is_told = self.is_told(routes, |tables| &tables.routes)
                || self.is_told(tenants, |tables| &tables.tenants);
            // The files alone come last, so that an error tells of them.
            if is_told && (routes, tenants) != (Choice::Nothing, Choice::Nothing) {
                continue;
            }
            let chosen = self.chosen(tenants, |tables| &tables.tenants);
            let tables = FoundTables {
                routes: self.chosen(routes, |tables| &tables.routes).to_vec(),
                tenants: chosen.to_vec(),
                awaited: self.awaited_beside(chosen),
            };
            let checked = loader.check(&tables);
            match checked.and_then(|config| read(&config).map(|files| (config, files))) {
                // Tenants that are in force are not put out by a reload: their users would be those
                // of unknown tenants, with the keys of [auth].
                Ok(_) if tenants == Choice::Nothing && self.has_tenants() => {
                    let of = failed.iter().rev().find(|((_, other), _)| *other != tenants);
                    return Err(of.map(|(_, problems)| problems.clone()).unwrap_or_default());
                }
                Ok((config, files)) => {
                    let why = |pair| {
                        let of = failed.iter().find(|(tried, _)| *tried == pair);
                        of.map(|(_, problems)| problems.clone()).unwrap_or_default()
                    };
                    // The problems that the found list has beside the other one that was taken.
                    let refused = RefusedTables {
                        routes: RefusedList {
                            problems: why((Choice::Found, tenants)),
                            kept: tables.routes.len(),
                        },
                        tenants: RefusedList {
                            problems: why((routes, Choice::Found)),
                            kept: tables.tenants.len(),
                        },
                    };
                    return Ok(CheckedConfig { config, files, taken: tables, refused });
                }
                Err(Problems(problems)) => failed.push(((routes, tenants), problems)),
            }
        }
        Err(failed.pop().map(|(_, problems)| problems).unwrap_or_default())
    }

    /// Whether tenants of sources are in force, and still named by them.
    fn has_tenants(&self) -> bool {
        !self.taken.tenants.is_empty() && !self.found.tenants.is_empty()
    }

    /// Tenants that the sources have, or may have, and that are not among `tenants`.
    fn awaited_beside(&self, tenants: &[FoundTable]) -> AwaitedTenants {
        let AwaitedTenants::Named(unread) = &self.found.awaited else { return AwaitedTenants::Any };
        if *tenants == self.found.tenants {
            return self.found.awaited.clone();
        }
        let in_force: BTreeSet<_> = tenants.iter().filter_map(FoundTable::name).collect();
        let found = self.found.tenants.iter().filter_map(FoundTable::name);
        let all = found.chain(unread.iter().cloned());
        AwaitedTenants::named(all.filter(|name| !in_force.contains(name)).collect())
    }

    /// The tables of a list, which `of` picks, by a choice.
    fn chosen(
        &self,
        choice: Choice,
        of: impl Fn(&FoundTables) -> &Vec<FoundTable>,
    ) -> &[FoundTable] {
        match choice {
            Choice::Found => of(&self.found),
            Choice::Taken => of(&self.taken),
            Choice::Nothing => &[],
        }
    }

    /// Whether a choice before this one stands for the same tables.
    fn is_told(&self, choice: Choice, of: impl Fn(&FoundTables) -> &Vec<FoundTable>) -> bool {
        let (found, taken) = (of(&self.found), of(&self.taken));
        match choice {
            Choice::Found => false,
            Choice::Taken => taken == found,
            Choice::Nothing => found.is_empty() || taken.is_empty(),
        }
    }

    /// Notes the tables that are in force from now on, and why others are not.
    pub fn accept(&mut self, taken: FoundTables, refused: RefusedTables) {
        let RefusedTables { routes, tenants } = &refused;
        if routes.problems != self.refused.routes.problems {
            for problem in &routes.problems {
                tracing::error!(
                    %problem,
                    kept = routes.kept,
                    "routes_refused: of the source's routes those before stay in force, which are \
                     `kept`; correct this value in the source"
                );
            }
        }
        if tenants.problems != self.refused.tenants.problems {
            for problem in &tenants.problems {
                tracing::error!(
                    %problem,
                    kept = tenants.kept,
                    "tenants_refused: of the source's tenants those before stay in force, which \
                     are `kept`; correct this value in the source"
                );
            }
        }
        self.taken = taken;
        self.refused = refused;
    }

    /// Tables of the sources that are not in force.
    pub fn refused(&self) -> &RefusedTables {
        &self.refused
    }
}
