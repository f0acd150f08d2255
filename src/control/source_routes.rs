//! Routes of discovery sources: checked together with the files, and taken or refused as a whole.

use crate::config::{Config, FoundTable, FoundTables, Loader, Problem, Problems};

/// A configuration that passed the checks.
pub struct CheckedConfig {
    /// The configuration, with the routes in `taken`.
    pub config: Config,
    /// Routes of sources that are part of it.
    pub taken: Vec<FoundTable>,
    /// Problems of the routes that were left out; empty = none were.
    pub refused: Vec<Problem>,
}

/// Routes that the sources name, and those in force.
#[derive(Default)]
pub struct SourceRoutes {
    found: Vec<FoundTable>,
    taken: Vec<FoundTable>,
    refused: Vec<Problem>,
}

impl SourceRoutes {
    /// Notes the routes that the sources name now. Whether they differ from those before.
    pub fn set_found(&mut self, found: Vec<FoundTable>) -> bool {
        let differ = found != self.found;
        self.found = found;
        differ
    }

    /// Checks the files of `loader` with the routes that the sources name; if that fails, with the
    /// routes in force; else with none. An error lists problems of the files alone.
    pub fn check(&self, loader: &Loader) -> Result<CheckedConfig, Vec<Problem>> {
        let mut refused = Vec::new();
        for routes in [&self.found, &self.taken] {
            let tables = FoundTables { routes: routes.clone(), tenants: Vec::new() };
            match loader.check(&tables) {
                Ok(config) => return Ok(CheckedConfig { config, taken: routes.clone(), refused }),
                Err(Problems(problems)) if refused.is_empty() => refused = problems,
                Err(_) => {}
            }
        }
        match loader.check(&FoundTables::default()) {
            Ok(config) => Ok(CheckedConfig { config, taken: Vec::new(), refused }),
            Err(Problems(problems)) => Err(problems),
        }
    }

    /// Notes the routes that are in force from now on, and why others are not.
    pub fn accept(&mut self, taken: Vec<FoundTable>, refused: Vec<Problem>) {
        if refused != self.refused {
            for problem in &refused {
                tracing::error!(
                    %problem,
                    "routes_refused: the routes in force stay; correct this value in the source"
                );
            }
        }
        self.taken = taken;
        self.refused = refused;
    }

    /// Problems for which the routes of the sources are not in force; empty = they are.
    pub fn refused(&self) -> &[Problem] {
        &self.refused
    }
}
